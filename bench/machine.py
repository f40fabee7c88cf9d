"""What a benchmark says about the machine that it ran on."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from jetkern.io import write_atomically
from jetkern.machine import INSTRUCTION_SETS, cpu_model, environment
from jetkern.ops import dispatch

ROOT = Path(__file__).parents[1]


def command() -> str:
    """How this program was called, without the folders of absolute paths."""
    arguments = [Path(a).name if Path(a).is_absolute() else a for a in sys.argv[1:]]
    return " ".join(["python -m", f"bench.{Path(sys.argv[0]).stem}", *arguments])


def matrix_rate(
    clock: Callable[[], float] = time.perf_counter, size: int = 1536, repeats: int = 5
) -> float:
    """FLOP/s of ``torch.mm`` on square float32 matrices, best of ``repeats``."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    best = float("inf")
    for _ in range(repeats):
        start = clock()
        torch.mm(a, b)
        best = min(best, clock() - start)
    return 2 * size**3 / best


def describe(threads: int, clock: Callable[[], float] = time.perf_counter) -> dict[str, Any]:
    """Machine, versions and commit, as a benchmark prints and stores them."""
    library = dispatch.cpu_library()
    return {
        "cpu": cpu_model(),
        "threads": threads,
        "kernels": library or INSTRUCTION_SETS[torch.ops.jetkern.cpu_isa()],
        **environment(),
        "matrix_gflops": round(matrix_rate(clock) * 1e-9, 1),
    }


def write_results(path: Path | None, document: dict[str, Any]) -> None:
    """Writes results, or what there is of them so far, where the command was given a path."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(document, indent=1) + "\n").encode())
