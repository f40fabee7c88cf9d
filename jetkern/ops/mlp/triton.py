"""The perceptron on GPUs: one fused kernel for narrow rows, pieces around products for wide ones.

Narrow (rows of at most 128): a program takes a tile of rows through both layers, the hidden layer
in chunks that never leave the chip; optionally a block's attention branch is projected and added
first, the sum normed, and the sum added to the result. Nothing is kept for the backward: one kernel
computes the hidden layer again, passes the gradient through and writes the factors of the weight
gradients.

Wide: products of ``jetkern.ops.linear.triton``, and one pass between them that does bias, GELU and
norm. Kept for the backward is fc1's result without bias, in bfloat16 at that precision; the
backward's one pass between its products computes GELU and norm again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from jetkern.ops.dynamic_tanh.triton import TILES, column_sums, tile_of, tiles
from jetkern.ops.linear.triton import product, weight_gradient
from jetkern.ops.parameters import MLPParameters
from jetkern.ops.triton_tools import (
    CompileCase,
    Settings,
    define,
    dot,
    gelu,
    gelu_and_slope,
    kernel_name,
    launch_settings,
    on_device,
    tanh,
)

NARROW = {"ieee": 64, "tf32": 128, "bf16": 128}  # the widest rows that the fused kernels take

HIDDEN: Settings = {"ROWS": 16, "COLUMNS": 128, "num_warps": 4, "num_stages": 1}
HIDDEN_BACKWARD: Settings = {"ROWS": 16, "COLUMNS": 64, "num_warps": 4, "num_stages": 1}
_ROWS_AND_CHUNKS = [
    {"ROWS": rows, "CHUNK": chunk, "num_warps": warps, "num_stages": stages}
    for rows, chunk, warps, stages in (
        (32, 32, 4, 2),
        (32, 64, 4, 2),
        (64, 32, 4, 2),
        (64, 32, 8, 2),
        (64, 64, 4, 1),
        (64, 64, 4, 2),
        (64, 64, 8, 2),
        (128, 32, 8, 2),
        (128, 32, 8, 3),
        (128, 64, 8, 1),
        (128, 64, 8, 2),
    )
]
CANDIDATES = {
    "hidden": TILES,
    "hidden_backward": TILES,
    "narrow": _ROWS_AND_CHUNKS,
    "narrow_backward": _ROWS_AND_CHUNKS,
}


def stored_type(precision: str) -> torch.dtype:
    """What intermediates are kept in."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


@triton.jit
def activate(h, alpha, gamma, NORM: tl.constexpr, PRECISION: tl.constexpr):
    """gamma tanh(alpha gelu(h)), or gelu(h) without the norm."""
    value = gelu(h, PRECISION)
    if NORM:
        value = gamma * tanh(alpha * value)
    return value


@triton.jit
def activate_backward(h, d, alpha, gamma, NORM: tl.constexpr, PRECISION: tl.constexpr):
    """Result of ``activate`` before gamma, the gradient of h, the terms of alpha's gradient."""
    value, slope = gelu_and_slope(h, PRECISION)
    if NORM:
        t = tanh(alpha * value)
        inner = d * gamma * (1.0 - t * t)
        return t, alpha * inner * slope, inner * value
    else:
        return value, d * slope, d


@triton.jit
def optional_row(pointer, column, inside):
    """A (1, N) row of float32 weights; 0 if there is none."""
    if pointer is None:
        return 0.0
    else:
        return tl.load(pointer + column, inside, 0.0).to(tl.float32)[None, :]


@triton.jit
def optional_scalar(pointer):
    """A float32 weight; 0 if there is none."""
    if pointer is None:
        return 0.0
    else:
        return tl.load(pointer).to(tl.float32)


