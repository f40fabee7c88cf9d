"""The transformer block on GPUs: one operator forward and one backward, made of few kernels.

Rows of at most 128: norm and projection to q, k, v in a kernel, attention, and a kernel for all
that follows (``jetkern.ops.mlp.triton``). Wider rows: products, one pass over the rows between
two products. Kept for the backward are x, q, k, v, attention's result with its log-sum-exp, the
rows between attention and perceptron, and, for wide rows, the hidden layer before its bias;
everything pointwise is computed again, inside passes that are needed anyway.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from jetkern.ops.attention import triton as attention
from jetkern.ops.attention.triton import Offsets, Rows
from jetkern.ops.attention_block import reference
from jetkern.ops.gpu.functions import dot, tanh
from jetkern.ops.gpu.launch import Settings, cdiv, launch, launch_settings
from jetkern.ops.gpu.layout import offsets as places
from jetkern.ops.gpu.pointwise import (
    add_branch,
    add_branch_and_norm,
    norm,
    norm_backward,
    optional_row,
    padded,
    rounded,
    rounded_rows,
    stored_type,
    tile_of,
)
from jetkern.ops.gpu.register import gpu_operator
from jetkern.ops.gpu.sums import Slabs
from jetkern.ops.linear.triton import Unsummed, product, summed, weight_gradient
from jetkern.ops.mlp.triton import (
    WEIGHTS,
    Before,
    dense,
    fused_backward,
    fused_forward,
    is_fused,
    like_weights,
    of_fused,
    wide_backward,
    wide_forward,
)
from jetkern.ops.parameters import BlockParameters, MLPParameters
from jetkern.packed import Packed

_TILES = [
    {"ROWS": rows, "CHUNK": chunk, "num_warps": warps, "num_stages": stages}
    for rows, chunk, warps, stages in (
        (32, 32, 4, 2),
        (64, 32, 4, 1),
        (64, 32, 4, 2),
        (64, 64, 4, 1),
        (64, 64, 4, 2),
        (64, 64, 8, 2),
        (64, 128, 8, 1),
        (128, 32, 4, 2),
        (128, 32, 8, 2),
        (128, 64, 8, 1),
        (128, 64, 8, 2),
    )
]
CANDIDATES = {
    "attention_block_project_fwd": _TILES,
    "attention_block_project_bwd": _TILES,
}


class Projection(NamedTuple):
    """DynamicTanh of (1,) alpha and (D,) gamma, or None, then the (outputs, D) matrix."""

    alpha: Tensor | None
    gamma: Tensor | None
    matrix: Tensor


class Sums(NamedTuple):
    """A slab of the projection's backward: the gradients of its norm."""

    gamma: Any
    alpha: Any
    end: Any


class Kept(NamedTuple):
    """What the forward keeps: ``hidden`` for wide rows only."""

    qkv: Tensor
    mixed: Tensor
    lse: Tensor
    middle: Tensor
    hidden: Tensor


