"""``jetkern.random`` on GPUs: all numbers of a call in one launch, the same bits."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from jetkern.ops.gpu.launch import cdiv, launch
from jetkern.ops.gpu.register import gpu_operator

KINDS = ("bits", "uniform", "normal")
BLOCK = 256


class Counter(NamedTuple):
    """Integers along rows and columns, and how far apart these are."""

    data: Any
    row: Any
    column: Any


@triton.jit
def more_bits(bits, counter):
    """``jetkern.random.more_bits`` of uint64."""
    x = (bits ^ counter.to(tl.uint64)) + 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def normal_of(bits, TURN: tl.constexpr):
    """A standard normal number from uint64 bits."""
    share = ((bits >> 32).to(tl.int64).to(tl.float32) + 0.5) * 2.3283064365386963e-10
    # In float64, for the logarithm of float32 numbers is approximate and theirs are near 0.
    radius = tl.sqrt_rn((tl.log(share.to(tl.float64)) * -2.0).to(tl.float32))
    angle = (bits & 0xFFFFFFFF).to(tl.int64).to(tl.float32) * TURN
    return radius * tl.cos(angle)


@triton.jit
def _counted(bits, counter, row, column, inside):
    if counter is None:
        return bits
    else:
        at = counter.data + row * counter.row + column * counter.column
        return more_bits(bits, tl.load(at, inside, 0))


@triton.jit(do_not_specialize=["rows", "total"])
def random_numbers_kernel(
    out,
    starts,
    first,
    second,
    third,
    rows,
    columns,
    total,
    TURN: tl.constexpr,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Numbers (streams, rows, columns): bits, uniform or normal as in ``jetkern.random``."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < total
    column = place % columns
    row = place // columns % rows
    bits = tl.load(starts + place // columns // rows, inside, 0).to(tl.uint64)
    bits = _counted(bits, first, row, column, inside)
    bits = _counted(bits, second, row, column, inside)
    bits = _counted(bits, third, row, column, inside)
    if KIND == 0:
        number = bits.to(tl.int64)
    elif KIND == 1:
        number = ((bits >> 41).to(tl.int64).to(tl.float32) + 0.5) * 1.1920928955078125e-07
    else:
        number = normal_of(bits, TURN)
    tl.store(out + place, number, inside)


def _shape(starts: Tensor, *counters: Tensor | None) -> tuple[int, ...]:
    shapes = [counter.shape for counter in counters if counter is not None]
    return (len(starts), *torch.broadcast_shapes(*shapes))


def _fake(
    starts: Tensor, first: Tensor, second: Tensor | None, third: Tensor | None, kind: int
) -> Tensor:
    dtype = torch.float32 if kind else torch.int64
    return starts.new_empty(_shape(starts, first, second, third), dtype=dtype)


def _forward(
    starts: Tensor, first: Tensor, second: Tensor | None, third: Tensor | None, kind: int
) -> Tensor:
    out = _fake(starts, first, second, third, kind)
    rows, columns = (1, 1, *out.shape[1:])[-2:]

    def counter(values: Tensor | None) -> Counter | None:
        if values is None:
            return None
        return Counter(values, *values.expand(rows, columns).stride())

    launch(
        random_numbers_kernel,
        (cdiv(out.numel(), BLOCK),),
        out.device,
        {"BLOCK": BLOCK, "num_warps": 4},
        out=out,
        starts=starts,
        first=counter(first),
        second=counter(second),
        third=counter(third),
        rows=rows,
        columns=columns,
        total=out.numel(),
        TURN=2 * math.pi * 2.0**-32,
        KIND=kind,
    )
    return out


_op = gpu_operator(
    "random_numbers",
    "(Tensor starts, Tensor first, Tensor? second, Tensor? third, int kind) -> Tensor",
    fake=_fake,
    forward=_forward,
)


def random_numbers(starts: Tensor, counters: tuple[Tensor, ...], kind: str) -> Tensor:
    """(S, ...) numbers of each stream, in the broadcast shape of the counters.

    Args:
        starts: (S,) int64, the states before the counters.
        counters: one to three, int64, which broadcast to at most two axes.
        kind: "bits" (int64), "uniform" or "normal" (float32).
    """
    first, second, third = (*counters, None, None)[:3]
    return _op(starts, first, second, third, KINDS.index(kind))
