"""The CUDA op of csrc/cuda, ``torch.ops.jetkern_cuda.attention``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jetkern.ops.attention.reference import attention as reference
from jetkern.ops.dispatch import PRECISIONS
from jetkern.ops.pair_features import pair_offsets
from jetkern.ops.register import operator

WIDTHS = (8, 16, 32)


def _fake(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty((*q.shape[:2], 2), dtype=torch.float32)


def _plain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor,
    bias: Tensor | None,
    particle_offsets: Tensor | None,
    pair_offsets: Tensor | None,
    scale: float,
    precision: int,
) -> Tensor:
    q = q * (scale * q.shape[2] ** 0.5)  # as q may be padded to a width of the kernels
    return reference(q, k, v, query_offsets, key_offsets, bias, particle_offsets)


_attention = operator(
    "jetkern_cuda::attention",
    "(Tensor q, Tensor k, Tensor v, Tensor query_offsets, Tensor key_offsets, Tensor? bias,"
    " Tensor? particle_offsets, Tensor? pair_offsets, float scale, int precision)"
    " -> (Tensor out, Tensor softmax)",
    gradients="q k v bias?",
    kept="out softmax",
    fake=_fake,
    reference=_plain,
)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor,
    bias: Tensor | None,
    particle_offsets: Tensor | None,
    precision: str = "ieee",
) -> Tensor:
    """See ``jetkern.ops.attention``. Heads wider than 32 go to the reference."""
    width = q.shape[2]
    if width > WIDTHS[-1]:
        return reference(q, k, v, query_offsets, key_offsets, bias, particle_offsets)
    if width not in WIDTHS:  # zeros change neither the scores nor what is kept of the result
        wide = next(w for w in WIDTHS if w > width)
        q, k, v = (torch.nn.functional.pad(x, (0, wide - width)) for x in (q, k, v))
    if bias is None or particle_offsets is None:
        bias = particle_offsets = pairs = None
    else:
        bias = (bias if bias.dtype == torch.bfloat16 else bias.float()).contiguous()
        particle_offsets = particle_offsets.contiguous()
        pairs = pair_offsets(particle_offsets)
    out, _ = _attention(
        q,
        k.to(q.dtype),
        v.to(q.dtype),
        query_offsets.contiguous(),
        key_offsets.contiguous(),
        bias,
        particle_offsets,
        pairs,
        width**-0.5,
        PRECISIONS.index(precision),
    )
    return out[..., :width] if out.shape[2] != width else out