@triton.jit(do_not_specialize=["rows"])
def attention_block_project_fwd_kernel(
    x,
    weights,
    out,
    rows,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    PRECISION: tl.constexpr,
    PADDED_IN: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """out = norm(x) weight^T."""
    tile = tl.program_id(0)
    i = tl.arange(0, PADDED_IN)
    in_i = i < INPUTS
    base, at, inside = tile_of(tile, i, rows, INPUTS, ROWS)
    normed = tl.load(x + base + at, inside, 0.0).to(tl.float32)
    if weights.alpha is not None:
        t = tanh(tl.load(weights.alpha).to(tl.float32) * normed)
        normed = optional_row(weights.gamma, i, in_i) * t
    for chunk in range(0, OUTPUTS, CHUNK):
        o = chunk + tl.arange(0, CHUNK)
        in_o = (o < OUTPUTS)[None, :]
        part = tl.load(weights.matrix + o[None, :] * INPUTS + i[:, None], in_i[:, None] & in_o, 0.0)
        result = dot(normed, part, tl.zeros((ROWS, CHUNK), tl.float32), PRECISION)
        base_o, at_o, inside_o = tile_of(tile, o, rows, OUTPUTS, ROWS)
        tl.store(out + base_o + at_o, result, inside_o)


@triton.jit(do_not_specialize=["rows"])
def attention_block_project_bwd_kernel(
    x,
    d_out,
    d_around,
    weights,
    d_x,
    normed,
    sums,
    rows,
    SUMS: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    PRECISION: tl.constexpr,
    PADDED_IN: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """d_x = d_around + gradient through norm and projection; norm(x); sums of each tile.

    A slab of ``sums`` is of ``Sums``. Without a norm neither ``normed`` nor ``sums`` is written.
    """
    tile = tl.program_id(0)
    i = tl.arange(0, PADDED_IN)
    in_i = i < INPUTS
    d_normed = tl.zeros((ROWS, PADDED_IN), tl.float32)
    for chunk in range(0, OUTPUTS, CHUNK):
        o = chunk + tl.arange(0, CHUNK)
        in_o = o < OUTPUTS
        base_o, at_o, inside_o = tile_of(tile, o, rows, OUTPUTS, ROWS)
        d = tl.load(d_out + base_o + at_o, inside_o, 0.0)
        part = tl.load(
            weights.matrix + o[:, None] * INPUTS + i[None, :], in_o[:, None] & in_i[None, :], 0.0
        )
        d_normed = dot(d, part, d_normed, PRECISION)
    base, at, inside = tile_of(tile, i, rows, INPUTS, ROWS)
    d_value = d_normed
    if weights.alpha is not None:
        value = tl.load(x + base + at, inside, 0.0).to(tl.float32)
        slope = tl.load(weights.alpha).to(tl.float32)
        scale = optional_row(weights.gamma, i, in_i)
        t = tanh(slope * value)
        tl.store(normed + base + at, scale * t, inside)
        inner = d_normed * scale * (1.0 - t * t)
        d_value = slope * inner
        slab = sums + tile.to(tl.int64) * SUMS.end
        tl.store(slab + SUMS.gamma + i, tl.sum(d_normed * t, 0), in_i)
        tl.store(slab + SUMS.alpha, tl.sum(tl.sum(inner * value, 1), 0))
    if d_around is not None:
        d_value += tl.load(d_around + base + at, inside, 0.0).to(tl.float32)
    tl.store(d_x + base + at, d_value, inside)


def _settings(kernel: Any, x: Tensor, precision: str) -> Settings:
    """Tiles that fit in registers without spills."""
    wide = padded(x.shape[1])
    few = kernel is attention_block_project_bwd_kernel and precision == "tf32" and wide > 64
    default = {
        "ROWS": 32 if few else 64,
        "CHUNK": 32,
        "num_warps": 8 if wide > 64 else 4,
        "num_stages": 1,
    }
    return launch_settings(kernel, f"{wide} {precision}", x.device, default)


def project(x: Tensor, p: Projection, precision: str) -> Tensor:
    """norm(x) matrix^T of dense rows x (T, D), D at most 128."""
    outputs, inputs = p.matrix.shape
    out = x.new_empty(len(x), outputs, dtype=stored_type(precision))
    settings = _settings(attention_block_project_fwd_kernel, x, precision)
    launch(
        attention_block_project_fwd_kernel,
        (cdiv(len(x), settings["ROWS"]),),
        x.device,
        settings,
        x=x,
        weights=p._replace(matrix=rounded(p.matrix, precision)),
        out=out,
        rows=len(x),
        INPUTS=inputs,
        OUTPUTS=outputs,
        PRECISION=precision,
        PADDED_IN=padded(inputs),
    )
    return out


def project_backward(
    x: Tensor, d_out: Tensor, d_around: Tensor | None, p: Projection, precision: str
) -> tuple[Tensor, Unsummed]:
    """d_x, to which d_around is added if given, and of the weights: matrix; gamma and alpha."""
    outputs, inputs = p.matrix.shape
    settings = _settings(attention_block_project_bwd_kernel, x, precision)
    programs = cdiv(len(x), settings["ROWS"])
    d_x, normed = torch.empty_like(x), x
    sizes: tuple[int, ...] = ()
    if p.alpha is not None:
        normed, sizes = torch.empty_like(x, dtype=stored_type(precision)), (inputs, 1)
    layout = places(Sums, sizes or (0, 0))
    sums = x.new_empty(programs, layout.end, dtype=torch.float32)
    launch(
        attention_block_project_bwd_kernel,
        (programs,),
        x.device,
        settings,
        x=x,
        d_out=d_out,
        d_around=d_around,
        weights=p._replace(matrix=rounded(p.matrix, precision)),
        d_x=d_x,
        normed=normed,
        sums=sums,
        rows=len(x),
        SUMS=layout,
        INPUTS=inputs,
        OUTPUTS=outputs,
        PRECISION=precision,
        PADDED_IN=padded(inputs),
    )
    return d_x, Unsummed(((d_out, normed),), Slabs(sums, sizes))


BLOCK_WEIGHTS = (
    "Tensor alpha1, Tensor gamma1, Tensor qkv_weight, Tensor out_weight, Tensor alpha2,"
    f" Tensor gamma2, {WEIGHTS}"
)
BLOCK_NAMES = (*BlockParameters._fields[:-1], *MLPParameters._fields)


def block_weights(weights: Any) -> BlockParameters:
    """The weights of a block from those of ``BLOCK_WEIGHTS`` in their order."""
    alpha1, gamma1, qkv, out, alpha2, gamma2, *of_mlp = weights
    return BlockParameters(alpha1, gamma1, qkv, out, alpha2, gamma2, MLPParameters(*of_mlp))


def in_order(p: BlockParameters) -> tuple[Tensor | None, ...]:
    """The weights, contiguous, as ``BLOCK_WEIGHTS`` has them."""
    *own, of_mlp = p
    return *(w.contiguous() for w in own), *dense(of_mlp)


def block_gradients(gradients: BlockParameters, p: BlockParameters) -> tuple[Tensor, ...]:
    """In the order of ``BLOCK_WEIGHTS`` and the weights' dtype, empty where there is none."""
    *own, of_mlp = gradients
    *weights, mlp = p
    given = (g.to(w.dtype) for g, w in zip(own, weights, strict=True))
    return *given, *like_weights(of_mlp, mlp)


def _heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v (T, H, d) of a joint projection (T, 3 D)."""
    q, k, v = qkv.view(len(qkv), 3, heads, qkv.shape[1] // (3 * heads)).unbind(1)
    return q, k, v


def _apart(rows: Tensor, heads: int) -> Tensor:
    """(T, D) as (T, H, d)."""
    return rows.view(len(rows), heads, rows.shape[1] // heads)


def _forward(x: Tensor, offsets: Tensor, *others: Any) -> tuple[Tensor, ...]:
    *weights, bias, particle_offsets, pair_ends, heads, precision = others
    p = block_weights(weights)
    stored = stored_type(precision)
    fused = is_fused(p.mlp, precision)
    if fused:
        qkv = project(x, Projection(p.alpha1, p.gamma1, p.qkv_weight), precision)
    else:
        qkv = product(norm(x, p.alpha1, p.gamma1, stored), p.qkv_weight.t(), precision, stored)
    rows = Offsets(offsets, offsets, particle_offsets, pair_ends)
    mixed, lse = attention.launch_forward(*_heads(qkv, heads), rows, bias, precision)
    mixed = mixed.flatten(1)
    if fused:
        before = Before(mixed, p.out_weight, p.alpha2, p.gamma2)
        middle, out = fused_forward(x, p.mlp, precision, before, residual=True)
        assert middle is not None
        return out, *Kept(qkv, mixed, lse, middle, x.new_empty(0, 0, dtype=stored))
    branch = product(mixed, p.out_weight.t(), precision, stored)
    middle, normed = add_branch_and_norm(x, branch, p.alpha2, p.gamma2, stored)
    branch, hidden = wide_forward(normed, p.mlp, precision, stored)
    out = add_branch(middle, branch, p.mlp.fc2_bias)
    return out, *Kept(qkv, mixed, lse, middle, hidden)


def _backward(d_out: Tensor, x: Tensor, offsets: Tensor, *others: Any) -> tuple[Tensor, ...]:
    *inputs, qkv, mixed, lse, middle, hidden, want_bias = others
    *weights, bias, particle_offsets, pair_ends, heads, precision = inputs
    p = block_weights(weights)
    stored = stored_type(precision)
    fused = is_fused(p.mlp, precision)
    if fused:
        before = Before(mixed, p.out_weight, p.alpha2, p.gamma2)
        d_middle, d_mixed, of_rest = fused_backward(
            middle, d_out, p.mlp, precision, before, residual=True
        )
        assert d_mixed is not None
    else:
        d, d_fc2_bias = rounded_rows(d_out, precision)
        d_hidden, inner = wide_backward(hidden, d, p.mlp, precision)
        d_normed = product(d_hidden, p.mlp.fc1_weight, precision, stored)
        normed = torch.empty_like(middle, dtype=stored)
        copy = None if middle.dtype == stored else torch.empty_like(middle, dtype=stored)
        d_middle, d_alpha2, d_gamma2 = norm_backward(
            middle, d_normed, d_out, p.alpha2, p.gamma2, rounded=copy, out=normed
        )
        d = d_middle if copy is None else copy
        d_fc1 = weight_gradient(d_hidden, normed, precision, torch.float32)
        of_mlp = inner.joined(d_fc1, d_fc2_bias)
        del d_hidden, d_normed, normed
        d_mixed = product(d, p.out_weight, precision, stored)
        d_out_weight = weight_gradient(d, mixed, precision, torch.float32)
    d_qkv = torch.empty_like(qkv)
    d_bias = torch.empty_like(bias) if want_bias else None
    d_q, d_k, d_v = _heads(d_qkv, heads)
    attention.launch_backward(
        Rows(*_heads(qkv, heads), _apart(mixed, heads)),
        lse,
        Offsets(offsets, offsets, particle_offsets, pair_ends),
        bias,
        precision,
        d_out=_apart(d_mixed, heads),
        d_q=d_q,
        d_k=d_k,
        d_v=d_v,
        d_bias=d_bias,
    )
    del d_mixed
    if fused:
        projection = Projection(p.alpha1, p.gamma1, p.qkv_weight)
        d_x, of_projection = project_backward(x, d_qkv, d_middle, projection, precision)
        rest, ((d_qkv_weight,), (d_gamma1, d_alpha1)) = summed([of_rest, of_projection], precision)
        of_before, of_mlp = of_fused(rest)
        d_out_weight, d_alpha2, d_gamma2 = of_before.whole()
    else:
        d_normed = product(d_qkv, p.qkv_weight, precision, stored)
        normed = torch.empty_like(x, dtype=stored)
        d_x, d_alpha1, d_gamma1 = norm_backward(
            x, d_normed, d_middle, p.alpha1, p.gamma1, out=normed
        )
        d_qkv_weight = weight_gradient(d_qkv, normed, precision, torch.float32)
    of_block = BlockParameters(
        d_alpha1, d_gamma1, d_qkv_weight, d_out_weight, d_alpha2, d_gamma2, of_mlp
    )
    return d_x, *block_gradients(of_block, p), x.new_empty(0) if d_bias is None else d_bias


def _fake(x: Tensor, offsets: Tensor, *others: Any) -> tuple[Tensor, ...]:
    *weights, _, _, _, heads, precision = others
    mlp = block_weights(weights).mlp
    stored = stored_type(precision)
    rows, width = x.shape
    hidden = (0, 0) if is_fused(mlp, precision) else (rows, mlp.fc1_weight.shape[0])
    return x.new_empty(rows, width), *Kept(
        x.new_empty(rows, 3 * width, dtype=stored),
        x.new_empty(rows, width, dtype=stored),
        x.new_empty(heads, rows, dtype=torch.float32),
        x.new_empty(rows, width),
        x.new_empty(hidden, dtype=stored),
    )


def _reference(x: Tensor, offsets: Tensor, *others: Any) -> Tensor:
    *weights, bias, particle_offsets, _, heads, _ = others
    p = block_weights(weights)
    particles = None if particle_offsets is None else Packed.trusted(particle_offsets)
    return reference.attention_block(x, offsets, p, heads, bias, particles)


_op = gpu_operator(
    "attention_block",
    f"(Tensor x, Tensor offsets, {BLOCK_WEIGHTS}, Tensor? bias, Tensor? particle_offsets,"
    " Tensor? pair_ends, int heads, str precision)"
    f" -> (Tensor out, {', '.join(f'Tensor {name}' for name in Kept._fields)})",
    fake=_fake,
    forward=_forward,
    backward=_backward,
    gradients=f"x {' '.join(BLOCK_NAMES)} bias?",
    kept=" ".join(Kept._fields),
    reference=_reference,
)


def covers(x: Tensor, offsets: Tensor, parameters: BlockParameters, heads: int, *_: Any) -> str:
    """Heads of a width up to 128."""
    wide = x.shape[1] > attention.WIDEST * heads
    return f"heads are wider than {attention.WIDEST}" if wide else ""


def attention_block(
    x: Tensor,
    offsets: Tensor,
    parameters: BlockParameters,
    heads: int,
    bias: Tensor | None,
    particles: Packed | None,
    precision: str = "ieee",
) -> Tensor:
    """See ``jetkern.ops.attention_block``."""
    if bias is not None:
        bias = (bias if bias.dtype in attention.TYPES else bias.float()).contiguous()
    out, *_ = _op(
        x.contiguous(),
        offsets.contiguous(),
        *in_order(parameters),
        bias,
        None if particles is None else particles.offsets.contiguous(),
        None if particles is None else particles.pair_ends,
        heads,
        precision,
    )
    return out
