"""Causal attention over packed sets, written plainly. This file is the specification."""

import torch
from torch import Tensor

from jetkern.jets import unpack


def causal_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> Tensor:
    acc = torch.promote_types(q.dtype, torch.float32)
    group = q.shape[1] // k.shape[1]
    queries, is_row = unpack(q.to(acc), offsets)  # (B, N, H, d), (B, N)
    keys, values = (unpack(t.to(acc).repeat_interleave(group, 1), offsets)[0] for t in (k, v))
    scores = torch.einsum("bihd,bjhd->bhij", queries, keys) * q.shape[-1] ** -0.5
    row = torch.arange(is_row.shape[1], device=q.device)
    weights = scores.masked_fill(row > row[:, None], -torch.inf).softmax(-1)
    return torch.einsum("bhij,bjhd->bihd", weights, values)[is_row].to(q.dtype)
