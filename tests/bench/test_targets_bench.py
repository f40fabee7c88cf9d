import pytest
import torch

from bench.jets import load_jets
from bench.targets import CASES, learner, step


@pytest.mark.parametrize("case", CASES)
def test_a_step_of_each_target(case: str) -> None:
    jets = load_jets("", 4)
    objective = learner("micro", case, jets)
    found = [g for g in step(objective, jets) if g is not None]
    assert all(bool(torch.isfinite(g).all()) for g in found)
    assert len(found) > 50
