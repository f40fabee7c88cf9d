"""Registration of ``torch.ops.jetkern.attention_block`` and its backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jetkern.ops.parameters import (
    BlockParameters,
    optional_parts,
    split_gradient,
    table,
    tensors,
)


def _inputs(weights: str) -> str:
    return (
        f"Tensor x, Tensor offsets, {weights} weights, Tensor? bias, Tensor? particle_offsets, "
        "int heads, int hidden, int parts, bool bf16"
    )


GRADIENTS = "(Tensor dx, Tensor d_weights, Tensor d_bias)"
for prefix, weights_type in (("", "Tensor[]"), ("cpu_", "Tensor")):
    torch.library.define(
        f"jetkern::{prefix}attention_block", f"({_inputs(weights_type)}) -> Tensor"
    )
    torch.library.define(
        f"jetkern::{prefix}attention_block_backward",
        f"(Tensor d_out, {_inputs(weights_type)}) -> {GRADIENTS}",
    )


@torch.library.impl("jetkern::attention_block", "cpu")
def _cpu(x: Tensor, offsets: Tensor, weights: list[Tensor], *others: Any) -> Tensor:
    return torch.ops.jetkern.cpu_attention_block(x, offsets, table(weights), *others)


@torch.library.impl("jetkern::attention_block_backward", "cpu")
def _cpu_backward(
    d_out: Tensor, x: Tensor, offsets: Tensor, weights: list[Tensor], *others: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.jetkern.cpu_attention_block_backward(
        d_out, x, offsets, table(weights), *others
    )


@torch.library.register_fake("jetkern::attention_block")
def _fake(x: Tensor, offsets: Tensor, weights: list[Tensor], *others: Any) -> Tensor:
    return torch.empty_like(x)


@torch.library.register_fake("jetkern::attention_block_backward")
def _fake_backward(
    d_out: Tensor,
    x: Tensor,
    offsets: Tensor,
    weights: list[Tensor],
    bias: Tensor | None,
    *others: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    d_bias = x.new_empty(0, 0) if bias is None else torch.empty_like(bias)
    return torch.empty_like(x), x.new_empty(sum(w.numel() for w in weights)), d_bias


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, offsets, weights, bias, particle_offsets, *ctx.shape = inputs
    ctx.save_for_backward(x, offsets, bias, particle_offsets, *weights)


def _backward(ctx: Any, d_out: Tensor) -> tuple[Any, ...]:
    x, offsets, bias, particle_offsets, *weights = ctx.saved_tensors
    dx, gradient, d_bias = torch.ops.jetkern.attention_block_backward(
        d_out.contiguous(), x, offsets, weights, bias, particle_offsets, *ctx.shape
    )
    d_weights = split_gradient(gradient, weights)
    nothing = [None] * len(ctx.shape)
    return dx, None, d_weights, None if bias is None else d_bias, None, *nothing


torch.library.register_autograd("jetkern::attention_block", _backward, setup_context=_setup_context)


def attention_block(
    x: Tensor,
    offsets: Tensor,
    parameters: BlockParameters,
    heads: int,
    bias: Tensor | None,
    particle_offsets: Tensor | None,
    precision: str = "ieee",
) -> Tensor:
    return torch.ops.jetkern.attention_block(
        x.contiguous(),
        offsets.contiguous(),
        tensors(parameters),
        None if bias is None else bias.contiguous(),
        None if bias is None or particle_offsets is None else particle_offsets.contiguous(),
        heads,
        parameters.mlp.fc1_weight.shape[0],
        optional_parts(parameters.mlp),
        precision == "bf16",
    )
