"""Registration of ``torch.ops.jetkern.local_block`` and its backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from jetkern.ops.local_block import reference
from jetkern.ops.parameters import (
    BlockParameters,
    MLPParameters,
    optional_parts,
    split_gradient,
    table,
    tensors,
)

SHAPE = (
    "int width, int heads, int blocks, int embed_hidden, int embed_parts, int hidden, int parts, "
    "bool bf16"
)
for prefix, weights_type in (("", "Tensor[]"), ("cpu_", "Tensor")):
    inputs = f"Tensor particles, Tensor neighbours, {weights_type} weights, {SHAPE}"
    torch.library.define(f"jetkern::{prefix}local_block", f"({inputs}) -> Tensor")
    torch.library.define(
        f"jetkern::{prefix}local_block_backward",
        f"(Tensor d_out, {inputs}, bool need_particles) -> (Tensor d_particles, Tensor d_weights)",
    )


@torch.library.impl("jetkern::local_block", "cpu")
def _cpu(particles: Tensor, neighbours: Tensor, weights: list[Tensor], *shape: int) -> Tensor:
    return torch.ops.jetkern.cpu_local_block(particles, neighbours, table(weights), *shape)


@torch.library.impl("jetkern::local_block_backward", "cpu")
def _cpu_backward(
    d_out: Tensor, particles: Tensor, neighbours: Tensor, weights: list[Tensor], *shape: int
) -> tuple[Tensor, Tensor]:
    return torch.ops.jetkern.cpu_local_block_backward(
        d_out, particles, neighbours, table(weights), *shape
    )


@torch.library.register_fake("jetkern::local_block")
def _fake(
    particles: Tensor, neighbours: Tensor, weights: list[Tensor], width: int, *shape: int
) -> Tensor:
    return particles.new_empty(particles.shape[0], width)


@torch.library.register_fake("jetkern::local_block_backward")
def _fake_backward(
    d_out: Tensor, particles: Tensor, neighbours: Tensor, weights: list[Tensor], *shape: int
) -> tuple[Tensor, Tensor]:
    need_particles = shape[-1]
    d_particles = particles.new_empty(particles.shape[0] if need_particles else 0, 4)
    return d_particles, particles.new_empty(sum(w.numel() for w in weights))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    particles, neighbours, weights, *ctx.shape = inputs
    ctx.save_for_backward(particles, neighbours, *weights)


def _backward(ctx: Any, d_out: Tensor) -> tuple[Any, ...]:
    particles, neighbours, *weights = ctx.saved_tensors
    need_particles = ctx.needs_input_grad[0]
    d_particles, gradient = torch.ops.jetkern.local_block_backward(
        d_out.contiguous(), particles, neighbours, weights, *ctx.shape, need_particles
    )
    nothing = [None] * len(ctx.shape)
    d_weights = split_gradient(gradient, weights)
    return d_particles if need_particles else None, None, d_weights, *nothing


torch.library.register_autograd("jetkern::local_block", _backward, setup_context=_setup_context)


def local_block(
    particles: Tensor,
    neighbours: Tensor,
    embed: MLPParameters,
    blocks: Sequence[BlockParameters],
    heads: int,
    precision: str = "ieee",
) -> Tensor:
    """The compiled op; the reference for no blocks at all and for blocks that differ in shape."""
    shapes = {(b.mlp.fc1_weight.shape[0], optional_parts(b.mlp)) for b in blocks}
    if len(shapes) != 1:
        return reference.local_block(particles, neighbours, embed, blocks, heads)
    hidden, parts = shapes.pop()
    return torch.ops.jetkern.local_block(
        particles.contiguous(),
        neighbours.contiguous(),
        tensors(embed, *blocks),
        embed.fc2_weight.shape[0],
        heads,
        len(blocks),
        embed.fc1_weight.shape[0],
        optional_parts(embed),
        hidden,
        parts,
        precision == "bf16",
    )
