"""The compiled C++ op, ``torch.ops.jetkern.pair_mlp``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from jetkern.ops.pair_mlp import reference
from jetkern.ops.parameters import LinearParameters, not_float32, table
from jetkern.ops.register import operator


def _widths(weights: Sequence[Tensor]) -> Tensor:
    """(layers + 1,) int64, from the features to the heads."""
    return torch.tensor([weights[0].shape[1], *(w.shape[0] for w in weights[::2])])


def _forward(
    features: Tensor, offsets: Tensor, weights: Sequence[Tensor], num_pairs: int
) -> Tensor:
    return torch.ops.jetkern.cpu_pair_mlp(
        features, offsets, table(weights), _widths(weights), num_pairs
    )


def _backward(
    d_out: Tensor,
    features: Tensor,
    offsets: Tensor,
    weights: Sequence[Tensor],
    num_pairs: int,
    want_features: bool,
) -> tuple[Tensor, Tensor]:
    return torch.ops.jetkern.cpu_pair_mlp_backward(
        d_out, features, offsets, table(weights), _widths(weights), want_features
    )


def _fake(features: Tensor, offsets: Tensor, weights: Sequence[Tensor], num_pairs: Any) -> Tensor:
    if isinstance(num_pairs, int) and num_pairs < 0:
        num_pairs = torch.library.get_ctx().new_dynamic_size()
    return features.new_empty(weights[-1].shape[0], num_pairs)


def _reference(
    features: Tensor, offsets: Tensor, weights: Sequence[Tensor], num_pairs: int
) -> Tensor:
    layers = [LinearParameters(*pair) for pair in zip(weights[::2], weights[1::2], strict=True)]
    return reference.pair_mlp(features, offsets, layers)


_pair_mlp = operator(
    "jetkern::pair_mlp",
    "(Tensor features, Tensor offsets, Tensor[] weights, SymInt num_pairs) -> Tensor",
    gradients="features? weights",
    fake=_fake,
    forward=_forward,
    backward=_backward,
    reference=_reference,
)
MOST_LAYERS = 16


def covers(features: Tensor, offsets: Tensor, layers: Sequence[LinearParameters]) -> str:
    """Up to 16 layers in float32."""
    if len(layers) > MOST_LAYERS:
        return f"it has at most {MOST_LAYERS} layers"
    return not_float32(*layers)


def pair_mlp(
    features: Tensor,
    offsets: Tensor,
    layers: Sequence[LinearParameters],
    *,
    num_pairs: int | None = None,
) -> Tensor:
    weights: list[Tensor] = []
    for weight, bias in layers:
        weights.append(weight.contiguous())
        weights.append(weight.new_zeros(len(weight)) if bias is None else bias.contiguous())
    return _pair_mlp(
        features.contiguous(), offsets.contiguous(), weights, -1 if num_pairs is None else num_pairs
    )
