"""What a step would launch on a GPU."""

import pytest

pytest.importorskip("triton", reason="needs Triton")

from bench.launches import counted_step


def test_a_step_is_counted():
    counts, seconds = counted_step("micro", "classifier", lines=True)
    assert counts.of("triton") > 50
    assert counts.of("torch") > 50
    assert sum(n for (kind, name, _), n in counts.items() if name == "knn_kernel") == 1
    assert seconds > 0
