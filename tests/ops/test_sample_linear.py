from collections.abc import Callable
from functools import partial

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from jetkern.ops import sample_linear
from jetkern.random import random_bits
from tests.ops.helpers import generator, threads

BACKENDS = ["reference", "cpu"]
SETTINGS: dict[str, dict] = {
    "all": {}, "largest": {"temperature": 0.0}, "cold": {"temperature": 0.3}, "top k": {"top_k": 3},
    "top p": {"top_p": 0.6}, "both": {"top_k": 70, "top_p": 0.9, "temperature": 2.0},
}  # fmt: skip


def layer(rows: int, classes: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = generator()
    x, weight = torch.randn(rows, width, generator=g), torch.randn(classes, width, generator=g)
    bias = torch.randn(classes, generator=g)
    return x, weight, bias, random_bits(0, 1, torch.arange(rows))


def of_logits(logits: Tensor, draw: Callable[..., Tensor], **options) -> list[int]:
    """Draws of one row for each row of logits."""
    classes = logits.shape[1]
    eye = torch.eye(len(logits))
    keys = random_bits(2, 1, torch.arange(len(logits)))
    if not logits.isfinite().all():  # as biases, for 0 times infinity is no number
        return [
            int(draw(torch.zeros(1, 1), torch.zeros(classes, 1), row, keys[:1], **options))
            for row in logits
        ]
    return draw(eye, logits.T.contiguous(), None, keys, **options).tolist()


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("shape", [(0, 3, 2), (1, 1, 1), (40, 700, 33), (150, 130, 7)])
def test_cpu_draws_what_float64_draws(shape: tuple[int, ...], setting: dict) -> None:
    x, weight, bias, keys = layer(*shape)
    forbidden = torch.arange(shape[1]) % 3 == 1
    for options in (setting, {**setting, "forbidden": forbidden}):
        have = sample_linear(x, weight, bias, keys, backend="cpu", **options)
        want = sample_linear(x.double(), weight.double(), bias.double(), keys, **options)
        assert have.dtype == torch.int64
        assert int((have != want).sum()) <= 1  # scores that are equal in float32
        assert torch.equal(have, sample_linear(x, weight, bias, keys, backend="cpu", **options))
        if "forbidden" in options:
            assert not forbidden[have].any()


def test_draws_follow_the_softmax() -> None:
    p = torch.tensor([0.5, 0.25, 0.12, 0.08, 0.04, 0.01], dtype=torch.float64)
    keys = random_bits(3, 1, torch.arange(100_000))  # more than 16 bits
    x = torch.ones(len(keys), 1)
    for temperature, law in ((1.0, p), (2.0, p.sqrt() / p.sqrt().sum())):
        weight = p.log().float()[:, None]
        drawn = sample_linear(x, weight, None, keys, temperature=temperature, backend="cpu")
        counts = drawn.bincount(minlength=6).numpy()
        assert chisquare(counts, len(keys) * law.numpy()).pvalue > 1e-4
    # The classes that are left keep their law.
    kept = sample_linear(x, p.log().float()[:, None], None, keys, top_p=0.8, backend="cpu")
    assert kept.max() == 2
    assert float((kept == 0).double().mean()) == pytest.approx(0.5 / 0.87, abs=0.006)


def test_a_row_draws_the_same_alone_and_by_any_number_of_threads() -> None:
    x, weight, bias, keys = layer(150, 300, 24)
    for options in ({}, {"top_p": 0.7}):
        together = sample_linear(x, weight, bias, keys, backend="cpu", **options)
        with threads(3):
            again = sample_linear(x, weight, bias, keys, backend="cpu", **options)
        assert torch.equal(again, together)
        for row in (0, 17, 149):
            one = slice(row, row + 1)
            alone = sample_linear(x[one], weight, bias, keys[one], backend="cpu", **options)
            assert torch.equal(alone, together[one])


@pytest.mark.parametrize("backend", BACKENDS)
def test_traps_of_sampling(backend: str) -> None:
    traps(partial(of_logits, draw=partial(sample_linear, backend=backend)))


def traps(drawn: Callable[..., list[int]]) -> None:
    """Makes sure of what logits that hurt give, by ``of_logits`` of an implementation."""
    equal = torch.zeros(1, 9)
    inf, nan = torch.inf, torch.nan
    assert drawn(equal, temperature=0.0) == [0]
    assert drawn(equal, top_p=1e-9) == [0]
    assert drawn(equal, top_k=1) == [0]
    assert set(drawn(equal.repeat(200, 1), top_k=2)) == {0, 1}
    assert len(set(drawn(equal.repeat(200, 1)))) == 9
    steep = torch.tensor([[1.0, 3.0, 2.0]]).repeat(50, 1)
    first = torch.tensor([False, True, False])
    for temperature in (0.0, 1e-40, 1e-6):
        options = {"temperature": temperature}
        assert set(drawn(steep, **options)) == {1}
        assert set(drawn(steep, forbidden=first, **options)) == {2}
        assert set(drawn(steep, top_p=0.5, **options)) == {1}
    rows = torch.tensor([[0.0, -inf], [-inf, 0.0], [-inf, -inf], [0.0, nan], [inf, 0.0]])
    for options in ({}, {"top_k": 1}, {"top_p": 0.5}, {"temperature": 0.0}):
        assert drawn(rows, **options) == [0, 1, -1, -1, -1]
    forbidden = torch.tensor([False, True])
    assert drawn(rows, forbidden=forbidden) == [0, -1, -1, 0, -1]


def test_registration() -> None:
    x, weight, bias, keys = layer(5, 7, 3)
    given = (x, weight, bias, keys, bias > 5, 1.0, 2, 0.5, True)
    torch.library.opcheck(torch.ops.jetkern.sample_linear.default, given)


def test_bad_input_is_refused() -> None:
    x, weight, bias, keys = layer(3, 4, 2)
    for options, message in (
        ({"temperature": -1.0}, "temperature must be 0 or more"),
        ({"temperature": torch.nan}, "temperature must be 0 or more"),
        ({"top_k": -1}, "top_k must be"),
        ({"top_p": 0.0}, "top_p must be"),
        ({"forbidden": torch.ones(4, dtype=torch.bool)}, "all 4 classes are forbidden"),
        ({"forbidden": torch.zeros(4)}, "forbidden must be bool"),
    ):
        with pytest.raises(ValueError, match=message):
            sample_linear(x, weight, bias, keys, **options)
    with pytest.raises(ValueError, match="keys must be int64"):
        sample_linear(x, weight, bias, keys.int())
    with pytest.raises(ValueError, match="at least one class"):
        sample_linear(x, weight[:0], None, keys)
