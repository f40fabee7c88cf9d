"""The nearest of a codebook's codes, written plainly. This file is the specification."""

import torch
from torch import Tensor

CHUNK = 1024  # rows of a pass through the (rows, K) distances


@torch.no_grad()
def nearest_code(points: Tensor, codes: Tensor) -> Tensor:
    return torch.cat([_nearest(rows, codes) for rows in points.split(CHUNK)])


def _nearest(points: Tensor, codes: Tensor) -> Tensor:
    squares = points.new_zeros(points.shape[0], codes.shape[0])
    for x, c in zip(points.unbind(1), codes.unbind(1), strict=True):
        squares = squares + (x[:, None] - c).square()
    # The first of equal ones; what is not a number is no distance.
    return squares.masked_fill(squares.isnan(), torch.inf).argmin(1)
