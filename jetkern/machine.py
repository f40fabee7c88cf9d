"""What results say about the machine, the versions and the commit that made them."""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jetkern import __version__

MAX_THREADS = max(256, os.cpu_count() or 1)  # beyond what a machine has, OpenMP crashes


def version(package: str) -> str:
    """The installed version of a package."""
    from importlib import metadata  # 0.02 s that most commands need not spend

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def cpu_model() -> str:
    """The CPU's name as the system gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            return next(line.split(":", 1)[1].strip() for line in info if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def gpu_model() -> str:
    """The GPU's name, or "none"."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"


def free_cores(seconds: float = 0.1) -> float | None:
    """How many of the cores that we may use nobody else uses now; None where it cannot be told."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    before = _idle()
    time.sleep(seconds)
    after = _idle()
    ours = os.sched_getaffinity(0)
    if not before or not ours <= after.keys():
        return None
    ticks = seconds * os.sysconf("SC_CLK_TCK")
    return sum(min(1.0, (after[core] - before[core]) / ticks) for core in ours)


def crowded(threads: int) -> str:
    """A note if other processes leave fewer cores free than so many threads, or ""."""
    free = free_cores() if threads > 1 else None
    if free is None or threads <= free + 0.5:
        return ""
    return (
        f"note: {threads} threads, but other processes leave {free:.1f} cores free: --threads "
        f"{max(1, round(free))} or OMP_WAIT_POLICY=passive may be faster"
    )


def _idle() -> dict[int, int]:
    """Ticks that each core has had nothing to do, as Linux counts them."""
    try:
        with open("/proc/stat", encoding="utf-8") as file:
            lines = [line.split() for line in file if re.match(r"cpu\d", line)]
    except OSError:
        return {}
    return {int(words[0][3:]): int(words[4]) + int(words[5]) for words in lines}


@functools.cache
def commit() -> str:
    """The commit of a git checkout, marked if tracked files differ from it; "unknown" elsewhere."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return result.stdout.strip() or "unknown"


@functools.cache
def environment() -> dict[str, str]:
    """Versions and, in a git checkout, the commit that a result was made with."""
    import torch

    return {
        "jetkern": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": version("numpy"),
        "machine": f"{platform.system()} {platform.machine()}",
        "gpu": gpu_model(),
    }


@contextmanager
def repeating() -> Iterator[None]:
    """For work that is the same over and over, such as the steps of a training.

    The garbage collector does not look again and again at what was there before, and the C library
    keeps up to 1 GiB that a step has freed for the next one, where else the system would take the
    pages back and hand them out anew, zeroed (glibc only, and until the process ends).
    """
    mmap_threshold, trim_threshold = -3, -1  # of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(mmap_threshold, 32 << 20)
        mallopt(trim_threshold, 1 << 30)
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
