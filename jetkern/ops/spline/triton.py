"""Rational-quadratic splines as two Triton kernels: a program has a tile of values, each with its
bins in a row of registers."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from jetkern.ops.gpu.launch import Settings, cdiv, launch, launch_settings
from jetkern.ops.gpu.register import gpu_operator
from jetkern.ops.spline import reference
from jetkern.ops.spline.cpu import covers as covers

DEFAULT: Settings = {"ROWS": 64, "num_warps": 4, "num_stages": 1}
CANDIDATES: dict[str, list[Settings]] = {
    kernel: [
        {"ROWS": rows, "num_warps": warps, "num_stages": 1}
        for rows in (32, 64, 128)
        for warps in (2, 4, 8)
    ]
    for kernel in ("spline_fwd", "spline_bwd")
}


@triton.jit
def _axis(raw, exists, tail, least, BINS: tl.constexpr, PADDED: tl.constexpr):
    """Softmax, size and place of the bins along one axis, (ROWS, PADDED)."""
    k = tl.arange(0, PADDED)[None, :]
    z = tl.load(raw[:, None] + k, exists[:, None] & (k < BINS), float("-inf")).to(tl.float32)
    z = tl.where(exists[:, None] | (k >= BINS), z, 0.0)
    e = tl.exp(z - tl.max(z, 1)[:, None])
    share = e / tl.sum(e, 1)[:, None]
    wide = tl.where(k < BINS, least + (1 - least * BINS) * share, 0.0)
    return share, 2 * tail * wide, 2 * tail * (tl.cumsum(wide, 1) - wide) - tail


@triton.jit
def _softplus(x):
    y = tl.maximum(x, 0.0) + tl.log(1 + tl.exp(-tl.abs(x)))
    return tl.where(x == x, y, x)


@triton.jit
def _only(values, hot):
    return tl.sum(tl.where(hot, values, 0.0), 1)


@triton.jit
def _bin(
    x, raw, exists, tail, least, shift,
    BINS: tl.constexpr, PADDED: tl.constexpr, INVERSE: tl.constexpr,
):  # fmt: skip
    """The bin of each value and what the equations need of it."""
    share0, size0, start0 = _axis(raw, exists, tail, least, BINS, PADDED)
    share1, size1, start1 = _axis(raw + BINS, exists, tail, least, BINS, PADDED)
    inside = (x > -tail) & (x < tail)
    at = tl.where(inside, x, 0.0)
    k = tl.arange(0, PADDED)[None, :]
    start = start1 if INVERSE else start0
    passed = (at[:, None] >= start) & (k > 0) & (k < BINS)
    chosen = tl.sum(passed.to(tl.int32), 1)
    hot = k == chosen[:, None]
    slopes = raw + 2 * BINS + chosen
    first, last = chosen == 0, chosen == BINS - 1
    raw0 = tl.load(slopes - 1, exists & ~first, 0.0).to(tl.float32) + shift
    raw1 = tl.load(slopes, exists & ~last, 0.0).to(tl.float32) + shift
    d0 = tl.where(first, 1.0, least + _softplus(raw0))
    d1 = tl.where(last, 1.0, least + _softplus(raw1))
    width, height = _only(size0, hot), _only(size1, hot)
    return (
        inside, at, chosen, share0, share1, _only(start0, hot), _only(start1, hot),
        width, height, raw0, raw1, d0, d1, height / width,
    )  # fmt: skip


@triton.jit(do_not_specialize=["total"])
def spline_fwd_kernel(
    values, numbers, out, total, tail, least, shift,
    BINS: tl.constexpr, PADDED: tl.constexpr, INVERSE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    exists = row < total
    x = tl.load(values + row, exists, 0.0).to(tl.float32)
    inside, at, _chosen, _p0, _p1, x0, y0, width, height, _raw0, _raw1, d0, d1, s = _bin(
        x, numbers + row * (3 * BINS - 1), exists, tail, least, shift, BINS, PADDED, INVERSE
    )
    bend = d1 + d0 - 2 * s
    if INVERSE:  # Eqs. 6 to 8
        rise = at - y0
        mixed = rise * bend
        a = height * (s - d0) + mixed
        b = height * d0 - mixed
        c = -s * rise
        square = b * b - 4 * a * c
        share = 2 * c / (-b - tl.sqrt(tl.where(square < 0, 0.0, square)))
    else:
        share = (at - x0) / width
    left = 1 - share
    rest = share * left
    bottom = s + bend * rest
    moved = y0 + height * (s * share * share + d0 * rest) / bottom  # Eq. 4
    top = s * s * (d1 * share * share + 2 * s * rest + d0 * left * left)
    slope = tl.log(top) - 2 * tl.log(bottom)  # of Eq. 5
    if INVERSE:
        moved = share * width + x0
        slope = -slope
    tl.store(out + 2 * row, tl.where(inside, moved, x), exists)
    tl.store(out + 2 * row + 1, tl.where(inside, slope, 0.0), exists)


@triton.jit
def _store_sizes(
    to, exists, share, chosen, d_start, d_end, factor, BINS: tl.constexpr, PADDED: tl.constexpr
):
    """A bin moves all knots after it: the start of the chosen one, and its end."""
    k = tl.arange(0, PADDED)[None, :]
    d = tl.where(k < chosen[:, None], d_start[:, None], 0.0)
    d = factor * (d + tl.where(k <= chosen[:, None], d_end[:, None], 0.0))
    d = share * (d - tl.sum(share * d, 1)[:, None])
    tl.store(to[:, None] + k, d, exists[:, None] & (k < BINS))


@triton.jit(do_not_specialize=["total"])
def spline_bwd_kernel(
    d_out, values, numbers, d_values, d_numbers, total, tail, least, shift,
    BINS: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    exists = row < total
    x = tl.load(values + row, exists, 0.0).to(tl.float32)
    inside, at, chosen, share0, share1, x0, _y0, width, height, raw0, raw1, d0, d1, s = _bin(
        x, numbers + row * (3 * BINS - 1), exists, tail, least, shift, BINS, PADDED, False
    )
    up = tl.load(d_out + 2 * row, exists, 0.0).to(tl.float32)
    d_ln = tl.load(d_out + 2 * row + 1, exists, 0.0).to(tl.float32)
    d_y, d_ln = tl.where(inside, up, 0.0), tl.where(inside, d_ln, 0.0)
    bend = d1 + d0 - 2 * s
    share = (at - x0) / width
    left = 1 - share
    rest, squared = share * left, share * share
    bottom, inner = s + bend * rest, s * squared + d0 * rest
    slopes = d1 * squared + 2 * s * rest + d0 * left * left
    # y = y0 + height inner / bottom; ln = 2 ln s + ln slopes - 2 ln bottom
    d_height = d_y * inner / bottom
    d_inner = d_y * height / bottom
    d_slopes = d_ln / slopes
    d_bottom = -(d_height * height + 2 * d_ln) / bottom
    d_bend = d_bottom * rest
    d_rest = d_inner * d0 + 2 * d_slopes * s + d_bottom * bend
    d_s = 2 * d_ln / s + d_inner * squared + 2 * d_slopes * rest + d_bottom - 2 * d_bend
    d_d0 = d_inner * rest + d_slopes * left * left + d_bend
    d_d1 = d_slopes * squared + d_bend
    d_left = 2 * d_slopes * d0 * left + d_rest * share
    d_share = 2 * share * (d_inner * s + d_slopes * d1) + d_rest * left - d_left
    d_height += d_s / width
    d_at = d_share / width
    d_width = -(d_s * s + d_share * share) / width
    tl.store(d_values + row, tl.where(inside, d_at, up), exists)

    to = d_numbers + row * (3 * BINS - 1)
    last = chosen == BINS - 1
    factor = 2 * tail * (1 - least * BINS)
    d_end0, d_end1 = tl.where(last, 0.0, d_width), tl.where(last, 0.0, d_height)
    _store_sizes(to, exists, share0, chosen, -d_at - d_width, d_end0, factor, BINS, PADDED)
    _store_sizes(to + BINS, exists, share1, chosen, d_y - d_height, d_end1, factor, BINS, PADDED)
    k = tl.arange(0, PADDED)[None, :]
    d = tl.where(k == chosen[:, None], (d_d1 / (1 + tl.exp(-raw1)))[:, None], 0.0)
    d = tl.where(k + 1 == chosen[:, None], (d_d0 / (1 + tl.exp(-raw0)))[:, None], d)
    tl.store(to[:, None] + 2 * BINS + k, d, exists[:, None] & (k < BINS - 1))


def _launch(kernel: Any, x: Tensor, raw: Tensor, tail: float, least: float, **others: Any) -> None:
    bins = (raw.shape[1] + 1) // 3
    settings = launch_settings(kernel, f"k{bins}", x.device, DEFAULT)
    if not len(x):
        return
    launch(
        kernel,
        (cdiv(len(x), settings["ROWS"]),),
        x.device,
        settings,
        values=x,
        numbers=raw,
        total=len(x),
        tail=tail,
        least=least,
        shift=math.log(math.expm1(1 - least)),
        BINS=bins,
        PADDED=triton.next_power_of_2(bins),
        **others,
    )


def _forward(x: Tensor, raw: Tensor, tail: float, least: float, inverse: bool) -> Tensor:
    out = x.new_empty(len(x), 2, dtype=torch.float32)
    _launch(spline_fwd_kernel, x, raw, tail, least, out=out, INVERSE=inverse)
    return out


def _backward(
    d_out: Tensor, x: Tensor, raw: Tensor, tail: float, least: float, inverse: bool
) -> tuple[Tensor, Tensor]:
    d_x, d_raw = torch.empty_like(x), torch.empty_like(raw)
    _launch(spline_bwd_kernel, x, raw, tail, least, d_out=d_out, d_values=d_x, d_numbers=d_raw)
    return d_x, d_raw


_op = gpu_operator(
    "spline",
    "(Tensor x, Tensor raw, float tail, float least, bool inverse) -> Tensor",
    fake=lambda x, *_: x.new_empty(x.shape[0], 2, dtype=torch.float32),
    forward=_forward,
    backward=_backward,
    gradients="x raw",
    reference=reference.spline,
)


def spline(x: Tensor, raw: Tensor, tail: float, least: float, inverse: bool) -> Tensor:
    """See ``jetkern.ops.spline``."""
    out: Tensor = _op(x.contiguous(), raw.contiguous(), tail, least, inverse)
    return out
