"""What results say about the machine, the versions and the commit that made them."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from pathlib import Path

INSTRUCTION_SETS = ("portable", "avx2", "avx512", "avx512bf16")
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
        "jetkern": version("jetkern"),
        "commit": commit(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": version("numpy"),
        "machine": f"{platform.system()} {platform.machine()}",
        "gpu": gpu_model(),
    }
