"""What a benchmark says about the machine that it ran on."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from jetkern import __version__
from jetkern.machine import INSTRUCTION_SETS, cpu_model
from jetkern.ops import dispatch

ROOT = Path(__file__).parents[1]


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def commit() -> str:
    """The commit that runs, marked if tracked files differ from it."""
    changed = "+changes" if _git("status", "--porcelain", "--untracked-files=no") else ""
    return (_git("rev-parse", "--short", "HEAD") or "unknown") + changed


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
        "jetkern": __version__,
        "commit": commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "matrix_gflops": round(matrix_rate(clock) * 1e-9, 1),
    }
