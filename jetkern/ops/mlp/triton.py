"""The perceptron on GPUs: one fused kernel for narrow rows, pieces around products for wide ones.

Narrow (rows of at most 128): a program takes a tile of rows through both layers, the hidden layer
in chunks that never leave the chip; optionally a block's attention branch is projected and added
first, the sum normed, and the sum added to the result. The backward computes the hidden layer
again; it writes the factors of the weight gradients, or, where these fit in registers, sums the
weight gradients themselves on chip, a slab for each program, added in order.

Wide: products of ``jetkern.ops.linear.triton``, and one pass between them that does bias, GELU and
norm. Kept for the backward is fc1's result without bias, in bfloat16 at that precision; the
backward's one pass between its products computes GELU and norm again.
"""

from __future__ import annotations

from collections.abc import Iterator
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
    launch_settings,
    on_device,
    tanh,
)

NARROW = 128  # the widest rows that the fused kernels take
ON_CHIP = (32, 64)  # the widest rows and hidden layer whose weight gradients fit in registers
PROGRAMS = 528  # of a backward that sums weight gradients on chip, a few per multiprocessor

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
def activate(h, alpha, gamma):
    """gamma tanh(alpha gelu(h)), or gelu(h) without alpha."""
    value = gelu(h)
    if alpha is not None:
        value = gamma * tanh(alpha * value)
    return value


@triton.jit
def activate_backward(h, d, alpha, gamma):
    """Result of ``activate``, the gradient of h, and the terms of those of gamma and alpha."""
    value, slope = gelu_and_slope(h)
    if alpha is None:
        return value, d * slope, d, d
    t = tanh(alpha * value)
    inner = d * gamma * (1.0 - t * t)
    return gamma * t, alpha * inner * slope, d * t, inner * value


@triton.jit
def optional_row(pointer, column, inside):
    """A (1, N) row of float32 weights; 0 if there is none."""
    if pointer is None:
        return 0.0
    return tl.load(pointer + column, inside, 0.0).to(tl.float32)[None, :]


@triton.jit
def optional_scalar(pointer):
    """A float32 weight, None if there is none."""
    if pointer is None:
        return None
    return tl.load(pointer).to(tl.float32)


