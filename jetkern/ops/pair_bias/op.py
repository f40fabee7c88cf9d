"""Registration of ``torch.ops.jetkern.pair_bias`` and its backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jetkern.ops.pair_bias import reference
from jetkern.ops.parameters import MLPParameters

WEIGHTS = "Tensor fc1_weight, Tensor fc1_bias, Tensor fc2_weight, Tensor fc2_bias"
torch.library.define(
    "jetkern::pair_bias",
    f"(Tensor particles, Tensor offsets, {WEIGHTS}, SymInt num_pairs) -> Tensor",
)
torch.library.define(
    "jetkern::pair_bias_backward",
    f"(Tensor dbias, Tensor particles, Tensor offsets, {WEIGHTS}, bool need_particles)"
    " -> (Tensor gradient, Tensor d_particles)",
)


@torch.library.register_fake("jetkern::pair_bias")
def _forward_fake(
    particles: Tensor,
    offsets: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    num_pairs: int | torch.SymInt,
) -> Tensor:
    if isinstance(num_pairs, int) and num_pairs < 0:
        num_pairs = torch.library.get_ctx().new_dynamic_size()
    return particles.new_empty((fc2_weight.shape[0], num_pairs))


@torch.library.register_fake("jetkern::pair_bias_backward")
def _backward_fake(
    dbias: Tensor,
    particles: Tensor,
    offsets: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    need_particles: bool,
) -> tuple[Tensor, Tensor]:
    heads, hidden = fc2_weight.shape
    rows = particles.shape[0] if need_particles else 0
    return particles.new_empty((4 + heads) * hidden + heads), particles.new_empty(rows, 4)


def split_gradient(gradient: Tensor, heads: int, hidden: int) -> tuple[Tensor, ...]:
    """The parts of fc1_weight, fc1_bias, fc2_weight and fc2_bias of what the backwards return."""
    of_fc1, d_fc1_bias, of_fc2, d_fc2_bias = gradient.split(
        [3 * hidden, hidden, heads * hidden, heads]
    )
    return of_fc1.view(3, hidden).t(), d_fc1_bias, of_fc2.view(heads, hidden), d_fc2_bias


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:-1])


def _backward(ctx: Any, dbias: Tensor) -> tuple[Tensor | None, ...]:
    particles, offsets, *weights = ctx.saved_tensors
    need_particles = ctx.needs_input_grad[0]
    gradient, d_particles = torch.ops.jetkern.pair_bias_backward(
        dbias.contiguous(), particles, offsets, *weights, need_particles
    )
    of_weights = split_gradient(gradient, *weights[2].shape)
    return d_particles if need_particles else None, None, *of_weights, None


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
    """See ``jetkern.ops.pair_bias``. A perceptron with a norm or without its biases is left to the
    reference; the products are float32 whatever ``precision``, for they are too narrow to gain."""
    p = parameters
    if p.alpha is not None or p.fc1_bias is None or p.fc2_bias is None:
        return reference.pair_bias(particles, offsets, parameters, num_pairs=num_pairs, dtype=dtype)
    weights = (p.fc1_weight, p.fc1_bias, p.fc2_weight, p.fc2_bias)
    bias = torch.ops.jetkern.pair_bias(
        particles.contiguous(),
        offsets.contiguous(),
        *(w.contiguous() for w in weights),
        -1 if num_pairs is None else num_pairs,
    )
    return bias if dtype is None else bias.to(dtype)
