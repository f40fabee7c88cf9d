"""The counted work against what the reference does and what it reads and writes."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import limits
from bench.ops import OPS, batch, make
from jetkern.jets import Jets
from jetkern.model.presets import SIZES


def jet(particles: int) -> Jets:
    """One jet, so that the reference pads nothing."""
    return batch(str(particles), particles, "").select(slice(0, 1))


def counted(op: str, size: str, particles: int) -> tuple[float, float]:
    """Operations of the reference's matrix products, forward and backward."""
    case = make(op, size, jet(particles))
    module, inputs, leaves = case.prepare(torch.float32, "ieee")
    with FlopCounterMode(display=False) as forward:
        out = case.run(module, inputs, "reference", "ieee")
    with FlopCounterMode(display=False) as backward:
        if leaves:
            torch.autograd.grad(out, leaves, torch.ones_like(out))
    return forward.get_total_flops(), backward.get_total_flops()


CASES = [(op, size, n) for op in OPS for size in ("micro", "small") for n in (1, 5, 30)]


@pytest.mark.parametrize(("op", "size", "particles"), [*CASES, ("local_block", "large", 3)])
def test_products_are_those_of_the_reference(op: str, size: str, particles: int) -> None:
    forward, backward = counted(op, size, particles)
    work = limits.work(op, size, torch.tensor([particles]), 4)
    dim = SIZES[size]["dim"]
    if op == "pair_bias":
        # Each pair once, and the first layer, of three inputs, counted as elementwise. The
        # reference computes no gradient of its inputs either.
        first = 2 * particles**2 * 3 * 2 * dim
        forward, backward = (
            (total - first) * (particles + 1) / (2 * particles) for total in (forward, backward)
        )
    if op == "attention":  # the scores once more
        backward += 2 * (particles + 4) ** 2 * dim
    assert work["forward"].products == pytest.approx(forward)
    assert work["backward"].products == pytest.approx(backward)


@pytest.mark.parametrize("op", OPS)
def test_bytes_are_those_of_inputs_and_results(op: str) -> None:
    case = make(op, "small", jet(30))
    module, inputs, _ = case.prepare(torch.float32, "ieee")
    out = case.run(module, inputs, "reference", "ieee")
    moved = out.nbytes + sum(t.nbytes for t in inputs)
    if op == "knn":  # two of four columns
        moved -= inputs[0].nbytes // 2
    if op == "local_block":  # the neighbours, which are no input of the case
        moved += 8 * 30 * SIZES["small"]["neighbours"]
    assert limits.work(op, "small", torch.tensor([30]), 4)["forward"].bytes == moved


@pytest.mark.parametrize("op", OPS)
def test_work_adds_up_over_jets(op: str) -> None:
    counts = [0, 1, 7, 150]
    singly = [limits.work(op, "micro", torch.tensor([n]), 2) for n in counts]
    together = limits.work(op, "micro", torch.tensor(counts), 2)
    for way, work in together.items():
        amounts = zip(*(s[way] for s in singly), strict=True)
        assert work == pytest.approx(tuple(map(sum, amounts)))


def test_the_longest_of_three_times_is_the_limit() -> None:
    rates = limits.Rates(bandwidth=10.0, products=100.0, elementwise=1.0)
    for work, seconds, bound in (
        (limits.Work(20, 100, 1), 2.0, "bytes"),
        (limits.Work(20, 500, 1), 5.0, "products"),
        (limits.Work(20, 500, 7), 7.0, "elementwise"),
    ):
        assert rates.seconds(work) == seconds
        assert rates.bound(work) == bound
