"""Gradients of a matrix and of the gamma that its input is multiplied by, from one product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import triton
import triton.language as tl

from jetkern.ops.gpu.launch import Settings, cdiv, launch

SETTINGS: Settings = {"ROWS": 64, "COLUMNS": 16, "num_warps": 4, "num_stages": 1}


class Folded(NamedTuple):
    """A weight whose input is y gamma.

    Attributes:
        product: (M, >= N) d^T y, float32. matrix: (M, N) the weight. gamma: (N,) float32.
    """

    product: Any
    matrix: Any
    gamma: Any


class Gradients(NamedTuple):
    """Of a ``Folded``."""

    matrix: Any
    gamma: Any


class Size(NamedTuple):
    """Of a matrix, and the columns of its product."""

    m: int
    n: int
    stride: int


@triton.jit
def _fold(part, out, tile, SIZE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Columns of a part, if they are; returns what number the tile is among those behind."""
    M: tl.constexpr = SIZE.m
    N: tl.constexpr = SIZE.n
    TILES: tl.constexpr = (N + COLUMNS - 1) // COLUMNS
    if (tile >= 0) & (tile < TILES):
        column = tile * COLUMNS + tl.arange(0, COLUMNS)
        gamma = tl.load(part.gamma + column, column < N, 0.0)[None, :]
        acc = tl.zeros((ROWS, COLUMNS), tl.float32)
        for base in range(0, M, ROWS):
            row = base + tl.arange(0, ROWS)[:, None]
            inside = (row < M) & (column < N)[None, :]
            at = row * N + column[None, :]
            g = tl.load(part.product + row * SIZE.stride + column[None, :], inside, 0.0)
            acc += g * tl.load(part.matrix + at, inside, 0.0).to(tl.float32)
            tl.store(out.matrix + at, g * gamma, inside)
        tl.store(out.gamma + column, tl.sum(acc, 0), column < N)
    return tile - TILES


@triton.jit
def local_block_bwd_fold_kernel(
    parts, outs, SIZES: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    tile = tl.program_id(0)
    for i in tl.static_range(PARTS):
        tile = _fold(parts[i], outs[i], tile, SIZES[i], ROWS, COLUMNS)


def fold(parts: Sequence[Folded]) -> list[Gradients]:
    """The gradients of each, float32, in one launch."""
    outs = [Gradients(p.product.new_empty(p.matrix.shape), p.gamma.new_empty(len(p.gamma)))
            for p in parts]  # fmt: skip
    launch(
        local_block_bwd_fold_kernel,
        (sum(cdiv(p.matrix.shape[1], SETTINGS["COLUMNS"]) for p in parts),),
        parts[0].product.device,
        SETTINGS,
        parts=tuple(parts),
        outs=tuple(outs),
        SIZES=tuple(Size._make((*p.matrix.shape, p.product.shape[1])) for p in parts),
        PARTS=len(parts),
    )
    return outs
