"""The perceptron on GPUs: one fused kernel for narrow rows, pieces around products for wide ones.

Fused (rows of at most 128): a program takes a tile of rows through both layers, the hidden layer
in chunks that never leave the chip; optionally a block's attention branch is projected and added
first, the sum normed, and the sum added to the result. Nothing is kept for the backward: one kernel
computes the hidden layer again, passes the gradient through and writes the factors of the weight
gradients.

Wide: products of ``jetkern.ops.linear.triton``, and one pass between them that does bias, GELU and
norm. Kept for the backward is fc1's result without bias, in bfloat16 at that precision; the
backward's one pass between its products computes GELU and norm again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from jetkern.ops.gpu.functions import dot, gelu, gelu_and_slope, tanh
from jetkern.ops.gpu.launch import Settings, cdiv, launch, launch_settings
from jetkern.ops.gpu.layout import offsets
from jetkern.ops.gpu.pointwise import (
    TILES,
    optional_row,
    optional_scalar,
    padded,
    rounded,
    rounded_rows,
    stored_type,
    tile_of,
    tiles,
)
from jetkern.ops.gpu.register import gpu_operator
from jetkern.ops.gpu.sums import Slabs, added
from jetkern.ops.linear.triton import Unsummed, product, summed, weight_gradient
from jetkern.ops.mlp import reference
from jetkern.ops.parameters import MLPParameters

FUSED = {"ieee": 64, "tf32": 128, "bf16": 128}  # the widest rows that the fused kernels take

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
    "mlp_hidden_fwd": TILES,
    "mlp_hidden_bwd": TILES,
    "mlp_fused_fwd": _ROWS_AND_CHUNKS,
    "mlp_fused_bwd": _ROWS_AND_CHUNKS,
}


class Before(NamedTuple):
    """What a block does before its perceptron, None for what there is not.

    Attributes:
        mixed: (T, D) that out_weight: (D, D) projects, added to x. alpha: (1,) and gamma: (D,) of
            the norm of that sum.
    """

    mixed: Tensor | None = None
    out_weight: Tensor | None = None
    alpha: Tensor | None = None
    gamma: Tensor | None = None

    def whole(self) -> tuple[Tensor, Tensor, Tensor]:
        """The weights, of a block."""
        assert self.out_weight is not None
        assert self.alpha is not None
        assert self.gamma is not None
        return self.out_weight, self.alpha, self.gamma


ALONE = Before()


class Widths(NamedTuple):
    """Of the fused kernels' rows and, for input and result, of their tiles."""

    inputs: int
    hidden: int
    outputs: int
    padded_in: int
    padded_out: int


class Factors(NamedTuple):
    """Of the weight gradients, (T, width): input of fc1, input of fc2, gradient between them."""

    normed: Tensor | None
    hidden: Tensor
    d_hidden: Tensor


class Sums(NamedTuple):
    """A slab of the fused backward: the gradients of all vectors."""

    fc1_bias: Any
    gamma: Any
    alpha: Any
    fc2_bias: Any
    norm_gamma: Any
    norm_alpha: Any
    end: Any


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


