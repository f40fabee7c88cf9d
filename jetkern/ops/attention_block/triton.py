"""The transformer block on GPUs: one operator forward and one backward, made of few kernels.

Rows of at most 128: norm and projection to q, k, v in a kernel, attention, and a kernel for all
that follows (``jetkern.ops.mlp.triton``). Wider rows: products, one pass over the rows between
two products. Kept for the backward are x, q, k, v, attention's result with its levels, the rows
between attention and perceptron, and, for wide rows, the hidden layer before its bias; everything
pointwise is computed again, inside passes that are needed anyway.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from jetkern.ops.attention import triton as attention
from jetkern.ops.attention_block.reference import attention_block as reference
from jetkern.ops.dynamic_tanh.triton import (
    add_branch,
    add_branch_and_norm,
    norm,
    norm_backward,
    tile_of,
)
from jetkern.ops.linear.triton import product, weight_gradient
from jetkern.ops.mlp.triton import (
    NARROW,
    WEIGHTS,
    apart,
    dense,
    is_narrow,
    like_weights,
    narrow_backward,
    narrow_forward,
    optional_row,
    padded,
    rounded,
    rounded_rows,
    stored_type,
    wide_backward,
    wide_forward,
)
from jetkern.ops.parameters import BlockParameters, MLPParameters
from jetkern.ops.triton_tools import (
    TYPES,
    CompileCase,
    Settings,
    define,
    dot,
    launch_settings,
    on_device,
    tanh,
)

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
CANDIDATES = {"project": _TILES, "project_backward": _TILES}


@triton.jit(do_not_specialize=["rows"])
def project_kernel(
    x,
    alpha,
    gamma,
    weight,
    out,
    rows,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    PRECISION: tl.constexpr,
    PAD_IN: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """out = norm(x) weight^T."""
    tile = tl.program_id(0)
    i = tl.arange(0, PAD_IN)
    in_i = i < INPUTS
    base, at, inside = tile_of(tile, i, rows, INPUTS, ROWS)
    value = tl.load(x + base + at, inside, 0.0)
    t = tanh(tl.load(alpha).to(tl.float32) * value.to(tl.float32))
    normed = optional_row(gamma, i, in_i) * t
    for chunk in range(0, OUTPUTS, CHUNK):
        o = chunk + tl.arange(0, CHUNK)
        in_o = (o < OUTPUTS)[None, :]
        part = tl.load(weight + o[None, :] * INPUTS + i[:, None], in_i[:, None] & in_o, 0.0)
        result = dot(normed, part, tl.zeros((ROWS, CHUNK), tl.float32), PRECISION)
        base_o, at_o, inside_o = tile_of(tile, o, rows, OUTPUTS, ROWS)
        tl.store(out + base_o + at_o, result, inside_o)


@triton.jit(do_not_specialize=["rows"])
def project_backward_kernel(
    x,
    d_out,
    d_around,
    alpha,
    gamma,
    weight,
    dx,
    normed,
    sums,
    rows,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    PRECISION: tl.constexpr,
    PAD_IN: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """dx = d_around + gradient through norm and projection; norm(x); sums of each tile.

    A slab of sums holds the gradients of gamma and alpha.
    """
    tile = tl.program_id(0)
    i = tl.arange(0, PAD_IN)
    in_i = i < INPUTS
    d_normed = tl.zeros((ROWS, PAD_IN), tl.float32)
    for chunk in range(0, OUTPUTS, CHUNK):
        o = chunk + tl.arange(0, CHUNK)
        in_o = o < OUTPUTS
        base_o, at_o, inside_o = tile_of(tile, o, rows, OUTPUTS, ROWS)
        d = tl.load(d_out + base_o + at_o, inside_o, 0.0)
        part = tl.load(
            weight + o[:, None] * INPUTS + i[None, :], in_o[:, None] & in_i[None, :], 0.0
        )
        d_normed = dot(d, part, d_normed, PRECISION)
    base, at, inside = tile_of(tile, i, rows, INPUTS, ROWS)
    value = tl.load(x + base + at, inside, 0.0).to(tl.float32)
    slope = tl.load(alpha).to(tl.float32)
    scale = optional_row(gamma, i, in_i)
    t = tanh(slope * value)
    tl.store(normed + base + at, scale * t, inside)
    inner = d_normed * scale * (1.0 - t * t)
    around = tl.load(d_around + base + at, inside, 0.0).to(tl.float32)
    tl.store(dx + base + at, slope * inner + around, inside)
    slab = sums + tile.to(tl.int64) * (INPUTS + 1)
    tl.store(slab + i, tl.sum(d_normed * t, 0), in_i)
    tl.store(slab + INPUTS, tl.sum(tl.sum(inner * value, 1), 0))


def project_default(kernel: str, width: int, precision: str) -> Settings:
    """Tiles that fit in registers without spills."""
    rows = 32 if (kernel, precision) == ("project_backward", "tf32") and width > 64 else 64
    return {"ROWS": rows, "CHUNK": 32, "num_warps": 8 if width > 64 else 4, "num_stages": 1}


def _settings(kernel: str, width: int, precision: str, device: torch.device) -> Settings:
    wide = padded(width)
    default = project_default(kernel, wide, precision)
    return launch_settings(kernel, f"{wide} {precision}", device, default)


def project(x: Tensor, alpha: Tensor, gamma: Tensor, weight: Tensor, precision: str) -> Tensor:
    """norm(x) weight^T of dense rows x (T, D), D at most 128."""
    outputs, inputs = weight.shape
    out = x.new_empty(len(x), outputs, dtype=stored_type(precision))
    if len(x):
        settings = _settings("project", inputs, precision, x.device)
        with on_device(x):
            project_kernel[(triton.cdiv(len(x), settings["ROWS"]),)](
                x,
                alpha,
                gamma,
                rounded(weight, precision),
                out,
                len(x),
                inputs,
                outputs,
                precision,
                padded(inputs),
                **settings,
            )
    return out


def project_backward(
    x: Tensor,
    d_out: Tensor,
    d_around: Tensor,
    alpha: Tensor,
    gamma: Tensor,
    weight: Tensor,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dx, to which d_around is added, and the float32 gradients of alpha, gamma and weight."""
    outputs, inputs = weight.shape
    settings = _settings("project_backward", inputs, precision, x.device)
    programs = triton.cdiv(len(x), settings["ROWS"])
    dx, normed = torch.empty_like(x), torch.empty_like(x, dtype=stored_type(precision))
    sums = x.new_empty(programs, inputs + 1, dtype=torch.float32)
    if programs:
        with on_device(x):
            project_backward_kernel[(programs,)](
                x,
                d_out,
                d_around,
                alpha,
                gamma,
                rounded(weight, precision),
                dx,
                normed,
                sums,
                len(x),
                inputs,
                outputs,
                precision,
                padded(inputs),
                **settings,
            )
    d_gamma, d_alpha = apart(sums.sum(0), [inputs, 1])
    d_weight = weight_gradient(d_out, normed, precision, torch.float32)
    return dx, d_alpha, d_gamma, d_weight


