"""Registration of ``torch.ops.jetkern.mlp`` and its backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jetkern.ops.parameters import (
    MLPParameters,
    optional_parts,
    split_gradient,
    table,
    tensors,
)

SHAPE = "int hidden, int out, int parts, bool bf16"
torch.library.define("jetkern::mlp", f"(Tensor x, Tensor[] weights, {SHAPE}) -> Tensor")
torch.library.define(
    "jetkern::mlp_backward",
    f"(Tensor d_out, Tensor x, Tensor[] weights, {SHAPE}, bool need_dx) -> (Tensor, Tensor)",
)
torch.library.define("jetkern::cpu_mlp", f"(Tensor x, Tensor weights, {SHAPE}) -> Tensor")
torch.library.define(
    "jetkern::cpu_mlp_backward",
    f"(Tensor d_out, Tensor x, Tensor weights, {SHAPE}, bool need_dx) -> (Tensor, Tensor)",
)


@torch.library.impl("jetkern::mlp", "cpu")
def _cpu(x: Tensor, weights: list[Tensor], *shape: int) -> Tensor:
    return torch.ops.jetkern.cpu_mlp(x, table(weights), *shape)


@torch.library.impl("jetkern::mlp_backward", "cpu")
def _cpu_backward(
    d_out: Tensor, x: Tensor, weights: list[Tensor], *shape: int
) -> tuple[Tensor, Tensor]:
    return torch.ops.jetkern.cpu_mlp_backward(d_out, x, table(weights), *shape)


@torch.library.register_fake("jetkern::mlp")
def _fake(
    x: Tensor, weights: list[Tensor], hidden: int, out: int, parts: int, bf16: bool
) -> Tensor:
    return x.new_empty(x.shape[0], out)


@torch.library.register_fake("jetkern::mlp_backward")
def _fake_backward(
    d_out: Tensor,
    x: Tensor,
    weights: list[Tensor],
    hidden: int,
    out: int,
    parts: int,
    bf16: bool,
    need_dx: bool,
) -> tuple[Tensor, Tensor]:
    dx = x.new_empty(x.shape[0] if need_dx else 0, x.shape[1])
    return dx, x.new_empty(sum(w.numel() for w in weights))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weights, *ctx.shape = inputs
    ctx.save_for_backward(x, *weights)


def _backward(ctx: Any, d_out: Tensor) -> tuple[Any, ...]:
    x, *weights = ctx.saved_tensors
    need_dx = ctx.needs_input_grad[0]
    dx, gradient = torch.ops.jetkern.mlp_backward(
        d_out.contiguous(), x, weights, *ctx.shape, need_dx
    )
    return dx if need_dx else None, split_gradient(gradient, weights), *[None] * len(ctx.shape)


torch.library.register_autograd("jetkern::mlp", _backward, setup_context=_setup_context)


def mlp(x: Tensor, parameters: MLPParameters, precision: str = "ieee") -> Tensor:
    hidden, out = parameters.fc1_weight.shape[0], parameters.fc2_weight.shape[0]
    return torch.ops.jetkern.mlp(
        x.contiguous(),
        tensors(parameters),
        hidden,
        out,
        optional_parts(parameters),
        precision == "bf16",
    )
