"""Which particles the masked passes hide."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy.typing as npt
import torch
from torch import Tensor

from jetkern.jets import Jets
from jetkern.kernels import kernel
from jetkern.random import starts, uniform

MASK_FRACTION = 0.4
STEPS = 10_000
Counts = TypeVar("Counts", Tensor, npt.NDArray[Any])


def masked_counts(counts: Counts, fraction: float = MASK_FRACTION) -> Counts:
    """(B,) floor(f n), the number of particles hidden in a jet of n, f in steps of 1e-4."""
    return counts * round(fraction * STEPS) // STEPS


def drawn_counts(
    counts: Tensor, index: Tensor, seed: int, stream: int, fractions: tuple[float, float]
) -> Tensor:
    """(B,) floor(f n) with f of each jet uniform between ``fractions``."""
    low, high = fractions
    share = low + (high - low) * uniform(seed, stream, index).double()
    return (share * counts).floor().long()


def random_keep(
    jets: Jets, index: Tensor, seed: int, stream: int, hidden: Tensor | None = None
) -> Tensor:
    """(T,) bool, false for ``hidden`` (B,) particles of each jet, chosen uniformly; by default for
    floor(0.4 n) of n.

    The choice depends on (seed, stream, index of the jet) alone. The reference code draws from the
    whole batch at once, so that a jet may be hidden wholly or not at all; the paper's fraction is
    per jet, and so is ours.
    """
    jet, hidden = jets.jet_of_particle, masked_counts(jets.counts) if hidden is None else hidden
    if (own := kernel("random_keep", jet)) is not None:
        keep: Tensor = own(index, jet, jets.offsets, hidden, starts(seed, (stream,), jet.device))
        return keep
    score = uniform(seed, stream, index[jet], jets.rank_in_jet)
    order = torch.argsort(jet + score.double(), stable=True)  # jets stay together
    rank = torch.empty_like(order).index_copy_(0, order, jets.rank_in_jet)
    return rank >= hidden[jet]
