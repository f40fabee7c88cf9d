"""Class attention on GPUs: a few tokens of each jet attend to its other rows, then a perceptron.

As ``jetkern.model.layers.TokenBlock`` writes it with other ops, in few kernels: two projections,
attention, and the kernel for all that follows attention in a block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jetkern.ops.attention import reference as attention_reference
from jetkern.ops.attention import triton as attention
from jetkern.ops.attention.triton import Offsets, Rows
from jetkern.ops.attention_block.triton import Projection, project, project_backward
from jetkern.ops.dynamic_tanh.reference import dynamic_tanh
from jetkern.ops.gpu.register import gpu_operator
from jetkern.ops.linear.triton import summed
from jetkern.ops.mlp import reference as mlp_reference
from jetkern.ops.mlp.triton import (
    WEIGHTS,
    Before,
    dense,
    fused_backward,
    fused_forward,
    is_fused,
    like_weights,
    of_fused,
)
from jetkern.ops.parameters import MLPParameters

KEPT = ("q", "kv", "mixed", "lse", "middle")
DTYPES = (torch.float32, torch.bfloat16)


def _of_heads(x: Tensor, heads: int) -> Tensor:
    """(T, D) as (T, H, d)."""
    return x.view(len(x), heads, x.shape[1] // heads)


def _parts(kv: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """k and v (T, H, d) of a joint projection (T, 2 D)."""
    k, v = kv.view(len(kv), 2, heads, kv.shape[1] // (2 * heads)).unbind(1)
    return k, v


def _split(qkv: Tensor) -> tuple[Projection, Projection]:
    """Of queries, and of keys and values."""
    dim = qkv.shape[1]
    return Projection(None, None, qkv[:dim]), Projection(None, None, qkv[dim:])


def _forward(
    tokens: Tensor, token_offsets: Tensor, rows: Tensor, row_offsets: Tensor, *others: Any
) -> tuple[Tensor, ...]:
    qkv, out_weight, alpha, gamma, *weights, heads, precision = others
    of_q, of_kv = _split(qkv)
    q, kv = project(tokens, of_q, precision), project(rows, of_kv, precision)
    offsets = Offsets(token_offsets, row_offsets, None, None)
    mixed, lse = attention.launch_forward(
        _of_heads(q, heads), *_parts(kv, heads), offsets, None, precision
    )
    mixed = mixed.flatten(1)
    before = Before(mixed, out_weight, alpha, gamma)
    middle, out = fused_forward(tokens, MLPParameters(*weights), precision, before, residual=True)
    assert middle is not None
    return out, q, kv, mixed, lse, middle


def _backward(
    d_out: Tensor,
    tokens: Tensor,
    token_offsets: Tensor,
    rows: Tensor,
    row_offsets: Tensor,
    *others: Any,
) -> tuple[Tensor, ...]:
    qkv, out_weight, alpha, gamma, *weights = others[:10]
    heads, precision, q, kv, mixed, lse, middle = others[10:]
    p = MLPParameters(*weights)
    before = Before(mixed, out_weight, alpha, gamma)
    d_middle, d_mixed, of_rest = fused_backward(middle, d_out, p, precision, before, residual=True)
    assert d_mixed is not None
    d_q, d_kv = torch.empty_like(q), torch.empty_like(kv)
    q_rows, out_rows, d_q_rows, d_out_rows = (_of_heads(t, heads) for t in (q, mixed, d_q, d_mixed))
    d_k, d_v = _parts(d_kv, heads)
    attention.launch_backward(
        Rows(q_rows, *_parts(kv, heads), out_rows),
        lse,
        Offsets(token_offsets, row_offsets, None, None),
        None,
        precision,
        d_out=d_out_rows,
        d_q=d_q_rows,
        d_k=d_k,
        d_v=d_v,
        d_bias=None,
    )
    of_q, of_kv = _split(qkv)
    d_tokens, q_weights = project_backward(tokens, d_q, d_middle, of_q, precision)
    d_rows, kv_weights = project_backward(rows, d_kv, None, of_kv, precision)
    rest, ((d_first,), _), ((d_second,), _) = summed([of_rest, q_weights, kv_weights], precision)
    of_before, of_mlp = of_fused(rest)
    d_out_weight, d_alpha, d_gamma = of_before.whole()
    d_qkv = torch.cat([d_first, d_second])
    own = zip((d_qkv, d_out_weight, d_alpha, d_gamma), (qkv, out_weight, alpha, gamma), strict=True)
    return d_tokens, d_rows, *(g.to(w.dtype) for g, w in own), *like_weights(of_mlp, p)


def _fake(
    tokens: Tensor, token_offsets: Tensor, rows: Tensor, row_offsets: Tensor, *others: Any
) -> tuple[Tensor, ...]:
    heads, precision = others[-2:]
    (count, width), stored = tokens.shape, torch.bfloat16 if precision == "bf16" else torch.float32
    return (
        tokens.new_empty(count, width),
        tokens.new_empty(count, width, dtype=stored),
        rows.new_empty(rows.shape[0], 2 * width, dtype=stored),
        tokens.new_empty(count, width, dtype=stored),
        tokens.new_empty(heads, count, dtype=torch.float32),
        tokens.new_empty(count, width),
    )


def _reference(
    tokens: Tensor, token_offsets: Tensor, rows: Tensor, row_offsets: Tensor, *others: Any
) -> Tensor:
    qkv, out_weight, alpha, gamma, *weights, heads, _ = others
    dim = qkv.shape[1]
    q = (tokens @ qkv[:dim].t()).unflatten(1, (heads, -1))
    k, v = (rows @ qkv[dim:].t()).unflatten(1, (2, heads, -1)).unbind(1)
    mixed = attention_reference.attention(q, k, v, token_offsets, row_offsets, None, None)
    middle = tokens + mixed.flatten(1) @ out_weight.t()
    normed = dynamic_tanh(middle, alpha, gamma)
    return middle + mlp_reference.mlp(normed, MLPParameters(*weights))


_op = gpu_operator(
    "class_attention",
    "(Tensor tokens, Tensor token_offsets, Tensor rows, Tensor row_offsets, Tensor qkv_weight,"
    f" Tensor out_weight, Tensor norm_alpha, Tensor norm_gamma, {WEIGHTS}, int heads,"
    " str precision) -> (Tensor out, Tensor q, Tensor kv, Tensor mixed, Tensor lse, Tensor middle)",
    fake=_fake,
    forward=_forward,
    backward=_backward,
    gradients="tokens rows qkv_weight out_weight norm_alpha norm_gamma "
    + " ".join(MLPParameters._fields),
    kept=" ".join(KEPT),
    reference=_reference,
)


def class_attention(
    tokens: Tensor,
    token_offsets: Tensor,
    rows: Tensor,
    row_offsets: Tensor,
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
    mlp: MLPParameters,
    heads: int,
    precision: str,
) -> Tensor | None:
    """(N, D) tokens after the block; None for rows that are too wide for these kernels.

    Args:
        tokens: (N, D); token_offsets: (B + 1,) int64; rows: (T, D); row_offsets: (B + 1,) int64.
        weights: qkv (3 D, D), out (D, D), and alpha (1,) and gamma (D,) of the norm before ``mlp``.
        mlp: of the perceptron.
    """
    wide = tokens.shape[1]
    fits = is_fused(mlp, precision) and wide <= attention.WIDEST * heads
    if not fits or tokens.dtype not in DTYPES or tokens.dtype != rows.dtype:
        return None
    out, *_ = _op(
        tokens.contiguous(),
        token_offsets.contiguous(),
        rows.contiguous(),
        row_offsets.contiguous(),
        *(w.contiguous() for w in weights),
        *dense(mlp),
        heads,
        precision,
    )
    return out
