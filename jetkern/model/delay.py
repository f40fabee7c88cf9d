"""Delayed streams: which row of a decoder reads and predicts which number of which point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from jetkern.packed import Packed, constant


class Rows(NamedTuple):
    """What a decoder reads and predicts, in R rows, n + max(δ_S, 1) for a set of n points."""

    packed: Packed
    """rows of each set"""
    inputs: Tensor
    """(R, S) of the points' dtype; the number of classes of a stream where it has nothing to read
    yet, NaN in a stream of numbers"""
    targets: Tensor
    """(R, S) likewise; -1 where there is none, NaN in a stream of numbers, and the first stream's
    number of classes for the end; with a column of its own for the end, (R, S + 1), it is 1 there,
    0 in the rows before and -1 in those after"""


def delayed(
    points: Tensor,
    packed: Packed,
    delays: Sequence[int],
    classes: Sequence[int],
    *,
    hazard: bool = False,
) -> Rows:
    """Rows in which stream s runs δ_s rows late (Copet et al., arXiv:2306.05284, section 2.2).

    Row r reads the values of the points r - 1 - δ_s and predicts those of the points r - δ_s, so
    that a row 0 has read nothing, and a stream knows the earlier streams of its own point if it is
    the later one by at least a row. Row n predicts the end: in the first stream as the class after
    its last one, or in a column of its own.

    Args:
        points: (T, S) classes of each point in each stream, from 0, int64; or floating, where
            there are streams of numbers.
        packed: points of each of B sets, in their order.
        delays: S rows δ, from 0, never falling.
        classes: of each stream, their number, 0 for numbers.
        hazard: the end has a column of its own.
    """
    total, extra = points.shape[0], max(delays[-1], 1)
    counts = None if packed.known_counts is None else packed.known_counts + extra
    sets = torch.arange(len(packed) + 1, device=points.device)
    rows = Packed.trusted(packed.offsets + extra * sets, counts=counts)
    number = total + len(packed) * extra  # from shapes, so that a GPU need not be asked
    owner, rank = rows.owner(number), rows.rank(number)
    start, length = packed.offsets[owner, None], packed.counts[owner, None]

    def values(source: Tensor, absent: Sequence[float]) -> Tensor:
        there = (source >= 0) & (source < length)
        missing = constant(tuple(absent), points.dtype, points.device)
        known = torch.cat([points, missing[None]])
        return known.gather(0, torch.where(there, start + source, total))

    due = rank[:, None] - constant(tuple(delays), torch.int64, points.device)
    targets = values(due, [-1 if n else math.nan for n in classes])
    last = rank == length[:, 0]
    if hazard:
        ends = last.to(points.dtype).masked_fill(rank > length[:, 0], -1)
        targets = torch.cat([targets, ends[:, None]], 1)
    else:
        targets[:, 0] = targets[:, 0].masked_fill(last, classes[0])
    return Rows(rows, values(due - 1, [n or math.nan for n in classes]), targets)