@triton.jit(do_not_specialize=["rows"])
def hidden_kernel(
    h, bias, alpha, gamma, out, rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """out = norm(gelu(h + bias)); bias and norm are optional."""
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    base, at, mask = tile_of(tl.program_id(0), column, rows, width, ROWS)
    value = tl.load(h + base + at, mask, 0.0).to(tl.float32) + optional_row(bias, column, inside)
    scale = optional_row(gamma, column, inside)
    tl.store(out + base + at, activate(value, optional_scalar(alpha), scale), mask)


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
        value, d, of_gamma, of_alpha = activate_backward(value, d, slope, scale)
        tl.store(out + base + at, value, mask)
        tl.store(dh + base + at, d, mask)
        d_bias += d
        if alpha is not None:
            d_gamma += of_gamma
            d_alpha += of_alpha
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
        square = (i < INPUTS)[:, None] & (i < INPUTS)[None, :]
        weight = tl.load(out_weight + i[None, :] * INPUTS + i[:, None], square, 0.0)
        value = dot(tl.load(mixed + base + at, in_x, 0.0), weight, value, PRECISION)
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
        acc = dot(activate(h, slope, optional_row(gamma, c, inside)), second, acc, PRECISION)
    acc += optional_row(fc2_bias, o, o < OUTPUTS)
    if RESIDUAL:
        acc += value
    base, at, in_out = tile_of(tl.program_id(0), o, rows, OUTPUTS, ROWS)
    tl.store(out + base + at, acc, in_out)


@triton.jit(do_not_specialize=["rows", "slab"])
def narrow_backward_kernel(
    x,
    d_out,
    mixed,
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
    slab,
    INPUTS: tl.constexpr,
    HIDDEN: tl.constexpr,
    OUTPUTS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ON_CHIP: tl.constexpr,
    PRECISION: tl.constexpr,
    PAD_IN: tl.constexpr,
    PAD_OUT: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Gradients of ``narrow_kernel``, whose middle is ``x`` here.

    A slab of sums holds the gradients of fc1_bias, gamma, alpha by columns (3 HIDDEN), fc2_bias
    (OUTPUTS), norm_gamma, norm_alpha by columns (2 INPUTS), and with ON_CHIP those of fc1_weight,
    fc2_weight transposed and out_weight. With ON_CHIP a program takes every p-th tile and one chunk
    is the hidden layer; else a program has one tile, writes the factors of the weight gradients,
    and a chunk's sums go to the slab at once.
    """
    i = tl.arange(0, PAD_IN)
    o = tl.arange(0, PAD_OUT)
    in_i = i < INPUTS
    in_o = o < OUTPUTS
    square = in_i[:, None] & in_i[None, :]
    slope = optional_scalar(alpha)
    own = sums + tl.program_id(0).to(tl.int64) * slab
    d_fc2_bias = tl.zeros((PAD_OUT,), tl.float32)
    d_norm_gamma = tl.zeros((PAD_IN,), tl.float32)
    d_norm_alpha = tl.zeros((PAD_IN,), tl.float32)
    d_fc1_bias = tl.zeros((CHUNK,), tl.float32)
    d_gamma = tl.zeros((CHUNK,), tl.float32)
    d_alpha = tl.zeros((CHUNK,), tl.float32)
    if ON_CHIP:
        d_fc1 = tl.zeros((CHUNK, PAD_IN), tl.float32)
        d_fc2 = tl.zeros((CHUNK, PAD_OUT), tl.float32)
        d_out_weight = tl.zeros((PAD_IN, PAD_IN), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        base, at, in_x = tile_of(tile, i, rows, INPUTS, ROWS)
        d_base, d_at, in_out = tile_of(tile, o, rows, OUTPUTS, ROWS)
        value = tl.load(x + base + at, in_x, 0.0).to(tl.float32)
        d = tl.load(d_out + d_base + d_at, in_out, 0.0).to(tl.float32)
        d_fc2_bias += tl.sum(d, 0)
        normed = value
        if norm_alpha is not None:
            norm_slope = tl.load(norm_alpha).to(tl.float32)
            scale = optional_row(norm_gamma, i, in_i)
            t = tanh(norm_slope * value)
            normed = scale * t
        if normed_out is not None:
            tl.store(normed_out + base + at, normed, in_x)
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
            scale_u = optional_row(gamma, c, inside)
            u, d_h, of_gamma, of_alpha = activate_backward(h, d_u, slope, scale_u)
            d_normed = dot(d_h, first, d_normed, PRECISION)
            if ON_CHIP:
                d_fc1_bias += tl.sum(d_h, 0)
                d_gamma += tl.sum(of_gamma, 0)
                d_alpha += tl.sum(of_alpha, 0)
                d_fc1 = dot(tl.trans(d_h), normed, d_fc1, PRECISION)
                d_fc2 = dot(tl.trans(u), d, d_fc2, PRECISION)
            else:
                h_base, h_at, in_hidden = tile_of(tile, c, rows, HIDDEN, ROWS)
                tl.store(hidden_out + h_base + h_at, u, in_hidden)
                tl.store(d_hidden_out + h_base + h_at, d_h, in_hidden)
                tl.store(own + c, tl.sum(d_h, 0), inside)
                tl.store(own + HIDDEN + c, tl.sum(of_gamma, 0), inside)
                tl.store(own + 2 * HIDDEN + c, tl.sum(of_alpha, 0), inside)
        if norm_alpha is not None:
            value = tl.load(x + base + at, in_x, 0.0).to(tl.float32)
            t = tanh(norm_slope * value)
            d_norm_gamma += tl.sum(d_normed * t, 0)
            inner = d_normed * scale * (1.0 - t * t)
            d_norm_alpha += tl.sum(inner * value, 0)
            d_normed = norm_slope * inner
        if RESIDUAL:
            d_normed += tl.load(d_out + base + at, in_x, 0.0).to(tl.float32)
        tl.store(dx + base + at, d_normed, in_x)
        if mixed is not None:
            weight = tl.load(out_weight + i[:, None] * INPUTS + i[None, :], square, 0.0)
            result = dot(d_normed, weight, tl.zeros((ROWS, PAD_IN), tl.float32), PRECISION)
            tl.store(d_mixed + base + at, result, in_x)
            if ON_CHIP:
                branch = tl.load(mixed + base + at, in_x, 0.0)
                d_out_weight = dot(tl.trans(d_normed), branch, d_out_weight, PRECISION)
    own_small = own + 3 * HIDDEN
    tl.store(own_small + o, d_fc2_bias, in_o)
    tl.store(own_small + OUTPUTS + i, d_norm_gamma, in_i)
    tl.store(own_small + OUTPUTS + INPUTS + i, d_norm_alpha, in_i)
    if ON_CHIP:
        c = tl.arange(0, CHUNK)
        inside = c < HIDDEN
        tl.store(own + c, d_fc1_bias, inside)
        tl.store(own + HIDDEN + c, d_gamma, inside)
        tl.store(own + 2 * HIDDEN + c, d_alpha, inside)
        large = own_small + OUTPUTS + 2 * INPUTS
        tl.store(large + c[:, None] * INPUTS + i[None, :], d_fc1, inside[:, None] & in_i[None, :])
        large += HIDDEN * INPUTS
        tl.store(large + c[:, None] * OUTPUTS + o[None, :], d_fc2, inside[:, None] & in_o[None, :])
        if mixed is not None:
            large += HIDDEN * OUTPUTS
            tl.store(large + i[:, None] * INPUTS + i[None, :], d_out_weight, square)


class Gradients(NamedTuple):
    """What ``narrow_backward`` returns; None for what there is not."""

    x: Tensor
    mixed: Tensor | None
    out_weight: Tensor | None
    norm_alpha: Tensor | None
    norm_gamma: Tensor | None
    mlp: MLPParameters


def is_narrow(p: MLPParameters) -> bool:
    """Whether the fused kernels take this perceptron."""
    return max(p.fc1_weight.shape[1], p.fc2_weight.shape[0]) <= NARROW


def padded(width: int) -> int:
    return max(triton.next_power_of_2(width), 16)


def _narrow_settings(kernel: str, p: MLPParameters, precision: str) -> tuple[Settings, bool]:
    """How to launch a fused kernel, and whether its backward sums weight gradients on chip."""
    hidden = p.fc1_weight.shape[0]
    widest = max(padded(p.fc1_weight.shape[1]), padded(p.fc2_weight.shape[0]))
    settings = launch_settings(
        kernel,
        f"{widest} {precision}",
        p.fc1_weight.device,
        narrow_default(kernel, widest, precision),
    )
    on_chip = widest <= ON_CHIP[0] and hidden <= ON_CHIP[1]
    chunk = padded(hidden)
    if on_chip and kernel == "narrow_backward":
        settings = {**settings, "CHUNK": chunk}
    return {**settings, "CHUNK": min(settings["CHUNK"], chunk)}, on_chip


def narrow_default(kernel: str, widest: int, precision: str) -> Settings:
    """Tiles that fit in registers without spills."""
    rows = {"narrow": 64, "narrow_backward": 64}[kernel]
    return {"ROWS": rows, "CHUNK": 32, "num_warps": 8 if widest > 64 else 4, "num_stages": 1}


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
    inputs, hidden, outputs = _sizes(p)
    out = x.new_empty(len(x), outputs)
    middle = None if mixed is None else torch.empty_like(x)
    if len(x):
        settings, _ = _narrow_settings("narrow", p, precision)
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
                inputs,
                hidden,
                outputs,
                residual,
                precision,
                padded(inputs),
                padded(outputs),
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
    settings, on_chip = _narrow_settings("narrow_backward", p, precision)
    programs = triton.cdiv(len(x), settings["ROWS"])
    stored = stored_type(precision)
    shapes = [(3, hidden), (outputs,), (2, inputs)]
    if on_chip:
        programs = min(programs, PROGRAMS)
        shapes += [(hidden, inputs), (hidden, outputs)]
        shapes += [] if mixed is None else [(inputs, inputs)]
    lengths = [a * b for a, b in (s if len(s) == 2 else (1, *s) for s in shapes)]
    sums = x.new_empty(programs, sum(lengths), dtype=torch.float32)
    dx = torch.empty_like(x)
    d_mixed = None if mixed is None else torch.empty_like(mixed)
    normed = u = d_h = None
    if not on_chip:
        u, d_h = (x.new_empty(len(x), hidden, dtype=stored) for _ in range(2))
        normed = x if norm_alpha is None else torch.empty_like(x, dtype=stored)
    if programs:
        with on_device(x):
            narrow_backward_kernel[(programs,)](
                x,
                d_out,
                mixed,
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
                sums.shape[1],
                inputs,
                hidden,
                outputs,
                residual,
                on_chip,
                precision,
                padded(inputs),
                padded(outputs),
                **settings,
            )
    parts = [s.view(shape) for s, shape in zip(sums.sum(0).split(lengths), shapes, strict=True)]
    of_hidden, d_bias2, of_norm = parts[:3]
    d_out_weight = None
    if on_chip:
        d_fc1, d_fc2 = parts[3], parts[4].t()
        d_out_weight = None if mixed is None else parts[5]
    else:
        assert u is not None
        assert d_h is not None
        assert normed is not None
        d_fc1 = weight_gradient(d_h, normed, precision, torch.float32)
        d_fc2 = weight_gradient(d_out, u, precision, torch.float32)
        if mixed is not None:
            d_out_weight = weight_gradient(dx, mixed, precision, torch.float32)
    return Gradients(
        dx,
        d_mixed,
        d_out_weight,
        of_norm[1].sum(0, keepdim=True),
        of_norm[0],
        MLPParameters(
            d_fc1, of_hidden[0], of_hidden[2].sum(0, keepdim=True), of_hidden[1], d_fc2, d_bias2
        ),
    )


def hidden_layer(h: Tensor, p: MLPParameters) -> Tensor:
    """norm(gelu(h + fc1_bias)), as h's dtype; h is fc1's result without its bias."""
    out = torch.empty_like(h)
    if h.numel():
        grid, settings = tiles("hidden", h, HIDDEN)
        with on_device(h):
            hidden_kernel[grid](h, p.fc1_bias, p.alpha, p.gamma, out, *h.shape, **settings)
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
            h, d_out, p.fc1_bias, p.alpha, p.gamma, dh, out, sums, *h.shape, **settings
        )
    d_bias, d_gamma, d_alpha = sums.sum(0)
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
    """The gradients in their weights' dtype and dense; empty for weights that there are not."""
    return tuple(
        gradient.to(weight.dtype).contiguous()
        if weight is not None and gradient is not None
        else p.fc1_weight.new_empty(0)
        for gradient, weight in zip(gradients, p, strict=True)
    )


WEIGHTS = (
    "Tensor fc1_weight, Tensor? fc1_bias, Tensor? alpha, Tensor? gamma, Tensor fc2_weight,"
    " Tensor? fc2_bias"
)


@define("mlp", f"(Tensor x, {WEIGHTS}, str precision) -> (Tensor out, Tensor kept)")
def _launch(x: Tensor, *weights: Any) -> tuple[Tensor, Tensor]:
    p, precision = MLPParameters(*weights[:6]), weights[6]
    if is_narrow(p):
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
    if is_narrow(p):
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
    kept = (0, 0) if is_narrow(p) else (x.shape[0], hidden)
    dtype = x.dtype if is_narrow(p) else stored_type(precision)
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
    return MLPParameters(*(None if w is None else w.contiguous() for w in p))


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
            stored = "*bf16" if precision == "bf16" else "*fp32"
            norm = {"norm_alpha": "*fp32", "norm_gamma": "*fp32"}
            shape = {"INPUTS": width, "HIDDEN": 2 * width, "OUTPUTS": width, "RESIDUAL": True}
            branch = {"mixed": stored, "out_weight": stored, **norm}
            settings = narrow_default("narrow", width, precision)
            arguments: dict[str, Any] = {"x": "*fp32", **branch, "fc1_weight": stored, **weights}
            arguments |= {"fc2_weight": stored, "fc2_bias": "*fp32", "middle": "*fp32"}
            arguments |= {"out": "*fp32", "rows": "i32", **shape, "PRECISION": precision}
            arguments |= {"PAD_IN": width, "PAD_OUT": width, **_tiles(settings)}
            yield CompileCase(narrow_kernel, f"{name} {precision}", arguments, settings)
            on_chip = name == "micro"
            settings = narrow_default("narrow_backward", width, precision)
            if on_chip:
                settings = {**settings, "CHUNK": 2 * width}
            factors = dict.fromkeys(("normed_out", "hidden_out", "d_hidden_out"), stored)
            arguments = {"x": "*fp32", "d_out": "*fp32", **branch, "fc1_weight": stored, **weights}
            arguments |= {"fc2_weight": stored, "dx": "*fp32", "d_mixed": stored}
            arguments |= dict.fromkeys(factors) if on_chip else factors
            arguments |= {"sums": "*fp32", "rows": "i32", "slab": "i32", **shape}
            arguments |= {"ON_CHIP": on_chip, "PRECISION": precision}
            arguments |= {"PAD_IN": width, "PAD_OUT": width, **_tiles(settings)}
            yield CompileCase(narrow_backward_kernel, f"{name} {precision}", arguments, settings)
    for name, width in (("medium", 1024), ("large", 2048)):
        for stored in ("*fp32", "*bf16"):
            shape = {"rows": "i32", "width": width}
            label = f"{name} {stored[1:]}"
            arguments = {"h": stored, "bias": "*fp32", "alpha": "*fp32", "gamma": "*fp32"}
            arguments |= {"out": stored, **shape, **_tiles(HIDDEN)}
            yield CompileCase(hidden_kernel, label, arguments, HIDDEN)
            arguments = {"h": stored, "d_out": stored, "bias": "*fp32", "alpha": "*fp32"}
            arguments |= {"gamma": "*fp32", "dh": stored, "out": stored, "sums": "*fp32", **shape}
            arguments |= _tiles(HIDDEN_BACKWARD)
            yield CompileCase(hidden_backward_kernel, label, arguments, HIDDEN_BACKWARD)
