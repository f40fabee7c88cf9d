"""Registration of ``torch.ops.jetkern.attention`` and its backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

torch.library.define(
    "jetkern::attention",
    "(Tensor q, Tensor k, Tensor v, Tensor query_offsets, Tensor key_offsets, Tensor? bias,"
    " Tensor? particle_offsets) -> (Tensor out, Tensor softmax)",
)
torch.library.define(
    "jetkern::attention_backward",
    "(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor softmax, Tensor query_offsets,"
    " Tensor key_offsets, Tensor? bias, Tensor? particle_offsets, bool want_dbias)"
    " -> (Tensor dq, Tensor dk, Tensor dv, Tensor dbias)",
)


@torch.library.register_fake("jetkern::attention")
def _forward_fake(q: Tensor, *others: Tensor | None) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(*q.shape[:2], 2)


@torch.library.register_fake("jetkern::attention_backward")
def _backward_fake(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    softmax: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor,
    bias: Tensor | None,
    particle_offsets: Tensor | None,
    want_dbias: bool,
) -> tuple[Tensor, ...]:
    dbias = q.new_empty(bias.shape if bias is not None and want_dbias else (0, 0))
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), dbias


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, query_offsets, key_offsets, bias, particle_offsets = inputs
    _, softmax = output
    ctx.mark_non_differentiable(softmax)
    ctx.save_for_backward(q, k, v, softmax, query_offsets, key_offsets, bias, particle_offsets)


def _backward(ctx: Any, dout: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, softmax, query_offsets, key_offsets, bias, particle_offsets = ctx.saved_tensors
    want_dbias = ctx.needs_input_grad[5]
    dq, dk, dv, dbias = torch.ops.jetkern.attention_backward(
        dense_rows(dout), q, k, v, softmax, query_offsets, key_offsets, bias, particle_offsets,
        want_dbias,
    )  # fmt: skip
    return dq, dk, dv, None, None, dbias if want_dbias else None, None


torch.library.register_autograd("jetkern::attention", _backward, setup_context=_setup_context)


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
    particle_offsets: Tensor | None,
    precision: str = "ieee",
) -> Tensor:
    out, _ = torch.ops.jetkern.attention(
        dense_rows(q),
        dense_rows(k),
        dense_rows(v),
        query_offsets.contiguous(),
        key_offsets.contiguous(),
        None if bias is None else bias.contiguous(),
        None if bias is None or particle_offsets is None else particle_offsets.contiguous(),
    )
    return out
