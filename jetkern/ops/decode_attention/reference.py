"""Attention to a cache, written plainly. This file is the specification."""

import torch
from torch import Tensor


@torch.no_grad()
def decode_attention(q: Tensor, keys: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
    acc = torch.promote_types(q.dtype, torch.float32)
    group = q.shape[1] // keys.shape[2]
    after = torch.arange(keys.shape[1], device=q.device) >= lengths[:, None]  # (S, C)
    k, v = (
        t.to(acc).masked_fill(after[..., None, None], 0.0).repeat_interleave(group, 2)
        for t in (keys, values)
    )
    scores = torch.einsum("shd,schd->shc", q.to(acc), k) * q.shape[-1] ** -0.5
    weights = scores.masked_fill(after[:, None], -torch.inf).softmax(-1)
    return torch.einsum("shc,schd->shd", weights, v).to(q.dtype)
