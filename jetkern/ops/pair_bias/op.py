"""Registration of ``torch.ops.jetkern.pair_bias`` and its backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jetkern.ops.pair_bias import reference
from jetkern.ops.parameters import MLPParameters

WEIGHTS = "Tensor fc1_weight, Tensor fc1_bias, Tensor fc2_weight, Tensor fc2_bias"
torch.library.define(
    "jetkern::pair_bias", f"(Tensor particles, Tensor offsets, {WEIGHTS}) -> Tensor"
)
torch.library.define(
    "jetkern::pair_bias_backward",
    f"(Tensor dbias, Tensor particles, Tensor offsets, {WEIGHTS}) -> Tensor",
)


@torch.library.register_fake("jetkern::pair_bias")
def _forward_fake(particles: Tensor, offsets: Tensor, *weights: Tensor) -> Tensor:
    pairs = torch.library.get_ctx().new_dynamic_size()
    return particles.new_empty(weights[3].shape[0], pairs)


@torch.library.register_fake("jetkern::pair_bias_backward")
def _backward_fake(dbias: Tensor, particles: Tensor, offsets: Tensor, *weights: Tensor) -> Tensor:
    heads, hidden = weights[2].shape
    return particles.new_empty((4 + heads) * hidden + heads)


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dbias: Tensor) -> tuple[Tensor | None, ...]:
    particles, offsets, *weights = ctx.saved_tensors
    gradient = torch.ops.jetkern.pair_bias_backward(
        dbias.contiguous(), particles, offsets, *weights
    )
    heads, hidden = weights[2].shape
    fc1_weight, fc1_bias, fc2_weight, fc2_bias = gradient.split(
        [3 * hidden, hidden, heads * hidden, heads]
    )
    return (
        None,
        None,
        fc1_weight.view(3, hidden).t(),
        fc1_bias,
        fc2_weight.view(heads, hidden),
        fc2_bias,
    )


torch.library.register_autograd("jetkern::pair_bias", _backward, setup_context=_setup_context)


def pair_bias(
    particles: Tensor,
    offsets: Tensor,
    parameters: MLPParameters,
    *,
    num_pairs: int | None = None,
    dtype: torch.dtype | None = None,
    precision: str = "ieee",
) -> Tensor:
    """See ``jetkern.ops.pair_bias``. The gradient of the particles, and a perceptron with a norm
    or without its biases, are left to the reference."""
    p = parameters
    plain = p.alpha is None and p.fc1_bias is not None and p.fc2_bias is not None
    if not plain or (particles.requires_grad and torch.is_grad_enabled()):
        return reference.pair_bias(particles, offsets, parameters, num_pairs=num_pairs, dtype=dtype)
    weights = (p.fc1_weight, p.fc1_bias, p.fc2_weight, p.fc2_bias)
    bias = torch.ops.jetkern.pair_bias(
        particles.contiguous(),
        offsets.contiguous(),
        *(w.contiguous() for w in weights if w is not None),
    )
    if num_pairs is not None:
        torch._check(
            bias.shape[1] == num_pairs,
            lambda: f"num_pairs is {num_pairs}, the jets have {bias.shape[1]} pairs",
        )
    return bias if dtype is None else bias.to(dtype)
