"""The Triton kernel in Triton's interpreter; on a GPU the same tests run on it."""

from functools import partial

import pytest
import torch
from test_sample_linear import SETTINGS, layer, of_logits, traps

from jetkern.ops import sample_linear
from jetkern.random import random_bits
from tests.ops.helpers import triton_device

pytest.importorskip("triton", reason="needs Triton")

SHAPES = [(0, 3, 2), (1, 1, 1), (5, 130, 7), (9, 1100, 17)]


def draw(*inputs, **options):
    """By the kernel, of tensors on the CPU."""
    device = triton_device()
    forbidden = options.pop("forbidden", None)
    given = [None if t is None else t.to(device) for t in inputs]
    options |= {"backend": "triton"}
    if forbidden is not None:
        options["forbidden"] = forbidden.to(device)
    return sample_linear(*given, **options).cpu()


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_draws_what_float64_draws(shape: tuple[int, ...], setting: dict) -> None:
    x, weight, bias, keys = layer(*shape)
    forbidden = torch.arange(shape[1]) % 3 == 1
    for options in (setting, {**setting, "forbidden": forbidden}):
        have = draw(x, weight, bias, keys, **options)
        want = sample_linear(x.double(), weight.double(), bias.double(), keys, **options)
        assert have.dtype == torch.int64
        assert torch.equal(have, want)
    have = draw(x, weight, None, keys, **setting)
    assert torch.equal(have, sample_linear(x.double(), weight.double(), None, keys, **setting))


def test_the_noise_is_that_of_the_reference() -> None:
    """Of many keys: where logits are close the noise decides."""
    classes, rows = 40, 500
    keys = random_bits(5, 41, torch.arange(rows))
    x, weight = torch.ones(rows, 1), torch.linspace(0, 2, classes)[:, None]
    have = draw(x, weight, None, keys)
    assert torch.equal(have, sample_linear(x.double(), weight.double(), None, keys))
    assert len(have.unique()) > classes // 2


def test_a_row_draws_the_same_alone_and_in_other_layouts() -> None:
    x, weight, bias, keys = layer(7, 600, 24)
    for options in ({}, {"top_p": 0.7}):
        together = draw(x, weight, bias, keys, **options)
        for row in (0, 6):
            one = slice(row, row + 1)
            assert torch.equal(draw(x[one], weight, bias, keys[one], **options), together[one])
        strided = weight.t().contiguous().t()
        assert torch.equal(draw(x, strided, bias, keys, **options), together)


def test_runs_of_rows_draw_as_one(monkeypatch) -> None:
    from jetkern.ops.linear_cross_entropy import triton as runs

    x, weight, bias, keys = layer(7, 60, 5)
    forbidden = torch.arange(60) < 30
    for options in ({"forbidden": forbidden}, {"top_k": 5, "forbidden": forbidden}):
        whole = draw(x, weight, bias, keys, **options)
        with monkeypatch.context() as patch:
            patch.setattr(runs, "LOGITS", 130)  # two rows
            assert torch.equal(draw(x, weight, bias, keys, **options), whole)


def test_halves_are_drawn_from() -> None:
    x, weight, bias, keys = (t.bfloat16() if t.is_floating_point() else t for t in layer(20, 90, 8))
    want = sample_linear(x.double(), weight.double(), bias.double(), keys)
    assert torch.equal(draw(x, weight, bias, keys, precision="bf16"), want)


def test_traps_of_sampling() -> None:
    traps(partial(of_logits, draw=draw))


def test_registration() -> None:
    x, weight, bias, keys = (t.to(triton_device()) for t in layer(5, 7, 3))
    sample_linear(x, weight, bias, keys, backend="triton")
    given = (x, weight, bias, keys, bias > 5, 1.0, 2, 0.5, "ieee")
    torch.library.opcheck(torch.ops.jetkern_triton.sample_linear.default, given)
