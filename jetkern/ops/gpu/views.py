"""Views of a batch on GPUs, a launch each: the path from jets to noise, and which particles are
hidden."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from jetkern.ops.gpu.counters import more_bits, normal_of
from jetkern.ops.gpu.launch import cdiv, launch
from jetkern.ops.gpu.register import gpu_operator

BLOCK = 256
SETTINGS = {"BLOCK": BLOCK, "num_warps": 4}


@triton.jit(do_not_specialize=["total"])
def noise_path_kernel(
    moved,
    velocity,
    particles,
    time,
    owner,
    rank,
    index,
    start,
    mean,
    width,
    columns,
    total,
    TURN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """moved = (1 - t) x + t noise, velocity = noise - x."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < total
    row, column = place // columns, place % columns
    jet = tl.load(owner + row, inside, 0)
    bits = more_bits(tl.load(start).to(tl.uint64), tl.load(index + jet, inside, 0))
    bits = more_bits(more_bits(bits, tl.load(rank + row, inside, 0)), column)
    noise = normal_of(bits, TURN) * tl.load(width + column) + tl.load(mean + column)
    x = tl.load(particles + place, inside, 0.0)
    t = tl.load(time + jet, inside, 0.0)
    tl.store(moved + place, (1.0 - t) * x + t * noise, inside)
    tl.store(velocity + place, noise - x, inside)


@triton.jit(do_not_specialize=["total"])
def random_keep_kernel(keep, index, owner, offsets, hidden, start, total, BLOCK: tl.constexpr):
    """A row is hidden if fewer of its jet's random numbers than are hidden are below its own."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < total
    jet = tl.load(owner + row, inside, 0)
    begin = tl.load(offsets + jet, inside, 0)
    count = tl.load(offsets + jet + 1, inside, 0) - begin
    bits = more_bits(tl.load(start).to(tl.uint64), tl.load(index + jet, inside, 0))
    rank = row - begin
    own = (more_bits(bits, rank) >> 41).to(tl.int64)
    below = rank * 0
    for step in range(0, tl.max(count)):
        other_rank = rank * 0 + step
        other = (more_bits(bits, other_rank) >> 41).to(tl.int64)
        before = (other < own) | ((other == own) & (other_rank < rank))
        below += (before & (other_rank < count)).to(tl.int64)
    tl.store(keep + row, below >= tl.load(hidden + jet, inside, 0), inside)


@triton.jit(do_not_specialize=["total"])
def hidden_ranks_kernel(out, keep, owner, offsets, last, total, BLOCK: tl.constexpr):
    """How many rows of its jet before each one are hidden, at most ``last``."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < total
    begin = tl.load(offsets + tl.load(owner + row, inside, 0), inside, 0)
    rank = tl.where(inside, row - begin, 0)
    hidden = rank * 0
    for step in range(0, tl.max(rank)):
        before = step < rank
        kept = tl.load(keep + begin + step, before, 1)
        hidden += (before & (kept == 0)).to(tl.int64)
    tl.store(out + row, tl.minimum(hidden, last), inside)


def _path(
    particles: Tensor,
    time: Tensor,
    owner: Tensor,
    rank: Tensor,
    index: Tensor,
    start: Tensor,
    mean: Tensor,
    width: Tensor,
) -> tuple[Tensor, Tensor]:
    moved, velocity = torch.empty_like(particles), torch.empty_like(particles)
    launch(
        noise_path_kernel,
        (cdiv(particles.numel(), BLOCK),),
        particles.device,
        SETTINGS,
        moved=moved,
        velocity=velocity,
        particles=particles,
        time=time,
        owner=owner,
        rank=rank,
        index=index,
        start=start,
        mean=mean,
        width=width,
        columns=particles.shape[1],
        total=particles.numel(),
        TURN=2 * math.pi * 2.0**-32,
    )
    return moved, velocity


_path_op = gpu_operator(
    "noise_path",
    "(Tensor particles, Tensor time, Tensor owner, Tensor rank, Tensor index, Tensor start, "
    "Tensor mean, Tensor width) -> (Tensor moved, Tensor velocity)",
    fake=lambda particles, *_: (torch.empty_like(particles), torch.empty_like(particles)),
    forward=_path,
)


def noise_path(
    particles: Tensor,
    time: Tensor,
    owner: Tensor,
    rank: Tensor,
    index: Tensor,
    start: Tensor,
    mean: Tensor,
    width: Tensor,
) -> tuple[Tensor, Tensor]:
    """Particles (T, F) at ``time`` (B,) on the path to noise, and their velocity (T, F), float32.

    Args:
        owner, rank: (T,) int64 jet and place of each row; index: (B,) int64 of each jet.
        start: (1,) int64 state of the random numbers before the counters.
        mean, width: (F,) of the noise.
    """
    found: tuple[Tensor, Tensor] = _path_op(
        particles.contiguous(), time.contiguous(), owner, rank, index.contiguous(), start, mean,
        width,
    )  # fmt: skip
    return found


def _keep(index: Tensor, owner: Tensor, offsets: Tensor, hidden: Tensor, start: Tensor) -> Tensor:
    keep = torch.empty_like(owner, dtype=torch.bool)
    launch(
        random_keep_kernel,
        (cdiv(len(owner), BLOCK),),
        owner.device,
        SETTINGS,
        keep=keep,
        index=index,
        owner=owner,
        offsets=offsets,
        hidden=hidden,
        start=start,
        total=len(owner),
    )
    return keep


_keep_op = gpu_operator(
    "random_keep",
    "(Tensor index, Tensor owner, Tensor offsets, Tensor hidden, Tensor start) -> Tensor",
    fake=lambda index, owner, *_: torch.empty_like(owner, dtype=torch.bool),
    forward=_keep,
)


def random_keep(
    index: Tensor, owner: Tensor, offsets: Tensor, hidden: Tensor, start: Tensor
) -> Tensor:
    """(T,) bool as ``jetkern.objectives.masking.random_keep``.

    Args:
        index, hidden: (B,) int64 of each jet; owner: (T,) int64; offsets: (B + 1,) int64.
        start: (1,) int64 state of the random numbers before the counters.
    """
    keep: Tensor = _keep_op(index.contiguous(), owner, offsets, hidden.contiguous(), start)
    return keep


def _ranks(keep: Tensor, owner: Tensor, offsets: Tensor, last: int) -> Tensor:
    out = torch.empty_like(owner)
    launch(
        hidden_ranks_kernel,
        (cdiv(len(owner), BLOCK),),
        owner.device,
        SETTINGS,
        out=out,
        keep=keep,
        owner=owner,
        offsets=offsets,
        last=last,
        total=len(owner),
    )
    return out


_ranks_op = gpu_operator(
    "hidden_ranks",
    "(Tensor keep, Tensor owner, Tensor offsets, SymInt last) -> Tensor",
    fake=lambda keep, owner, *_: torch.empty_like(owner),
    forward=_ranks,
)


def hidden_ranks(keep: Tensor, owner: Tensor, offsets: Tensor, last: int) -> Tensor:
    """(T,) int64 how many rows of its jet before each one have ``keep`` (T,) false, at most
    ``last``; owner: (T,) int64 jet of each row, offsets: (B + 1,) int64."""
    ranks: Tensor = _ranks_op(keep.contiguous().view(torch.uint8), owner, offsets, last)
    return ranks
