"""Each of the seven objectives learns on simulated jets: every active loss goes down.

`tests/jets/jetclass.h5` holds 500 JetClass-like jets, 50 a class, made by data_tools/simulate.py.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from jetkern import PET, Jets, Objective, model_preset
from jetkern.data import Shards, Stream
from jetkern.objectives import parse_objective
from jetkern.training.optim import build_optimizer, parameter_groups

ROOT = Path(__file__).parents[2]
OBJECTIVES = (
    "classifier",
    "generator",
    "mpm",
    "classifier+generator",
    "classifier+mpm",
    "generator+mpm",
    "classifier+generator+mpm",
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    out = tmp_path_factory.mktemp("shards")
    jets = ROOT / "tests/jets/jetclass.h5"
    command = [sys.executable, ROOT / "data_tools/convert.py", jets, "--out", out, "--quiet"]
    subprocess.run(command, check=True, capture_output=True)
    return Shards(out)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(o, marks=() if o in (OBJECTIVES[0], OBJECTIVES[-1]) else pytest.mark.slow)
        for o in OBJECTIVES
    ],
)
def test_fifty_steps(shards, text):
    torch.manual_seed(0)
    learner = Objective(PET(model_preset("micro", parse_objective(text))), seed=0)
    groups = parameter_groups(learner.model.named_parameters(), 0.01)
    name, betas = ("ranger", (0.95, 0.999)) if "mpm" in text else ("lion", (0.95, 0.99))
    optimizer = build_optimizer(name, groups, lr=1e-3, betas=betas)
    stream = Stream(shards, batch_size=32, seed=0)
    everything = Jets.concat(list(Stream(shards, batch_size=100, shuffle=False, epochs=1)))

    def losses():
        with torch.no_grad():
            return learner.eval()(everything)

    before = losses()
    learner.train()
    for _, jets in zip(range(50), stream, strict=False):
        optimizer.zero_grad()
        learner(jets)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
    # DDP runs with find_unused_parameters=False: each parameter must get its gradient.
    assert all(p.grad is not None for p in learner.parameters())
    after = losses()
    assert len(before) > 1
    for name, value in after.items():
        assert value < before[name], f"{name}: {before[name]:.4f} to {value:.4f}"
