"""The CUDA op of csrc/cuda, ``torch.ops.jetkern_cuda.attention``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jetkern.ops.attention.reference import attention as reference
from jetkern.ops.dispatch import PRECISIONS
from jetkern.ops.parameters import Dropout
from jetkern.ops.register import operator
from jetkern.packed import Packed

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
    particles = None if particle_offsets is None else Packed.trusted(particle_offsets)
    return reference(q, k, v, query_offsets, key_offsets, bias, particles)


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


def covers(q: Tensor, *others: Any) -> str:
    """Heads of a width up to 32, no dropout."""
    if others[-1] is not None:
        return "it has no dropout"
    widest = WIDTHS[-1]
    return f"heads are {q.shape[2]} wide, more than {widest}" if q.shape[2] > widest else ""


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor,
    bias: Tensor | None,
    particles: Packed | None,
    dropout: Dropout | None = None,
    precision: str = "ieee",
) -> Tensor:
    """See ``jetkern.ops.attention``."""
    width = q.shape[2]
    if width not in WIDTHS:  # zeros change neither the scores nor what is kept of the result
        wide = next(w for w in WIDTHS if w > width)
        q, k, v = (torch.nn.functional.pad(x, (0, wide - width)) for x in (q, k, v))
    if bias is not None:
        bias = (bias if bias.dtype == torch.bfloat16 else bias.float()).contiguous()
    out, _ = _attention(
        q,
        k.to(q.dtype),
        v.to(q.dtype),
        query_offsets.contiguous(),
        key_offsets.contiguous(),
        bias,
        None if particles is None else particles.offsets.contiguous(),
        None if particles is None else particles.pair_offsets,
        width**-0.5,
        PRECISIONS.index(precision),
    )
    return out[..., :width] if out.shape[2] != width else out
