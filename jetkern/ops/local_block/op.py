"""Registration of ``torch.ops.jetkern.local_block`` and its backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from jetkern.ops.local_block import reference
from jetkern.ops.parameters import BlockParameters, MLPParameters, flat, optional_parts

INPUTS = (
    "Tensor particles, Tensor neighbours, Tensor weights, int width, int heads, int blocks, "
    "int embed_hidden, int embed_parts, int hidden, int parts"
)
torch.library.define("jetkern::local_block", f"({INPUTS}) -> Tensor")
torch.library.define("jetkern::local_block_backward", f"(Tensor d_out, {INPUTS}) -> Tensor")


@torch.library.register_fake("jetkern::local_block")
def _fake(
    particles: Tensor, neighbours: Tensor, weights: Tensor, width: int, *shape: int
) -> Tensor:
    return particles.new_empty(particles.shape[0], width)


@torch.library.register_fake("jetkern::local_block_backward")
def _fake_backward(
    d_out: Tensor, particles: Tensor, neighbours: Tensor, weights: Tensor, *shape: int
) -> Tensor:
    return torch.empty_like(weights)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    particles, neighbours, weights, *ctx.shape = inputs
    ctx.save_for_backward(particles, neighbours, weights)


def _backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
    d_weights = torch.ops.jetkern.local_block_backward(
        d_out.contiguous(), *ctx.saved_tensors, *ctx.shape
    )
    return (None, None, d_weights, *[None] * len(ctx.shape))


torch.library.register_autograd("jetkern::local_block", _backward, setup_context=_setup_context)


def local_block(
    particles: Tensor,
    neighbours: Tensor,
    embed: MLPParameters,
    blocks: Sequence[BlockParameters],
    heads: int,
    precision: str = "ieee",
) -> Tensor:
    """The compiled op; the reference where it has no answer.

    That is: gradients with respect to the particles, no blocks at all, and blocks that differ in
    shape.
    """
    shapes = {(b.mlp.fc1_weight.shape[0], optional_parts(b.mlp)) for b in blocks}
    if len(shapes) != 1 or (particles.requires_grad and torch.is_grad_enabled()):
        return reference.local_block(particles, neighbours, embed, blocks, heads)
    hidden, parts = shapes.pop()
    return torch.ops.jetkern.local_block(
        particles.contiguous(),
        neighbours.contiguous(),
        flat(embed, *blocks),
        embed.fc2_weight.shape[0],
        heads,
        len(blocks),
        embed.fc1_weight.shape[0],
        optional_parts(embed),
        hidden,
        parts,
    )
