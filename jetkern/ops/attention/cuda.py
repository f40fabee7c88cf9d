"""Registration of ``torch.ops.jetkern_cuda.attention``, which csrc/cuda implements."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jetkern.ops.attention.reference import attention as reference
from jetkern.ops.dispatch import PRECISIONS
from jetkern.ops.pair_features import pair_offsets

WIDTHS = (8, 16, 32)

_SHARED = (
    "Tensor query_offsets, Tensor key_offsets, Tensor? bias, Tensor? particle_offsets,"
    " Tensor? pair_offsets, float scale, int precision"
)
torch.library.define(
    "jetkern_cuda::attention",
    f"(Tensor q, Tensor k, Tensor v, {_SHARED}) -> (Tensor out, Tensor softmax)",
)
torch.library.define(
    "jetkern_cuda::attention_backward",
    f"(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor softmax, {_SHARED},"
    " bool want_dbias) -> (Tensor dq, Tensor dk, Tensor dv, Tensor dbias)",
)


@torch.library.register_fake("jetkern_cuda::attention")
def _forward_fake(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty((*q.shape[:2], 2), dtype=torch.float32)


@torch.library.register_fake("jetkern_cuda::attention_backward")
def _backward_fake(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, *others: Any
) -> tuple[Tensor, ...]:
    bias, want_dbias = others[4], others[-1]
    dbias = bias.new_empty(bias.shape) if bias is not None and want_dbias else q.new_empty(0, 0)
    return q.new_empty(q.shape), q.new_empty(k.shape), q.new_empty(v.shape), dbias


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    *tensors, ctx.scale, ctx.precision = inputs
    ctx.save_for_backward(*tensors[:3], *output, *tensors[3:])


def _backward(ctx: Any, dout: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    want_dbias = ctx.needs_input_grad[5]
    dq, dk, dv, dbias = torch.ops.jetkern_cuda.attention_backward(
        dout, *ctx.saved_tensors, ctx.scale, ctx.precision, want_dbias
    )
    return dq, dk, dv, None, None, dbias if want_dbias else None, None, None, None, None


torch.library.register_autograd("jetkern_cuda::attention", _backward, setup_context=_setup_context)


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
    out, _ = torch.ops.jetkern_cuda.attention(
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
