"""DynamicTanh as Triton kernels, alone and together with what surrounds it in a block.

The forward can add a branch and its bias first and return the sum too (x + y + bias, then its
norm); the backward can add the gradient that goes around the norm, round its result for the next
product and return the norm's output once more for a weight gradient, all in one pass. tanh is
computed again in the backward: nothing is kept but the input. Sums over rows are taken in registers
by a number of programs that depends on the shape alone, each with a slab of its own; the slabs are
added in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from jetkern.ops.triton_tools import (
    CompileCase,
    Settings,
    define,
    launch_settings,
    on_device,
    tanh,
)

DEFAULT: Settings = {"ROWS": 16, "COLUMNS": 128, "num_warps": 4, "num_stages": 1}
TILES = [
    {"ROWS": rows, "COLUMNS": columns, "num_warps": 4, "num_stages": 1}
    for rows, columns in ((8, 128), (16, 64), (16, 128), (32, 64), (32, 128), (64, 32), (4, 256))
]
CANDIDATES = {
    "dynamic_tanh": TILES,
    "dynamic_tanh_backward": TILES,
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


@triton.jit(do_not_specialize=["rows"])
def dynamic_tanh_kernel(
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
def dynamic_tanh_backward_kernel(
    x,
    d_out,
    d_around,
    alpha,
    gamma,
    dx,
    rounded,
    out,
    sums,
    rows,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """dx = d_around + gradient through the norm; sums[p] = the gradients of gamma and alpha.

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
        tl.store(dx + base + at, d_value, mask)
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


