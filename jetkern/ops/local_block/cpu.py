"""The compiled C++ op, ``torch.ops.jetkern.local_block``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jetkern.ops.local_block import reference
from jetkern.ops.parameters import (
    BlockParameters,
    MLPParameters,
    not_float32,
    optional_parts,
    table,
    take_block,
    take_mlp,
    tensors,
)
from jetkern.ops.register import operator


def _forward(particles: Tensor, neighbours: Tensor, weights: list[Tensor], *shape: int) -> Tensor:
    return torch.ops.jetkern.cpu_local_block(particles, neighbours, table(weights), *shape)


def _backward(
    d_out: Tensor, particles: Tensor, neighbours: Tensor, weights: list[Tensor], *shape: int
) -> tuple[Tensor, Tensor]:
    return torch.ops.jetkern.cpu_local_block_backward(
        d_out, particles, neighbours, table(weights), *shape
    )


def _reference(
    particles: Tensor,
    neighbours: Tensor,
    weights: list[Tensor],
    width: int,
    heads: int,
    blocks: int,
    embed_hidden: int,
    embed_parts: int,
    hidden: int,
    parts: int,
    bf16: bool,
) -> Tensor:
    left = iter(weights)
    embed = take_mlp(left, embed_parts)
    made = [take_block(left, parts) for _ in range(blocks)]
    return reference.local_block(particles, neighbours, embed, made, heads)


_local_block = operator(
    "jetkern::local_block",
    "(Tensor particles, Tensor neighbours, Tensor[] weights, int width, int heads, int blocks,"
    " int embed_hidden, int embed_parts, int hidden, int parts, bool bf16) -> Tensor",
    gradients="particles? weights",
    fake=lambda particles, neighbours, weights, width, *_: particles.new_empty(
        particles.shape[0], width
    ),
    forward=_forward,
    backward=_backward,
    reference=_reference,
)


MOST_BLOCKS = 32  # LocalShape in csrc/cpu


def covers(
    particles: Tensor,
    neighbours: Tensor,
    embed: MLPParameters,
    blocks: Sequence[BlockParameters],
    heads: int,
) -> str:
    """Weights in float32, at most 32 blocks, all of one shape."""
    if len({(b.mlp.fc1_weight.shape[0], optional_parts(b.mlp)) for b in blocks}) != 1:
        return "the blocks differ in shape"
    if len(blocks) > MOST_BLOCKS:
        return f"it runs at most {MOST_BLOCKS} blocks, there are {len(blocks)}"
    return not_float32(embed, *blocks)


def local_block(
    particles: Tensor,
    neighbours: Tensor,
    embed: MLPParameters,
    blocks: Sequence[BlockParameters],
    heads: int,
    precision: str = "ieee",
) -> Tensor:
    mlp = blocks[0].mlp
    return _local_block(
        particles.contiguous(),
        neighbours.contiguous(),
        tensors(embed, *blocks),
        embed.fc2_weight.shape[0],
        heads,
        len(blocks),
        embed.fc1_weight.shape[0],
        optional_parts(embed),
        mlp.fc1_weight.shape[0],
        optional_parts(mlp),
        precision == "bf16",
    )
