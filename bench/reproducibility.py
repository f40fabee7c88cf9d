"""Which trainings give the same bits: objective x threads x processes x batch, each three times.

    OMP_WAIT_POLICY=passive python -m bench.reproducibility \
        --json bench/results/MACHINE/reproducibility.json

Each cell pre-trains the micro model three times with one command, on the 500 jets of
``tests/jets`` cut to 24 particles. The third run is killed (SIGKILL to all of its processes) when
it has logged half of its steps, and continued. The cell holds the bits if the SHA-256 of weights
and optimiser is one. Losses are also compared with those of one thread and one process. Cells that
are in the JSON file already are not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing import Process
from pathlib import Path
from typing import Any

import torch

from bench.machine import ROOT, describe, write_results
from jetkern.cli import pretrain
from jetkern.tables import table
from jetkern.training.log import read_metrics

OBJECTIVES = [
    "+".join(parts)
    for n in (1, 2, 3)
    for parts in itertools.combinations(("classifier", "generator", "mpm"), n)
]
STEPS, SAVE_EVERY, VAL_EVERY = 4, 1, 4


def start(arguments: list[str], processes: int, threads: int, said: Path) -> list[Process]:
    """``jetkern pretrain`` in processes of its own, with what torchrun would tell them.

    They are forks of this process, which has imported PyTorch but computed nothing with it.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}

    def run(rank: int) -> None:
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes}
        if processes > 1:
            os.environ |= place | {name: str(n) for name, n in numbers.items()}
        with open(said, "a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        torch.set_num_threads(threads)
        sys.exit(pretrain.main(arguments))

    fork = multiprocessing.get_context("fork")
    started = [fork.Process(target=run, args=(rank,)) for rank in range(processes)]
    for process in started:
        process.start()
    return started  # type: ignore[return-value]


def train(data: Path, out: Path, cell: dict[str, Any], killed: bool) -> None:
    """One run to its end, killed once on the way if asked."""
    settings = {
        "data": data, "out": out, "objective": cell["objective"], "batch-size": cell["batch"],
        "threads": cell["threads"], "steps": STEPS, "save-every": SAVE_EVERY, "warmup-steps": 2,
        "lr": 1e-3, "log-every": 1, "val-every": VAL_EVERY, "val-jets": 64, "device": "cpu",
    }  # fmt: skip
    said = out.with_suffix(".txt")
    call = [f"--{name}={value}" for name, value in settings.items()]
    sizes = cell["processes"], cell["threads"]
    running = start(call, *sizes, said)
    if killed:
        log = out / "metrics.jsonl"
        while not (log.exists() and any(r["step"] >= STEPS // 2 for r in read_metrics(log))):
            if not all(p.is_alive() for p in running):
                sys.exit(f"{cell}: {said.read_text()}")
            time.sleep(0.005)
        for process in running:
            process.kill()
        for process in running:
            process.join()
        if (out / "DONE").exists():
            sys.exit(f"{cell}: ended before it could be killed")
        running = start(call, *sizes, said)
    for process in running:
        process.join()
    if any(p.exitcode for p in running):
        sys.exit(f"{cell}: {said.read_text()}")


def outcome(out: Path) -> dict[str, Any]:
    """The SHA-256 of weights and optimiser at the end of a run, and its losses."""
    manifest = out / "checkpoints" / f"step-{STEPS:08d}" / "MANIFEST.json"
    rows = read_metrics(out / "metrics.jsonl")
    return {
        "sha256": json.loads(manifest.read_text())["sha256"]["state.pt"],
        "losses": [(r["kind"], r["step"], r["loss"]) for r in rows if "loss" in r],
    }


def measure(data: Path, cell: dict[str, Any]) -> dict[str, Any]:
    """The cell with what its three runs gave."""
    found = []
    for killed in (False, False, True):
        with tempfile.TemporaryDirectory() as folder:
            train(data, Path(folder) / "run", cell, killed)
            found.append(outcome(Path(folder) / "run"))
    return {
        **cell,
        "same": all(f == found[0] for f in found),
        "sha256": [f["sha256"] for f in found],
        "losses": found[0]["losses"],
    }


def shown(results: list[dict[str, Any]]) -> str:
    """A row for each objective, a column for each number of threads and processes."""

    def of(objective: str, threads: int, processes: int) -> list[dict[str, Any]]:
        wanted = (objective, threads, processes)
        return [r for r in results if (r["objective"], r["threads"], r["processes"]) == wanted]

    kinds = sorted({(r["threads"], r["processes"]) for r in results})
    names = [f"{t} thread{'s' * (t > 1)}, {p} process{'es' * (p > 1)}" for t, p in kinds]
    lines = [["objective", *names]]
    for objective in OBJECTIVES:
        cells = []
        for kind in kinds:
            rows = of(objective, *kind)
            first = {r["batch"]: r["losses"] for r in of(objective, *kinds[0])}
            same = sum(r["same"] for r in rows)
            text = "same bits" if same == len(rows) else f"same bits in {same} of {len(rows)}"
            if rows and kind != kinds[0]:
                apart = max(
                    abs(a[2] - b[2]) / abs(b[2])
                    for r in rows
                    for a, b in zip(r["losses"], first[r["batch"]], strict=True)
                )
                text += f", {apart:.0e}"
            cells.append(text if rows else "not measured")
        lines.append([objective, *cells])
    return table(lines, "l", markdown=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.reproducibility",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=OBJECTIVES)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--batches", nargs="+", type=int, default=[32, 64])
    parser.add_argument("--json", type=Path, help="results are added to this file, cell by cell")
    settings = parser.parse_args()
    content: dict[str, Any] = {"results": []}
    if settings.json and settings.json.exists():
        content = json.loads(settings.json.read_text())
    keys = ("objective", "threads", "processes", "batch")
    done = {tuple(r[k] for k in keys) for r in content["results"]}
    cells = itertools.product(
        settings.objectives, settings.threads, settings.processes, settings.batches
    )
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "shards"
        convert = [sys.executable, "-m", "jetkern", "convert", ROOT / "tests/jets/jetclass.h5"]
        convert += ["--out", data, "--splits", "train=0.8,val=0.2", "--max-particles", "24"]
        subprocess.run([*map(str, convert)], check=True, stdout=subprocess.DEVNULL)
        for values in cells:
            if values in done:
                continue
            content["results"].append(measure(data, dict(zip(keys, values, strict=True))))
            print(*values, "same bits" if content["results"][-1]["same"] else "DIFFER", flush=True)
            write_results(settings.json, content)
    content["machine"] = describe(max(settings.threads))  # computes: the forks came before
    write_results(settings.json, content)
    print(shown(content["results"]))


if __name__ == "__main__":
    main()
