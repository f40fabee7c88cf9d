"""The compiled C++ op, ``torch.ops.jetkern.mlp``."""

from __future__ import annotations

import torch
from torch import Tensor

from jetkern.ops.mlp import reference
from jetkern.ops.parameters import (
    MLPParameters,
    not_float32,
    optional_parts,
    table,
    take_mlp,
    tensors,
)
from jetkern.ops.register import operator


def _forward(x: Tensor, weights: list[Tensor], *shape: int) -> Tensor:
    return torch.ops.jetkern.cpu_mlp(x, table(weights), *shape)


def _backward(
    d_out: Tensor, x: Tensor, weights: list[Tensor], *shape: int
) -> tuple[Tensor, Tensor]:
    return torch.ops.jetkern.cpu_mlp_backward(d_out, x, table(weights), *shape)


_mlp = operator(
    "jetkern::mlp",
    "(Tensor x, Tensor[] weights, int hidden, int out, int parts, bool bf16) -> Tensor",
    gradients="x? weights",
    fake=lambda x, weights, hidden, out, *_: x.new_empty(x.shape[0], out),
    forward=_forward,
    backward=_backward,
    reference=lambda x, weights, hidden, out, parts, bf16: reference.mlp(
        x, take_mlp(iter(weights), parts)
    ),
)


def covers(x: Tensor, parameters: MLPParameters) -> str:
    """Weights in float32."""
    return not_float32(parameters)


def mlp(x: Tensor, parameters: MLPParameters, precision: str = "ieee") -> Tensor:
    return _mlp(
        x.contiguous(),
        tensors(parameters),
        parameters.fc1_weight.shape[0],
        parameters.fc2_weight.shape[0],
        optional_parts(parameters),
        precision == "bf16",
    )
