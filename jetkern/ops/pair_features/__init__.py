"""Lorentz-inspired features of particle pairs, and the packed layout of pairs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jetkern.ops.checks import check_float, check_shape
from jetkern.ops.dispatch import run

DEFAULT = ("ln_m2", "ln_r", "ln_kt")
FEATURES = (*DEFAULT, "ln_z")


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


def unordered_pairs(offsets: Tensor, total: int | None = None) -> tuple[Tensor, Tensor]:
    """Rows i and j, each (S,) int64, of the S = sum n (n + 1) / 2 pairs i <= j, jet by jet.

    What is symmetric is computed on these alone, a particle with itself among them. In a jet they
    come as (0, 0), (0, 1), (1, 1), (0, 2), ...: entry j (j + 1) / 2 + i.

    Args:
        offsets: (B + 1,) int64 of the particles; total: S, which saves a host synchronisation.
    """
    counts = offsets.diff()
    sizes = counts * (counts + 1) // 2
    jets = torch.arange(len(counts), device=offsets.device)
    jet = jets.repeat_interleave(sizes, output_size=total)
    rank = torch.arange(len(jet), device=offsets.device) - (sizes.cumsum(0) - sizes)[jet]
    j = (((8 * rank + 1).double().sqrt() - 1) / 2).long()  # right to within one
    j = j - (j * (j + 1) // 2 > rank).long()
    j = j + ((j + 1) * (j + 2) // 2 <= rank).long()
    return offsets[jet] + rank - j * (j + 1) // 2, offsets[jet] + j


def unordered_entry(offsets: Tensor, num_pairs: int | None = None) -> Tensor:
    """(P,) int64, for each ordered pair of ``pair_index`` its place among ``unordered_pairs``.

    ``x[unordered_entry(offsets)]`` writes a quantity x (S, ...) of unordered pairs to both orders.

    Args:
        offsets: (B + 1,) int64 of the particles; num_pairs: P, or None.
    """
    counts = offsets.diff()
    squares, sizes = counts.square(), counts * (counts + 1) // 2
    jets = torch.arange(len(counts), device=offsets.device)
    jet = jets.repeat_interleave(squares, output_size=num_pairs)
    entry = torch.arange(len(jet), device=offsets.device) - (squares.cumsum(0) - squares)[jet]
    a, b = entry // counts[jet], entry % counts[jet]
    high = torch.maximum(a, b)
    return (sizes.cumsum(0) - sizes)[jet] + high * (high + 1) // 2 + torch.minimum(a, b)


def pair_features(
    first: Tensor, second: Tensor, names: Sequence[str] = DEFAULT, *, backend: str = "auto"
) -> Tensor:
    """Features of particle pairs, by default [ln m^2, ln delta R, ln kT] (arXiv 2606.14870, Eq. 6).

    m^2 = 2 pT_i pT_j (cosh delta eta - cos delta phi), massless; computed as
    ln 2 + ln pT_i + ln pT_j + ln(2 sinh^2(delta eta / 2) + 2 sin^2(delta phi / 2)), which does
    not cancel for collinear pairs. kT = min(pT_i, pT_j) delta R. Where delta R or m is 0 (the same
    particle, or two at the same place) the feature is 0, with zero gradient.

    Args:
        first, second: (..., 4) delta eta, delta phi, ln pT (GeV), ln E of the two particles.
        names: of ``FEATURES``: "ln_m2", "ln_r", "ln_kt", "ln_z".

    Returns:
        (..., len(names)), symmetric under exchange, in the inputs' dtype.

    Raises:
        ValueError: for wrong shapes or dtypes, or an unknown feature.
    """
    if unknown := [name for name in names if name not in FEATURES]:
        raise ValueError(f"unknown pair feature {unknown[0]!r}: choose from {', '.join(FEATURES)}")
    check_float("first", first)
    if first.shape != second.shape or first.shape[-1:] != (4,):
        check_shape("second", second, *first.shape[:-1], 4)
    return run("pair_features", backend, first, second, names=tuple(names))
