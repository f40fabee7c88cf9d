"""The local block, written plainly. This file is the specification."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import embedding

from jetkern.jets import offsets_from_counts
from jetkern.ops.attention_block.reference import attention_block
from jetkern.ops.mlp.reference import mlp
from jetkern.ops.pair_features.reference import pair_features
from jetkern.ops.parameters import BlockParameters, MLPParameters


def local_block(
    particles: Tensor,
    neighbours: Tensor,
    embed: MLPParameters,
    blocks: Sequence[BlockParameters],
    heads: int,
) -> Tensor:
    exists = neighbours >= 0  # (T, K)
    counts = exists.sum(1)
    centre = torch.arange(len(particles), device=particles.device).repeat_interleave(counts)
    # (E, 4) edges. Not indexing: its backward adds a particle's rows in the order of the threads.
    first, second = embedding(centre, particles), embedding(neighbours[exists], particles)
    features = torch.cat([first - second, pair_features(first, second)], dim=-1)
    x = mlp(features.to(embed.fc1_weight.dtype), embed)
    sets = offsets_from_counts(counts)
    for block in blocks:
        x = attention_block(x, sets, block, heads, None, None)
    total = x.new_zeros(len(particles), x.shape[1]).index_add(0, centre, x)
    share = (counts + 1e-9 * neighbours.shape[1])[:, None].clamp(min=1e-9)
    return (total / share).to(total.dtype)
