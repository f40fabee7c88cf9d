"""The main job, small, on real jets: simulate, convert, pre-train, fine-tune, compare.

python train/demo.py                    everything below demo/; the same command again continues it

Every stage is one of the commands that a user would type; each is printed before it runs.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LABELLED = (1_000, 10_000)
BATCH = {1_000: 100, 10_000: 256}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder (default demo)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--jetclass", type=int, default=20_000, help="jets to pre-train with")
    parser.add_argument("--toptag", type=int, default=40_000, help="jets to tag tops in")
    parser.add_argument("--steps", type=int, default=1500, help="updates of the pre-training")
    parser.add_argument("--epochs", type=int, default=30, help="of each fine-tuning")
    options = parser.parse_args()
    out, jobs, seconds = options.out, f"--jobs={options.jobs}", {}

    def stage(name: str, *command: object) -> None:
        words = [str(word) for word in command]
        print(f"\n[{name}] python {shlex.join(words)}", flush=True)
        start = time.perf_counter()
        if subprocess.run([sys.executable, *words], cwd=ROOT).returncode:
            sys.exit(f"demo.py: the stage '{name}' failed; the same command continues from there")
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start

    out = out.resolve()
    for kind, classes, jets, splits in (
        ("jetclass", 10, options.jetclass, "train=0.9,val=0.1"),
        ("toptag", 2, options.toptag, "train=0.3,val=0.1,test=0.6"),
    ):
        hdf5, shards = out / "jets" / kind, out / "shards" / kind
        size = ("--jets-per-class", jets // classes, "--splits", splits)
        stage("simulate", "data_tools/simulate.py", kind, "--out", hdf5, *size, jobs, "--plots")
        stage("convert", "data_tools/convert.py", hdf5, "--out", shards, jobs)

    pretrained = out / "runs" / "pretrained"
    stage(
        "pre-train",
        *("train/pretrain.py", "--preset", "micro", "--objective", "pretrain"),
        *("--data", out / "shards" / "jetclass", "--out", pretrained),
        *("--batch-size", 256, "--steps", options.steps, "--warmup-steps", options.steps // 15, "--lr", 2e-3),
        *("--val-every", max(1, options.steps // 4)),
    )
    runs = []
    for jets in LABELLED:
        steps = options.epochs * jets // BATCH[jets]
        for start in ("pretrained", "scratch"):
            runs.append(out / "runs" / f"{start}-{jets}")
            stage(
                "fine-tune",
                *("train/finetune.py", "top", "--data", out / "shards" / "toptag"),
                *(("--from", pretrained) if start == "pretrained" else ("--preset", "micro")),
                *("--out", runs[-1], "--num-jets", jets, "--batch-size", BATCH[jets]),
                *("--steps", steps, "--warmup-steps", steps // 10, "--lr", 3e-4),
                *("--val-every", max(1, steps // 15), "--patience", 5),
            )
    stage(
        "evaluate",
        *("train/evaluate.py", *runs, "--data", out / "shards" / "toptag"),
        *("--out", out / "results"),
    )
    write_summary(out, seconds)


def write_summary(out: Path, seconds: dict[str, float]) -> None:
    """Prints the table again with the time of each stage, and keeps the times."""
    total = sum(seconds.values())
    (out / "results" / "seconds.json").write_text(json.dumps(seconds, indent=2))
    print(f"\n{(out / 'results' / 'table.md').read_text()}")
    parts = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    print(f"{total / 60:.1f} minutes: {parts}")
    for picture in sorted(out.glob("**/*.png")):
        print(f"picture: {picture}")


if __name__ == "__main__":
    main()
