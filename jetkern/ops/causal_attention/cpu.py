"""The compiled C++ op, ``torch.ops.jetkern.causal_attention``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from jetkern.ops.attention.cpu import dense_rows
from jetkern.ops.causal_attention import reference
from jetkern.ops.register import operator


def _fake(q: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(*q.shape[:2], 2)


_op = operator(
    "jetkern::causal_attention",
    "(Tensor q, Tensor k, Tensor v, Tensor offsets, bool bf16) -> (Tensor out, Tensor softmax)",
    gradients="q k v",
    kept="out softmax",
    fake=_fake,
    reference=lambda q, k, v, offsets, bf16: reference.causal_attention(q, k, v, offsets),
)


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, precision: str = "ieee"
) -> Tensor:
    out, _ = _op(
        dense_rows(q),
        dense_rows(k.to(q.dtype)),
        dense_rows(v.to(q.dtype)),
        offsets.contiguous(),
        precision == "bf16",
    )
    return out
