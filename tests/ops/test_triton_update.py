"""An update of all weights in Triton's interpreter; on a GPU the same tests run on it."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton", reason="needs Triton")

from bench.accuracy import fault
from jetkern.ops import rounding
from jetkern.ops.gpu import update
from jetkern.ops.gpu.update import clip, lion
from jetkern.training.optim import AnyOptimizer, Lion, Lookahead, build_optimizer
from tests.ops.helpers import generator, triton_device


@pytest.mark.parametrize("norm", [0.0, 0.5, 2.0, torch.inf, torch.nan])
def test_clipping_and_leaving_out(norm: float) -> None:
    device = triton_device()
    skipped = torch.tensor(3, device=device)
    scale, finite = clip(torch.tensor(norm, device=device), 1.0, skipped)
    good = norm in (0.0, 0.5, 2.0)
    assert bool(finite) == good
    assert int(skipped) == (0 if good else 4)
    if good:
        assert float(scale) == pytest.approx(min(1 / (norm + 1e-6), 1), rel=1e-6)


@pytest.mark.parametrize(("applied", "loaded"), [(True, False), (True, True), (False, False)])
def test_lion_is_that_of_the_optimiser(applied: bool, loaded: bool) -> None:
    source, device = generator(0), triton_device()
    start, momentum, gradient = torch.randn(3, 2500, generator=source)
    gradient[:7] = 0
    momentum[:9] = 0
    p = torch.nn.Parameter(start.clone())
    optimizer = Lion([p], lr=1e-2, weight_decay=0.1)
    optimizer.state[p]["exp_avg"] = momentum.clone()
    p.grad = gradient.clone()
    if applied:
        optimizer.step()
    else:
        gradient += torch.nan
    ours, its = start.to(device), momentum.to(device)
    decision = torch.tensor(applied, device=device)
    lr = torch.tensor(1e-2, device=device) if loaded else 1e-2
    lion(ours, its, gradient.to(device), decision, lr=lr, decay=0.1, betas=(0.95, 0.99))
    torch.testing.assert_close(ours.cpu(), p.detach(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(its.cpu(), optimizer.state[p]["exp_avg"], rtol=1e-6, atol=1e-7)


UPDATES, LEFT_OUT = 15, (0, 5, 9)


def updated(
    name: str,
    betas: tuple[float, float],
    size: int,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    cut: int | None = None,
) -> tuple[Tensor, ...]:
    """Weights of two groups after ``UPDATES``, and what their optimiser keeps, in alphabetical
    order; after ``cut`` of them it is saved and another one goes on."""

    def made(weights: list[Tensor]) -> tuple[list[nn.Parameter], AnyOptimizer]:
        parameters = [nn.Parameter(w.clone()) for w in weights]
        groups = [
            {"params": [p], "weight_decay": decay}
            for p, decay in zip(parameters, (0.0, 0.1), strict=True)
        ]
        return parameters, build_optimizer(name, groups, lr=0.0, betas=betas)  # type: ignore[arg-type]

    source = generator(size)
    starts = [torch.randn(n, generator=source).to(device, dtype) for n in (size, 3)]
    parameters, optimizer = made(starts)
    for number in range(UPDATES):
        if number == cut:
            state = copy.deepcopy(optimizer.state_dict())
            parameters, optimizer = made([p.detach() for p in parameters])
            optimizer.load_state_dict(state)
        optimizer.applied = torch.tensor(number not in LEFT_OUT, device=device)
        for p, group in zip(parameters, optimizer.param_groups, strict=True):
            gradient = torch.randn(p.shape, generator=source)
            gradient *= 10.0 ** torch.randint(-6, 1, p.shape, generator=source)  # around eps
            p.grad = (gradient * (torch.nan if number in LEFT_OUT else 1)).to(device, dtype)
            rate = torch.tensor(0.1 / (1 + number + group["weight_decay"]), device=device)
            group["lr"] = rate if number % 2 else float(rate)  # a number, and what graphs read
        optimizer.step()
    state = optimizer.state_dict()
    found: list[Tensor] = [torch.cat([p.detach() for p in parameters])]
    if isinstance(optimizer, Lookahead):
        found += [torch.cat(state["slow"]), torch.tensor([state["steps"]])]
        state = state["optimizer"]
    first, second = state["state"].values()
    found += [torch.cat([first[key].view(-1), second[key].view(-1)]) for key in sorted(first)]
    return tuple(found)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each kernel of an update was launched."""
    counts, launch = Counter[str](), update.launch

    def counted(kernel: Any, *args: Any, **kwargs: Any) -> None:
        counts[kernel.fn.__name__] += 1
        launch(kernel, *args, **kwargs)

    monkeypatch.setattr(update, "launch", counted)
    return counts


@pytest.mark.parametrize("size", [0, 1, 2500])
@pytest.mark.parametrize(
    ("name", "betas"),
    [
        ("lion", (0.95, 0.99)),
        ("adamw", (0.9, 0.999)),
        ("adamw", (0.0, 0.9)),
        ("ranger", (0.95, 0.999)),
        ("ranger", (0.9, 0.5)),  # never rectified
    ],
)
def test_updates_are_those_of_the_optimiser(
    name: str, betas: tuple[float, float], size: int, launched: Any, launches: Counter[str]
) -> None:
    exact, eager = (updated(name, betas, size, dtype) for dtype in (torch.float64, torch.float32))
    assert not launches
    ours = launched(updated, name, betas, size, torch.float32, triton_device())
    kernels = ("lion_kernel",) if name == "lion" else ("adam_factors_kernel", "adam_kernel")
    assert launches == dict.fromkeys(kernels, 2 * UPDATES)
    assert fault(exact, eager, ours) == ""
    for cut in (3, 7):
        again = launched(updated, name, betas, size, torch.float32, triton_device(), cut)
        assert all(a.equal(b) for a, b in zip(again, ours, strict=True))
    if name != "lion":
        assert eager[-1].tolist() == ours[-1].tolist() == [UPDATES - len(LEFT_OUT)] * 2


def test_parts_of_a_buffer_are_rounded_once() -> None:
    buffer = torch.randn(64, generator=generator(1))
    part = buffer[16:40].view(4, 6)
    with rounding.rounded_once(buffer):
        copy = rounding.rounded(part)
        assert copy.untyped_storage().data_ptr() == rounding.rounded(buffer).data_ptr()
        assert copy.equal(part.bfloat16())
        assert rounding.rounded(part[1:].t()).equal(part[1:].t().bfloat16())
        assert rounding.rounded(torch.ones(2)).tolist() == [1, 1]
        with rounding.rounded_once(buffer):
            pass
        assert copy.untyped_storage().data_ptr() == rounding.rounded(buffer).data_ptr()
    assert rounding.rounded(part).equal(part.bfloat16())
    assert not rounding._copies
