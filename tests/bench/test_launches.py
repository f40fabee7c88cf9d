"""What a step would launch on a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs Triton")

ROOT = Path(__file__).parents[2]


def test_a_step_is_counted_and_waits_for_nothing():
    """In a process of its own: the suite's Triton interprets."""
    command = [sys.executable, "-m", "bench.launches", "--sizes", "micro"]
    command += ["--objectives", "pretrain", "--lines", "1000"]
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    run = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    row, *lines = run.stdout.splitlines()[2:]
    triton, torch, waits = (int(cell) for cell in row.split("|")[3:6])
    assert triton > 50
    assert torch > 50
    assert not waits
    assert sum("triton" in line and "knn_kernel" in line for line in lines) == 1
