"""The counted work against what the reference does and what it reads and writes."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import limits
from bench.cases import OPS, make
from bench.jets import batch, load_jets
from jetkern.jets import Jets
from jetkern.model.pet import PET
from jetkern.model.presets import SIZES, model_preset
from jetkern.objectives import Objective, parse_objective
from jetkern.objectives.masking import masked_counts


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
    if op in ("causal_attention", "decode_attention") and particles == 1:
        pytest.skip("PyTorch multiplies one row by one row elementwise, which is not counted")
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
    if op == "causal_attention":  # of the pairs that count, and the scores once more
        share = (particles + 1) / (2 * particles)
        forward, backward = forward * share, backward * share + particles * (particles + 1) * dim
    assert work["forward"].products == pytest.approx(forward)
    assert work["backward"].products == pytest.approx(backward)


@pytest.mark.parametrize("size", ["micro", "small"])
@pytest.mark.parametrize("part", ["classifier", "generator", "mpm"])
def test_products_of_a_model_are_those_of_its_reference(
    part: str, size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JETKERN_BACKEND", "reference")
    jets = load_jets("", 4).select(slice(0, 1))  # so that the reference pads nothing
    objective = Objective(PET(model_preset(size, (part,))))
    with FlopCounterMode(display=False) as counter:
        objective(jets)
    counted = limits.model_products(size, (part,), jets.counts)
    n = int(jets.counts - masked_counts(jets.counts)) if part == "mpm" else int(jets.counts)
    dim, heads = SIZES[size]["dim"], SIZES[size]["heads"]
    counted["pair_bias"] = 2 * n**2 * 2 * dim * (3 + heads)  # all pairs, and the first layer
    assert sum(counted.values()) == pytest.approx(counter.get_total_flops())


@pytest.mark.parametrize("size", ["micro", "small", "medium"])
def test_products_of_a_model_grow_with_the_parts(size: str) -> None:
    counts = load_jets("", 8).counts
    parts = [parse_objective(o) for o in ("classifier", "classifier+generator", "pretrain")]
    models = [limits.model_products(size, p, counts) for p in parts]
    totals = [sum(m.values()) for m in models]
    assert totals == sorted(set(totals))
    assert all(m["local_block"] > 0.5 * t for m, t in zip(models, totals, strict=True))


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
    if op == "linear_cross_entropy_sum":  # one number in all, however many jets
        moved -= out.nbytes
    moved += {"decode_attention": 8, "sample_linear": 8 * 30}.get(op, 0)  # lengths, keys
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
