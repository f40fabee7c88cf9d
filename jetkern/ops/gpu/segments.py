"""Indices of packed rows on GPUs, each kind in one launch: whose a row is, and where rows join."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from jetkern.ops.gpu.launch import cdiv, launch
from jetkern.ops.gpu.register import gpu_operator

OWNER, RANK, LAST = 0, 1, 2
BLOCK = 256
MOST = 4  # sources that are joined


class Sources(NamedTuple):
    """Offsets of up to four packed arrays with the same number of segments."""

    first: Any
    second: Any
    third: Any
    fourth: Any


@triton.jit
def _begin(sources, segment, inside):
    """Where a segment of the joined rows begins."""
    begin = tl.load(sources.first + segment, inside, 0)
    if sources.second is not None:
        begin += tl.load(sources.second + segment, inside, 0)
    if sources.third is not None:
        begin += tl.load(sources.third + segment, inside, 0)
    if sources.fourth is not None:
        begin += tl.load(sources.fourth + segment, inside, 0)
    return begin


@triton.jit
def _owner(sources, row, segments, inside):
    """The segment of a row: the last one that does not begin after it."""
    low = row * 0
    high = low + segments
    span = segments
    while span > 0:
        middle = (low + high) // 2
        before = _begin(sources, middle, inside) <= row
        low = tl.where(before, middle, low)
        high = tl.where(before, high, middle)
        span = span // 2
    return low


@triton.jit(do_not_specialize=["segments", "total"])
def segment_rows_kernel(out, own, other, segments, total, KIND: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < total
    owner = _owner(Sources(own, None, None, None), row, segments, inside)
    if KIND == 0:
        found = owner
    elif KIND == 1:
        found = row - tl.load(own + owner, inside, 0)
    else:
        ends = tl.load(other + owner + 1, inside, 0) - tl.load(own + owner + 1, inside, 0)
        found = row + ends
    tl.store(out + row, found, inside)


@triton.jit
def _row_of(own, base, owner, place, found, inside):
    """Rows of one source, for those places behind its predecessors that are its own."""
    if own is not None:
        begin = tl.load(own + owner, inside, 0)
        count = tl.load(own + owner + 1, inside, 0) - begin
        found = tl.where((place >= 0) & (place < count), base + begin + place, found)
        place -= count
    return found, place


@triton.jit(do_not_specialize=["segments", "total", "second", "third", "fourth"])
def joined_rows_kernel(
    order, places, joined, sources, second, third, fourth, segments, total, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(joined + row, _begin(sources, row, row <= segments), row <= segments)
    inside = row < total
    owner = _owner(sources, row, segments, inside)
    place = row - _begin(sources, owner, inside)
    found, place = _row_of(sources.first, 0, owner, place, row * 0, inside)
    found, place = _row_of(sources.second, second, owner, place, found, inside)
    found, place = _row_of(sources.third, third, owner, place, found, inside)
    found, place = _row_of(sources.fourth, fourth, owner, place, found, inside)
    tl.store(order + row, found, inside)
    tl.store(places + found, row, inside)


def _rows(own: Tensor, other: Tensor | None, total: int, kind: int) -> Tensor:
    out = own.new_empty(total)
    launch(
        segment_rows_kernel,
        (cdiv(total, BLOCK),),
        own.device,
        {"BLOCK": BLOCK, "num_warps": 4},
        out=out,
        own=own,
        other=other,
        segments=len(own) - 1,
        total=total,
        KIND=kind,
    )
    return out


_rows_op = gpu_operator(
    "segment_rows",
    "(Tensor own, Tensor? other, SymInt total, int kind) -> Tensor",
    fake=lambda own, other, total, kind: own.new_empty(total),
    forward=_rows,
)


def owners(own: Tensor, total: int) -> Tensor:
    """(T,) int64 segment of each row; own: (B + 1,) int64 offsets, total: T."""
    return _rows_op(own, None, total, OWNER)


def ranks(own: Tensor, total: int) -> Tensor:
    """(T,) int64 place of each row in its segment; arguments as for ``owners``."""
    return _rows_op(own, None, total, RANK)


def last_rows(offsets: Tensor, own: Tensor, total: int) -> Tensor:
    """As ``jetkern.jets.last_rows``: own: (B + 1,) int64 offsets of the last rows of those with the
    offsets (B + 1,); (T,) int64 rows, total: T."""
    return _rows_op(own, offsets, total, LAST)


def _joined(offsets: Sequence[Tensor], sizes: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    total = sum(sizes)
    order, places, joined = _joined_fake(offsets, sizes)
    second, third, fourth = ([sum(sizes[:i]) for i in range(1, len(sizes))] + [0] * MOST)[
        : MOST - 1
    ]
    launch(
        joined_rows_kernel,
        (cdiv(max(total, len(joined)), BLOCK),),
        order.device,
        {"BLOCK": BLOCK, "num_warps": 4},
        order=order,
        places=places,
        joined=joined,
        sources=Sources(*(*offsets, *[None] * MOST)[:MOST]),
        second=second,
        third=third,
        fourth=fourth,
        segments=len(joined) - 1,
        total=total,
    )
    return order, places, joined


def _joined_fake(offsets: Sequence[Tensor], sizes: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    total, like = sum(sizes), offsets[0]
    return like.new_empty(total), like.new_empty(total), torch.empty_like(like)


_joined_op = gpu_operator(
    "joined_rows",
    "(Tensor[] offsets, SymInt[] sizes) -> (Tensor order, Tensor places, Tensor joined)",
    fake=_joined_fake,
    forward=_joined,
)


def joined_rows(offsets: Sequence[Tensor], sizes: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Where rows go when each segment becomes the sources' segments, one after the other.

    Args:
        offsets: (B + 1,) int64 of each of up to four sources.
        sizes: their numbers of rows.

    Returns:
        order (T,), the row of the sources laid back to back that each joined row is; places (T,),
        its inverse; and the offsets (B + 1,) of the joined segments.
    """
    return _joined_op([o.contiguous() for o in offsets], list(sizes))
