"""Tokens by binning: a grid of codes, the same number of bins in each feature."""

from __future__ import annotations

import torch
from torch import Tensor


def bin_centres(codes: int, features: int) -> Tensor:
    """(b^F, F) float32 centres of bins on the normal scale, for the largest b with b^F <= codes.

    Centre i of b is the quantile (i + 1/2) / b of a normal distribution, so that the bins of a
    feature have about the same number of particles. A particle is in the bin whose centre is the
    nearest, so edges are half-way between centres.

    Args:
        codes: at most so many. features: F.

    Raises:
        ValueError: for too few codes for two bins in each feature.
    """
    bins = 1
    while (bins + 1) ** features <= codes:
        bins += 1
    if bins < 2:
        raise ValueError(
            f"{codes} codes are fewer than two bins in each of {features} features: at least "
            f"{2**features}"
        )
    middle = (torch.arange(bins, dtype=torch.float64) + 0.5) / bins
    centres = torch.special.ndtri(middle).float()
    return torch.cartesian_prod(*[centres] * features).reshape(-1, features)
