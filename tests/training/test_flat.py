"""Weights in one buffer learn as weights apart do, and are saved alike."""

import copy

import pytest
import torch
from test_same_bits import jets_of
from test_seven_objectives import OBJECTIVES

from jetkern import PET, Objective, PETConfig
from jetkern.objectives import parse_objective
from jetkern.training.distributed import World
from jetkern.training.flat import ALIGNED, FlatParameters
from jetkern.training.optim import build_optimizer, parameter_groups, set_lr
from jetkern.training.step import Step
from jetkern.training.weights import restore_optimizer

ALONE = World(0, 1, torch.device("cpu"))
CLIP = 0.5


def objective_of(text):
    torch.manual_seed(0)
    parts = parse_objective(text)
    config = PETConfig(
        dim=16, layers=1, heads=2, neighbours=3, head_layers=1, num_classes=3, parts=parts
    )
    return Objective(PET(config))


def groups_of(objective):
    return parameter_groups(
        objective.model.named_parameters(), 0.1, factors={"body.norm.weight": 3.0}
    )


def optimizer_of(name, groups):
    return build_optimizer(name, groups, lr=1.0, betas=(0.9, 0.99))


def rate(number):
    return 1e-3 / (1 + number)


def new_step(text, name, per_pass=1 << 30, decay=None):
    objective = objective_of(text)
    average = None
    if decay is not None:
        other = copy.deepcopy(objective)
        average = other, FlatParameters(groups_of(other))
    weights = FlatParameters(groups_of(objective))
    return Step(
        objective, weights, optimizer_of(name, weights.groups), ALONE,
        lr=rate, clip=CLIP, per_pass=per_pass, average=average, decay=decay or 0.0,
    )  # fmt: skip


def plain(text, name, batches, layout):
    """The loop as PyTorch has it; only the norm is summed in the order of ``layout``."""
    objective = objective_of(text)
    optimizer = optimizer_of(name, groups_of(objective))
    parameters = list(objective.parameters())
    for number, jets in enumerate(batches):
        optimizer.zero_grad()
        objective(jets)["loss"].backward()
        grads = {n: p.grad for n, p in objective.named_parameters()}
        norm = torch.linalg.vector_norm(layout.row([grads[n] for n in layout.names]))
        theirs = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        torch.testing.assert_close(norm, theirs)
        torch.nn.utils.clip_grads_with_norm_(parameters, CLIP, norm)
        set_lr(optimizer, rate(number))
        optimizer.step()
    return objective.state_dict(), optimizer.state_dict()


def equal(ours, theirs):
    """Whether nested values are the same bits, of the same kinds."""
    if isinstance(theirs, torch.Tensor):
        return torch.equal(ours, theirs)
    if isinstance(theirs, dict):
        return list(ours) == list(theirs) and all(equal(ours[k], theirs[k]) for k in theirs)
    if isinstance(theirs, (list, tuple)):
        return len(ours) == len(theirs) and all(map(equal, ours, theirs))
    return ours == theirs


def named(step):
    """The layout with the names of its parameters."""
    names = {id(p): n for n, p in step.objective.named_parameters()}
    step.weights.names = [names[id(p)] for p in step.weights.parameters]
    return step.weights


def compare(text, name, steps):
    """Whether both loops give the same weights and the same state to save."""
    batches = [jets_of(8 + number % 5) for number in range(steps)]
    step = new_step(text, name)
    for number, jets in enumerate(batches):
        step(jets, number)
    weights, state = plain(text, name, batches, named(step))
    ours = step.weights.split(step.optimizer.state_dict())
    if name == "lion":
        ours["state"] = dict(sorted(ours["state"].items()))
    return equal(dict(step.objective.state_dict()), dict(weights)) and equal(ours, state)


@pytest.mark.parametrize("text", OBJECTIVES)
def test_the_step_equals_the_plain_loop(text):
    assert compare(text, "ranger" if "mpm" in text else "lion", 8)


@pytest.mark.parametrize("name", ["lion", "ranger"])
def test_a_saved_state_continues_with_the_same_bits(name):
    batches = [jets_of(5 + number) for number in range(9)]
    whole = new_step("classifier", name)
    first, second = new_step("classifier", name), new_step("classifier", name)
    for number, jets in enumerate(batches):
        whole(jets, number)
    for number, jets in enumerate(batches[:4]):
        first(jets, number)
    second.objective.load_state_dict(first.objective.state_dict())
    state = copy.deepcopy(first.weights.split(first.optimizer.state_dict()))
    restore_optimizer(second.optimizer, second.weights.joined(state))
    for number, jets in enumerate(batches[4:], 4):
        second(jets, number)
    assert torch.equal(whole.weights.values, second.weights.values)


def test_states_of_other_weights_are_refused():
    step = new_step("classifier", "lion")
    step(jets_of(5), 0)
    state = step.weights.split(step.optimizer.state_dict())
    changed = copy.deepcopy(state)
    changed["state"][0]["exp_avg"] = torch.zeros(2)
    with pytest.raises(ValueError, match="exp_avg does not fit its parameter"):
        step.weights.joined(changed)
    changed = copy.deepcopy(state)
    changed["state"][1]["more"] = 1.0
    with pytest.raises(ValueError, match="different values"):
        step.weights.joined(changed)
    changed["param_groups"].pop()
    with pytest.raises(ValueError, match="number of groups"):
        step.weights.joined(changed)


def test_weights_are_views_that_begin_where_vectors_do():
    step = new_step("classifier", "lion")
    start = step.weights.values.data_ptr()
    for p in step.weights.parameters:
        first = (p.data_ptr() - start) // 4
        assert 0 <= first < len(step.weights.values)
        assert first % ALIGNED == 0 or p.numel() % ALIGNED or p.numel() < ALIGNED
    assert torch.equal(step.weights.row(list(step.weights.parameters)), step.weights.values)


def test_passes_and_the_average():
    whole, parts = (new_step("classifier+mpm", "lion", n, decay=0.9) for n in (1 << 30, 3))
    jets = jets_of(10)
    start = whole.weights.values.clone()
    whole.gradients(jets)
    parts.gradients(jets)
    torch.testing.assert_close(parts.gradient, whole.gradient, rtol=1e-3, atol=1e-5)
    whole(jets, 100)
    expected = 0.9 * start + 0.1 * whole.weights.values
    torch.testing.assert_close(whole.average[1].values, expected)
    before = whole.average[1].values.clone()
    whole(jets.replace(particles=jets.particles * torch.nan), 101)
    assert whole.skipped == 1
    assert torch.equal(whole.average[1].values, before)


def test_weights_without_a_gradient_are_left_alone():
    step = new_step("classifier", "lion")
    unused = torch.nn.Parameter(torch.ones(3))
    weights = FlatParameters([{"params": [*step.objective.parameters(), unused]}])
    step.weights, step.optimizer = weights, optimizer_of("lion", weights.groups)
    for group in step.optimizer.param_groups:
        group["weight_decay"] = 0.5
    step(jets_of(5), 0)
    assert torch.equal(unused.detach(), torch.ones(3))