def tiles(
    kernel: str, x: Tensor, default: Settings = DEFAULT, sums: bool = False
) -> tuple[tuple[int, int], Settings]:
    """Grid (row tiles, column tiles) and settings of a pointwise kernel on rows x (T, D).

    With ``sums`` a program takes several row tiles, so that few slabs are left to add.
    """
    rows, width = x.shape
    settings = launch_settings(kernel, f"{min(width, 512)}", x.device, default)
    across = triton.cdiv(width, settings["COLUMNS"])
    down = triton.cdiv(rows, settings["ROWS"])
    if sums:
        down = min(down, max(SUMS // across, 1))
    return (down, across), settings


def norm(x: Tensor, alpha: Tensor, gamma: Tensor, dtype: torch.dtype) -> Tensor:
    """gamma tanh(alpha x) of dense rows x (T, D), as ``dtype``."""
    out = torch.empty_like(x, dtype=dtype)
    if x.numel():
        grid, settings = tiles("dynamic_tanh", x)
        with on_device(x):
            dynamic_tanh_kernel[grid](x, None, None, alpha, gamma, None, out, *x.shape, **settings)
    return out


def add_branch(x: Tensor, branch: Tensor, bias: Tensor | None) -> Tensor:
    """x + branch + bias, as x's dtype."""
    total = torch.empty_like(x)
    if x.numel():
        grid, settings = tiles("dynamic_tanh", x)
        with on_device(x):
            dynamic_tanh_kernel[grid](
                x, branch, bias, None, None, total, None, *x.shape, **settings
            )
    return total


def add_branch_and_norm(
    x: Tensor, branch: Tensor, alpha: Tensor, gamma: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """x + branch as x's dtype, and its norm as ``dtype``, in one pass."""
    total, out = torch.empty_like(x), torch.empty_like(x, dtype=dtype)
    if x.numel():
        grid, settings = tiles("dynamic_tanh", x)
        with on_device(x):
            dynamic_tanh_kernel[grid](
                x, branch, None, alpha, gamma, total, out, *x.shape, **settings
            )
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
        x, d_out: dense (T, D). d_around: (T, D) is added to dx, or None.
        rounded, out: (T, D) of any dtype, to be filled with dx and the norm's output, or None.
    """
    dx = torch.empty_like(x)
    if not x.numel():
        return dx, torch.zeros_like(alpha), torch.zeros_like(gamma)
    grid, settings = tiles("dynamic_tanh_backward", x, sums=True)
    width = x.shape[1]
    sums = x.new_empty(grid[0], 2 * width, dtype=torch.float32)
    with on_device(x):
        dynamic_tanh_backward_kernel[grid](
            x, d_out, d_around, alpha, gamma, dx, rounded, out, sums, *x.shape, **settings
        )
    d_gamma, d_alpha = sums.sum(0).split(width)
    return dx, d_alpha.sum(0, keepdim=True).to(alpha.dtype), d_gamma.to(gamma.dtype)


def column_sums(x: Tensor, rounded: Tensor | None = None) -> Tensor:
    """(D,) float32 sums of dense rows x (T, D), which ``rounded`` is filled with if given."""
    if not x.numel():
        return x.new_zeros(x.shape[1], dtype=torch.float32)
    grid, settings = tiles("column_sums", x, sums=True)
    sums = x.new_empty(grid[0], x.shape[1], dtype=torch.float32)
    with on_device(x):
        column_sums_kernel[grid](x, rounded, sums, *x.shape, **settings)
    return sums.sum(0)


@define("dynamic_tanh", "(Tensor x, Tensor alpha, Tensor gamma) -> Tensor")
def _launch(x: Tensor, alpha: Tensor, gamma: Tensor) -> Tensor:
    return norm(x, alpha, gamma, x.dtype)


@define(
    "dynamic_tanh_backward",
    "(Tensor d_out, Tensor x, Tensor alpha, Tensor gamma) -> (Tensor, Tensor, Tensor)",
)
def _launch_backward(
    d_out: Tensor, x: Tensor, alpha: Tensor, gamma: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return norm_backward(x, d_out, None, alpha, gamma)


@torch.library.register_fake("jetkern_triton::dynamic_tanh")
def _fake(x: Tensor, alpha: Tensor, gamma: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.register_fake("jetkern_triton::dynamic_tanh_backward")
def _fake_backward(
    d_out: Tensor, x: Tensor, alpha: Tensor, gamma: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(alpha), torch.empty_like(gamma)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, ...]:
    return torch.ops.jetkern_triton.dynamic_tanh_backward(d_out.contiguous(), *ctx.saved_tensors)


torch.library.register_autograd(
    "jetkern_triton::dynamic_tanh", _backward, setup_context=_setup_context
)


def dynamic_tanh(x: Tensor, alpha: Tensor, gamma: Tensor) -> Tensor:
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    out = torch.ops.jetkern_triton.dynamic_tanh(rows, alpha, gamma.contiguous())
    return out.view(x.shape)


def compile_cases() -> Iterator[CompileCase]:
    """The kernels with all their options, at the presets' widths."""
    tile = {"ROWS": DEFAULT["ROWS"], "COLUMNS": DEFAULT["COLUMNS"]}
    for width in (32, 128, 512, 1024):
        for stored in ("*fp32", "*bf16"):
            shape = {"rows": "i32", "width": width, **tile}
            label = f"D = {width} {stored[1:]}"
            weights: dict[str, Any] = {"alpha": "*fp32", "gamma": "*fp32"}
            forward = {"x": "*fp32", "branch": stored, "bias": "*fp32", **weights}
            forward |= {"total": "*fp32", "out": stored, **shape}
            key = f"{min(width, 512)}"
            row = ("dynamic_tanh", key)
            yield CompileCase(dynamic_tanh_kernel, label, forward, DEFAULT, row)
            backward = {"x": "*fp32", "d_out": stored, "d_around": "*fp32", **weights}
            backward |= {"dx": "*fp32", "rounded": stored, "out": stored, "sums": "*fp32", **shape}
            row = ("dynamic_tanh_backward", key)
            yield CompileCase(dynamic_tanh_backward_kernel, label, backward, DEFAULT, row)
            sums = {"x": "*fp32", "rounded": stored, "sums": "*fp32", **shape}
            yield CompileCase(column_sums_kernel, label, sums, DEFAULT, ("column_sums", key))
