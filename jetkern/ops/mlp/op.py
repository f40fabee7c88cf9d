"""Registration of ``torch.ops.jetkern.mlp`` and its backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jetkern.ops.parameters import MLPParameters, flat, optional_parts

SHAPE = "int hidden, int out, int parts"
torch.library.define("jetkern::mlp", f"(Tensor x, Tensor weights, {SHAPE}) -> Tensor")
torch.library.define(
    "jetkern::mlp_backward",
    f"(Tensor d_out, Tensor x, Tensor weights, {SHAPE}, bool need_dx) -> (Tensor, Tensor)",
)


@torch.library.register_fake("jetkern::mlp")
def _fake(x: Tensor, weights: Tensor, hidden: int, out: int, parts: int) -> Tensor:
    return x.new_empty(x.shape[0], out)


@torch.library.register_fake("jetkern::mlp_backward")
def _fake_backward(
    d_out: Tensor, x: Tensor, weights: Tensor, hidden: int, out: int, parts: int, need_dx: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0] if need_dx else 0, x.shape[1]), torch.empty_like(weights)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weights, *ctx.shape = inputs
    ctx.save_for_backward(x, weights)


def _backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
    x, weights = ctx.saved_tensors
    need_dx = ctx.needs_input_grad[0]
    dx, d_weights = torch.ops.jetkern.mlp_backward(
        d_out.contiguous(), x, weights, *ctx.shape, need_dx
    )
    return dx if need_dx else None, d_weights, None, None, None


torch.library.register_autograd("jetkern::mlp", _backward, setup_context=_setup_context)


def mlp(x: Tensor, parameters: MLPParameters, precision: str = "ieee") -> Tensor:
    hidden, out = parameters.fc1_weight.shape[0], parameters.fc2_weight.shape[0]
    return torch.ops.jetkern.mlp(
        x.contiguous(), flat(parameters), hidden, out, optional_parts(parameters)
    )
