"""Which particles the masked passes hide."""

from __future__ import annotations

import torch
from torch import Tensor

from jetkern.jets import Jets
from jetkern.random import uniform

MASK_FRACTION = 0.4


def masked_counts(counts: Tensor) -> Tensor:
    """(B,) floor(0.4 n), the number of particles hidden in a jet of n."""
    return counts * 2 // 5


def random_keep(jets: Jets, index: Tensor, seed: int, stream: int) -> Tensor:
    """(T,) bool, false for floor(0.4 n) particles of each jet, chosen uniformly.

    The choice depends on (seed, stream, index of the jet) alone. The reference code draws from the
    whole batch at once, so that a jet may be hidden wholly or not at all; the paper's fraction is
    per jet, and so is ours.
    """
    jet = jets.jet_of_particle
    score = uniform(seed, stream, index[jet], jets.rank_in_jet)
    order = torch.argsort(jet + score.double(), stable=True)  # jets stay together
    rank = torch.empty_like(order).index_copy_(0, order, jets.rank_in_jet)
    return rank >= masked_counts(jets.counts)[jet]
