"""What a step would launch on a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs Triton")

ROOT = Path(__file__).parents[2]


def counted(*options):
    """Of each objective: launches of Triton and of PyTorch and waits; and the lines they come from.
    In a process of its own: the suite's Triton interprets."""
    command = [sys.executable, "-m", "bench.launches", "--sizes", "micro", *options]
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    run = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    printed = run.stdout.splitlines()[2:]
    rows = [[int(cell) for cell in row.split("|")[3:6]] for row in printed if row[0] == "|"]
    return rows, [line for line in printed if line[0] != "|"]


def test_a_step_is_counted_and_waits_for_nothing():
    [(triton, torch, waits)], lines = counted("--objectives", "pretrain", "--lines", "1000")
    assert triton > 50
    assert torch > 50
    assert triton + torch <= 300
    assert not waits
    assert sum("triton" in line and "knn_kernel" in line for line in lines) == 1


@pytest.mark.parametrize(
    ("optimizer", "most"),
    [
        pytest.param(
            "lion", {"classifier+generator": 240, "pretrain": 310}, marks=pytest.mark.slow
        ),
        (
            "lion",
            {"regression+identity": 300, "tokens, 512": 300, "cfm": 330, "cnf": 540, "ssfm": 350},
        ),
        pytest.param("adamw", {"mpm": 200}, marks=pytest.mark.slow),
        pytest.param("ranger", {"mpm": 200}, marks=pytest.mark.slow),
    ],
)
def test_what_a_graph_holds_of_a_step_waits_for_nothing_and_is_short(optimizer, most):
    rows, _ = counted("--objectives", *most, "--optimizer", optimizer, "--graph")
    for (triton, torch, waits), limit in zip(rows, most.values(), strict=True):
        assert not waits  # no value is read, no size depends on values, nothing comes from the host
        assert triton + torch <= limit
