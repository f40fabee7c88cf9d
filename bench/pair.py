"""Training steps of two checkouts, step by step in turn: what a change made faster.

    python -m bench.pair OLD NEW [--sizes micro small] [--objectives pretrain] [--precision bf16]

Each checkout, compiled (``python -m jetkern build``), runs its own ``bench.step`` on the same drawn
jets, one thread, in a process of its own. What counts is CPU time, and the ratio of steps that were
neighbours in time: on a shared machine the clock changes by the second, and both see it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

COLUMNS = "size", "objective", "jets", "old, ms", "new, ms", "old / new", "quarters"


def work(size: str, objective: str, precision: str, jets: int) -> None:
    """A step for each line of the standard input, whose CPU time is the answer. Everything but
    this file is the checkout's own."""
    sys.path.remove(str(Path(__file__).parent))
    import torch

    from bench import step

    try:  # checkouts of before 26 November 2026 have the one elsewhere and not the other
        from bench.jets import load_jets
        from jetkern.machine import repeating
    except ImportError:
        load_jets, repeating = step.load_jets, nullcontext  # type: ignore[assignment]

    torch.set_num_threads(1)
    batch = load_jets("", jets)
    scaled = [batch] if objective in getattr(step, "CASES", ()) else []  # targets are of its scale
    train = step.our_steps(size, objective, precision, *scaled)[1]
    with repeating():
        for _ in range(3):
            train(batch)
        print("ready", flush=True)
        for _ in sys.stdin:
            start = time.process_time()
            train(batch)
            print(time.process_time() - start, flush=True)


def compare(trees: list[Path], repeats: int, *case: str) -> list[list[float]]:
    """Seconds of the steps of each checkout."""
    running = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--work", *case],
            cwd=tree,
            env=os.environ | {"PYTHONPATH": str(tree.resolve()), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for tree in trees
    ]
    seconds: list[list[float]] = [[] for _ in trees]
    try:
        for tree, process in zip(trees, running, strict=True):
            if process.stdout.readline() != "ready\n":  # type: ignore[union-attr]
                raise SystemExit(f"bench.pair: the step of {tree} does not run")
        for repeat in range(repeats):
            for i in (0, 1) if repeat % 2 else (1, 0):
                process = running[i]
                print("step", file=process.stdin, flush=True)
                seconds[i].append(float(process.stdout.readline()))  # type: ignore[union-attr]
    finally:
        for process in running:
            process.kill()
            process.communicate()
    return seconds


def main() -> None:
    if "--work" in sys.argv[1:2]:
        size, objective, precision, jets = sys.argv[2:]
        return work(size, objective, precision, int(jets))
    from bench.machine import describe
    from bench.step import BATCH, OBJECTIVES
    from jetkern.tables import table

    parser = argparse.ArgumentParser(
        prog="python -m bench.pair",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("trees", nargs=2, type=Path, metavar="CHECKOUT", help="old, new")
    parser.add_argument("--sizes", nargs="+", default=["micro"], choices=list(BATCH))
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES))
    parser.add_argument("--precision", default="ieee", choices=["ieee", "bf16"])
    parser.add_argument("--jets", type=int, help="of a step; by default bench.step's of the size")
    parser.add_argument("--repeats", type=int, default=20)
    settings = parser.parse_args()
    rows = []
    for size in settings.sizes:
        for objective in settings.objectives:
            jets = str(settings.jets or BATCH[size])
            old, new = compare(
                settings.trees, settings.repeats, size, objective, settings.precision, jets
            )
            ratios = [a / b for a, b in zip(old, new, strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
            times = (f"{1e3 * statistics.median(t):.1f}" for t in (old, new))
            rows.append([size, objective, jets, *times, f"{middle:.2f}", f"{low:.2f}, {high:.2f}"])
            print(f"{size} {objective}: {middle:.2f}", file=sys.stderr)
    machine = describe(1, time.process_time)
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(table([COLUMNS, *rows], "ll" + "r" * 5, markdown=True))


if __name__ == "__main__":
    main()
