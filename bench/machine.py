"""What a benchmark says about the machine that it ran on."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from jetkern.io import write_atomically
from jetkern.machine import cpu_model, environment
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
        "kernels": library or dispatch.cpu_kernels(),
        **environment(),
        "matrix_gflops": round(matrix_rate(clock) * 1e-9, 1),
    }


def memory(kind: str) -> float:
    """This process's memory in MB: VmRSS now, VmHWM at its highest."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(kind))


def memory_of(call: Callable[[], Any]) -> float:
    """MB by which a call raises the memory of a process at its highest; tried in a fork (Linux).

    Of a second call: the first brings in the code that it runs, which counts, too.
    """
    ours, theirs = multiprocessing.Pipe(duplex=False)

    def measure() -> None:
        call()
        ctypes.CDLL(None).malloc_trim(0)  # what is free already is not counted as used
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM starts anew
        before = memory("VmRSS")
        call()
        theirs.send(memory("VmHWM") - before)

    child = multiprocessing.get_context("fork").Process(target=measure)
    child.start()
    child.join()
    if not ours.poll():
        raise RuntimeError(f"the process that measures memory ended with {child.exitcode}")
    return float(ours.recv())


def write_results(path: Path | None, document: dict[str, Any]) -> None:
    """Writes results, or what there is of them so far, where the command was given a path."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(document, indent=1) + "\n").encode())
