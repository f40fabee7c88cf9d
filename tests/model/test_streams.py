"""Decoders of numbers, ends apart, chains and conditions: exact likelihoods, and their traps."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from jetkern.model.decoder import Decoder, DecoderConfig, decoder_preset
from jetkern.model.streams import NARROWEST, MixtureHead
from jetkern.packed import Packed, offsets_from_counts
from tests.model.by_steps import by_steps

KINDS = {
    "as spade": {
        "classes": (5, 3, 4, 0), "delays": (0, 1, 2, 3), "kv_heads": 1, "positions": "rope",
        "end": "hazard", "norm": "layer", "head_hidden": 6, "condition": 2, "scale": (1, 1, 1, 0.9),
        "shift": (0, 0, 0, -1.5), "gated": True, "registers": 2,
    },
    "as combined": {"classes": (9, 0), "delays": (0, 1), "end": "hazard", "condition": 2},
    "chain": {"classes": (5, 3, 0, 4), "delays": (0,) * 4, "joint": "chain", "end": "hazard"},
    "chain, end token, types": {
        "classes": (5, 0, 3), "delays": (0,) * 3, "joint": "chain", "head_hidden": 6, "types": 3,
    },
    "within bounds": {
        "classes": (4, 0), "delays": (0, 1), "end": "hazard", "scale": (1, 2), "shift": (0, 0.3),
        "lowest": (0, -1.5), "highest": (0, 0.9),
    },
    "numbers alone": {"classes": (0, 0), "delays": (0, 2), "end": "hazard", "components": 1},
}  # fmt: skip
COUNTS = [3, 0, 11, 1, 2]


def build(**changes) -> Decoder:
    torch.manual_seed(0)
    return Decoder(DecoderConfig(**{"dim": 16, "layers": 2, "heads": 4, **changes})).double()


def sets_of(model: Decoder, counts: list[int] = COUNTS) -> tuple[Tensor, Packed, dict]:
    g = torch.Generator().manual_seed(1)
    columns = [
        torch.randint(n, (sum(counts),), generator=g).double()
        if n
        else torch.randn(sum(counts), generator=g, dtype=torch.float64)
        for n in model.config.classes
    ]
    known = {}
    if model.config.condition:
        known["condition"] = torch.randn(len(counts), 2, generator=g, dtype=torch.float64)
    if model.config.types:
        known["types"] = torch.arange(len(counts)) % 3
    return torch.stack(columns, 1), Packed(offsets_from_counts(torch.tensor(counts))), known


def of_set(known: dict, b: int) -> dict:
    return {name: values[b : b + 1] for name, values in known.items()}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_likelihood_of_one_pass_is_that_of_cached_steps(kind: dict) -> None:
    model = build(**kind)
    points, packed, known = sets_of(model)
    found = model.negative_log_likelihood(points, packed, **known)
    parts = points.split(COUNTS)
    want = torch.stack([by_steps(model, p, of_set(known, b)) for b, p in enumerate(parts)])
    torch.testing.assert_close(found, want, rtol=1e-10, atol=1e-10)
    loss = model.loss(points, packed, **known)
    torch.testing.assert_close(loss, want.sum() / 17, rtol=1e-10, atol=0)
    single = model.float().negative_log_likelihood(points.float(), packed, **known)
    torch.testing.assert_close(single.double(), want, rtol=1e-4, atol=1e-4)
    for b, part in enumerate(parts):
        alone = model.negative_log_likelihood(
            part.float(), torch.tensor([0, len(part)]), **of_set(known, b)
        )
        torch.testing.assert_close(single[b : b + 1], alone, rtol=1e-4, atol=1e-4)


def test_registers_are_the_same_for_all_sets_and_learn() -> None:
    model = build(**KINDS["as spade"])
    points, packed, known = sets_of(model)
    before = model.negative_log_likelihood(points, packed, **known)
    with torch.no_grad():
        model.registers[1] *= torch.arange(16)
    after = model.negative_log_likelihood(points, packed, **known)
    assert (before != after).all(), "the empty set among them"
    after.sum().backward()
    assert model.registers.grad.abs().min() > 0
    none = model.row_losses(points[:0], torch.tensor([0]), condition=torch.zeros(0, 2))
    assert none[0].shape == (0, 5)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_no_row_knows_what_it_predicts(kind: dict) -> None:
    model = build(**kind)
    points, packed, known = sets_of(model, [14])
    points.requires_grad_(model.config.numbers)
    before, _ = model.row_losses(points, packed, **known)
    changed = points.detach().clone()
    changed[8:] = (points[8:].detach() + 1) % points.new_tensor([n or 7 for n in kind["classes"]])
    after, _ = model.row_losses(changed, packed, **known)
    for s, late in enumerate(model.config.delays):
        assert torch.equal(after[:8, s], before[:8, s])  # row 8 + 1 reads the first stream's 8
        assert not torch.equal(after[8 + late :, s], before[8 + late :, s])
    if model.end is not None:
        assert torch.equal(after[:9, -1], before[:9, -1])
    if points.requires_grad:  # a row's loss pulls at no later number
        before[:8].sum().backward()
        assert points.grad is not None
        assert not points.grad[8:].any()
        assert points.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["as spade", "chain, end token, types"])
def test_the_kernels_gradients_are_those_of_float64(kind: str) -> None:
    model = build(**KINDS[kind])
    points, packed, known = sets_of(model, [3, 0, 17, 1, 150])
    model.loss(points, packed, **known).backward()
    want = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model.float().loss(points.float(), packed, **known).backward()
    for (name, p), exact in zip(model.named_parameters(), want, strict=True):
        assert p.grad is not None
        error = (p.grad.double() - exact).norm() / exact.norm().clamp(min=1e-6)
        assert error < 1e-4, name


def test_the_probabilities_of_a_chain_and_its_end_are_one() -> None:
    model = build(classes=(2, 3), delays=(0, 0), joint="chain", end="hazard").requires_grad_(False)
    one = torch.cartesian_prod(torch.arange(2), torch.arange(3))
    of_one, _ = model.row_losses(one, torch.arange(len(one) + 1))
    of_one = of_one.view(6, 2, 3)
    ended = of_one.sum((1, 2)).neg().exp().sum()
    none = model.negative_log_likelihood(one[:0], torch.tensor([0, 0])).neg().exp()
    goes_on = (-of_one[:, 0].sum(1)).exp() * (1 - (-of_one[:, 1, 2]).exp())
    assert float(ended + none + goes_on.sum()) == pytest.approx(1, abs=1e-12)


def test_a_mixture_has_a_width_and_its_density_integrates_to_one() -> None:
    torch.manual_seed(0)
    head = MixtureHead(3, 4).requires_grad_(False)
    x = torch.tensor([[1e4, -1e4, 5.0], [0.1, 0.2, 0.3]])
    weights, means, widths = head(x.bfloat16().float())
    assert widths.min() >= NARROWEST
    assert torch.isfinite(head.losses(x, means[:, 0])).all(), "a number that is a mean"
    grid = torch.linspace(-40, 40, 40001)
    density = head.losses(x[1:].expand(len(grid), -1), grid).neg().exp()
    assert float(torch.trapezoid(density, grid)) == pytest.approx(1, abs=1e-4)
    assert head.losses(x, torch.full((2,), math.nan)).tolist() == [0, 0]
    u, z = torch.rand(20000), torch.randn(20000)
    drawn = head.draw(x[1:].expand(20000, -1), u, z)
    mean = float((weights[1].exp() * means[1]).sum())
    assert float(drawn.mean()) == pytest.approx(mean, abs=0.05)


def test_a_mixture_between_bounds_is_one_there_and_drawn_from() -> None:
    torch.manual_seed(0)
    head = MixtureHead(3, 4, (-1.2, 0.4)).requires_grad_(False)
    free = MixtureHead(3, 4).requires_grad_(False)
    free.load_state_dict(head.state_dict())
    x = torch.tensor([[0.1, 0.2, 0.3], [3.0, -2.0, 1.0]])
    for row in x:
        grid = torch.linspace(-1.2, 0.4, 8001)
        ours, whole = (h.losses(row.expand(len(grid), -1), grid) for h in (head, free))
        assert float(torch.trapezoid((-ours).exp(), grid)) == pytest.approx(1, abs=1e-4)
        torch.testing.assert_close(whole - ours, (whole - ours)[:1].expand(len(grid)))
        u, z = torch.rand(20000), torch.randn(20000)
        drawn = head.draw(row.expand(20000, -1), u, z)
        assert -1.2 <= drawn.min() < -1.1
        assert 0.3 < drawn.max() <= 0.4
        law = torch.cumulative_trapezoid((-ours).exp().double(), grid.double())
        assert kstest(drawn.numpy(), partial(np.interp, xp=grid[1:], fp=law)).pvalue > 1e-4
    edge, beyond = (head.losses(x, torch.full((2,), v)) for v in (0.4, 7.0))
    assert torch.equal(edge, beyond)


def test_gaussians_that_lie_beyond_their_bounds_stay_finite() -> None:
    head = MixtureHead(1, 2, (-1.0, 1.0))
    with torch.no_grad():
        head.linear.weight.zero_()
        head.linear.bias.copy_(torch.tensor([0.0, 0.0, 500.0, 300.0, -4.0, -4.0]))
    loss = head.losses(torch.zeros(1, 1), torch.tensor([0.5]))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert head.linear.bias.grad.isfinite().all()
    drawn = head.draw(torch.zeros(1, 1), torch.tensor([0.5]), torch.tensor([0.1]))
    assert drawn.abs().item() <= 1


@pytest.mark.parametrize(
    ("lowest", "highest"), [((0, 2.0), (0, 1.0)), ((0, 0), (1.0, 0)), ((), (0, 1)), ((0,), (1,))]
)
def test_wrong_bounds_are_errors(lowest, highest) -> None:
    own = {"classes": (3, 0), "delays": (0, 0), "dim": 4, "layers": 1, "heads": 1}
    with pytest.raises(ValueError, match="lowest"):
        DecoderConfig(**own, lowest=lowest, highest=highest)


def test_presets_are_of_the_published_sizes() -> None:
    spade = Decoder(decoder_preset("spade", layers=1))
    assert [type(h).__name__ for h in spade.heads] == ["Linear"] * 3 + ["MixtureHead"]
    spade = Decoder(decoder_preset("spade"))
    published = [*spade.blocks.parameters(), *spade.norm.parameters()]
    assert sum(p.numel() for p in published) == 2_812_160
    assert spade.registers.shape == (2, 256)
    assert decoder_preset("combined").classes == (27_000, 0)
    assert decoder_preset("omnijet-c").classes == (65_536,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": (0,)}, "each stream must have classes"),
        ({"joint": "chain", "classes": (2, 2), "delays": (0, 1)}, "a chain has no delays"),
        ({"scale": (1.0, 2.0)}, "scale must have one of each of 1 streams"),
        ({"scale": (0.0,)}, "scale must be positive"),
        ({"end": "tokn"}, "did you mean token"),
        ({"joint": "chian"}, "did you mean chain"),
        ({"condition": -1}, "condition must not be negative"),
        ({"components": 0}, "components must be at least 1"),
    ],
)
def test_wrong_configurations_are_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecoderConfig(**{"classes": (7,), "dim": 16, "layers": 1, "heads": 4, **changes})


def test_wrong_points_and_conditions_are_named() -> None:
    model = build(**KINDS["as combined"])
    points, packed, known = sets_of(model)
    for value, stream, message in (
        (math.nan, 1, "point 2 of set 0 has the number nan in stream 1, which has finite numbers"),
        (9.0, 0, "point 2 of set 0 has class 9.0 in stream 0, which has 9 classes"),
        (1.5, 0, "class 1.5 in stream 0"),
    ):
        wrong = points.clone()
        wrong[2, stream] = value
        with pytest.raises(ValueError, match=message):
            model.loss(wrong, packed, **known)
    with pytest.raises(ValueError, match="must be floating"):
        model.loss(points.long(), packed, **known)
    with pytest.raises(ValueError, match="2 numbers of a condition"):
        model.loss(points, packed)
    with pytest.raises(ValueError, match="0 types of sets"):
        model.loss(points, packed, types=torch.zeros(5, dtype=torch.int64), **known)