BLOCK = (
    "Tensor x, Tensor offsets, Tensor alpha1, Tensor gamma1, Tensor qkv_weight, Tensor out_weight,"
    f" Tensor alpha2, Tensor gamma2, {WEIGHTS}, Tensor? bias, Tensor? particle_offsets,"
    " Tensor? pair_ends, int heads, str precision"
)
KEPT = "Tensor qkv, Tensor mixed, Tensor levels, Tensor middle, Tensor hidden"


def _parameters(weights: Any) -> BlockParameters:
    return BlockParameters._make([*weights[:6], MLPParameters._make(weights[6:12])])


@define("attention_block", f"({BLOCK}) -> (Tensor out, {KEPT})")
def _launch(x: Tensor, offsets: Tensor, *others: Any) -> tuple[Tensor, ...]:
    p = _parameters(others)
    bias, particle_offsets, pair_ends, heads, precision = others[12:]
    stored = stored_type(precision)
    narrow = is_narrow(p.mlp, precision)
    if narrow:
        qkv = project(x, p.alpha1, p.gamma1, p.qkv_weight, precision)
    else:
        normed = norm(x, p.alpha1, p.gamma1, stored)
        qkv = product(normed, p.qkv_weight.t(), precision, stored)
        del normed
    q, k, v = _heads(qkv, heads)
    mixed, levels = attention.launch_forward(
        q, k, v, offsets, offsets, bias, particle_offsets, pair_ends, precision
    )
    mixed = mixed.flatten(1)
    if narrow:
        middle, out = narrow_forward(
            x,
            p.mlp,
            precision,
            mixed=mixed,
            out_weight=p.out_weight,
            norm_alpha=p.alpha2,
            norm_gamma=p.gamma2,
            residual=True,
        )
        assert middle is not None
        return out, qkv, mixed, levels, middle, x.new_empty(0, 0, dtype=stored)
    branch = product(mixed, p.out_weight.t(), precision, stored)
    middle, normed = add_branch_and_norm(x, branch, p.alpha2, p.gamma2, stored)
    branch, hidden = wide_forward(normed, p.mlp, precision, stored)
    return add_branch(middle, branch, p.mlp.fc2_bias), qkv, mixed, levels, middle, hidden


