"""What an update does to all weights on a GPU: decide whether it is applied, then Lion, AdamW or
RAdam, the last one with the slow weights of Lookahead, in one pass."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from jetkern.ops.gpu.launch import cdiv, launch
from jetkern.ops.parameters import Ahead

BLOCK = 1024


@triton.jit
def clip_kernel(norm, skipped, scale, finite, limit):
    value = tl.load(norm)
    good = tl.abs(value) < float("inf")  # not of a NaN
    tl.store(scale, tl.minimum(limit / (value + 1e-6), 1.0))
    tl.store(finite, good)
    tl.store(skipped, tl.where(good, 0, tl.load(skipped) + 1))


@triton.jit
def places(total, BLOCK: tl.constexpr):
    """A program's elements of a row, and which of them there are.

    Kernels are compiled for whether ``total`` is a multiple of 16, as parts of a ``FlatParameters``
    are: they then read whole vectors."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return place, place < total


@triton.jit
def lion_kernel(
    weights,
    momenta,
    gradient,
    applied,
    lr,
    decay,
    first,
    second,
    total,
    LOADED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Where it is applied: weights = (1 - lr decay) weights - lr sign(lerp(momenta, gradient,
    first)), and momenta = lerp(momenta, gradient, second)."""
    if LOADED:
        lr = tl.load(lr)
    if tl.load(applied):
        place, inside = places(total, BLOCK)
        momentum = tl.load(momenta + place, inside, 0.0)
        apart = tl.load(gradient + place, inside, 0.0) - momentum
        towards = momentum + first * apart
        sign = (towards > 0.0).to(tl.float32) - (towards < 0.0).to(tl.float32)
        weight = tl.load(weights + place, inside, 0.0) * (1.0 - lr * decay)
        tl.store(weights + place, weight - lr * sign, inside)
        tl.store(momenta + place, momentum + second * apart, inside)


@triton.jit
def adam_factors_kernel(
    factors,
    number,
    applied,
    lr,
    decay,
    eps,
    LOG_FIRST: tl.constexpr,
    LOG_SECOND: tl.constexpr,
    LONGEST: tl.constexpr,
    SCALE: tl.constexpr,
    RECTIFIED: tl.constexpr,
    LOADED: tl.constexpr,
):
    """Counts an update that is applied, and stores what it multiplies by; in float64, for what is
    left of betas to the power of its number, and RAdam's length, are small differences."""
    if LOADED:
        lr = tl.load(lr)
    counted = tl.load(number) + tl.load(applied).to(tl.float32)
    tl.store(number, counted)
    n = tl.maximum(counted, 1.0).to(tl.float64)
    rate = lr / (1.0 - tl.exp(n * LOG_FIRST))
    power = tl.exp(n * LOG_SECOND)
    left = 1.0 - power
    width = tl.sqrt(left)
    tl.store(factors, 1.0 - lr * decay)
    if RECTIFIED:
        length = LONGEST - 2.0 * n * power / left
        long = length > 5.0
        share = tl.where(long, (length - 4.0) * (length - 2.0) / length * SCALE, 0.0)
        tl.store(factors + 1, rate * width * tl.sqrt(share))
        tl.store(factors + 2, eps)
        tl.store(factors + 3, tl.where(long, 0.0, rate))
    else:
        tl.store(factors + 1, rate * width)
        tl.store(factors + 2, eps * width)
        tl.store(factors + 3, 0.0)


@triton.jit
def adam_kernel(
    weights,
    means,
    squares,
    gradient,
    applied,
    factors,
    ahead,
    first,
    second,
    total,
    BLOCK: tl.constexpr,
):
    """Where it is applied: means and squares = lerp(they, gradient or its square, first or second),
    weights = shrink weights - means (size / (sqrt(squares) + floor) + bare); every ``interval``
    steps slow weights = weights = lerp(slow, weights, alpha)."""
    if tl.load(applied):
        place, inside = places(total, BLOCK)
        slope = tl.load(gradient + place, inside, 0.0)
        mean = tl.load(means + place, inside, 0.0) * (1.0 - first) + first * slope
        square = tl.load(squares + place, inside, 0.0) * (1.0 - second) + second * slope * slope
        size = tl.load(factors + 1) / (tl.sqrt(square) + tl.load(factors + 2))
        weight = tl.load(weights + place, inside, 0.0) * tl.load(factors)
        weight -= mean * (size + tl.load(factors + 3))
        if ahead is not None:  # noqa: SIM102 (a constant of the compilation)
            if tl.load(ahead.steps) % ahead.interval == 0:
                slow = tl.load(ahead.slow + place, inside, 0.0)
                weight = weight * ahead.alpha + slow * (1.0 - ahead.alpha)
                tl.store(ahead.slow + place, weight, inside)
        tl.store(weights + place, weight, inside)
        tl.store(means + place, mean, inside)
        tl.store(squares + place, square, inside)


def clip(norm: Tensor, limit: float, skipped: Tensor) -> tuple[Tensor, Tensor]:
    """() factor that clips a gradient of this () norm, and () bool whether that is finite.

    Args:
        skipped: () int64 updates left out in a row, which is counted on or set to 0.
    """
    scale, finite = torch.empty_like(norm), norm.new_empty((), dtype=torch.bool)
    launch(
        clip_kernel,
        (1,),
        norm.device,
        {"num_warps": 1},
        norm=norm,
        skipped=skipped,
        scale=scale,
        finite=finite,
        limit=limit,
    )
    return scale, finite


def lion(
    weights: Tensor,
    momenta: Tensor,
    gradient: Tensor,
    applied: Tensor,
    *,
    lr: float | Tensor,
    decay: float,
    betas: tuple[float, float],
) -> None:
    """An update of (N,) float32 weights and momenta in place, where () ``applied`` is true.

    Args:
        lr: a number, or () float32 where a graph reads that of each replay.
    """
    _pass(
        lion_kernel,
        weights,
        betas,
        momenta=momenta,
        gradient=gradient,
        applied=applied,
        lr=lr,
        decay=decay,
        LOADED=isinstance(lr, Tensor),
    )


def adam(
    weights: Tensor,
    means: Tensor,
    squares: Tensor,
    gradient: Tensor,
    applied: Tensor,
    number: Tensor,
    *,
    lr: float | Tensor,
    decay: float,
    betas: tuple[float, float],
    eps: float,
    rectified: bool,
    ahead: Ahead | None = None,
) -> None:
    """The same of AdamW, or of RAdam if it is ``rectified``, with decoupled decay.

    Args:
        number: () float32 updates before, counted on.
        ahead: slow weights, that move too; its steps are counted with this one.
    """
    factors = torch.empty(4, device=weights.device)
    longest = 2 / (1 - betas[1]) - 1
    logs = [math.log(beta) if beta else -math.inf for beta in betas]
    launch(
        adam_factors_kernel,
        (1,),
        weights.device,
        {"num_warps": 1},
        factors=factors,
        number=number,
        applied=applied,
        lr=lr,
        decay=decay,
        eps=eps,
        LOG_FIRST=logs[0],
        LOG_SECOND=logs[1],
        LONGEST=longest,
        SCALE=longest / ((longest - 4) * (longest - 2)) if longest > 5 else 0.0,
        RECTIFIED=rectified,
        LOADED=isinstance(lr, Tensor),
    )
    _pass(
        adam_kernel,
        weights,
        betas,
        means=means,
        squares=squares,
        gradient=gradient,
        applied=applied,
        factors=factors,
        ahead=ahead,
    )


def _pass(kernel: Any, weights: Tensor, betas: tuple[float, float], **arguments: Any) -> None:
    """Launches over all weights."""
    launch(
        kernel,
        (cdiv(len(weights), BLOCK),),
        weights.device,
        {"BLOCK": BLOCK, "num_warps": 4},
        weights=weights,
        first=1 - betas[0],
        second=1 - betas[1],
        total=len(weights),
        **arguments,
    )