@triton.jit(do_not_specialize=["rows"])
def mlp_hidden_fwd_kernel(
    h,
    weights,
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
    value = tl.load(h + base + at, mask, 0.0).to(tl.float32) + optional_row(
        weights.fc1_bias, column, inside
    )
    scale = optional_row(weights.gamma, column, inside)
    tl.store(
        out + base + at,
        activate(
            value, optional_scalar(weights.alpha), scale, weights.alpha is not None, PRECISION
        ),
        mask,
    )


@triton.jit(do_not_specialize=["rows"])
def mlp_hidden_bwd_kernel(
    h,
    d_out,
    weights,
    d_h,
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
    shift = optional_row(weights.fc1_bias, column, inside)
    scale = optional_row(weights.gamma, column, inside)
    slope = optional_scalar(weights.alpha)
    d_bias = tl.zeros((ROWS, COLUMNS), tl.float32)
    d_gamma = tl.zeros((ROWS, COLUMNS), tl.float32)
    d_alpha = tl.zeros((ROWS, COLUMNS), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        base, at, mask = tile_of(tile, column, rows, width, ROWS)
        value = tl.load(h + base + at, mask, 0.0).to(tl.float32) + shift
        d = tl.load(d_out + base + at, mask, 0.0).to(tl.float32)
        value, d_value, of_alpha = activate_backward(
            value, d, slope, scale, weights.alpha is not None, PRECISION
        )
        if weights.alpha is not None:
            d_gamma += d * value
            d_alpha += of_alpha
            value *= scale
        tl.store(out + base + at, value, mask)
        tl.store(d_h + base + at, d_value, mask)
        d_bias += d_value
    slab = sums + tl.program_id(0) * 3 * width + column
    tl.store(slab, tl.sum(d_bias, 0), inside)
    tl.store(slab + width, tl.sum(d_gamma, 0), inside)
    tl.store(slab + 2 * width, tl.sum(d_alpha, 0), inside)


@triton.jit(do_not_specialize=["rows"])
def mlp_fused_fwd_kernel(
    x,
    before,
    weights,
    middle,
    out,
    rows,
    WIDTHS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """middle = x + mixed out_weight^T; out = [middle +] mlp(norm(middle)); see the module."""
    INPUTS: tl.constexpr = WIDTHS.inputs
    HIDDEN: tl.constexpr = WIDTHS.hidden
    OUTPUTS: tl.constexpr = WIDTHS.outputs
    PADDED_IN: tl.constexpr = WIDTHS.padded_in
    PADDED_OUT: tl.constexpr = WIDTHS.padded_out
    i = tl.arange(0, PADDED_IN)
    o = tl.arange(0, PADDED_OUT)
    base, at, in_x = tile_of(tl.program_id(0), i, rows, INPUTS, ROWS)
    value = tl.load(x + base + at, in_x, 0.0).to(tl.float32)
    if before.mixed is not None:
        for chunk in range(0, INPUTS, CHUNK):
            c = chunk + tl.arange(0, CHUNK)
            weight = tl.load(
                before.out_weight + i[None, :] * INPUTS + c[:, None],
                (c < INPUTS)[:, None] & (i < INPUTS)[None, :],
                0.0,
            )
            base_c, at_c, in_c = tile_of(tl.program_id(0), c, rows, INPUTS, ROWS)
            branch = tl.load(before.mixed + base_c + at_c, in_c, 0.0)
            value = dot(branch, weight, value, PRECISION)
        tl.store(middle + base + at, value, in_x)
    normed = value
    if before.alpha is not None:
        scale = optional_row(before.gamma, i, i < INPUTS)
        normed = scale * tanh(tl.load(before.alpha).to(tl.float32) * value)
    slope = optional_scalar(weights.alpha)
    acc = tl.zeros((ROWS, PADDED_OUT), tl.float32)
    for chunk in range(0, HIDDEN, CHUNK):
        c = chunk + tl.arange(0, CHUNK)
        inside = c < HIDDEN
        first = tl.load(
            weights.fc1_weight + c[None, :] * INPUTS + i[:, None],
            (i < INPUTS)[:, None] & inside[None, :],
            0.0,
        )
        second = tl.load(
            weights.fc2_weight + o[None, :] * HIDDEN + c[:, None],
            inside[:, None] & (o < OUTPUTS)[None, :],
            0.0,
        )
        h = dot(normed, first, tl.zeros((ROWS, CHUNK), tl.float32), PRECISION)
        h += optional_row(weights.fc1_bias, c, inside)
        u = activate(
            h, slope, optional_row(weights.gamma, c, inside), weights.alpha is not None, PRECISION
        )
        acc = dot(u, second, acc, PRECISION)
    acc += optional_row(weights.fc2_bias, o, o < OUTPUTS)
    if RESIDUAL:
        acc += value
    base, at, in_out = tile_of(tl.program_id(0), o, rows, OUTPUTS, ROWS)
    tl.store(out + base + at, acc, in_out)


@triton.jit(do_not_specialize=["rows"])
def mlp_fused_bwd_kernel(
    x,
    d_out,
    before,
    weights,
    d_x,
    d_mixed,
    factors,
    sums,
    rows,
    SUMS: tl.constexpr,
    WIDTHS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Gradients of the forward's inputs, its middle being ``x`` here, and sums over the tile.

    Written for the weight gradients: the inputs of both layers and the gradient between them, as
    ``Factors``; and for each tile a slab of ``Sums``.
    """
    INPUTS: tl.constexpr = WIDTHS.inputs
    HIDDEN: tl.constexpr = WIDTHS.hidden
    OUTPUTS: tl.constexpr = WIDTHS.outputs
    PADDED_IN: tl.constexpr = WIDTHS.padded_in
    PADDED_OUT: tl.constexpr = WIDTHS.padded_out
    tile = tl.program_id(0)
    i = tl.arange(0, PADDED_IN)
    o = tl.arange(0, PADDED_OUT)
    in_i = i < INPUTS
    in_o = o < OUTPUTS
    slab = sums + tile.to(tl.int64) * SUMS.end
    base, at, in_x = tile_of(tile, i, rows, INPUTS, ROWS)
    base_o, at_o, in_out = tile_of(tile, o, rows, OUTPUTS, ROWS)
    normed = tl.load(x + base + at, in_x, 0.0).to(tl.float32)
    d = tl.load(d_out + base_o + at_o, in_out, 0.0).to(tl.float32)
    tl.store(slab + SUMS.fc2_bias + o, tl.sum(d, 0), in_o)
    if before.alpha is not None:
        scale = optional_row(before.gamma, i, in_i)
        normed = scale * tanh(tl.load(before.alpha).to(tl.float32) * normed)
        tl.store(factors.normed + base + at, normed, in_x)
    slope = optional_scalar(weights.alpha)
    d_alpha = tl.zeros((ROWS,), tl.float32)
    d_normed = tl.zeros((ROWS, PADDED_IN), tl.float32)
    for chunk in range(0, HIDDEN, CHUNK):
        c = chunk + tl.arange(0, CHUNK)
        inside = c < HIDDEN
        first = tl.load(
            weights.fc1_weight + c[:, None] * INPUTS + i[None, :],
            inside[:, None] & in_i[None, :],
            0.0,
        )
        second = tl.load(
            weights.fc2_weight + o[:, None] * HIDDEN + c[None, :],
            in_o[:, None] & inside[None, :],
            0.0,
        )
        h = dot(normed, tl.trans(first), tl.zeros((ROWS, CHUNK), tl.float32), PRECISION)
        h += optional_row(weights.fc1_bias, c, inside)
        d_u = dot(d, second, tl.zeros((ROWS, CHUNK), tl.float32), PRECISION)
        row = optional_row(weights.gamma, c, inside)
        u, d_h, of_alpha = activate_backward(
            h, d_u, slope, row, weights.alpha is not None, PRECISION
        )
        d_normed = dot(d_h, first, d_normed, PRECISION)
        base_h, at_h, in_hidden = tile_of(tile, c, rows, HIDDEN, ROWS)
        tl.store(factors.d_hidden + base_h + at_h, d_h, in_hidden)
        tl.store(slab + SUMS.fc1_bias + c, tl.sum(d_h, 0), inside)
        if weights.alpha is not None:
            tl.store(slab + SUMS.gamma + c, tl.sum(d_u * u, 0), inside)
            d_alpha += tl.sum(of_alpha, 1)
            u *= row
        tl.store(factors.hidden + base_h + at_h, u, in_hidden)
    tl.store(slab + SUMS.alpha, tl.sum(d_alpha, 0))
    if before.alpha is not None:
        value = tl.load(x + base + at, in_x, 0.0).to(tl.float32)
        norm_slope = tl.load(before.alpha).to(tl.float32)
        t = tanh(norm_slope * value)
        tl.store(slab + SUMS.norm_gamma + i, tl.sum(d_normed * t, 0), in_i)
        inner = d_normed * scale * (1.0 - t * t)
        tl.store(slab + SUMS.norm_alpha, tl.sum(tl.sum(inner * value, 1), 0))
        d_normed = norm_slope * inner
    if RESIDUAL:
        d_normed += tl.load(d_out + base + at, in_x, 0.0).to(tl.float32)
    tl.store(d_x + base + at, d_normed, in_x)
    if d_mixed is not None:
        for chunk in range(0, INPUTS, CHUNK):
            c = chunk + tl.arange(0, CHUNK)
            weight = tl.load(
                before.out_weight + i[:, None] * INPUTS + c[None, :],
                in_i[:, None] & (c < INPUTS)[None, :],
                0.0,
            )
            result = dot(d_normed, weight, tl.zeros((ROWS, CHUNK), tl.float32), PRECISION)
            base_c, at_c, in_c = tile_of(tile, c, rows, INPUTS, ROWS)
            tl.store(d_mixed + base_c + at_c, result, in_c)


class Gradients(NamedTuple):
    """Of the inputs of ``fused_forward``, and what ``of_fused`` takes of its weights."""

    x: Tensor
    mixed: Tensor | None
    weights: Unsummed


def is_fused(p: MLPParameters, precision: str) -> bool:
    """Whether the fused kernels take this perceptron: its tiles fit in registers."""
    return max(p.fc1_weight.shape[1], p.fc2_weight.shape[0]) <= FUSED[precision]


def _widths(p: MLPParameters) -> Widths:
    hidden, inputs = p.fc1_weight.shape
    outputs = p.fc2_weight.shape[0]
    return Widths(inputs, hidden, outputs, padded(inputs), padded(outputs))


def _fused_settings(kernel: Any, p: MLPParameters, precision: str) -> Settings:
    """Tiles that fit in registers, and warps."""
    widths = _widths(p)
    widest = max(widths.padded_in, widths.padded_out)
    default = {"ROWS": 64, "CHUNK": 32, "num_warps": 8 if widest > 64 else 4, "num_stages": 1}
    if kernel is mlp_fused_bwd_kernel and widest > 64:
        default |= {"ROWS": 32, "num_warps": 4 if precision == "bf16" else 8}
    elif kernel is mlp_fused_bwd_kernel and precision == "ieee":
        default["CHUNK"] = 16
    device = p.fc1_weight.device
    settings = launch_settings(kernel, f"{widest} {precision}", device, default)
    return {**settings, "CHUNK": min(settings["CHUNK"], padded(widths.hidden))}


def _as_read(p: MLPParameters, before: Before, precision: str) -> tuple[MLPParameters, Before]:
    """The weights with their matrices as the products read them."""
    p = p._replace(
        fc1_weight=rounded(p.fc1_weight, precision), fc2_weight=rounded(p.fc2_weight, precision)
    )
    if before.out_weight is not None:
        before = before._replace(out_weight=rounded(before.out_weight, precision))
    return p, before


def fused_forward(
    x: Tensor,
    p: MLPParameters,
    precision: str,
    before: Before = ALONE,
    residual: bool = False,
) -> tuple[Tensor | None, Tensor]:
    """middle = x + mixed out_weight^T, and mlp(norm(middle)), plus middle if ``residual``.

    x is dense (T, D_in). Without ``before.mixed`` middle is x and returned as None.
    """
    out = x.new_empty(len(x), p.fc2_weight.shape[0])
    middle = None if before.mixed is None else torch.empty_like(x)
    settings = _fused_settings(mlp_fused_fwd_kernel, p, precision)
    weights, ahead = _as_read(p, before, precision)
    launch(
        mlp_fused_fwd_kernel,
        (cdiv(len(x), settings["ROWS"]),),
        x.device,
        settings,
        x=x,
        before=ahead,
        weights=weights,
        middle=middle,
        out=out,
        rows=len(x),
        WIDTHS=_widths(p),
        RESIDUAL=residual,
        PRECISION=precision,
    )
    return middle, out


def fused_backward(
    x: Tensor,
    d_out: Tensor,
    p: MLPParameters,
    precision: str,
    before: Before = ALONE,
    residual: bool = False,
) -> Gradients:
    """Gradients of ``fused_forward``; x is its middle."""
    widths = _widths(p)
    settings = _fused_settings(mlp_fused_bwd_kernel, p, precision)
    programs = cdiv(len(x), settings["ROWS"])
    lengths = (widths.hidden, widths.hidden, 1, widths.outputs, widths.inputs, 1)
    layout = offsets(Sums, lengths)
    sums = x.new_empty(programs, layout.end, dtype=torch.float32)
    d_x = torch.empty_like(x)
    d_mixed = None if before.mixed is None else torch.empty_like(before.mixed)
    stored = stored_type(precision)
    u, d_h = (x.new_empty(len(x), widths.hidden, dtype=stored) for _ in range(2))
    normed = None if before.alpha is None else torch.empty_like(x, dtype=stored)
    weights, ahead = _as_read(p, before, precision)
    launch(
        mlp_fused_bwd_kernel,
        (programs,),
        x.device,
        settings,
        x=x,
        d_out=d_out,
        before=ahead._replace(mixed=None),
        weights=weights._replace(fc2_bias=None),
        d_x=d_x,
        d_mixed=d_mixed,
        factors=Factors(normed, u, d_h),
        sums=sums,
        rows=len(x),
        SUMS=layout,
        WIDTHS=widths,
        RESIDUAL=residual,
        PRECISION=precision,
    )
    products = [(d_h, x if normed is None else normed), (d_out, u)]
    if before.mixed is not None:
        products.append((d_x, before.mixed))
    return Gradients(d_x, d_mixed, Unsummed(tuple(products), Slabs(sums, lengths)))


def of_fused(found: tuple[list[Tensor], list[Tensor]]) -> tuple[Before, MLPParameters]:
    """The gradients by name, from what ``summed`` gives; the norms' are arbitrary without one."""
    (fc1, fc2, *out), parts = found
    total = Sums._make([*parts, None])
    before = Before(None, out[0] if out else None, total.norm_alpha, total.norm_gamma)
    of_mlp = MLPParameters(fc1, total.fc1_bias, total.alpha, total.gamma, fc2, total.fc2_bias)
    return before, of_mlp


def _precision(stored: Tensor) -> str:
    """How exact values need be that are stored like this."""
    return "bf16" if stored.dtype == torch.bfloat16 else "ieee"


def _vectors(p: MLPParameters) -> MLPParameters:
    """What the passes over the hidden layer read of the weights."""
    return p._replace(fc1_weight=None, fc2_weight=None, fc2_bias=None)  # type: ignore[arg-type]


def hidden_layer(h: Tensor, p: MLPParameters) -> Tensor:
    """norm(gelu(h + fc1_bias)), as h's dtype; h is fc1's result without its bias."""
    out = torch.empty_like(h)
    grid, settings = tiles(mlp_hidden_fwd_kernel, h, HIDDEN)
    launch(
        mlp_hidden_fwd_kernel,
        grid,
        h.device,
        settings,
        h=h,
        weights=_vectors(p),
        out=out,
        rows=h.shape[0],
        width=h.shape[1],
        PRECISION=_precision(h),
    )
    return out


def hidden_layer_backward(
    h: Tensor, d_out: Tensor, p: MLPParameters
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradient of h, ``hidden_layer`` again, and gradients of fc1_bias, gamma and alpha."""
    d_h, out = torch.empty_like(h), torch.empty_like(h)
    rows, width = h.shape
    if not h.numel():
        zeros = h.new_zeros(width, dtype=torch.float32)
        return d_h, out, zeros, zeros, zeros[:1]
    grid, settings = tiles(mlp_hidden_bwd_kernel, h, HIDDEN_BACKWARD, sums=True)
    sums = h.new_empty(grid[0], 3, width, dtype=torch.float32)
    launch(
        mlp_hidden_bwd_kernel,
        grid,
        h.device,
        settings,
        h=h,
        d_out=d_out,
        weights=_vectors(p),
        d_h=d_h,
        out=out,
        sums=sums,
        rows=rows,
        width=width,
        PRECISION=_precision(h),
    )
    [(d_bias, d_gamma, d_alpha)] = added([Slabs(sums.flatten(1), (width,) * 3, whole=(2,))])
    return d_h, out, d_bias, d_gamma, d_alpha


def wide_forward(
    x: Tensor, p: MLPParameters, precision: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """mlp(x) without fc2_bias, as ``dtype``, and what its backward needs, (T, C)."""
    h = product(x, p.fc1_weight.t(), precision, stored_type(precision))
    return product(hidden_layer(h, p), p.fc2_weight.t(), precision, dtype), h


class Inner(NamedTuple):
    """Gradients of the weights between fc1's result and fc2's."""

    fc1_bias: Tensor
    alpha: Tensor
    gamma: Tensor
    fc2_weight: Tensor

    def joined(self, fc1_weight: Tensor, fc2_bias: Tensor) -> MLPParameters:
        """With those of the outer ones."""
        return MLPParameters(fc1_weight=fc1_weight, fc2_bias=fc2_bias, **self._asdict())


def wide_backward(
    h: Tensor, d_out: Tensor, p: MLPParameters, precision: str
) -> tuple[Tensor, Inner]:
    """Gradients of fc1's result h and of the inner weights, for d_out as products take it.

    What is left are a product with fc1_weight and a weight gradient with the input.
    """
    d_u = product(d_out, p.fc2_weight, precision, stored_type(precision))
    d_h, u, d_bias, d_gamma, d_alpha = hidden_layer_backward(h, d_u, p)
    d_fc2 = weight_gradient(d_out, u, precision, torch.float32)
    return d_h, Inner(d_bias, d_alpha, d_gamma, d_fc2)


def like_weights(gradients: MLPParameters, p: MLPParameters) -> tuple[Tensor, ...]:
    """The gradients in their weights' dtype; empty for weights that there are not."""
    return tuple(
        p.fc1_weight.new_empty(0) if weight is None or gradient is None else gradient.to(weight)
        for gradient, weight in zip(gradients, p, strict=True)
    )


def _forward(x: Tensor, *weights_and_precision: Any) -> tuple[Tensor, Tensor]:
    *weights, precision = weights_and_precision
    p = MLPParameters(*weights)
    if is_fused(p, precision):
        return fused_forward(x, p, precision)[1], x.new_empty(0, 0)
    out, h = wide_forward(x, p, precision, x.dtype)
    return (out if p.fc2_bias is None else out.add_(p.fc2_bias)), h


def _backward(d_out: Tensor, x: Tensor, *others: Any) -> tuple[Tensor, ...]:
    *weights, precision, kept, want_x = others
    p = MLPParameters(*weights)
    if is_fused(p, precision):
        gradients = fused_backward(x, d_out, p, precision)
        _, of_mlp = of_fused(*summed([gradients.weights], precision))
        return gradients.x if want_x else x.new_empty(0), *like_weights(of_mlp, p)
    d, d_fc2_bias = rounded_rows(d_out, precision)
    d_h, inner = wide_backward(kept, d, p, precision)
    of_mlp = inner.joined(weight_gradient(d_h, x, precision, torch.float32), d_fc2_bias)
    d_x = product(d_h, p.fc1_weight, precision, x.dtype) if want_x else x.new_empty(0)
    return d_x, *like_weights(of_mlp, p)


def _fake(x: Tensor, *weights_and_precision: Any) -> tuple[Tensor, Tensor]:
    *weights, precision = weights_and_precision
    p = MLPParameters(*weights)
    kept = x.new_empty(0, 0)
    if not is_fused(p, precision):
        kept = x.new_empty(x.shape[0], p.fc1_weight.shape[0], dtype=stored_type(precision))
    return x.new_empty(x.shape[0], p.fc2_weight.shape[0]), kept


def _reference(x: Tensor, *weights_and_precision: Any) -> Tensor:
    *weights, _ = weights_and_precision
    return reference.mlp(x, MLPParameters(*weights))


WEIGHTS = (
    "Tensor fc1_weight, Tensor? fc1_bias, Tensor? alpha, Tensor? gamma, Tensor fc2_weight,"
    " Tensor? fc2_bias"
)
_op = gpu_operator(
    "mlp",
    f"(Tensor x, {WEIGHTS}, str precision) -> (Tensor out, Tensor kept)",
    fake=_fake,
    forward=_forward,
    backward=_backward,
    gradients=f"x? {' '.join(MLPParameters._fields)}",
    kept="kept",
    reference=_reference,
)


def dense(p: MLPParameters) -> MLPParameters:
    """The weights, contiguous; the norm is left out unless it is whole."""
    if p.alpha is None or p.gamma is None:
        p = p._replace(alpha=None, gamma=None)
    return MLPParameters._make(None if w is None else w.contiguous() for w in p)


def mlp(x: Tensor, parameters: MLPParameters, precision: str = "ieee") -> Tensor:
    """See ``jetkern.ops.mlp``."""
    out, _ = _op(x.contiguous(), *dense(parameters), precision)
    return out
