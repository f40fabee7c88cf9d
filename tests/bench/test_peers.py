"""The peers of attention compute what attention does, on padded jets."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from bench import peers
from jetkern import ops
from jetkern.jets import offsets_from_counts, segment_index, unpack
from jetkern.ops.pair_features import pair_index

HEADS, WIDTH = 2, 8
COUNTS, PREFIX = [3, 0, 1, 7], [4, 4, 2, 5]  # of particles, and of the rows before them


@pytest.fixture
def packed() -> list[Tensor]:
    """q, k, v, rows, bias and offsets in float64."""
    counts, prefix = torch.tensor(COUNTS), torch.tensor(PREFIX)
    offsets, rows = offsets_from_counts(counts), offsets_from_counts(counts + prefix)
    q, k, v = torch.randn(3, int(rows[-1]), HEADS, WIDTH, dtype=torch.float64)
    bias = torch.randn(HEADS, int(counts.square().sum()), dtype=torch.float64)
    return [q, k, v, rows, bias, offsets]


def reference(packed: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Attention and the leaves q, k, v and bias of its gradients."""
    q, k, v, rows, bias, offsets = packed
    leaves = [t.clone().requires_grad_() for t in (q, k, v, bias)]
    out = ops.attention(*leaves[:3], rows, rows, leaves[3], offsets, backend="reference")
    return out, leaves


def test_sdpa_is_attention_with_its_gradients(packed: list[Tensor]) -> None:
    want, leaves = reference(packed)
    rows, offsets = packed[3], packed[5]
    padded, mask = peers.padded_inputs(*packed)
    assert all(t.is_leaf and t.requires_grad and t.is_contiguous() for t in padded)
    have = peers.sdpa(padded, rows.diff()).transpose(1, 2)[mask]
    torch.testing.assert_close(have, want, rtol=0, atol=1e-12)

    upstream = torch.randn_like(want)
    wanted = torch.autograd.grad(want, leaves, upstream)
    *tokens, full = torch.autograd.grad(have, padded, upstream)
    for got, gradient in zip(tokens, wanted, strict=False):
        torch.testing.assert_close(got.transpose(1, 2)[mask], gradient, rtol=0, atol=1e-12)
    i, j = pair_index(offsets)
    jet = segment_index(offsets)[i]
    at = torch.tensor(PREFIX)[jet] - offsets[jet]
    torch.testing.assert_close(full[jet, :, i + at, j + at].t(), wanted[3], rtol=0, atol=1e-12)


def test_flex_is_attention(packed: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    # The same graph, without generating code.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    want, _ = reference(packed)
    padded, mask = peers.padded_inputs(*packed)
    with torch.no_grad():  # FlexAttention has no backward on a CPU
        have = peers.flex()([t.float().detach() for t in padded], packed[3].diff())
    torch.testing.assert_close(have.transpose(1, 2)[mask].double(), want, rtol=0, atol=2e-6)


def test_padding_is_masked(packed: list[Tensor]) -> None:
    padded, mask = peers.padded_inputs(*packed)
    assert mask.equal(unpack(packed[0], packed[3])[1])
    masked = padded[3] == peers.MASKED
    assert masked.equal(~mask[:, None, None, :].expand_as(masked))
