"""The interaction bias, written plainly. This file is the specification."""

import torch
from torch import Tensor
from torch.nn.functional import embedding

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
    # Not indexing: its backward adds a particle's rows in the order of the threads.
    first, second = embedding(i, particles), embedding(j, particles)
    features = pair_features(first, second).to(parameters.fc1_weight.dtype)
    bias = mlp(features, parameters).t()
    return bias if dtype is None else bias.to(dtype)
