"""Sets of numbers, with ends apart, chains and conditions follow the likelihood of one pass."""

import pytest
import torch

from jetkern.model.decoder import Decoder, DecoderConfig
from jetkern.model.delay import delayed
from jetkern.model.streams import MixtureHead
from jetkern.packed import offsets_from_counts
from jetkern.random import normal
from jetkern.sampling import SamplingError, generate
from jetkern.sampling.autoregressive import PLACE

SHAPE = {"dim": 16, "layers": 2, "heads": 4, "kv_heads": 2, "positions": "rope"}


def build(**changes) -> Decoder:
    torch.manual_seed(0)
    return Decoder(DecoderConfig(**{**SHAPE, **changes})).double()


@pytest.mark.parametrize(
    "kind",
    [
        {"classes": (2, 3), "delays": (0, 1)},
        {"classes": (2, 3), "delays": (0, 2), "end": "hazard"},
        {"classes": (2, 3), "delays": (0, 0), "joint": "chain", "head_hidden": 8},
    ],
    ids=["token, delays", "hazard, delays", "chain"],
)
def test_frequencies_are_the_likelihoods(kind: dict) -> None:
    model, number = build(**kind), 3000
    drawn = generate(model, torch.arange(number), max_points=3, seed=5, slots=number)
    ways = torch.cartesian_prod(torch.arange(2), torch.arange(3))
    empty = model.negative_log_likelihood(ways[:0], torch.tensor([0, 0]))
    one = model.negative_log_likelihood(ways, torch.arange(len(ways) + 1))
    want = torch.cat([empty, one]).detach().neg().exp()
    counts = drawn.packed.counts
    first = drawn.points[drawn.packed.offsets[:-1][counts == 1]]
    alone = torch.tensor([(first == way).all(1).sum() for way in ways])
    found = torch.cat([(counts == 0).sum()[None], alone]) / number
    error = (want * (1 - want) / number).sqrt()
    assert ((found - want).abs() < 4 * error + 1e-9).all()
    assert counts.max() <= 3
    assert drawn.cut.sum() <= (counts == 3).sum()


def test_numbers_are_those_that_one_pass_says() -> None:
    kind = {
        "classes": (4, 0), "delays": (0, 1), "end": "hazard", "components": 1, "condition": 1,
        "shift": (0, 2), "scale": (1, 3), "types": 2,
    }  # fmt: skip
    model, index = build(**kind), torch.arange(7)
    known = {"condition": torch.randn(7, 1), "types": index % 2}
    drawn = generate(model, index, max_points=9, seed=1, slots=2, **known)
    some = {k: v[3:5] for k, v in known.items()}
    alone = generate(model, index[3:5], max_points=9, seed=1, **some)
    rows = slice(drawn.packed.offsets[3], drawn.packed.offsets[5])
    torch.testing.assert_close(alone.points, drawn.points[rows])
    points = model.scaled(drawn.points)
    made = delayed(points, drawn.packed, (0, 1), model.config.classes, hazard=True)
    x = model(made.inputs, made.packed, model.known(**known))
    head = model.heads[1]
    assert isinstance(head, MixtureHead)
    _, means, widths = head(x)
    total = len(x)
    owner, rank = made.packed.owner(total), made.packed.rank(total)
    want = means[:, 0] + widths[:, 0] * normal(1, PLACE, index[owner], rank, torch.ones_like(rank))
    there = ~made.targets[:, 1].isnan()
    torch.testing.assert_close(made.targets[there, 1], want[there].detach())


def test_ends_by_a_threshold_and_cuts() -> None:
    model = build(classes=(3,), end="hazard")
    assert model.end is not None
    never = generate(model, torch.arange(5), seed=0, max_points=4, end_above=1.0)
    assert never.packed.counts.tolist() == [4] * 5
    assert never.cut.all()
    at_once = generate(model, torch.arange(5), seed=0, max_points=4, end_above=0.0)
    assert at_once.packed.offsets.tolist() == [0] * 6
    assert not at_once.cut.any()
    none = generate(model, torch.arange(0), seed=0, max_points=4)
    assert none.points.shape == (0, 1)
    assert len(none.packed) == 0
    with pytest.raises(ValueError, match="ends are apart"):
        generate(build(classes=(3,)), torch.arange(1), seed=0, max_points=4, end_above=0.5)


def test_what_a_set_is_made_of_does_not_depend_on_slots() -> None:
    """In float32, numbers, prompts and conditions included."""
    kind = {
        "classes": (3, 4, 0), "delays": (0, 1, 2), "end": "hazard", "condition": 2,
        "scale": (1, 1, 2), "head_hidden": 8,
    }  # fmt: skip
    model, index = build(**kind).float(), torch.arange(9)
    settings = {"seed": 2, "max_points": 7, "condition": torch.randn(9, 2)}
    whole = generate(model, index, **settings)
    again = generate(model, index, slots=2, **settings)
    assert torch.equal(whole.points, again.points)
    assert torch.equal(whole.packed.offsets, again.packed.offsets)
    counts = whole.packed.counts
    first = counts.clamp(max=3)
    kept = whole.packed.rank(len(whole.points)) < first[whole.packed.owner(len(whole.points))]
    prompts = (whole.points[kept], offsets_from_counts(first))
    continued = generate(model, index, prompts=prompts, slots=4, **settings)
    assert torch.equal(continued.packed.offsets, whole.packed.offsets)
    torch.testing.assert_close(continued.points, whole.points)
    wrong = (torch.full((1, 3), torch.nan), torch.tensor([0, 1]))
    one = {**settings, "condition": torch.randn(1, 2)}
    with pytest.raises(SamplingError, match="prompt of set 0: point 0 is no class"):
        generate(model, index[:1], prompts=wrong, **one)
    with pytest.raises(ValueError, match="conditions of 2 sets for 9"):
        generate(model, index, **{**settings, "condition": torch.randn(2, 2)})
    with torch.no_grad():
        model.end.linear.bias.fill_(torch.nan)
    with pytest.raises(SamplingError, match="set 0, row 0: its end has a probability that is NaN"):
        generate(model, index, **settings)
