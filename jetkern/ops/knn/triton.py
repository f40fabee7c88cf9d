"""Nearest neighbours as a Triton kernel: a thread for each particle.

It walks over the columns of its jet and keeps its nearest in registers, sorted: distances and
columns as two tuples. A column enters by compare-selects at each place, without branches. Columns
rise and enter only ahead of what is strictly farther, so equal distances come in the order of the
rows. Of more neighbours than ``MOST`` a further walk finds what comes next.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from jetkern.jets import segment_index
from jetkern.ops.gpu.functions import INTERPRETED
from jetkern.ops.gpu.launch import Settings, cdiv, launch, launch_settings
from jetkern.ops.gpu.register import gpu_operator

MOST = 32  # neighbours that a walk finds
# As the reference rounds its products: equal distances stay equal.
ROUNDED = {"enable_fp_fusion": False}
DEFAULT: Settings = {"ROWS": 32, "num_warps": 1, "num_stages": 1}
CANDIDATES = {
    "knn": [
        {"ROWS": rows, "num_warps": warps}
        for rows, warps in ((32, 1), (64, 1), (64, 2), (128, 2), (128, 4))
    ]
}


@triton.jit
def moved(square, column, before, column_before, here, column_here):
    """What a place of the sorted lists holds after an insertion: what comes in, was before or here.

    In one piece, since LLVM takes the places for lanes of vectors and computes half of them twice.
    """
    if INTERPRETED:
        entering = tl.where(square < before, column_before, column)
        kept = tl.maximum(before, tl.minimum(here, square))
        return kept, tl.where(square < here, entering, column_here)
    else:
        return tl.inline_asm_elementwise(
            """{
            .reg .pred ahead, nearer;
            setp.lt.f32 ahead, $2, $4;
            setp.lt.f32 nearer, $2, $6;
            selp.b32 $1, $5, $3, ahead;
            selp.b32 $1, $1, $7, nearer;
            min.f32 $0, $6, $2;
            max.f32 $0, $4, $0;
            }""",
            "=&f,=&r,f,r,f,r,f,r",
            [square, column, before, column_before, here, column_here],
            dtype=(tl.float32, tl.int32),
            is_pure=True,
            pack=1,
        )


@triton.jit
def inserted(nearest, columns, square, column, LENGTH: tl.constexpr):
    """The sorted lists with what is nearer than their last; what is as near stays ahead."""
    found = (tl.minimum(nearest[0], square),)
    places = (tl.where(square < nearest[0], column, columns[0]),)
    for place in tl.static_range(1, LENGTH):
        near, at = moved(
            square, column, nearest[place - 1], columns[place - 1], nearest[place], columns[place]
        )
        found += (near,)  # type: ignore[assignment]
        places += (at,)  # type: ignore[assignment]
    return found, places


@triton.jit(do_not_specialize=["total", "stride"])
def knn_kernel(
    coordinates,
    offsets,
    jet,
    out,
    total,
    stride,
    K: tl.constexpr,
    LENGTH: tl.constexpr,
    ROWS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    exists = row < total
    own = tl.load(jet + row, exists, 0)
    start = tl.load(offsets + own, exists, 0)
    number = (tl.load(offsets + own + 1, exists, 0) - start).to(tl.int32)
    itself = (row - start).to(tl.int32)
    eta = tl.load(coordinates + row * stride, exists, 0.0)
    phi = tl.load(coordinates + row * stride + 1, exists, 0.0)
    points = coordinates + start * stride
    infinite = tl.full((ROWS,), float("inf"), tl.float32)
    none = tl.full((ROWS,), -1, tl.int32)
    last_square, last_column = -infinite, none
    for first in range(0, K, LENGTH):
        nearest, columns = (infinite,) * LENGTH, (none,) * LENGTH
        point = points
        for column in range(tl.max(number, 0)):
            inside = column < number
            d_eta = eta - tl.load(point, inside, 0.0)
            d_phi = phi - tl.load(point + 1, inside, 0.0)
            point += stride
            square = d_eta * d_eta + d_phi * d_phi
            # Not what is at infinity or no number, as nothing compares with it.
            usable = inside & (column != itself) & (square < infinite)
            if K > LENGTH:  # beyond what the walks before have found
                beyond = (square == last_square) & (column > last_column)
                usable &= beyond | (square > last_square)
            square = tl.where(usable, square, infinite)
            nearest, columns = inserted(nearest, columns, square, column, LENGTH)
        last_square, last_column = nearest[LENGTH - 1], columns[LENGTH - 1]
        for place in tl.static_range(LENGTH):
            neighbour = tl.where(columns[place] < 0, -1, start + columns[place])
            tl.store(out + row * K + first + place, neighbour, exists & (first + place < K))


def _forward(coordinates: Tensor, offsets: Tensor, k: int) -> Tensor:
    total = len(coordinates)
    out = offsets.new_empty(total, k)
    settings = launch_settings(knn_kernel, f"k{k}", coordinates.device, DEFAULT)
    launch(
        knn_kernel,
        (cdiv(total, settings["ROWS"]),),
        coordinates.device,
        settings | ROUNDED,
        coordinates=coordinates,
        offsets=offsets,
        jet=segment_index(offsets, total),
        out=out,
        total=total,
        stride=coordinates.stride(0),
        K=k,
        LENGTH=min(k, MOST),
    )
    return out


_op = gpu_operator(
    "knn",
    "(Tensor coordinates, Tensor offsets, int k) -> Tensor",
    fake=lambda coordinates, offsets, k: offsets.new_empty(coordinates.shape[0], k),
    forward=_forward,
)


def covers(coordinates: Tensor, offsets: Tensor, k: int, columns: int) -> str:
    """Points in the plane."""
    return "" if columns == 2 else f"its points have 2 coordinates, not {columns}"


def knn(coordinates: Tensor, offsets: Tensor, k: int, columns: int = 2) -> Tensor:
    """See ``jetkern.ops.knn``. Distances are float32 whatever the coordinates are."""
    points = coordinates.detach().float()
    points = points if points.stride(1) == 1 else points.contiguous()
    return _op(points, offsets.contiguous(), k)
