"""A training beside busy neighbours: does it get its share of the cores?

python -m bench.neighbours --neighbours 1

Trains the micro classifier for some seconds at a time, in processes of their own and in turn: with
the threads spinning where they wait for each other (GNU OpenMP's way), sleeping
(OMP_WAIT_POLICY=passive), and with one thread; each alone and beside processes that never rest. The
fair share of a run with t threads beside n neighbours on c cores is its speed alone times
min(1, c / (t + n)). Ratios of medians; a machine that others use, too, makes all of them smaller.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from jetkern.cli.parser import positive
from jetkern.tables import show, table

BUSY = "while True: pass"
WAYS = {
    "2 threads, spinning": {"OMP_NUM_THREADS": "2"},
    "2 threads, sleeping": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"},
    "1 thread": {"OMP_NUM_THREADS": "1"},
}


def train(seconds: float) -> None:
    """Trains in this process, and prints jets per second and CPU seconds per 1000 jets."""
    from jetkern.model.pet import PET
    from jetkern.model.presets import model_preset
    from jetkern.objectives import Objective
    from jetkern.study.estimate import made_jets

    objective = Objective(PET(model_preset("micro", ["classifier"])))
    jets = made_jets(128)
    objective(jets)["loss"].backward()
    done, begin, used = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - begin < seconds:
        objective(jets)["loss"].backward()
        done += len(jets)
    wall, cpu = time.perf_counter() - begin, time.process_time() - used
    print(json.dumps({"rate": done / wall, "cpu": 1000 * cpu / done}))


def measured(way: str, neighbours: int, seconds: float) -> dict[str, float]:
    """One training in a process of its own beside so many neighbours."""
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(neighbours)]
    try:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
        done = subprocess.run(
            [sys.executable, "-m", "bench.neighbours", "--train", str(seconds)],
            env=environment | WAYS[way],
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(done.stdout)
    finally:
        for process in busy:
            process.kill()
            process.wait()


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--neighbours", type=positive, default=1)
    parser.add_argument("--repeats", type=positive, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each training")
    parser.add_argument("--train", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train is not None:
        train(options.train)
        return
    cores = len(os.sched_getaffinity(0))
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    for _ in range(options.repeats):
        for way in WAYS:
            for neighbours in (0, options.neighbours):
                one = measured(way, neighbours, options.seconds)
                found.setdefault((way, neighbours), []).append(one)
    rows: list[tuple[object, ...]] = [
        ("threads", "alone, jets/s", "beside, jets/s", "of fair share", "CPU s / 1000 jets, beside")
    ]
    for way, settings in WAYS.items():
        alone, beside = (
            statistics.median(one["rate"] for one in found[way, n]) for n in (0, options.neighbours)
        )
        share = min(1.0, cores / (int(settings["OMP_NUM_THREADS"]) + options.neighbours))
        cpu = statistics.median(one["cpu"] for one in found[way, options.neighbours])
        ratio = beside / (alone * share)
        rows.append((way, f"{alone:,.0f}", f"{beside:,.0f}", f"{ratio:.2f}", f"{cpu:.2f}"))
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    show(f"{table(rows)}\n\n{cores} cores, load {load}, {options.neighbours} neighbours")


if __name__ == "__main__":
    main()