def _heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v (T, H, d) of a joint projection (T, 3 D)."""
    q, k, v = qkv.view(len(qkv), 3, heads, qkv.shape[1] // (3 * heads)).unbind(1)
    return q, k, v


@define(
    "attention_block_backward",
    f"(Tensor d_out, {KEPT}, {BLOCK}, bool want_dbias) -> ({', '.join(['Tensor'] * 14)})",
)
def _launch_backward(
    d_out: Tensor,
    qkv: Tensor,
    mixed: Tensor,
    levels: Tensor,
    middle: Tensor,
    hidden: Tensor,
    x: Tensor,
    offsets: Tensor,
    *others: Any,
) -> tuple[Tensor, ...]:
    p = _parameters(others)
    bias, particle_offsets, pair_ends, heads, precision, want_dbias = others[12:]
    stored = stored_type(precision)
    narrow = is_narrow(p.mlp, precision)
    if narrow:
        second_half = narrow_backward(
            middle,
            d_out,
            p.mlp,
            precision,
            mixed=mixed,
            out_weight=p.out_weight,
            norm_alpha=p.alpha2,
            norm_gamma=p.gamma2,
            residual=True,
        )
        d_middle, of_mixed, of_out_weight, d_alpha2, d_gamma2, of_mlp = second_half
        assert of_mixed is not None
        assert of_out_weight is not None
        d_mixed, d_out_weight = of_mixed, of_out_weight
    else:
        d, d_fc2_bias = rounded_rows(d_out, precision)
        d_hidden, of_mlp = wide_backward(hidden, d, p.mlp, precision)
        d_normed = product(d_hidden, p.mlp.fc1_weight, precision, stored)
        normed = torch.empty_like(middle, dtype=stored)
        copy = None if middle.dtype == stored else torch.empty_like(middle, dtype=stored)
        d_middle, d_alpha2, d_gamma2 = norm_backward(
            middle, d_normed, d_out, p.alpha2, p.gamma2, rounded=copy, out=normed
        )
        d = d_middle if copy is None else copy
        d_fc1 = weight_gradient(d_hidden, normed, precision, torch.float32)
        of_mlp = of_mlp._replace(fc1_weight=d_fc1, fc2_bias=d_fc2_bias)
        del d_hidden, d_normed, normed
        d_mixed = product(d, p.out_weight, precision, stored)
        d_out_weight = weight_gradient(d, mixed, precision, torch.float32)
    d_qkv = torch.empty_like(qkv)
    dbias = torch.empty_like(bias) if want_dbias else None
    q, k, v = _heads(qkv, heads)
    attention.launch_backward(
        _one(d_mixed, heads),
        q,
        k,
        v,
        _one(mixed, heads),
        levels,
        offsets,
        offsets,
        bias,
        particle_offsets,
        pair_ends,
        precision,
        (*_heads(d_qkv, heads), dbias),
    )
    del d_mixed
    if narrow:
        dx, d_alpha1, d_gamma1, d_qkv_weight = project_backward(
            x, d_qkv, d_middle, p.alpha1, p.gamma1, p.qkv_weight, precision
        )
    else:
        d_normed = product(d_qkv, p.qkv_weight, precision, stored)
        normed = torch.empty_like(x, dtype=stored)
        dx, d_alpha1, d_gamma1 = norm_backward(
            x, d_normed, d_middle, p.alpha1, p.gamma1, out=normed
        )
        d_qkv_weight = weight_gradient(d_qkv, normed, precision, torch.float32)
    of_block = (d_alpha1, d_gamma1, d_qkv_weight, d_out_weight, d_alpha2, d_gamma2)
    return (
        dx,
        *(g.to(w) for g, w in zip(of_block, p[:6], strict=True)),
        *like_weights(of_mlp, p.mlp),
        x.new_empty(0, 0) if dbias is None else dbias,
    )


def _one(rows: Tensor, heads: int) -> Tensor:
    """(T, D) as (T, H, d)."""
    return rows.view(len(rows), heads, rows.shape[1] // heads)


@torch.library.register_fake("jetkern_triton::attention_block")
def _fake(x: Tensor, offsets: Tensor, *others: Any) -> tuple[Tensor, ...]:
    p, heads, precision = _parameters(others), *others[15:17]
    stored = stored_type(precision)
    rows, width = x.shape
    hidden = (0, 0) if is_narrow(p.mlp, precision) else (rows, p.mlp.fc1_weight.shape[0])
    return (
        x.new_empty(rows, width),
        x.new_empty(rows, 3 * width, dtype=stored),
        x.new_empty(rows, width, dtype=stored),
        x.new_empty(heads, rows, dtype=torch.float32),
        x.new_empty(rows, width),
        x.new_empty(hidden, dtype=stored),
    )


@torch.library.register_fake("jetkern_triton::attention_block_backward")
def _fake_backward(d_out: Tensor, *others: Any) -> tuple[Tensor, ...]:
    x, weights, bias, want_dbias = others[5], others[7:19], others[19], others[-1]
    empty = [x.new_empty(0, dtype=weights[6].dtype) if w is None else w for w in weights]
    dbias = torch.empty_like(bias) if want_dbias else x.new_empty(0, 0)
    return torch.empty_like(x), *(torch.empty_like(w) for w in empty), dbias


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.heads, ctx.precision = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:], *tensors)


def _backward(ctx: Any, d_out: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    want_dbias = ctx.needs_input_grad[14]
    dx, *of_weights, dbias = torch.ops.jetkern_triton.attention_block_backward(
        d_out.contiguous(), *saved, ctx.heads, ctx.precision, want_dbias
    )
    weights = [None if w is None else g for w, g in zip(saved[7:19], of_weights, strict=True)]
    return dx, None, *weights, dbias if want_dbias else None, None, None, None, None


torch.library.register_autograd(
    "jetkern_triton::attention_block", _backward, setup_context=_setup_context
)


def attention_block(
    x: Tensor,
    offsets: Tensor,
    parameters: BlockParameters,
    heads: int,
    bias: Tensor | None,
    particle_offsets: Tensor | None,
    precision: str = "ieee",
) -> Tensor:
    """See ``jetkern.ops.attention_block``. Heads wider than 128 go to the reference."""
    wide_heads = x.shape[1] > attention.WIDEST * heads
    if wide_heads or (bias is not None and bias.dtype not in TYPES):
        return reference(x, offsets, parameters, heads, bias, particle_offsets)
    ends = None
    if bias is None or particle_offsets is None:
        bias = particle_offsets = None
    else:
        bias, particle_offsets = bias.contiguous(), particle_offsets.contiguous()
        ends = attention.pair_ends(particle_offsets)
    *weights, of_mlp = parameters
    return torch.ops.jetkern_triton.attention_block(
        x.contiguous(),
        offsets.contiguous(),
        *(w.contiguous() for w in weights),
        *dense(of_mlp),
        bias,
        particle_offsets,
        ends,
        heads,
        precision,
    )[0]


def compile_cases() -> Iterator[CompileCase]:
    """The fused projections at the sizes of the narrow presets."""
    for name, width in (("micro", 32), ("small", 128)):
        for precision in ("ieee", "tf32", "bf16"):
            if width > NARROW[precision]:
                continue
            stored = "*bf16" if precision == "bf16" else "*fp32"
            shape = {"rows": "i32", "INPUTS": width, "OUTPUTS": 3 * width, "PRECISION": precision}
            norm_weights = {"alpha": "*fp32", "gamma": "*fp32", "weight": stored}
            settings = project_default("project", width, precision)
            tiles = {k: v for k, v in settings.items() if k.isupper()}
            arguments: dict[str, Any] = {"x": "*fp32", **norm_weights, "out": stored, **shape}
            arguments |= {"PAD_IN": width, **tiles}
            row = ("project", f"{width} {precision}")
            yield CompileCase(project_kernel, f"{name} {precision}", arguments, settings, row)
            settings = project_default("project_backward", width, precision)
            tiles = {k: v for k, v in settings.items() if k.isupper()}
            arguments = {"x": "*fp32", "d_out": stored, "d_around": "*fp32", **norm_weights}
            arguments |= {"dx": "*fp32", "normed": stored, "sums": "*fp32", **shape}
            arguments |= {"PAD_IN": width, **tiles}
            yield CompileCase(
                project_backward_kernel,
                f"{name} {precision}",
                arguments,
                settings,
                ("project_backward", row[1]),
            )
