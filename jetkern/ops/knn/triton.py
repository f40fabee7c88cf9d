"""Nearest neighbours as a Triton kernel.

A program finds the neighbours of a tile of rows, which may belong to several jets. It selects by
successive minima: the k-th neighbour is the smallest key above the (k - 1)-th, the key being the
distance's bits followed by the column, a total order. Nothing is sorted or stored in between, any
number of particles fits, and equal distances come in the order of the rows.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from jetkern.jets import segment_index
from jetkern.ops.gpu.launch import Settings, cdiv, launch, launch_settings
from jetkern.ops.gpu.register import gpu_operator

# As the reference rounds its products: equal distances stay equal.
ROUNDED = {"enable_fp_fusion": False}
DEFAULT: Settings = {"ROWS": 16, "COLUMNS": 64, "num_warps": 4, "num_stages": 1}
CANDIDATES = {
    "knn": [
        {"ROWS": rows, "COLUMNS": columns, "num_warps": warps}
        for rows in (16, 32, 64)
        for columns in (32, 64, 128)
        for warps in (2, 4, 8)
        if 8 <= rows * columns // (32 * warps) <= 64
    ]
}


@triton.jit(do_not_specialize=["total", "stride"])
def knn_kernel(
    coordinates,
    offsets,
    jet,
    out,
    total,
    stride,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    exists = row < total
    own = tl.load(jet + row, exists, 0)
    start = tl.load(offsets + own, exists, total)
    stop = tl.load(offsets + own + 1, exists, 0)
    eta = tl.load(coordinates + row * stride, exists, 0.0)
    phi = tl.load(coordinates + row * stride + 1, exists, 0.0)
    first = tl.min(start, 0)
    last = (tl.max(stop, 0) - first).to(tl.int32)  # columns count from the tile's first jet
    start = (start - first).to(tl.int32)
    stop = (stop - first).to(tl.int32)
    itself = (row - first).to(tl.int32)
    points = coordinates + first * stride
    absent = 0x7FFFFFFFFFFFFFFF
    found = tl.full((ROWS,), -1, tl.int64)
    for k in range(K):
        best = tl.full((ROWS,), absent, tl.int64)
        for base in range(0, last, COLUMNS):
            column = base + tl.arange(0, COLUMNS)
            inside = column < last
            d_eta = eta[:, None] - tl.load(points + column * stride, inside, 0.0)[None, :]
            d_phi = phi[:, None] - tl.load(points + column * stride + 1, inside, 0.0)[None, :]
            square = d_eta * d_eta + d_phi * d_phi
            key = (square.to(tl.int32, bitcast=True).to(tl.int64) << 32) | column[None, :]
            usable = (column[None, :] >= start[:, None]) & (column[None, :] < stop[:, None])
            usable &= (column[None, :] != itself[:, None]) & (square != float("inf"))
            usable &= key > found[:, None]
            best = tl.minimum(best, tl.min(tl.where(usable, key, absent), 1))
        found = best
        neighbour = tl.where(found == absent, -1, first + (found & 0xFFFFFFFF))
        tl.store(out + row * K + k, neighbour, exists)


def _forward(coordinates: Tensor, offsets: Tensor, k: int) -> Tensor:
    total = len(coordinates)
    out = offsets.new_empty(total, k)
    settings = launch_settings(knn_kernel, f"k{k}", coordinates.device, DEFAULT)
    if total:
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
