"""An update of all weights in Triton's interpreter; on a GPU the same tests run on it."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")

from jetkern.ops import rounding
from jetkern.ops.gpu.update import clip, lion
from jetkern.training.optim import Lion
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
