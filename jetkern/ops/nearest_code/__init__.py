"""The nearest code of each row: the tokens of a codebook."""

from __future__ import annotations

import torch
from torch import Tensor

from jetkern.ops.checks import check_float, check_shape
from jetkern.ops.dispatch import run


def nearest_code(points: Tensor, codes: Tensor, *, backend: str = "auto") -> Tensor:
    """Rows of a codebook that are nearest by Euclidean distance.

    A squared distance is the sum of (x_c - code_c)^2, column by column, each product rounded: all
    backends find the same codes. Of equal distances the lowest row is taken, and row 0 for a point
    that is not finite. Half precision is taken for float32.

    Args:
        points: (T, F) float, with F at least 1.
        codes: (K, F) float, with K at least 1.

    Returns:
        (T,) int64 row of ``codes``. Not differentiable.

    Raises:
        ValueError: for wrong shapes or dtypes.
    """
    check_float("points", points)
    check_float("codes", codes)
    check_shape("points", points, None, None)
    check_shape("codes", codes, None, points.shape[1])
    if not codes.shape[0] or not codes.shape[1]:
        raise ValueError(f"codes must hold at least one number, got {tuple(codes.shape)}")
    dtype = torch.promote_types(points.dtype, torch.float32)
    return run("nearest_code", backend, points.to(dtype), codes.to(dtype))
