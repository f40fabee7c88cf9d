"""What a step would launch on a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs Triton")

ROOT = Path(__file__).parents[2]


def counted(*options):
    """Launches of Triton and of PyTorch and waits, and the lines they come from. In a process of
    its own: the suite's Triton interprets."""
    command = [sys.executable, "-m", "bench.launches", "--sizes", "micro", *options]
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    run = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    row, *lines = run.stdout.splitlines()[2:]
    return *(int(cell) for cell in row.split("|")[3:6]), lines


def test_a_step_is_counted_and_waits_for_nothing():
    triton, torch, waits, lines = counted("--objectives", "pretrain", "--lines", "1000")
    assert triton > 50
    assert torch > 50
    assert triton + torch <= 300
    assert not waits
    assert sum("triton" in line and "knn_kernel" in line for line in lines) == 1


@pytest.mark.parametrize(
    ("objective", "optimizer", "most"),
    [
        ("classifier+generator", "lion", 240),
        ("pretrain", "lion", 310),
        ("mpm", "adamw", 200),
        ("mpm", "ranger", 200),
    ],
)
def test_what_a_graph_holds_of_a_step_waits_for_nothing_and_is_short(objective, optimizer, most):
    what = ("--objectives", objective, "--optimizer", optimizer)
    triton, torch, waits, _ = counted(*what, "--graph")
    assert not waits  # no value is read, no size depends on values, nothing comes from the host
    assert triton + torch <= most
