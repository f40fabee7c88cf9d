"""A training step as one recording: the same updates as the plain loop, and nothing that a
recording forbids. On the CPU the recorder does the work at each replay."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from drivers import ROOT

from jetkern import PET, Jets, model_preset
from jetkern.fillers import sizes_of
from jetkern.graphs import Captured
from jetkern.jets import offsets_from_counts
from jetkern.model.columns import IDENTITY
from jetkern.model.config import TARGETS
from jetkern.model.targets import Choices
from jetkern.objectives import Objective
from jetkern.objectives.losses import Classification, MaskedParticles
from jetkern.objectives.targets import target_losses
from jetkern.objectives.views import Masked
from jetkern.tokenizers import QuantileNormal
from jetkern.training.distributed import World
from jetkern.training.flat import FlatParameters
from jetkern.training.graphed import GraphedStep, graphed, unfit
from jetkern.training.optim import Lion, build_optimizer, parameter_groups, ranger
from jetkern.training.step import Step

SMALL = {"dim": 8, "layers": 1, "heads": 2, "neighbours": 3, "head_layers": 1, "num_classes": 3}


def later(work):
    return None, work


MASKED = (("mpm",), ("classifier", "mpm"), ("generator", "mpm"), ("classifier", "generator", "mpm"))


def adamw(groups, lr):
    return build_optimizer("adamw", groups, lr=lr, betas=(0.9, 0.99))


ALONE = World(0, 1, torch.device("cpu"))


def made(parts, optimizer=Lion, world=ALONE, losses=None, **changes):
    """A step in float64, so that no sign of Lion's hangs on a rounding."""
    torch.manual_seed(0)
    changes = {"use_tracks": False, **SMALL, **changes}
    model = PET(model_preset("micro", parts, **changes)).double()
    objective = Objective(model, losses=losses and losses(model.config)).train()
    average = Objective(PET(model.config).double())
    average.load_state_dict(objective.state_dict())
    weights, slow = (
        FlatParameters(parameter_groups(o.model.named_parameters(), 0.1))
        for o in (objective, average)
    )
    return Step(
        objective,
        weights,
        optimizer(weights.groups, lr=1e-3),
        world,
        lr=lambda number: 1e-3 / (1 + number),
        clip=1.0,
        per_pass=1 << 20,
        average=(average, slow),
        decay=0.9,
    )


def batches(number, jets=24, seed=0):
    random = np.random.default_rng(seed)
    for i in range(number):
        counts = random.integers(0 if i else 1, 12, jets)
        rows = torch.from_numpy(random.normal(size=(counts.sum(), 4)) * [0.3, 0.3, 1, 1])
        yield Jets(
            particles=rows,
            offsets=offsets_from_counts(torch.from_numpy(counts)),
            pid=torch.from_numpy(random.integers(0, 9, counts.sum())),
            tracks=rows * torch.from_numpy(random.integers(0, 2, (counts.sum(), 1))),
            label=torch.from_numpy(random.integers(0, 3, jets)),
            index=torch.arange(i * jets, (i + 1) * jets),
        )


def check_updates(plain, recorded, number, seed=0):
    graph = GraphedStep(recorded, record=later)
    for update, jets in enumerate(batches(number, seed=seed)):
        bad = update == number - 2  # left out by both
        if bad:
            jets = jets.replace(particles=jets.particles * torch.nan)
        plain(jets, update)
        graph(jets, update)
        assert plain.skipped == recorded.skipped == bad
        losses, ours = plain.means(), recorded.means()
        assert bad or ours == pytest.approx(losses, rel=0, abs=1e-8)
    assert graph.plain < number / 10
    for a, b in (
        (plain.weights.values, recorded.weights.values),
        (plain.average[1].values, recorded.average[1].values),
        (plain.norm, recorded.norm),
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=3e-7)
    assert all(isinstance(group["lr"], float) for group in recorded.optimizer.param_groups)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [adamw, ranger])
def test_a_hundred_recorded_steps_of_any_optimiser_are_those_of_the_plain_loop(optimizer):
    check_updates(made(("mpm",), optimizer), made(("mpm",), optimizer), 100)


@pytest.mark.slow
@pytest.mark.parametrize(
    "parts",
    [("classifier",), ("generator",), ("classifier", "generator"), *MASKED],
    ids="+".join,
)
def test_a_hundred_recorded_steps_are_those_of_the_plain_loop(parts):
    check_updates(made(parts), made(parts), 100)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("neutral_noise", [False, True])
