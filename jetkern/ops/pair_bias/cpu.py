"""The compiled C++ op, ``torch.ops.jetkern.pair_bias``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jetkern.ops.pair_bias import reference
from jetkern.ops.parameters import MLPParameters, not_float32, tensors
from jetkern.ops.register import operator


def _fake(particles: Tensor, *others: Any) -> Tensor:
    fc2_weight, num_pairs = others[3], others[5]
    if isinstance(num_pairs, int) and num_pairs < 0:
        num_pairs = torch.library.get_ctx().new_dynamic_size()
    return particles.new_empty(fc2_weight.shape[0], num_pairs)


def _reference(
    particles: Tensor,
    offsets: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    num_pairs: int,
) -> Tensor:
    weights = MLPParameters(fc1_weight, fc1_bias, None, None, fc2_weight, fc2_bias)
    return reference.pair_bias(particles, offsets, weights)


_pair_bias = operator(
    "jetkern::pair_bias",
    "(Tensor particles, Tensor offsets, Tensor fc1_weight, Tensor fc1_bias, Tensor fc2_weight,"
    " Tensor fc2_bias, SymInt num_pairs) -> Tensor",
    gradients="particles? fc1_weight fc1_bias fc2_weight fc2_bias",
    fake=_fake,
    reference=_reference,
)


def covers(particles: Tensor, offsets: Tensor, parameters: MLPParameters) -> str:
    """A perceptron with both biases and without a norm, in float32."""
    p = parameters
    if p.alpha is not None or p.fc1_bias is None or p.fc2_bias is None:
        return "its perceptron has two biases and no norm"
    return not_float32(p)


def pair_bias(
    particles: Tensor,
    offsets: Tensor,
    parameters: MLPParameters,
    *,
    num_pairs: int | None = None,
    dtype: torch.dtype | None = None,
    precision: str = "ieee",
) -> Tensor:
    """See ``jetkern.ops.pair_bias``. The products are float32 whatever ``precision``, for they are
    too narrow to gain."""
    bias = _pair_bias(
        particles.contiguous(),
        offsets.contiguous(),
        *tensors(parameters),
        -1 if num_pairs is None else num_pairs,
    )
    return bias if dtype is None else bias.to(dtype)
