"""How long a study takes: its jets over step rates that are measured here and now."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

import torch

from jetkern.jets import IDENTITIES, Jets
from jetkern.model.pet import PET
from jetkern.model.presets import model_preset
from jetkern.objectives import Objective, parse_objective
from jetkern.study.grid import RULES, Grid, Job, Work
from jetkern.tables import table
from jetkern.training.optim import Lion

PARTICLES = 45  # of a jet, in the mean
BATCH = 128  # jets of a measured step
SECONDS = 1.0  # of each measurement, at least


def step_rate(work: Work, threads: int) -> float:
    """Jets per second of a training step, or of a forward pass, on made-up jets.

    The fastest of the steps in ``SECONDS``, by the CPU's time over the threads: what they take on
    cores that nobody else uses.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        parts = parse_objective(work.objective)
        objective = Objective(PET(model_preset(work.size, parts)))
        jets = made_jets(min(BATCH, work.batch_size or BATCH))
        optimizer = Lion(objective.parameters(), lr=0.0)
        fastest, begin = float("inf"), time.perf_counter()
        while time.perf_counter() - begin < SECONDS or fastest == float("inf"):
            start = time.process_time()
            if work.batch_size:
                objective(jets)["loss"].backward()
                optimizer.step()
                optimizer.zero_grad()
            else:
                with torch.no_grad():
                    objective(jets)
            fastest = min(fastest, max(time.process_time() - start, 1e-6) / threads)
        return len(jets) / fastest
    finally:
        torch.set_num_threads(before)


def made_jets(count: int) -> Jets:
    """So many jets as of JetClass in size, of nothing in particular."""
    draw = torch.Generator().manual_seed(0)
    counts = torch.randint(PARTICLES // 3, 2 * PARTICLES - PARTICLES // 3, (count,), generator=draw)
    total = int(counts.sum())
    scale = torch.tensor([0.2, 0.2, 1.0, 1.0])
    return Jets(
        particles=torch.randn(total, 4, generator=draw) * scale,
        offsets=torch.nn.functional.pad(counts.cumsum(0), (1, 0)),
        pid=torch.randint(1, IDENTITIES, (total,), generator=draw),
        tracks=torch.randn(total, 4, generator=draw) * 0.1,
        label=torch.randint(0, 10, (count,), generator=draw),
    )


def start_up() -> float:
    """CPU seconds that a command takes before it begins."""
    before = os.times()
    subprocess.run([sys.executable, "-c", "import jetkern.recipes"], check=True)
    after = os.times()
    used = after.children_user - before.children_user
    return used + after.children_system - before.children_system


def grid_table(grid: Grid, out: Path, *, jobs: int, threads: int) -> str:
    """The grid as tables: runs, and what is left of the commands with the time for it.

    Args:
        grid: of the study, whose results are in ``out``.
        jobs: commands at a time, with so many ``threads`` each.
    """
    left = [job for job in grid.jobs if not (out / job.output).exists()]
    kinds = {(j.work.size, j.work.objective, j.work.batch_size) for j in left if j.work}
    rates = {kind: step_rate(Work(kind[0], kind[1], 0, kind[2]), threads) for kind in sorted(kinds)}
    begin = start_up()

    def seconds(job: Job) -> float:
        if job.work is None:
            return begin
        return begin + job.work.jets / rates[job.work.size, job.work.objective, job.work.batch_size]

    rows: list[tuple[object, ...]] = [("command", "all", "left", "CPU time left")]
    for rule in RULES:
        mine = [job for job in left if job.rule == rule]
        number = sum(job.rule == rule for job in grid.jobs)
        known = "not estimated" if rule in ("simulate", "convert") and mine else ""
        if number:
            rows.append((rule, number, len(mine), known or _time(sum(map(seconds, mine)))))
    total = sum(seconds(job) for job in left if job.rule not in ("simulate", "convert"))
    measured = [("model", "losses", "batch", "jets/s")]
    measured += [(s, o, b or "judged", f"{rate:,.0f}") for (s, o, b), rate in rates.items()]  # type: ignore[misc]
    return "\n\n".join(
        [
            table(_runs(grid), "llllr"),
            table(rows, "lrrr"),
            table(measured, "llrr"),
            f"about {_time(total / jobs)} with {jobs} commands at a time, {threads} "
            f"thread{'s' * (threads > 1)} each, on free cores at these rates, which were measured "
            "just now; early stops make it less",
        ]
    )


def _runs(grid: Grid) -> list[tuple[object, ...]]:
    counts = Counter(
        (r.task, r.way or "-", r.size or "-", r.jets, bool(r.checkpoint)) for r in grid.runs
    )
    rows: list[tuple[object, ...]] = [("task", "way", "size", "jets", "runs")]
    for (task, way, size, jets, early), number in counts.items():
        rows.append((task, f"{way}, trajectory" if early else way, size, f"{jets:,}", number))
    return rows


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