def test_recorded_steps_of_any_target_are_those_of_the_plain_loop(target, neutral_noise):
    features = ("delta_eta", "ln_pt", "d0")
    choices = Choices(0.1, neutral_noise=neutral_noise)

    def losses(config):
        return target_losses(config, view=Masked(0.2, 0.6), choices=choices)

    told = {"targets": (target,), "target_features": features, "codes": 5}
    steps = [made(("mpm",), losses=losses, **told) for _ in range(2)]
    for step in steps:
        tokenizer = step.objective.model.mpm.tokenizer
        scale = QuantileNormal.fit(list(np.random.default_rng(0).normal(size=(3, 1000))))
        tokenizer.scale.load_state_dict(scale.state_dict())
        tokenizer.codes.copy_(torch.eye(5, 3))
    check_updates(*steps, 9)


def test_recorded_steps_of_a_generator_of_columns_are_those_of_the_plain_loop():
    columns = (*IDENTITY, "tanh_d0", "d0_error", "tanh_dz", "dz_error")
    told = {"columns": columns, "noise_mean": (0.1,) * 14, "noise_width": (0.5,) * 14}
    told |= {"use_pid": False}
    check_updates(made(("generator",), **told), made(("generator",), **told), 9)


def test_what_cannot_be_recorded_is_plain_and_said(capsys):
    step = made(("classifier",))
    assert graphed(step, per_pass=8, batch=8) is step
    assert "plain launches: not on a GPU" in capsys.readouterr().err
    two = made(("mpm",))
    two.objective = Objective(two.objective.model, losses=[MaskedParticles(), half()])
    assert "several masked views" in unfit(two)
    with pytest.raises(ValueError, match="cannot be a graph"):
        GraphedStep(two, record=later)


def test_what_is_hidden_is_known_before_a_step_if_there_is_one_masked_view():
    (jets,) = batches(1)
    model = made(("mpm",)).objective.model
    drawn = MaskedParticles(Masked(0.2, 0.6))
    one = Objective(model, losses=[drawn])
    prepared = one.prepared(jets)
    assert prepared.shown.particles == int(one.visible(jets).sum())
    assert one(prepared)["loss"].equal(one(jets)["loss"])
    assert Objective(model, losses=[drawn, half()]).prepared(jets) is jets
    assert made(("classifier",)).objective.prepared(jets) is jets


@pytest.mark.slow
def test_two_processes_that_record_make_the_updates_of_two_plain_ones():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    run = subprocess.run(
        [*command, "--nproc-per-node=2", str(Path(__file__).with_name("two_graphs.py"))],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not run.returncode, run.stderr


def half():
    return MaskedParticles(Masked(0.5, 0.5))


def test_a_batch_that_does_not_fit_is_plain():
    plain, recorded = made(("mpm",)), made(("mpm",))
    graph = GraphedStep(recorded, record=later)
    for number, jets in enumerate(batches(5)):
        if number == 4:
            jets = Jets.concat([jets, *batches(8)])  # more than the capacity has room for
        plain(jets, number)
        graph(jets, number)
    assert graph.plain == 1
    torch.testing.assert_close(plain.weights.values, recorded.weights.values, rtol=0, atol=3e-7)


def test_a_drawn_fraction_of_hidden_particles_can_be_recorded():
    steps = [made(("classifier", "mpm")) for _ in range(2)]
    for step in steps:
        losses = [Classification(), MaskedParticles(Masked(0.2, 0.6))]
        step.objective = Objective(step.objective.model, losses=losses).train()
    check_updates(*steps, 9)


@pytest.mark.parametrize("counts", [[7], [3, 0, 17, 1], [5] * 40])
@torch.no_grad()
def test_inference_of_filled_batches_is_that_of_the_model(counts):
    torch.manual_seed(0)
    model = PET(model_preset("micro", ("classifier", "generator"), use_tracks=False, **SMALL))
    fast = Captured(model.eval(), record=lambda work: (work(), lambda: None))
    total = sum(counts)
    jets = Jets(
        particles=torch.randn(total, 4, generator=torch.Generator().manual_seed(1)),
        offsets=offsets_from_counts(torch.tensor(counts)),
        pid=torch.arange(total) % 9,
        label=torch.arange(len(counts)) % 3,
    )
    time = torch.linspace(0.1, 0.9, len(counts))
    near = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(fast.classify(jets), model.classify(jets), **near)
    torch.testing.assert_close(fast.velocity(jets, time), model.velocity(jets, time), **near)
    rows, offsets = model.body(jets)
    first = rows[offsets[:-1, None] + torch.arange(4)]
    torch.testing.assert_close(fast.embed(jets), first, **near)
    assert not fast.plain
    plain = Captured(model)  # on the CPU
    torch.testing.assert_close(plain.classify(jets), model.classify(jets))
    assert plain.plain == 1
    assert sizes_of(np.array(counts)).jets == len(counts)
