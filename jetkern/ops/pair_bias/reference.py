"""The interaction bias, written plainly. This file is the specification."""

import torch
from torch import Tensor

from jetkern.ops.mlp.reference import mlp
from jetkern.ops.pair_features import pair_index
from jetkern.ops.pair_features.reference import pair_features
from jetkern.ops.parameters import MLPParameters


def pair_bias(
    particles: Tensor,
    offsets: Tensor,
    parameters: MLPParameters,
    *,
    num_pairs: int | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    i, j = pair_index(offsets, num_pairs)
    bias = mlp(pair_features(particles[i], particles[j]), parameters).t()
    return bias if dtype is None else bias.to(dtype)
