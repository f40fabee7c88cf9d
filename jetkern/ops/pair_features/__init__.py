"""Lorentz-inspired features of particle pairs, and the packed layout of pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from jetkern.ops.checks import check_float, check_shape
from jetkern.ops.dispatch import run


def pair_offsets(offsets: Tensor) -> Tensor:
    """(B + 1,) int64 offsets of the n x n pairs of each jet; pair (i, j) is entry i n + j.

    Args:
        offsets: (B + 1,) int64 of the particles.
    """
    return torch.nn.functional.pad(offsets.diff().square().cumsum(0), (1, 0))


def pair_index(offsets: Tensor, num_pairs: int | None = None) -> tuple[Tensor, Tensor]:
    """Rows i and j, each (P,) int64, of all P = sum n^2 ordered pairs, jet by jet.

    Giving P avoids a host synchronisation.

    Args:
        offsets: (B + 1,) int64 of the particles; num_pairs: P, or None.
    """
    counts = offsets.diff()
    starts = pair_offsets(offsets)
    jets = torch.arange(len(counts), device=offsets.device)
    jet = jets.repeat_interleave(counts.square(), output_size=num_pairs)
    entry = torch.arange(len(jet), device=offsets.device) - starts[jet]
    n = counts[jet]
    return offsets[jet] + entry // n, offsets[jet] + entry % n


def pair_features(first: Tensor, second: Tensor, *, backend: str = "auto") -> Tensor:
    """[ln m^2, ln delta R, ln kT] of particle pairs (arXiv 2606.14870, Eq. 6).

    m^2 = 2 pT_i pT_j (cosh delta eta - cos delta phi), massless; computed as
    ln 2 + ln pT_i + ln pT_j + ln(2 sinh^2(delta eta / 2) + 2 sin^2(delta phi / 2)), which does
    not cancel for collinear pairs. kT = min(pT_i, pT_j) delta R. Where delta R or m is 0 (the same
    particle, or two at the same place) the feature is 0, with zero gradient.

    Args:
        first, second: (..., 4) delta eta, delta phi, ln pT (GeV), ln E of the two particles.

    Returns:
        (..., 3), symmetric under exchange, in the inputs' dtype.

    Raises:
        ValueError: for wrong shapes or dtypes.
    """
    check_float("first", first)
    if first.shape != second.shape or first.shape[-1:] != (4,):
        check_shape("second", second, *first.shape[:-1], 4)
    return run("pair_features", backend, first, second)
