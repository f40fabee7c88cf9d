"""What a report or a benchmark says about the machine that it ran on."""

from __future__ import annotations

import platform

INSTRUCTION_SETS = ("portable", "avx2", "avx512", "avx512bf16")


def cpu_model() -> str:
    """The CPU's name as the system gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            return next(line.split(":", 1)[1].strip() for line in info if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
