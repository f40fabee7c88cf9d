"""Registration of ``torch.ops.jetkern.attention_block`` and its backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jetkern.ops.parameters import BlockParameters, flat, optional_parts

INPUTS = (
    "Tensor x, Tensor offsets, Tensor weights, Tensor? bias, Tensor? particle_offsets, "
    "int heads, int hidden, int parts"
)
torch.library.define("jetkern::attention_block", f"({INPUTS}) -> Tensor")
torch.library.define(
    "jetkern::attention_block_backward", f"(Tensor d_out, {INPUTS}) -> (Tensor, Tensor, Tensor)"
)


@torch.library.register_fake("jetkern::attention_block")
def _fake(
    x: Tensor,
    offsets: Tensor,
    weights: Tensor,
    bias: Tensor | None,
    particle_offsets: Tensor | None,
    heads: int,
    hidden: int,
    parts: int,
) -> Tensor:
    return torch.empty_like(x)


@torch.library.register_fake("jetkern::attention_block_backward")
def _fake_backward(
    d_out: Tensor,
    x: Tensor,
    offsets: Tensor,
    weights: Tensor,
    bias: Tensor | None,
    particle_offsets: Tensor | None,
    heads: int,
    hidden: int,
    parts: int,
) -> tuple[Tensor, Tensor, Tensor]:
    d_bias = x.new_empty(0, 0) if bias is None else torch.empty_like(bias)
    return torch.empty_like(x), torch.empty_like(weights), d_bias


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.heads, ctx.hidden, ctx.parts = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
    bias = ctx.saved_tensors[3]
    dx, d_weights, d_bias = torch.ops.jetkern.attention_block_backward(
        d_out.contiguous(), *ctx.saved_tensors, ctx.heads, ctx.hidden, ctx.parts
    )
    return dx, None, d_weights, None if bias is None else d_bias, None, None, None, None


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
        flat(parameters),
        None if bias is None else bias.contiguous(),
        None if bias is None or particle_offsets is None else particle_offsets.contiguous(),
        heads,
        parameters.mlp.fc1_weight.shape[0],
        optional_parts(parameters.mlp),
    )
