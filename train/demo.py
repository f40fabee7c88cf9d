"""The main job, small, on real jets: simulate, convert, pre-train, fine-tune, compare.

python train/demo.py                    everything below demo/; the same command again continues it

Every stage is one of the commands that a user would type; each is printed before it runs.
"""

import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from jetkern.cli.parser import Parser, positive, processes, threads
from jetkern.io import user_path

ROOT = Path(__file__).resolve().parents[1]
LABELLED = {1_000: 100, 10_000: 256}  # labelled jets of a fine-tuning, and its batch size
RATE = {"pretrained": 3e-4, "scratch": 1e-3}


def main() -> None:
    parser = Parser("demo", __doc__)
    parser.prog, add = "demo.py", parser.add_argument
    add("--out", type=user_path, default=Path("demo"), metavar="DIR", help="folder")
    add("--jobs", type=threads, default=processes(), metavar="N", help="processes; default: cores")
    add("--jetclass", type=positive, default=20_000, metavar="N", help="jets to pre-train with")
    add("--toptag", type=positive, default=40_000, metavar="N", help="jets to tag tops in")
    add("--steps", type=positive, default=1200, metavar="N", help="updates of the pre-training")
    add("--tuning", type=positive, default=400, metavar="N", help="updates of each fine-tuning")
    options = parser.parse_args()
    folder = options.out.resolve()
    out, jobs = shlex.quote(str(folder)), f"--jobs {options.jobs}"
    seconds: dict[str, float] = {}

    def stage(name: str, command: str) -> None:
        print(f"\n[{name}] python {command}", flush=True)
        start = time.perf_counter()
        code = subprocess.run([sys.executable, *shlex.split(command)], cwd=ROOT).returncode
        if code in (130, -signal.SIGINT):
            raise KeyboardInterrupt
        if code:
            sys.exit(f"demo.py: the stage '{name}' failed; the same command continues from there")
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start

    for kind, jets, splits in (
        ("jetclass --no-mpi", options.jetclass // 10, "train=0.9,val=0.1"),
        ("toptag", options.toptag // 2, "train=0.3,val=0.1,test=0.6"),
    ):
        name = kind.split()[0]
        stage(
            "simulate",
            f"data_tools/simulate.py {kind} --out {out}/jets/{name} --jets-per-class {jets} "
            f"--splits {splits} {jobs} --figure",
        )
        stage(
            "convert",
            f"data_tools/convert.py {out}/jets/{name} --out {out}/shards/{name} {jobs}",
        )
    stage(
        "pre-train",
        f"train/pretrain.py --preset micro --objective pretrain --data {out}/shards/jetclass "
        f"--out {out}/runs/pretrained --batch-size 128 --steps {options.steps} "
        f"--warmup-steps {options.steps // 15} --optimizer lion --lr 2e-3 "
        f"--val-every {max(1, options.steps // 5)} --log-every {max(1, options.steps // 30)}",
    )
    runs = []
    for labelled, batch in LABELLED.items():
        for start, rate in RATE.items():
            source = f"--from {out}/runs/pretrained" if start == "pretrained" else "--preset micro"
            runs.append(f"{out}/runs/{start}-{labelled}")
            stage(
                "fine-tune",
                f"train/finetune.py top {source} --data {out}/shards/toptag --out {runs[-1]} "
                f"--num-jets {labelled} --batch-size {batch} --steps {options.tuning} "
                f"--warmup-steps {options.tuning // 10} --lr {rate} --patience 5 "
                f"--val-every {max(1, options.tuning // 10)} "
                f"--log-every {max(1, options.tuning // 10)}",
            )
    stage(
        "evaluate",
        f"train/evaluate.py {' '.join(runs)} --data {out}/shards/toptag --out {out}/results",
    )
    write_summary(folder, seconds)


def write_summary(folder: Path, seconds: dict[str, float]) -> None:
    """Prints the table again, the time of each stage, and where the pictures are."""
    results = folder / "results"
    (results / "seconds.json").write_text(json.dumps(seconds, indent=2))
    times = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    print(f"\n{(results / 'table.md').read_text()}")
    print(f"{sum(seconds.values()) / 60:.1f} minutes: {times}")
    for picture in sorted(folder.glob("**/*.png")):
        print(f"picture: {picture}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("demo.py: stopped; the same command continues", file=sys.stderr)
        sys.exit(130)
