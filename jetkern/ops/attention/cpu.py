"""The compiled C++ op, ``torch.ops.jetkern.attention``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from jetkern.ops.attention import reference
from jetkern.ops.parameters import Dropout
from jetkern.ops.register import operator
from jetkern.packed import Packed


def _fake(q: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(*q.shape[:2], 2)


def _reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor,
    bias: Tensor | None,
    particle_offsets: Tensor | None,
    jet_keys: Tensor | None,
    dropout_p: float,
) -> Tensor:
    particles = None if particle_offsets is None else Packed.trusted(particle_offsets)
    dropout = None if jet_keys is None else Dropout(jet_keys, dropout_p)
    return reference.attention(q, k, v, query_offsets, key_offsets, bias, particles, dropout)


_attention = operator(
    "jetkern::attention",
    "(Tensor q, Tensor k, Tensor v, Tensor query_offsets, Tensor key_offsets, Tensor? bias,"
    " Tensor? particle_offsets, Tensor? jet_keys, float dropout_p)"
    " -> (Tensor out, Tensor softmax)",
    gradients="q k v bias?",
    kept="softmax",
    fake=_fake,
    reference=_reference,
)


def dense_rows(x: Tensor) -> Tensor:
    """x (T, H, d) itself if its rows are dense, as in a slice of a projection; else a copy."""
    dense = x.stride(2) == 1 and x.stride(1) == x.shape[2]
    return x if dense else x.contiguous()


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
    if not k.dtype == v.dtype == q.dtype:
        k, v = k.to(q.dtype), v.to(q.dtype)
    out, _ = _attention(
        dense_rows(q),
        dense_rows(k),
        dense_rows(v),
        query_offsets.contiguous(),
        key_offsets.contiguous(),
        None if bias is None else bias.to(q.dtype).contiguous(),
        None if particles is None else particles.offsets.contiguous(),
        None if dropout is None else dropout.keys.contiguous(),
        0.0 if dropout is None else dropout.p,
    )
    return out
