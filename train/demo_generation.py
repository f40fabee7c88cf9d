"""Generation, small, on real jets: simulate, fine-tune a generator, make jets, judge them.

python train/demo_generation.py         everything below demo/; the same command again continues it

It goes on from the pre-training of train/demo.py, and makes it if that has not been run. Every
stage is one of the commands that a user would type; each is printed before it runs.
"""

from stages import Demo, run

START = ("pretrained", "scratch")


def main() -> None:
    numbers = {
        "jetnet": (25_000, "jets of five types to learn to make"),
        "tuning": (2000, "updates of each fine-tuning"),
        "made": (4_000, "jets to make with each"),
    }
    demo = Demo(__file__, __doc__, numbers)
    demo.pretrained()
    splits = "train=0.6,val=0.1,test=0.3"
    data = demo.shards("jetnet --no-mpi", demo.options.jetnet // 5, splits, at_once=False)
    made = []
    for start in START:
        more = "--batch-size 32 --lr 5e-4 --velocity-units noise"
        source = demo.finetuned("jetnet", start, data, f"jetnet-{start}", more)
        made.append(f"{demo.out}/generated/{start}")
        number = f"--num-jets {demo.options.made}"
        words = f"train/generate.py {source} --conditions {data}/test --out {made[-1]} {number}"
        demo.stage("generate", words)
    words = f"train/evaluate.py {' '.join(made)} --data {data} --out {demo.out}/generation"
    demo.stage("evaluate", words)
    demo.close("generation")


if __name__ == "__main__":
    run(__file__, main)
