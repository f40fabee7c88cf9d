"""A perceptron on symmetric pairs, written plainly. This file is the specification."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import embedding, gelu, linear

from jetkern.ops.pair_features import unordered_entry
from jetkern.ops.parameters import LinearParameters


def pair_mlp(
    features: Tensor,
    offsets: Tensor,
    layers: Sequence[LinearParameters],
    *,
    num_pairs: int | None = None,
) -> Tensor:
    x = features.to(layers[0].weight.dtype)
    for weight, bias in layers[:-1]:
        x = gelu(linear(x, weight, bias))
    x = linear(x, *layers[-1])
    # Not indexing: its backward adds the rows of a pair in the order of the threads.
    return embedding(unordered_entry(offsets, num_pairs), x).t()
