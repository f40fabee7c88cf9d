"""Points drawn row by row follow the likelihood of one pass."""

import pytest
import torch

from jetkern.model.decoder import Decoder, DecoderConfig
from jetkern.model.delay import delayed
from jetkern.model.streams import MixtureHead
from jetkern.packed import Packed
from jetkern.random import normal
from jetkern.sampling.points import _SECOND, draw_points

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
    drawn = draw_points(model, torch.arange(number), most=3, seed=5)
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
    drawn = draw_points(model, index, most=9, seed=1, **known)
    alone = draw_points(model, index[3:5], most=9, seed=1, **{k: v[3:5] for k, v in known.items()})
    rows = slice(drawn.packed.offsets[3], drawn.packed.offsets[5])
    torch.testing.assert_close(alone.points, drawn.points[rows])
    points = model.scaled(drawn.points)
    made = delayed(points, drawn.packed, (0, 1), model.config.classes, hazard=True)
    x = model(made.inputs, made.packed, model.known(**known))
    head = model.heads[1]
    assert isinstance(head, MixtureHead)
    _, means, widths = head(x)
    total = len(x)
    key = index[made.packed.owner(total)], made.packed.rank(total) * 64 + 1
    want = means[:, 0] + widths[:, 0] * normal(1, _SECOND, *key)
    there = ~made.targets[:, 1].isnan()
    torch.testing.assert_close(made.targets[there, 1], want[there].detach())


def test_ends_by_a_threshold_and_cuts() -> None:
    model = build(classes=(3,), end="hazard")
    assert model.end is not None
    never = draw_points(model, torch.arange(5), most=4, end_above=1.0)
    assert never.packed.counts.tolist() == [4] * 5
    assert never.cut.all()
    at_once = draw_points(model, torch.arange(5), most=4, end_above=0.0)
    assert at_once.packed.offsets.tolist() == [0] * 6
    assert not at_once.cut.any()
    none = draw_points(model, torch.arange(0), most=4)
    assert none.points.shape == (0, 1)
    assert isinstance(none.packed, Packed)
    with pytest.raises(ValueError, match="ends are apart"):
        draw_points(build(classes=(3,)), torch.arange(1), most=4, end_above=0.5)
