"""The steps that ``bench.step --targets`` times."""

import pytest
import torch

from bench.jets import load_jets
from bench.step import beside_regression
from bench.targets import CASES, learner


@pytest.mark.parametrize("case", CASES)
def test_a_step_of_each_target(case: str) -> None:
    jets = load_jets("", 4)
    objective = learner("micro", case, jets)
    loss = objective(jets)["loss"]
    parameters = list(objective.parameters())
    found = [g for g in torch.autograd.grad(loss, parameters, allow_unused=True) if g is not None]
    assert all(bool(torch.isfinite(g).all()) for g in found)
    assert len(found) > 50


def test_times_are_beside_those_of_regression() -> None:
    def result(case: str, seconds: float) -> dict:
        rows = [{"contender": "ours", "train_seconds": seconds}]
        return {
            "size": "micro",
            "objective": case,
            "rows": [*rows, {"contender": "x", "skipped": "no"}],
        }

    rows = [result("regression", 2.0), result("cfm", 3.0), result("pretrain", 9.0)]
    lines = beside_regression(rows).splitlines()
    assert [line.split("|")[1:-1][-1].strip() for line in lines[2:]] == ["1.00", "1.50"]
    assert beside_regression([result("cfm", 3.0)]).count("1.") == 0
