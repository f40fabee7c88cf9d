"""Sums over the rows of a batch: what programs left in slabs of their own, added in order.

The sum is cut into its parts where it is made, so that each result is a tensor of its own: one
launch for all of an operator's gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from jetkern.ops.gpu.launch import Settings, cdiv, launch

SETTINGS: Settings = {"ROWS": 64, "COLUMNS": 16, "num_warps": 4, "num_stages": 1}


class Slabs(NamedTuple):
    """Rows to add, and how their sum is cut.

    Attributes:
        rows: (S, W) float32, dense.
        sizes: of the parts, which add up to W.
        whole: numbers of the parts that are summed to one number.
    """

    rows: Tensor
    sizes: tuple[int, ...]
    whole: tuple[int, ...] = ()


class Part(NamedTuple):
    """Of slabs: its first element in the first of them, and where its sum goes."""

    first: Any
    out: Any


class Shape(NamedTuple):
    """Of a part: its width, that of the slabs, whether all of it is one number."""

    width: int
    stride: int
    whole: bool


@triton.jit
def _add(part, count, tile, SHAPE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Adds a tile of a part, if it is one; returns what number it is among the tiles behind."""
    TILES: tl.constexpr = 1 if SHAPE.whole else (SHAPE.width + COLUMNS - 1) // COLUMNS
    ACROSS: tl.constexpr = SHAPE.width if SHAPE.whole else COLUMNS
    if (tile >= 0) & (tile < TILES):
        acc = tl.zeros((ROWS, COLUMNS), tl.float32)
        for across in range(0, ACROSS, COLUMNS):
            column = tile * COLUMNS + across + tl.arange(0, COLUMNS)
            for base in range(0, count, ROWS):
                row = base + tl.arange(0, ROWS)
                inside = (row < count)[:, None] & (column < SHAPE.width)[None, :]
                at = row.to(tl.int64)[:, None] * SHAPE.stride + column[None, :]
                acc += tl.load(part.first + at, inside, 0.0)
        if SHAPE.whole:
            tl.store(part.out, tl.sum(tl.sum(acc, 1), 0))
        else:
            column = tile * COLUMNS + tl.arange(0, COLUMNS)
            tl.store(part.out + column, tl.sum(acc, 0), column < SHAPE.width)
    return tile - TILES


@triton.jit(do_not_specialize=["counts"])
def add_slabs_kernel(
    parts,
    counts,
    SHAPES: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    tile = tl.program_id(0)
    for i in tl.static_range(PARTS):
        tile = _add(parts[i], counts[i], tile, SHAPES[i], ROWS, COLUMNS)


def added(summands: Sequence[Slabs]) -> list[list[Tensor]]:
    """The sums of each, cut into tensors of their own, of a part that is ``whole`` (1,).

    Where there is nothing to add or to cut, the one slab is the result itself.
    """
    parts: list[Part] = []
    counts: list[int] = []
    shapes: list[Shape] = []
    results: list[list[Tensor]] = []
    for rows, sizes, whole in summands:
        if len(rows) == len(sizes) == 1 and not whole:
            results.append([rows[0]])
            continue
        results.append([])
        for i, (start, size) in enumerate(zip(accumulate(sizes, initial=0), sizes, strict=False)):
            out = rows.new_empty(1 if i in whole else size)
            results[-1].append(out)
            if size:
                parts.append(Part(rows[:, start:], out))
                counts.append(len(rows))
                shapes.append(Shape(size, rows.shape[1], i in whole))
            elif i in whole:
                out.zero_()
    columns = SETTINGS["COLUMNS"]
    tiles = sum(1 if shape.whole else cdiv(shape.width, columns) for shape in shapes)
    launch(
        add_slabs_kernel,
        (tiles,),
        parts[0].out.device if parts else torch.device("cpu"),
        SETTINGS,
        parts=tuple(parts),
        counts=tuple(counts),
        SHAPES=tuple(shapes),
        PARTS=len(parts),
    )
    return results
