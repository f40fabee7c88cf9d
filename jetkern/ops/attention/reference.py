"""Attention over packed sets, written plainly. This file is the specification."""

import torch
from torch import Tensor

from jetkern.jets import segment_index, unpack
from jetkern.ops.pair_features import pair_index
from jetkern.ops.parameters import Dropout
from jetkern.packed import Packed
from jetkern.random import happens, more_bits


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor,
    bias: Tensor | None,
    particles: Packed | None,
    dropout: Dropout | None = None,
) -> Tensor:
    acc = torch.promote_types(q.dtype, torch.float32)
    queries, is_query = unpack(q.to(acc), query_offsets)  # (B, N, H, d), (B, N)
    keys, is_key = unpack(k.to(acc), key_offsets)
    values, _ = unpack(v.to(acc), key_offsets)
    scores = torch.einsum("bihd,bjhd->bijh", queries, keys) * q.shape[-1] ** -0.5
    if bias is not None and particles is not None:
        own = particles.offsets
        i, j = pair_index(own, bias.shape[1])
        jet = segment_index(own)[i]
        row = (query_offsets - own)[jet + 1] + i - query_offsets[jet]
        column = (key_offsets - own)[jet + 1] + j - key_offsets[jet]
        scores = scores.index_put((jet, row, column), bias.t().to(scores.dtype), accumulate=True)
    scores = scores.masked_fill(~is_key[:, None, :, None], -torch.inf)
    weights = scores.softmax(2).masked_fill(~is_key.any(1)[:, None, None, None], 0.0)
    if dropout is not None:
        counters = (torch.arange(n, device=q.device) for n in weights.shape[1:])
        query, key, head = torch.meshgrid(*counters, indexing="ij")
        bits = more_bits(dropout.keys[:, None, None, None], head, query, key)
        weights = weights.masked_fill(happens(bits, dropout.p), 0.0) / (1 - dropout.p)
    return torch.einsum("bijh,bjhd->bihd", weights, values)[is_query].to(q.dtype)
