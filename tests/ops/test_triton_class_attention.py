"""Class attention in Triton's interpreter; on a GPU the same tests run on it."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")

from jetkern.ops.attention_block import class_attention as module
from jetkern.packed import offsets_from_counts
from tests.ops.helpers import check_accuracy, generator, random_block, triton_device


def run(
    tokens, token_offsets, rows, row_offsets, weights, mlp, heads, precision="ieee", backend=""
):
    inputs = tokens, token_offsets, rows, row_offsets
    if backend != "triton":
        return module._reference(*inputs, *weights, *mlp, heads, precision)
    return module.class_attention(*inputs, weights, mlp, heads, precision)


def sets(counts: list[int], width: int, tokens: int = 2):
    rows, own = (offsets_from_counts(torch.tensor(n)) for n in (counts, [tokens] * len(counts)))
    source = generator(len(counts))
    x = [torch.randn(int(o[-1]), width, generator=source) for o in (own, rows)]
    return x[0], own, x[1], rows


@pytest.mark.parametrize(
    ("counts", "sizes", "precision"),
    [
        ([5, 0, 17, 1], (32, 64, 4), "ieee"),
        ([70], (36, 40, 3), "bf16"),
        ([1, 2], (32, 64, 4), "bf16"),
        ([], (32, 64, 4), "ieee"),
        ([0, 0], (32, 64, 4), "ieee"),
    ],
)
def test_accuracy(counts: list[int], sizes: tuple[int, int, int], precision: str) -> None:
    width, hidden, heads = sizes
    block = random_block(width, hidden)
    weights = block.qkv_weight, block.out_weight, block.alpha2, block.gamma2
    inputs = *sets(counts, width), weights, block.mlp, heads
    check_accuracy(run, *inputs, backend="triton", precision=precision, chained=4)


def test_what_is_too_wide_is_left_to_others() -> None:
    block = random_block(136, 72)
    inputs = [t.to(triton_device()) for t in sets([3], 136)]
    weights = block.qkv_weight, block.out_weight, block.alpha2, block.gamma2
    assert module.class_attention(*inputs, weights, block.mlp, 4, "bf16") is None
