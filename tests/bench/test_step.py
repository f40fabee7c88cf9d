"""What the benchmark of training steps says besides times."""

import pytest

from bench.jets import load_jets
from bench.step import our_steps, profile, shares
from jetkern.ops import dispatch


@pytest.mark.skipif(bool(dispatch.cpu_library()), reason="needs the C++ ops")
def test_the_profile_names_the_ops_and_adds_up_to_the_step() -> None:
    jets = load_jets("", 4)
    steps = our_steps("micro", "classifier", "ieee")
    seconds = profile(lambda: steps.train(jets))
    ops = {"local_block", "attention_block", "pair_bias", "mlp", "attention", "knn"}
    assert set(seconds) == ops | {"optimiser", "rest"}
    assert min(seconds.values()) > 0


def test_shares_are_sorted_and_say_what_rate_is_reached() -> None:
    row = {"profile_seconds": {"rest": 1.0, "local_block": 3.0}}
    text = shares(row, {"local_block": 1e9, "rest": 0.0}, 2e9)
    assert text == "local_block 75% (at 50%), rest 25%"
