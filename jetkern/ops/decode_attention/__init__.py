"""Attention of one new row of each of many sets to the keys and values kept of its earlier rows."""

from __future__ import annotations

import torch
from torch import Tensor

from jetkern.ops.checks import check_float, check_shape
from jetkern.ops.dispatch import run
from jetkern.packed import readable


def decode_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    *,
    precision: str = "ieee",
    backend: str = "auto",
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v of one query in each slot of a cache.

    The row that ``causal_attention`` gives for the last of ``lengths`` rows. Slots do not see each
    other, nor what lies in the cache after their rows. For inference: there is no backward.

    Args:
        q: (S, H, d); keys, values: (S, C, G, d), the rows of each slot, the query's own included,
            with G a divisor of H as for ``causal_attention``.
        lengths: (S,) int64 rows of each slot, from 1 to the capacity C.
        precision: the products may be rounded to this: "ieee" float32, "tf32" or "bf16".

    Returns:
        (S, H, d).

    Raises:
        ValueError: for wrong shapes or dtypes, or if a gradient is wanted; on a CPU also
            (RuntimeError from the C++ op) for lengths out of range.
    """
    check_float("q", q)
    check_shape("q", q, None, None, None)
    slots, heads, width = q.shape
    check_shape("keys", keys, slots, None, None, width)
    check_shape("values", values, *keys.shape)
    if not keys.shape[2] or heads % keys.shape[2]:
        raise ValueError(f"the {keys.shape[2]} heads of keys must divide the {heads} of q")
    check_shape("lengths", lengths, slots)
    if lengths.dtype != torch.int64 or lengths.device != q.device:
        raise ValueError(
            f"lengths must be int64 on {q.device}, got {lengths.dtype} on {lengths.device}"
        )
    if torch.is_grad_enabled() and any(t.requires_grad for t in (q, keys, values)):
        raise ValueError(
            "decode_attention has no gradient: call it in torch.no_grad, or causal_attention"
        )
    return run(
        "decode_attention", backend, q, keys, values, lengths,
        precision=precision, values=_check_values,
    )  # fmt: skip


def _check_values(q: Tensor, keys: Tensor, values: Tensor, lengths: Tensor) -> None:
    if not readable(lengths):
        return
    wrong = (lengths < 1) | (lengths > keys.shape[1])
    if wrong.any():
        slot = int(wrong.nonzero()[0])
        raise ValueError(f"length of slot {slot} is {int(lengths[slot])}, not 1 to {keys.shape[1]}")