@triton.jit(do_not_specialize=["rows"])
def hidden_kernel(
    h,
    bias,
    alpha,
    gamma,
    out,
    rows,
    width,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """out = norm(gelu(h + bias)); bias and norm are optional."""
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    base, at, mask = tile_of(tl.program_id(0), column, rows, width, ROWS)
    value = tl.load(h + base + at, mask, 0.0).to(tl.float32) + optional_row(bias, column, inside)
    scale = optional_row(gamma, column, inside)
    tl.store(
        out + base + at,
        activate(value, optional_scalar(alpha), scale, alpha is not None, PRECISION),
        mask,
    )


@triton.jit(do_not_specialize=["rows"])
def hidden_backward_kernel(
    h,
    d_out,
    bias,
    alpha,
    gamma,
    dh,
    out,
    sums,
    rows,
    width,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Gradient of h, the hidden layer again, sums[p] = gradients of bias, gamma and alpha.

    A program takes every p-th tile of ROWS rows. alpha's gradient is summed by columns.
    """
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    shift = optional_row(bias, column, inside)
    scale = optional_row(gamma, column, inside)
    slope = optional_scalar(alpha)
    d_bias = tl.zeros((ROWS, COLUMNS), tl.float32)
    d_gamma = tl.zeros((ROWS, COLUMNS), tl.float32)
    d_alpha = tl.zeros((ROWS, COLUMNS), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        base, at, mask = tile_of(tile, column, rows, width, ROWS)
        value = tl.load(h + base + at, mask, 0.0).to(tl.float32) + shift
        d = tl.load(d_out + base + at, mask, 0.0).to(tl.float32)
        value, d_value, of_alpha = activate_backward(
            value, d, slope, scale, alpha is not None, PRECISION
        )
        if alpha is not None:
            d_gamma += d * value
            d_alpha += of_alpha
            value *= scale
        tl.store(out + base + at, value, mask)
        tl.store(dh + base + at, d_value, mask)
        d_bias += d_value
    slab = sums + tl.program_id(0) * 3 * width + column
    tl.store(slab, tl.sum(d_bias, 0), inside)
    tl.store(slab + width, tl.sum(d_gamma, 0), inside)
    tl.store(slab + 2 * width, tl.sum(d_alpha, 0), inside)


@triton.jit(do_not_specialize=["rows"])
def narrow_kernel(
    x,
    mixed,
    out_weight,
    norm_alpha,
    norm_gamma,
    fc1_weight,
    fc1_bias,
    alpha,
    gamma,
    fc2_weight,
    fc2_bias,
    middle,
    out,
    rows,
    INPUTS: tl.constexpr,
    HIDDEN: tl.constexpr,
    OUTPUTS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    PRECISION: tl.constexpr,
    PAD_IN: tl.constexpr,
    PAD_OUT: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """middle = x + mixed out_weight^T; out = [middle +] mlp(norm(middle)); see the module."""
    i = tl.arange(0, PAD_IN)
    o = tl.arange(0, PAD_OUT)
    base, at, in_x = tile_of(tl.program_id(0), i, rows, INPUTS, ROWS)
    value = tl.load(x + base + at, in_x, 0.0).to(tl.float32)
    if mixed is not None:
        for chunk in range(0, INPUTS, CHUNK):
            c = chunk + tl.arange(0, CHUNK)
            weight = tl.load(
                out_weight + i[None, :] * INPUTS + c[:, None],
                (c < INPUTS)[:, None] & (i < INPUTS)[None, :],
                0.0,
            )
            base_c, at_c, in_c = tile_of(tl.program_id(0), c, rows, INPUTS, ROWS)
            branch = tl.load(mixed + base_c + at_c, in_c, 0.0)
            value = dot(branch, weight, value, PRECISION)
        tl.store(middle + base + at, value, in_x)
    normed = value
    if norm_alpha is not None:
        scale = optional_row(norm_gamma, i, i < INPUTS)
        normed = scale * tanh(tl.load(norm_alpha).to(tl.float32) * value)
    slope = optional_scalar(alpha)
    acc = tl.zeros((ROWS, PAD_OUT), tl.float32)
    for chunk in range(0, HIDDEN, CHUNK):
        c = chunk + tl.arange(0, CHUNK)
        inside = c < HIDDEN
        first = tl.load(
            fc1_weight + c[None, :] * INPUTS + i[:, None],
            (i < INPUTS)[:, None] & inside[None, :],
            0.0,
        )
        second = tl.load(
            fc2_weight + o[None, :] * HIDDEN + c[:, None],
            inside[:, None] & (o < OUTPUTS)[None, :],
            0.0,
        )
        h = dot(normed, first, tl.zeros((ROWS, CHUNK), tl.float32), PRECISION)
        h += optional_row(fc1_bias, c, inside)
        u = activate(h, slope, optional_row(gamma, c, inside), alpha is not None, PRECISION)
        acc = dot(u, second, acc, PRECISION)
    acc += optional_row(fc2_bias, o, o < OUTPUTS)
    if RESIDUAL:
        acc += value
    base, at, in_out = tile_of(tl.program_id(0), o, rows, OUTPUTS, ROWS)
    tl.store(out + base + at, acc, in_out)


@triton.jit(do_not_specialize=["rows"])
def narrow_backward_kernel(
    x,
    d_out,
    out_weight,
    norm_alpha,
    norm_gamma,
    fc1_weight,
    fc1_bias,
    alpha,
    gamma,
    fc2_weight,
    dx,
    d_mixed,
    normed_out,
    hidden_out,
    d_hidden_out,
    sums,
    rows,
    INPUTS: tl.constexpr,
    HIDDEN: tl.constexpr,
    OUTPUTS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    PRECISION: tl.constexpr,
    PAD_IN: tl.constexpr,
    PAD_OUT: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Gradients of ``narrow_kernel``'s inputs, its middle being ``x`` here, and sums over the tile.

    Written for the weight gradients: the inputs of both layers and the gradient between them. A
    slab of sums holds the gradients of fc1_bias, gamma, alpha, fc2_bias, norm_gamma, norm_alpha.
    """
    tile = tl.program_id(0)
    i = tl.arange(0, PAD_IN)
    o = tl.arange(0, PAD_OUT)
    in_i = i < INPUTS
    in_o = o < OUTPUTS
    slab = sums + tile.to(tl.int64) * (2 * HIDDEN + OUTPUTS + INPUTS + 2)
    base, at, in_x = tile_of(tile, i, rows, INPUTS, ROWS)
    base_o, at_o, in_out = tile_of(tile, o, rows, OUTPUTS, ROWS)
    normed = tl.load(x + base + at, in_x, 0.0).to(tl.float32)
    d = tl.load(d_out + base_o + at_o, in_out, 0.0).to(tl.float32)
    tl.store(slab + 2 * HIDDEN + 1 + o, tl.sum(d, 0), in_o)
    if norm_alpha is not None:
        scale = optional_row(norm_gamma, i, in_i)
        normed = scale * tanh(tl.load(norm_alpha).to(tl.float32) * normed)
        tl.store(normed_out + base + at, normed, in_x)
    slope = optional_scalar(alpha)
    d_alpha = tl.zeros((ROWS,), tl.float32)
    d_normed = tl.zeros((ROWS, PAD_IN), tl.float32)
    for chunk in range(0, HIDDEN, CHUNK):
        c = chunk + tl.arange(0, CHUNK)
        inside = c < HIDDEN
        first = tl.load(
            fc1_weight + c[:, None] * INPUTS + i[None, :], inside[:, None] & in_i[None, :], 0.0
        )
        second = tl.load(
            fc2_weight + o[:, None] * HIDDEN + c[None, :], in_o[:, None] & inside[None, :], 0.0
        )
        h = dot(normed, tl.trans(first), tl.zeros((ROWS, CHUNK), tl.float32), PRECISION)
        h += optional_row(fc1_bias, c, inside)
        d_u = dot(d, second, tl.zeros((ROWS, CHUNK), tl.float32), PRECISION)
        row = optional_row(gamma, c, inside)
        u, d_h, of_alpha = activate_backward(h, d_u, slope, row, alpha is not None, PRECISION)
        d_normed = dot(d_h, first, d_normed, PRECISION)
        base_h, at_h, in_hidden = tile_of(tile, c, rows, HIDDEN, ROWS)
        tl.store(d_hidden_out + base_h + at_h, d_h, in_hidden)
        tl.store(slab + c, tl.sum(d_h, 0), inside)
        if alpha is not None:
            tl.store(slab + HIDDEN + c, tl.sum(d_u * u, 0), inside)
            d_alpha += tl.sum(of_alpha, 1)
            u *= row
        tl.store(hidden_out + base_h + at_h, u, in_hidden)
    tl.store(slab + 2 * HIDDEN, tl.sum(d_alpha, 0))
    if norm_alpha is not None:
        value = tl.load(x + base + at, in_x, 0.0).to(tl.float32)
        norm_slope = tl.load(norm_alpha).to(tl.float32)
        t = tanh(norm_slope * value)
        last = slab + 2 * HIDDEN + 1 + OUTPUTS
        tl.store(last + i, tl.sum(d_normed * t, 0), in_i)
        inner = d_normed * scale * (1.0 - t * t)
        tl.store(last + INPUTS, tl.sum(tl.sum(inner * value, 1), 0))
        d_normed = norm_slope * inner
    if RESIDUAL:
        d_normed += tl.load(d_out + base + at, in_x, 0.0).to(tl.float32)
    tl.store(dx + base + at, d_normed, in_x)
    if d_mixed is not None:
        for chunk in range(0, INPUTS, CHUNK):
            c = chunk + tl.arange(0, CHUNK)
            weight = tl.load(
                out_weight + i[:, None] * INPUTS + c[None, :],
                in_i[:, None] & (c < INPUTS)[None, :],
                0.0,
            )
            result = dot(d_normed, weight, tl.zeros((ROWS, CHUNK), tl.float32), PRECISION)
            base_c, at_c, in_c = tile_of(tile, c, rows, INPUTS, ROWS)
            tl.store(d_mixed + base_c + at_c, result, in_c)


class Gradients(NamedTuple):
    """What ``narrow_backward`` returns; the norm's are arbitrary without one."""

    x: Tensor
    mixed: Tensor | None
    out_weight: Tensor | None
    norm_alpha: Tensor
    norm_gamma: Tensor
    mlp: MLPParameters


def is_narrow(p: MLPParameters, precision: str) -> bool:
    """Whether the fused kernels take this perceptron: its tiles fit in registers."""
    return max(p.fc1_weight.shape[1], p.fc2_weight.shape[0]) <= NARROW[precision]


def padded(width: int) -> int:
    """The width of a tile: a power of two, as Triton's are, that tensor cores can multiply."""
    return max(triton.next_power_of_2(width), 16)


def _narrow_settings(
    kernel: str, p: MLPParameters, precision: str, residual: bool
) -> dict[str, Any]:
    """Tiles and warps, with the constants that go with them."""
    inputs, hidden, outputs = _sizes(p)
    widest = padded(max(inputs, outputs))
    default = narrow_default(kernel, widest, precision)
    device = p.fc1_weight.device
    settings = launch_settings(kernel, f"{widest} {precision}", device, default)
    return {
        **settings,
        **narrow_constants(inputs, hidden, outputs, residual, precision),
        "CHUNK": min(settings["CHUNK"], padded(hidden)),
    }


def narrow_constants(
    inputs: int, hidden: int, outputs: int, residual: bool, precision: str
) -> dict[str, Any]:
    """What a fused kernel is compiled for besides its tiles."""
    return {
        "INPUTS": inputs,
        "HIDDEN": hidden,
        "OUTPUTS": outputs,
        "RESIDUAL": residual,
        "PRECISION": precision,
        "PAD_IN": padded(inputs),
        "PAD_OUT": padded(outputs),
    }


def narrow_default(kernel: str, widest: int, precision: str) -> Settings:
    """Tiles that fit in registers without spills."""
    settings = {"ROWS": 64, "CHUNK": 32, "num_warps": 8 if widest > 64 else 4, "num_stages": 1}
    if kernel == "narrow_backward" and widest > 64:
        settings |= {"ROWS": 32, "num_warps": 4 if precision == "bf16" else 8}
    elif kernel == "narrow_backward" and precision == "ieee":
        settings["CHUNK"] = 16
    return settings


def _sizes(p: MLPParameters) -> tuple[int, int, int]:
    """Widths of input, hidden layer and result."""
    return p.fc1_weight.shape[1], p.fc1_weight.shape[0], p.fc2_weight.shape[0]


def rounded(weight: Tensor | None, precision: str) -> Tensor | None:
    """A matrix as the products read it: many tiles of rows read it, so it is rounded once."""
    return weight.bfloat16() if weight is not None and precision == "bf16" else weight


def narrow_forward(
    x: Tensor,
    p: MLPParameters,
    precision: str,
    *,
    mixed: Tensor | None = None,
    out_weight: Tensor | None = None,
    norm_alpha: Tensor | None = None,
    norm_gamma: Tensor | None = None,
    residual: bool = False,
) -> tuple[Tensor | None, Tensor]:
    """middle = x + mixed out_weight^T, and mlp(norm(middle)), plus middle if ``residual``.

    Args:
        x: dense (T, D_in). mixed, out_weight: (T, D_in) and (D_in, D_in), or None: middle is x and
            returned as None. norm_alpha, norm_gamma: of the norm before the perceptron, or None.
    """
    out = x.new_empty(len(x), p.fc2_weight.shape[0])
    middle = None if mixed is None else torch.empty_like(x)
    if len(x):
        settings = _narrow_settings("narrow", p, precision, residual)
        with on_device(x):
            narrow_kernel[(triton.cdiv(len(x), settings["ROWS"]),)](
                x,
                mixed,
                rounded(out_weight, precision),
                norm_alpha,
                norm_gamma,
                rounded(p.fc1_weight, precision),
                p.fc1_bias,
                p.alpha,
                p.gamma,
                rounded(p.fc2_weight, precision),
                p.fc2_bias,
                middle,
                out,
                len(x),
                **settings,
            )
    return middle, out


def narrow_backward(
    x: Tensor,
    d_out: Tensor,
    p: MLPParameters,
    precision: str,
    *,
    mixed: Tensor | None = None,
    out_weight: Tensor | None = None,
    norm_alpha: Tensor | None = None,
    norm_gamma: Tensor | None = None,
    residual: bool = False,
) -> Gradients:
    """Gradients of ``narrow_forward``; x is its middle."""
    inputs, hidden, outputs = _sizes(p)
    settings = _narrow_settings("narrow_backward", p, precision, residual)
    programs = triton.cdiv(len(x), settings["ROWS"])
    stored = stored_type(precision)
    lengths = [hidden, hidden, 1, outputs, inputs, 1]
    sums = x.new_empty(programs, sum(lengths), dtype=torch.float32)
    dx = torch.empty_like(x)
    d_mixed = None if mixed is None else torch.empty_like(mixed)
    u, d_h = (x.new_empty(len(x), hidden, dtype=stored) for _ in range(2))
    normed = x if norm_alpha is None else torch.empty_like(x, dtype=stored)
    if programs:
        with on_device(x):
            narrow_backward_kernel[(programs,)](
                x,
                d_out,
                rounded(out_weight, precision),
                norm_alpha,
                norm_gamma,
                rounded(p.fc1_weight, precision),
                p.fc1_bias,
                p.alpha,
                p.gamma,
                rounded(p.fc2_weight, precision),
                dx,
                d_mixed,
                None if norm_alpha is None else normed,
                u,
                d_h,
                sums,
                len(x),
                **settings,
            )
    d_bias1, d_gamma, d_alpha, d_bias2, d_norm_gamma, d_norm_alpha = apart(sums.sum(0), lengths)
    d_fc1 = weight_gradient(d_h, normed, precision, torch.float32)
    d_fc2 = weight_gradient(d_out, u, precision, torch.float32)
    d_out_weight = None
    if mixed is not None:
        d_out_weight = weight_gradient(dx, mixed, precision, torch.float32)
    of_mlp = MLPParameters(d_fc1, d_bias1, d_alpha, d_gamma, d_fc2, d_bias2)
    return Gradients(dx, d_mixed, d_out_weight, d_norm_alpha, d_norm_gamma, of_mlp)


def apart(sums: Tensor, lengths: Sequence[int]) -> Sequence[Tensor]:
    """Copies of the parts: an op's results share no memory, and Inductor wants them aligned."""
    return torch.ops.aten.split_with_sizes_copy(sums, lengths)


def _precision(stored: Tensor) -> str:
    """How exact values need be that are stored like this."""
    return "bf16" if stored.dtype == torch.bfloat16 else "ieee"


def hidden_layer(h: Tensor, p: MLPParameters) -> Tensor:
    """norm(gelu(h + fc1_bias)), as h's dtype; h is fc1's result without its bias."""
    out = torch.empty_like(h)
    if h.numel():
        grid, settings = tiles("hidden", h, HIDDEN)
        with on_device(h):
            hidden_kernel[grid](
                h, p.fc1_bias, p.alpha, p.gamma, out, *h.shape, _precision(h), **settings
            )
    return out


def hidden_layer_backward(
    h: Tensor, d_out: Tensor, p: MLPParameters
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradient of h, ``hidden_layer`` again, and gradients of fc1_bias, gamma and alpha."""
    dh, out = torch.empty_like(h), torch.empty_like(h)
    width = h.shape[1]
    if not h.numel():
        zeros = h.new_zeros(width, dtype=torch.float32)
        return dh, out, zeros, zeros, zeros[:1]
    grid, settings = tiles("hidden_backward", h, HIDDEN_BACKWARD, sums=True)
    sums = h.new_empty(grid[0], 3, width, dtype=torch.float32)
    with on_device(h):
        hidden_backward_kernel[grid](
            h,
            d_out,
            p.fc1_bias,
            p.alpha,
            p.gamma,
            dh,
            out,
            sums,
            *h.shape,
            _precision(h),
            **settings,
        )
    d_bias, d_gamma, d_alpha = torch.ops.aten.unbind_copy(sums.sum(0))
    return dh, out, d_bias, d_gamma, d_alpha.sum(0, keepdim=True)


def wide_forward(
    x: Tensor, p: MLPParameters, precision: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """mlp(x) without fc2_bias, as ``dtype``, and what its backward needs, (T, C)."""
    h = product(x, p.fc1_weight.t(), precision, stored_type(precision))
    return product(hidden_layer(h, p), p.fc2_weight.t(), precision, dtype), h


def wide_backward(
    h: Tensor, d_out: Tensor, p: MLPParameters, precision: str
) -> tuple[Tensor, MLPParameters]:
    """Gradients of h and of gamma, alpha, fc1_bias and fc2_weight, for d_out as products take it.

    What is left are a product with fc1_weight and a weight gradient with the input.
    """
    d_u = product(d_out, p.fc2_weight, precision, stored_type(precision))
    dh, u, d_bias, d_gamma, d_alpha = hidden_layer_backward(h, d_u, p)
    d_fc2 = weight_gradient(d_out, u, precision, torch.float32)
    return dh, MLPParameters(d_fc2, d_bias, d_alpha, d_gamma, d_fc2, None)


def rounded_rows(d: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    """A gradient (T, D) as the products take it, and its sums over rows, in one pass."""
    stored = stored_type(precision)
    if d.dtype == stored:
        return d, column_sums(d)
    copy = torch.empty_like(d, dtype=stored)
    return copy, column_sums(d, copy)


def like_weights(gradients: MLPParameters, p: MLPParameters) -> tuple[Tensor, ...]:
    """The gradients in their weights' dtype; empty for weights that there are not."""
    return tuple(
        p.fc1_weight.new_empty(0) if weight is None or gradient is None else gradient.to(weight)
        for gradient, weight in zip(gradients, p, strict=True)
    )


WEIGHTS = (
    "Tensor fc1_weight, Tensor? fc1_bias, Tensor? alpha, Tensor? gamma, Tensor fc2_weight,"
    " Tensor? fc2_bias"
)


@define("mlp", f"(Tensor x, {WEIGHTS}, str precision) -> (Tensor out, Tensor kept)")
def _launch(x: Tensor, *weights: Any) -> tuple[Tensor, Tensor]:
    p, precision = MLPParameters(*weights[:6]), weights[6]
    if is_narrow(p, precision):
        return narrow_forward(x, p, precision)[1], x.new_empty(0, 0)
    out, h = wide_forward(x, p, precision, x.dtype)
    return (out if p.fc2_bias is None else out.add_(p.fc2_bias)), h


@define(
    "mlp_backward",
    f"(Tensor d_out, Tensor x, Tensor kept, {WEIGHTS}, str precision, bool need_dx)"
    f" -> ({', '.join(['Tensor'] * 7)})",
)
def _launch_backward(d_out: Tensor, x: Tensor, kept: Tensor, *weights: Any) -> tuple[Tensor, ...]:
    p, precision, need_dx = MLPParameters(*weights[:6]), weights[6], weights[7]
    if is_narrow(p, precision):
        gradients = narrow_backward(x, d_out, p, precision)
        dx = gradients.x if need_dx else x.new_empty(0, x.shape[1])
        return dx, *like_weights(gradients.mlp, p)
    d, d_bias2 = rounded_rows(d_out, precision)
    dh, of_weights = wide_backward(kept, d, p, precision)
    d_fc1 = weight_gradient(dh, x, precision, torch.float32)
    need = product(dh, p.fc1_weight, precision, x.dtype) if need_dx else x.new_empty(0, x.shape[1])
    return need, *like_weights(of_weights._replace(fc1_weight=d_fc1, fc2_bias=d_bias2), p)


@torch.library.register_fake("jetkern_triton::mlp")
def _fake(x: Tensor, *weights: Any) -> tuple[Tensor, Tensor]:
    p, precision = MLPParameters(*weights[:6]), weights[6]
    _, hidden, outputs = _sizes(p)
    kept = (0, 0) if is_narrow(p, precision) else (x.shape[0], hidden)
    dtype = x.dtype if is_narrow(p, precision) else stored_type(precision)
    return x.new_empty(x.shape[0], outputs), x.new_empty(kept, dtype=dtype)


@torch.library.register_fake("jetkern_triton::mlp_backward")
def _fake_backward(d_out: Tensor, x: Tensor, kept: Tensor, *weights: Any) -> tuple[Tensor, ...]:
    dx = x.new_empty(x.shape[0] if weights[7] else 0, x.shape[1])
    empty = [x.new_empty(0, dtype=weights[0].dtype) if w is None else w for w in weights[:6]]
    return dx, *(torch.empty_like(w) for w in empty)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, *weights, ctx.precision = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, output[1], *weights)


def _backward(ctx: Any, d_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    x, kept, *weights = ctx.saved_tensors
    need_dx = ctx.needs_input_grad[0]
    dx, *gradients = torch.ops.jetkern_triton.mlp_backward(
        d_out.contiguous(), x, kept, *weights, ctx.precision, need_dx
    )
    of_weights = [None if w is None else g for w, g in zip(weights, gradients, strict=True)]
    return dx if need_dx else None, *of_weights, None


torch.library.register_autograd("jetkern_triton::mlp", _backward, setup_context=_setup_context)


def dense(p: MLPParameters) -> MLPParameters:
    """The weights, contiguous; the norm is left out unless it is whole."""
    if p.alpha is None or p.gamma is None:
        p = p._replace(alpha=None, gamma=None)
    return MLPParameters._make(None if w is None else w.contiguous() for w in p)


def mlp(x: Tensor, parameters: MLPParameters, precision: str = "ieee") -> Tensor:
    """See ``jetkern.ops.mlp``."""
    out, _ = torch.ops.jetkern_triton.mlp(x.contiguous(), *dense(parameters), precision)
    return out


def _tiles(settings: Settings) -> Settings:
    return {k: v for k, v in settings.items() if k.isupper()}


def compile_cases() -> Iterator[CompileCase]:
    """The fused kernels at the narrow presets, as a block's second half, and the hidden layers."""
    weights = {"fc1_bias": "*fp32", "alpha": "*fp32", "gamma": "*fp32"}
    for name, width in (("micro", 32), ("small", 128)):
        for precision in ("ieee", "tf32", "bf16"):
            if width > NARROW[precision]:
                continue
            stored = "*bf16" if precision == "bf16" else "*fp32"
            norm = {"norm_alpha": "*fp32", "norm_gamma": "*fp32"}
            constants = narrow_constants(width, 2 * width, width, True, precision)
            branch = {"mixed": stored, "out_weight": stored, **norm}
            settings = narrow_default("narrow", width, precision)
            arguments: dict[str, Any] = {"x": "*fp32", **branch, "fc1_weight": stored, **weights}
            arguments |= {"fc2_weight": stored, "fc2_bias": "*fp32", "middle": "*fp32"}
            arguments |= {"out": "*fp32", "rows": "i32", **constants, **_tiles(settings)}
            forward = arguments
            label, key = f"{name} {precision}", f"{width} {precision}"
            yield CompileCase(narrow_kernel, label, forward, settings, ("narrow", key))
            settings = narrow_default("narrow_backward", width, precision)
            arguments = {"x": "*fp32", "d_out": "*fp32", "out_weight": stored, **norm}
            arguments |= {"fc1_weight": stored, **weights, "fc2_weight": stored, "dx": "*fp32"}
            arguments |= dict.fromkeys(("d_mixed", "normed_out"), stored)
            arguments |= dict.fromkeys(("hidden_out", "d_hidden_out"), stored)
            arguments |= {"sums": "*fp32", "rows": "i32", **constants, **_tiles(settings)}
            row = ("narrow_backward", key)
            yield CompileCase(narrow_backward_kernel, label, arguments, settings, row)
            if name == "micro":  # an embedding without optional weights
                bare = dict.fromkeys(
                    (
                        "mixed",
                        "out_weight",
                        "norm_alpha",
                        "norm_gamma",
                        "fc1_bias",
                        "alpha",
                        "gamma",
                    )
                )
                bare |= dict.fromkeys(("fc2_bias", "middle", "d_mixed", "normed_out"))
                for kernel, used in ((narrow_kernel, forward), (narrow_backward_kernel, arguments)):
                    left = {k: None if k in bare else v for k, v in used.items()}
                    left |= {"RESIDUAL": False, "INPUTS": 4, "PAD_IN": 16}
                    row = (kernel_name(kernel), key)
                    yield CompileCase(kernel, f"bare {precision}", left, settings, row)
    for name, width in (("medium", 1024), ("large", 2048)):
        for stored in ("*fp32", "*bf16"):
            shape = {"rows": "i32", "width": width}
            shape |= {"PRECISION": "bf16" if stored == "*bf16" else "ieee"}
            label = f"{name} {stored[1:]}"
            arguments = {"h": stored, "bias": "*fp32", "alpha": "*fp32", "gamma": "*fp32"}
            arguments |= {"out": stored, **shape, **_tiles(HIDDEN)}
            row = ("hidden", f"{min(width, 512)}")
            yield CompileCase(hidden_kernel, label, arguments, HIDDEN, row)
            bare = dict.fromkeys(("bias", "alpha", "gamma"))
            yield CompileCase(hidden_kernel, f"bare {label}", arguments | bare, HIDDEN, row)
            arguments = {"h": stored, "d_out": stored, "bias": "*fp32", "alpha": "*fp32"}
            arguments |= {"gamma": "*fp32", "dh": stored, "out": stored, "sums": "*fp32", **shape}
            arguments |= _tiles(HIDDEN_BACKWARD)
            row = ("hidden_backward", row[1])
            for what, given in ((label, arguments), (f"bare {label}", arguments | bare)):
                yield CompileCase(hidden_backward_kernel, what, given, HIDDEN_BACKWARD, row)
