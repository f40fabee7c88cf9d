"""Passes over dense rows: DynamicTanh alone and together with what surrounds it, sums over rows.

The forward can add a branch and its bias first and return the sum too (x + y + bias, then its
norm); the backward can add the gradient that goes around the norm, round its result for the next
product and return the norm's output once more for a weight gradient, all in one pass. tanh is
computed again in the backward: nothing is kept but the input. Sums over rows are taken in registers
by a number of programs that depends on the shape alone, each with a slab of its own; the slabs are
added in order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from jetkern.ops import rounding
from jetkern.ops.gpu.functions import tanh
from jetkern.ops.gpu.launch import Settings, cdiv, launch, launch_settings, power_of_two
from jetkern.ops.gpu.sums import Slabs, added

DEFAULT: Settings = {"ROWS": 16, "COLUMNS": 128, "num_warps": 4, "num_stages": 1}
TILES = [
    {"ROWS": rows, "COLUMNS": columns, "num_warps": 4, "num_stages": 1}
    for rows, columns in ((8, 128), (16, 64), (16, 128), (32, 64), (32, 128), (64, 32), (4, 256))
]
CANDIDATES = {
    "dynamic_tanh_fwd": TILES,
    "dynamic_tanh_bwd": TILES,
    "column_sums": TILES,
}
SUMS = 1024  # programs of a kernel that sums over rows


@triton.jit
def tile_of(tile, column, rows, width, ROWS: tl.constexpr):
    """Offset of a tile's first row, in 64 bits, offsets of its elements from there, which exist."""
    first = tl.cast(tile, tl.int64) * ROWS
    row = tl.arange(0, ROWS)
    left = tl.minimum(rows - first, ROWS).to(tl.int32)
    mask = (row < left)[:, None] & (column < width)[None, :]
    return first * width, row[:, None] * width + column[None, :], mask


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
def dynamic_tanh_fwd_kernel(
    x,
    branch,
    bias,
    alpha,
    gamma,
    total,
    out,
    rows,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """total = x + branch + bias if there is a branch; out = gamma tanh(alpha total) if wanted."""
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    base, at, mask = tile_of(tl.program_id(0), column, rows, width, ROWS)
    value = tl.load(x + base + at, mask, 0.0).to(tl.float32)
    if branch is not None:
        value += tl.load(branch + base + at, mask, 0.0).to(tl.float32)
        if bias is not None:
            value += tl.load(bias + column, inside, 0.0).to(tl.float32)[None, :]
        tl.store(total + base + at, value, mask)
    if out is not None:
        scale = tl.load(gamma + column, inside, 0.0).to(tl.float32)
        tl.store(
            out + base + at, scale[None, :] * tanh(tl.load(alpha).to(tl.float32) * value), mask
        )


@triton.jit(do_not_specialize=["rows"])
def dynamic_tanh_bwd_kernel(
    x,
    d_out,
    d_around,
    alpha,
    gamma,
    d_x,
    rounded,
    out,
    sums,
    rows,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """d_x = d_around + gradient through the norm; sums[p] = the gradients of gamma and alpha.

    A program takes every p-th tile of ROWS rows. alpha's gradient is summed by columns.
    """
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    scale = tl.load(gamma + column, inside, 0.0).to(tl.float32)[None, :]
    slope = tl.load(alpha).to(tl.float32)
    d_gamma = tl.zeros((ROWS, COLUMNS), tl.float32)
    d_alpha = tl.zeros((ROWS, COLUMNS), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        base, at, mask = tile_of(tile, column, rows, width, ROWS)
        value = tl.load(x + base + at, mask, 0.0).to(tl.float32)
        d = tl.load(d_out + base + at, mask, 0.0).to(tl.float32)
        t = tanh(slope * value)
        d_gamma += d * t
        d_inner = d * scale * (1.0 - t * t)
        d_alpha += d_inner * value
        d_value = slope * d_inner
        if d_around is not None:
            d_value += tl.load(d_around + base + at, mask, 0.0).to(tl.float32)
        tl.store(d_x + base + at, d_value, mask)
        if rounded is not None:
            tl.store(rounded + base + at, d_value, mask)
        if out is not None:
            tl.store(out + base + at, scale * t, mask)
    slab = sums + tl.program_id(0) * 2 * width + column
    tl.store(slab, tl.sum(d_gamma, 0), inside)
    tl.store(slab + width, tl.sum(d_alpha, 0), inside)


@triton.jit(do_not_specialize=["rows"])
def column_sums_kernel(x, rounded, sums, rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """sums[p] = the sum over every p-th tile of rows, while x is rounded if that is wanted."""
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        base, at, mask = tile_of(tile, column, rows, width, ROWS)
        value = tl.load(x + base + at, mask, 0.0).to(tl.float32)
        acc += value
        if rounded is not None:
            tl.store(rounded + base + at, value, mask)
    tl.store(sums + tl.program_id(0) * width + column, tl.sum(acc, 0), inside)


def stored_type(precision: str) -> torch.dtype:
    """What intermediates are kept in."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def rounded(weight: Tensor, precision: str) -> Tensor:
    """A matrix as the products read it: many tiles of rows read it, so it is rounded once."""
    return rounding.rounded(weight) if precision == "bf16" else weight


def padded(width: int) -> int:
    """The width of a tile: a power of two, as Triton's are, that tensor cores can multiply."""
    return max(power_of_two(width), 16)


def tiles(
    kernel: Any, x: Tensor, default: Settings = DEFAULT, sums: bool = False
) -> tuple[tuple[int, int], Settings]:
    """Grid (row tiles, column tiles) and settings of a pointwise kernel on rows x (T, D).

    With ``sums`` a program takes several row tiles, so that few slabs are left to add.
    """
    rows, width = x.shape
    settings = launch_settings(kernel, f"{min(width, 512)}", x.device, default)
    across = cdiv(width, settings["COLUMNS"])
    down = cdiv(rows, settings["ROWS"])
    if sums:
        down = min(down, max(SUMS // max(across, 1), 1))
    return (down, across), settings


def _norm(
    x: Tensor,
    *,
    branch: Tensor | None = None,
    bias: Tensor | None = None,
    alpha: Tensor | None = None,
    gamma: Tensor | None = None,
    total: Tensor | None = None,
    out: Tensor | None = None,
) -> None:
    grid, settings = tiles(dynamic_tanh_fwd_kernel, x)
    launch(
        dynamic_tanh_fwd_kernel,
        grid,
        x.device,
        settings,
        x=x,
        branch=branch,
        bias=bias,
        alpha=alpha,
        gamma=gamma,
        total=total,
        out=out,
        rows=x.shape[0],
        width=x.shape[1],
    )


def norm(x: Tensor, alpha: Tensor, gamma: Tensor, dtype: torch.dtype) -> Tensor:
    """gamma tanh(alpha x) of dense rows x (T, D), as ``dtype``."""
    out = torch.empty_like(x, dtype=dtype)
    _norm(x, alpha=alpha, gamma=gamma, out=out)
    return out


def add_branch(x: Tensor, branch: Tensor, bias: Tensor | None) -> Tensor:
    """x + branch + bias, as x's dtype."""
    total = torch.empty_like(x)
    _norm(x, branch=branch, bias=bias, total=total)
    return total


def add_branch_and_norm(
    x: Tensor, branch: Tensor, alpha: Tensor, gamma: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """x + branch as x's dtype, and its norm as ``dtype``, in one pass."""
    total, out = torch.empty_like(x), torch.empty_like(x, dtype=dtype)
    _norm(x, branch=branch, alpha=alpha, gamma=gamma, total=total, out=out)
    return total, out


def norm_backward(
    x: Tensor,
    d_out: Tensor,
    d_around: Tensor | None,
    alpha: Tensor,
    gamma: Tensor,
    rounded: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, alpha and gamma.

    Args:
        x, d_out: dense (T, D). d_around: (T, D) is added to d_x, or None.
        rounded, out: (T, D) of any dtype, to be filled with d_x and the norm's output, or None.
    """
    d_x = torch.empty_like(x)
    if not x.numel():
        return d_x, torch.zeros_like(alpha), torch.zeros_like(gamma)
    grid, settings = tiles(dynamic_tanh_bwd_kernel, x, sums=True)
    rows, width = x.shape
    sums = x.new_empty(grid[0], 2 * width, dtype=torch.float32)
    launch(
        dynamic_tanh_bwd_kernel,
        grid,
        x.device,
        settings,
        x=x,
        d_out=d_out,
        d_around=d_around,
        alpha=alpha,
        gamma=gamma,
        d_x=d_x,
        rounded=rounded,
        out=out,
        sums=sums,
        rows=rows,
        width=width,
    )
    [(d_gamma, d_alpha)] = added([Slabs(sums, (width, width), whole=(1,))])
    return d_x, d_alpha.to(alpha.dtype), d_gamma.to(gamma.dtype)


def column_sums(x: Tensor, rounded: Tensor | None = None) -> Tensor:
    """(D,) float32 sums of dense rows x (T, D), which ``rounded`` is filled with if given."""
    rows, width = x.shape
    if not x.numel():
        return x.new_zeros(width, dtype=torch.float32)
    grid, settings = tiles(column_sums_kernel, x, sums=True)
    sums = x.new_empty(grid[0], width, dtype=torch.float32)
    launch(
        column_sums_kernel,
        grid,
        x.device,
        settings,
        x=x,
        rounded=rounded,
        sums=sums,
        rows=rows,
        width=width,
    )
    return sums.sum(0)


def rounded_rows(d: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    """A gradient (T, D) as the products take it, and its sums over rows, in one pass."""
    stored = stored_type(precision)
    if d.dtype == stored:
        return d, column_sums(d)
    copy = torch.empty_like(d, dtype=stored)
    return copy, column_sums(d, copy)
