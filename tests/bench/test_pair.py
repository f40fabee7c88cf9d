"""Two checkouts beside each other: here the same one twice."""

import pytest

from bench.machine import ROOT
from bench.pair import compare


@pytest.mark.slow
def test_steps_of_two_checkouts_are_timed_in_turn() -> None:
    old, new = compare([ROOT, ROOT], 3, "micro", "classifier", "ieee", "4")
    assert len(old) == len(new) == 3
    assert min(old + new) > 0


def test_a_checkout_without_the_step_is_named(tmp_path) -> None:
    with pytest.raises(SystemExit, match=f"the step of {tmp_path} does not run"):
        compare([tmp_path, tmp_path], 1, "micro", "classifier", "ieee", "4")
