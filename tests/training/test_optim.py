"""Optimisers against the packages that the study used, and their parameter groups."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_optimizer.optimizer.lion import Lion as PeerLion
from rangerlite import RangerLite
from torch import nn

from jetkern.training.optim import (
    Lion,
    Lookahead,
    build_optimizer,
    parameter_groups,
    ranger,
    set_lr,
)


def train(make, steps=50, seed=0, shapes=((5, 3), (3,), (1,), ()), lr=None, gaps=True):
    generator = torch.Generator().manual_seed(seed)
    params = [nn.Parameter(torch.randn(s, generator=generator)) for s in shapes]
    optimizer = make(params)
    for step in range(steps):
        for i, p in enumerate(params):
            # A parameter without a gradient in some steps must be left alone in them.
            unused = gaps and i == 1 and step % 3 == 1
            grad = torch.randn(p.shape, generator=generator)
            p.grad = None if unused else grad
        if lr is not None:
            for group in optimizer.param_groups:
                group["lr"] = lr(step)
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in params])


@settings(max_examples=15, deadline=None)
@given(
    wd=st.sampled_from([0.0, 0.1, 2.0]),
    betas=st.sampled_from([(0.9, 0.99), (0.95, 0.98)]),
    seed=st.integers(0, 99),
)
def test_lion_equals_its_published_package_bit_for_bit(wd, betas, seed):
    kwargs = {"lr": 1e-2, "betas": betas, "weight_decay": wd}
    schedule = lambda step: 1e-2 / (1 + step)  # noqa: E731
    ours = train(lambda p: Lion(p, **kwargs), seed=seed, lr=schedule)
    peer = train(lambda p: PeerLion(p, foreach=True, **kwargs), seed=seed, lr=schedule)
    assert torch.equal(ours, peer)


@pytest.mark.parametrize("wd", [0.0, 0.1])
@pytest.mark.parametrize("seed", [0, 1])
def test_ranger_equals_rangerlite(wd, seed):
    # With gradients everywhere: rangerlite counts the steps of each parameter by itself, ours
    # counts those of the optimiser, as in the paper.
    def run(make, **more):
        return train(lambda p: make(p, lr=1e-2, weight_decay=wd, **more), seed=seed, gaps=False)

    ours = run(ranger)
    assert torch.equal(ours, run(RangerLite, foreach=True))
    torch.testing.assert_close(ours, run(RangerLite, foreach=False), rtol=1e-5, atol=1e-6)


def test_lookahead_moves_the_slow_weights_as_in_the_paper():
    p = nn.Parameter(torch.tensor([1.0]))
    optimizer = Lookahead(torch.optim.SGD([p], lr=0.1), interval=2, alpha=0.25)
    expected = [0.9, 1 + 0.25 * (0.8 - 1)]
    for value in expected:
        p.grad = torch.ones(1)
        optimizer.step()
        assert p.item() == pytest.approx(value)


@pytest.mark.parametrize("name", ["lion", "ranger"])
@pytest.mark.parametrize("cut", [0, 4, 6])
def test_state_restores_exactly(name, cut, tmp_path):
    def steps(model, optimizer, start, stop):
        for step in range(start, stop):
            optimizer.zero_grad()
            x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
            model(x).square().sum().backward()
            optimizer.step()

    def build(model):
        groups = parameter_groups(model.named_parameters(), 0.1)
        return build_optimizer(name, groups, lr=1e-2, betas=(0.95, 0.99))

    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    other = copy.deepcopy(model)
    optimizer = build(model)
    steps(model, optimizer, 0, cut)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, tmp_path / "state.pt")
    steps(model, optimizer, cut, 13)

    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    other.load_state_dict(saved["model"])
    restored = build(other)
    restored.load_state_dict(saved["optimizer"])
    steps(other, restored, cut, 13)
    assert torch.equal(model.weight, other.weight)
    assert torch.equal(model.bias, other.bias)


def test_restored_slow_weights_are_not_shared_with_the_state():
    p = nn.Parameter(torch.ones(2))
    first = ranger([p])
    p.grad = torch.ones(2)
    first.step()
    state = first.state_dict()
    second = ranger([p])
    second.load_state_dict(state)
    before = state["slow"][0].clone()
    for _ in range(6):
        second.step()
    assert torch.equal(state["slow"][0], before)
    with pytest.raises(ValueError, match="shapes"):
        ranger([nn.Parameter(torch.ones(3))]).load_state_dict(state)


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1))
        self.tokens = nn.Linear(2, 1, bias=False)  # that predicts tokens, and is none
        self.body = nn.Linear(2, 2)
        self.norm1 = nn.LayerNorm(2)
        self.out = nn.Linear(2, 1)
        self.frozen = nn.Parameter(torch.zeros(1), requires_grad=False)


def test_parameter_groups():
    model = Toy()
    factors = dict.fromkeys(("out.weight", "out.bias", "norm1.bias"), 5)
    groups = parameter_groups(model.named_parameters(), 0.3, factors=factors)
    names = {id(p): n for n, p in model.named_parameters()}
    found = {names[id(p)]: (g["weight_decay"], g["lr_factor"]) for g in groups for p in g["params"]}
    assert found == {
        "token": (0.0, 1.0),
        "tokens.weight": (0.3, 1.0),
        "norm1.weight": (0.0, 1.0),
        "norm1.bias": (0.0, 5),
        "body.weight": (0.3, 1.0),
        "body.bias": (0.3, 1.0),
        "out.weight": (0.3, 5),
        "out.bias": (0.3, 5),
    }
    optimizer = build_optimizer("ranger", groups, lr=1.0, betas=(0.9, 0.999))
    set_lr(optimizer, 0.1)
    assert {g["lr"] for g in optimizer.param_groups} == {0.1, 0.5}
    with pytest.raises(ValueError, match=r"no such parameter: nose\.weight"):
        parameter_groups(model.named_parameters(), 0.3, factors={"nose.weight": 2.0})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: Lion(p, lr=-1), "negative"),
        (lambda p: Lion(p, betas=(1.0, 0.9)), "betas"),
        (lambda p: Lookahead(torch.optim.SGD(p), interval=0), "interval"),
        (lambda p: build_optimizer("sgd", p, lr=1, betas=(0, 0)), "unknown optimizer"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make([nn.Parameter(torch.zeros(1))])


def test_a_lion_that_is_told_on_the_device_steps_alike_and_not_at_all_where_it_is_not_applied():
    plain, told = ([nn.Parameter(torch.linspace(-1, 1, 37))] for _ in range(2))
    optimizers = [Lion(p, lr=1e-3, weight_decay=0.1) for p in (plain, told)]
    for step in range(20):
        gradient = torch.randn(37, generator=torch.Generator().manual_seed(step))
        plain[0].grad, told[0].grad = gradient, gradient.clone()
        optimizers[1].applied = torch.tensor(True)
        for optimizer in optimizers:
            optimizer.step()
        told[0].grad = torch.full((37,), torch.nan)
        optimizers[1].applied = torch.tensor(False)
        optimizers[1].step()
        assert torch.equal(plain[0], told[0])
    momenta = [o.state[p[0]]["exp_avg"] for o, p in zip(optimizers, (plain, told), strict=True)]
    assert torch.equal(*momenta)


@pytest.mark.parametrize("name", ["adamw", "ranger"])
@pytest.mark.parametrize("betas", [(0.95, 0.999), (0.9, 0.5)])  # the latter is never rectified
def test_the_others_that_are_told_on_the_device_step_alike_and_not_at_all_where_not_applied(
    name, betas
):
    start = torch.linspace(-1, 1, 37, dtype=torch.float64)
    plain, told = (nn.Parameter(start.clone()) for _ in range(2))
    optimizers = [
        build_optimizer(name, [{"params": [p], "weight_decay": 0.1}], lr=0.0, betas=betas)
        for p in (plain, told)
    ]
    for step in range(25):
        # Left out is the first one, too.
        told.grad = torch.full_like(told, torch.nan)
        optimizers[1].applied = torch.tensor(False)
        before = told.detach().clone()
        optimizers[1].step()
        assert torch.equal(told, before)
        gradient = torch.randn(37, generator=torch.Generator().manual_seed(step)).double()
        plain.grad, told.grad = gradient, gradient.clone()
        rate = 1e-2 / (1 + step)
        set_lr(optimizers[0], rate)
        optimizers[1].applied = torch.tensor(True)
        for group in optimizers[1].param_groups:
            group["lr"] = torch.tensor(rate, dtype=torch.float64)
        for optimizer in optimizers:
            optimizer.step()
        torch.testing.assert_close(told, plain, rtol=0, atol=1e-12)
    # Each goes on from the other's state, and tells on the host again.
    states = [optimizer.state_dict() for optimizer in optimizers]
    again = [nn.Parameter(p.detach().clone()) for p in (told, plain)]
    for p, state in zip(again, reversed(states), strict=True):
        other = build_optimizer(name, [{"params": [p]}], lr=0.0, betas=betas)
        other.load_state_dict(state)
        set_lr(other, 1e-2)
        p.grad = torch.ones_like(p)
        other.step()
    torch.testing.assert_close(*again, rtol=0, atol=1e-12)


def test_an_optimiser_that_cannot_be_told_says_so():
    optimizer = Lookahead(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1))
    assert optimizer.applied is None
    with pytest.raises(TypeError, match="cannot be told"):
        optimizer.applied = torch.tensor(True)
