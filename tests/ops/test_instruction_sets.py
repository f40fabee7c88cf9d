"""The kernels of older CPUs, forced. The choice is made once for a process, hence the processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from jetkern.build import instruction_sets
from jetkern.ops import dispatch

ROOT = Path(__file__).parents[2]


def run(isa: str, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment |= {"JETKERN_CPU_ISA": isa, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def older() -> list[str]:
    """The instruction sets below this CPU's."""
    return [] if dispatch.cpu_library() else instruction_sets()[: torch.ops.jetkern.cpu_isa()]


@pytest.mark.slow
@pytest.mark.parametrize("isa", older())
def test_accuracy_with_the_kernels_of_an_older_cpu(isa: str) -> None:
    done = run(isa, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider",
               "tests/ops", "-k", "cpu_accuracy")  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


def test_the_report_says_which_kernels_run() -> None:
    done = run("portable", "-m", "jetkern")
    assert done.returncode == 0, done.stderr
    assert "portable kernels (by JETKERN_CPU_ISA)" in done.stdout


def test_an_unknown_instruction_set_is_one_clear_line() -> None:
    done = run("sse9", "-m", "jetkern")
    assert done.returncode == 1
    known = "portable, avx2, avx512, avx512bf16, amx"
    assert f"JETKERN_CPU_ISA=sse9: choose one of {known}" in done.stderr
    assert "Traceback" not in done.stderr
