"""What an update does to all weights on a GPU: decide whether it is applied, and Lion, one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from jetkern.ops.gpu.launch import cdiv, launch

BLOCK = 1024


@triton.jit
def clip_kernel(norm, skipped, scale, finite, limit):
    value = tl.load(norm)
    good = tl.abs(value) < float("inf")  # not of a NaN
    tl.store(scale, tl.minimum(limit / (value + 1e-6), 1.0))
    tl.store(finite, good)
    tl.store(skipped, tl.where(good, 0, tl.load(skipped) + 1))


@triton.jit(do_not_specialize=["total"])
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
        place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = place < total
        momentum = tl.load(momenta + place, inside, 0.0)
        apart = tl.load(gradient + place, inside, 0.0) - momentum
        towards = momentum + first * apart
        sign = (towards > 0.0).to(tl.float32) - (towards < 0.0).to(tl.float32)
        weight = tl.load(weights + place, inside, 0.0) * (1.0 - lr * decay)
        tl.store(weights + place, weight - lr * sign, inside)
        tl.store(momenta + place, momentum + second * apart, inside)


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
    launch(
        lion_kernel,
        (cdiv(len(weights), BLOCK),),
        weights.device,
        {"BLOCK": BLOCK, "num_warps": 4},
        weights=weights,
        momenta=momenta,
        gradient=gradient,
        applied=applied,
        lr=lr,
        decay=decay,
        first=1 - betas[0],
        second=1 - betas[1],
        total=len(weights),
        LOADED=isinstance(lr, Tensor),
    )
