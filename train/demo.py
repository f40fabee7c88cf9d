"""The main job, small, on real jets: simulate, convert, pre-train, fine-tune, compare.

python train/demo.py                    everything below demo/; the same command again continues it

Every stage is one of the commands that a user would type; each is printed before it runs.
"""

from stages import Demo, run

LABELLED = {1_000: 100, 10_000: 256}  # labelled jets of a fine-tuning, and its batch size
RATE = {"pretrained": 3e-4, "scratch": 1e-3}


def main() -> None:
    numbers = {
        "toptag": (40_000, "jets to tag tops in"),
        "tuning": (400, "updates of each fine-tuning"),
    }
    demo = Demo(__file__, __doc__, numbers)
    demo.pretrained()
    data = demo.shards("toptag", demo.options.toptag // 2, "train=0.3,val=0.1,test=0.6")
    runs = []
    for labelled, batch in LABELLED.items():
        for start, rate in RATE.items():
            more = f"--num-jets {labelled} --batch-size {batch} --lr {rate} --patience 5"
            runs.append(demo.finetuned("top", start, data, f"{start}-{labelled}", more))
    words = f"train/evaluate.py {' '.join(runs)} --data {data} --out {demo.out}/results"
    demo.stage("evaluate", words)
    demo.close("results")


if __name__ == "__main__":
    run(__file__, main)
