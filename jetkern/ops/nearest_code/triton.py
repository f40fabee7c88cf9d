"""The nearest code of each row as a Triton kernel.

A program compares a tile of points with all codes, a tile of them at a time. Differences are
squared and rounded column by column, as in the reference, so that tokens do not depend on the
device.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from jetkern.ops.gpu.launch import Settings, cdiv, launch, launch_settings
from jetkern.ops.gpu.register import gpu_operator

ROUNDED = {"enable_fp_fusion": False}
DEFAULT: Settings = {"ROWS": 32, "COLUMNS": 128, "num_warps": 4, "num_stages": 1}
CANDIDATES = {
    "nearest_code": [
        {"ROWS": rows, "COLUMNS": columns, "num_warps": warps}
        for rows in (16, 32, 64)
        for columns in (64, 128, 256)
        for warps in (4, 8)
        if 8 <= rows * columns // (32 * warps) <= 64
    ]
}


@triton.jit(do_not_specialize=["total", "codes_total"])
def nearest_code_kernel(
    points,
    codes,
    out,
    total,
    codes_total,
    F: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    exists = row < total
    best = tl.full((ROWS,), float("inf"), tl.float32)
    nearest = tl.full((ROWS,), 0, tl.int32)
    for base in range(0, codes_total, COLUMNS):
        code = base + tl.arange(0, COLUMNS)
        inside = code < codes_total
        square = tl.full((ROWS, COLUMNS), 0.0, tl.float32)
        for f in range(F):
            x = tl.load(points + row * F + f, exists, 0.0)
            c = tl.load(codes + code.to(tl.int64) * F + f, inside, 0.0)
            d = x[:, None] - c[None, :]
            square += d * d
        square = tl.where(inside[None, :] & (square == square), square, float("inf"))
        least = tl.min(square, 1)
        first = tl.min(tl.where(square == least[:, None], code[None, :], codes_total), 1)
        nearest = tl.where(least < best, first, nearest)
        best = tl.minimum(least, best)
    tl.store(out + row, nearest.to(tl.int64), exists)


def _forward(points: Tensor, codes: Tensor) -> Tensor:
    total, width = points.shape
    out = points.new_empty(total, dtype=torch.int64)
    settings = launch_settings(nearest_code_kernel, f"f{width}", points.device, DEFAULT)
    if total:
        launch(
            nearest_code_kernel,
            (cdiv(total, settings["ROWS"]),),
            points.device,
            settings | ROUNDED,
            points=points,
            codes=codes,
            out=out,
            total=total,
            codes_total=len(codes),
            F=width,
        )
    return out


_op = gpu_operator(
    "nearest_code",
    "(Tensor points, Tensor codes) -> Tensor",
    fake=lambda points, codes: points.new_empty(points.shape[0], dtype=torch.int64),
    forward=_forward,
)


def covers(points: Tensor, codes: Tensor) -> str:
    """Fewer than 2^31 codes."""
    return "" if codes.shape[0] < 2**31 else f"{codes.shape[0]} codes, more than 2^31 - 1"


def nearest_code(points: Tensor, codes: Tensor) -> Tensor:
    """See ``jetkern.ops.nearest_code``."""
    return _op(points.detach().float().contiguous(), codes.detach().float().contiguous())
