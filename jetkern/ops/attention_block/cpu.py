"""The compiled C++ op, ``torch.ops.jetkern.attention_block``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jetkern.ops.attention_block import reference
from jetkern.ops.parameters import (
    BlockParameters,
    not_float32,
    optional_parts,
    table,
    take_block,
    tensors,
)
from jetkern.ops.register import operator
from jetkern.packed import Packed


def _forward(x: Tensor, offsets: Tensor, weights: list[Tensor], *others: Any) -> Tensor:
    return torch.ops.jetkern.cpu_attention_block(x, offsets, table(weights), *others)


def _backward(
    d_out: Tensor, x: Tensor, offsets: Tensor, weights: list[Tensor], *others: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.jetkern.cpu_attention_block_backward(
        d_out, x, offsets, table(weights), *others
    )


def _reference(
    x: Tensor,
    offsets: Tensor,
    weights: list[Tensor],
    bias: Tensor | None,
    particle_offsets: Tensor | None,
    heads: int,
    hidden: int,
    parts: int,
    bf16: bool,
) -> Tensor:
    block = take_block(iter(weights), parts)
    particles = None if particle_offsets is None else Packed.trusted(particle_offsets)
    return reference.attention_block(x, offsets, block, heads, bias, particles)


_attention_block = operator(
    "jetkern::attention_block",
    "(Tensor x, Tensor offsets, Tensor[] weights, Tensor? bias, Tensor? particle_offsets,"
    " int heads, int hidden, int parts, bool bf16) -> Tensor",
    gradients="x weights bias",
    fake=lambda x, *_: torch.empty_like(x),
    forward=_forward,
    backward=_backward,
    reference=_reference,
)


def covers(x: Tensor, offsets: Tensor, parameters: BlockParameters, *others: Any) -> str:
    """Weights in float32."""
    return not_float32(parameters)


def attention_block(
    x: Tensor,
    offsets: Tensor,
    parameters: BlockParameters,
    heads: int,
    bias: Tensor | None,
    particles: Packed | None,
    precision: str = "ieee",
) -> Tensor:
    return _attention_block(
        x.contiguous(),
        offsets.contiguous(),
        tensors(parameters),
        None if bias is None else bias.to(x.dtype).contiguous(),
        None if particles is None else particles.offsets.contiguous(),
        heads,
        parameters.mlp.fc1_weight.shape[0],
        optional_parts(parameters.mlp),
        precision == "bf16",
    )
