"""The local block as Triton kernels, registered as operators.

Widths of 16 and 32, and 64 and 128 if not in "ieee", run on the fused kernels of ``triton_fused``
and ``triton_fused_backward``, all others on those of ``triton_wide`` and large matrix products
between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from jetkern.ops.local_block import (
    reference,
    triton_fused,
    triton_fused_backward,
    triton_wide,
)
from jetkern.ops.local_block.triton_fused import MAX_NEIGHBOURS, Shape
from jetkern.ops.local_block.triton_wide import wide_local_block
from jetkern.ops.parameters import BlockParameters, MLPParameters, optional_parts
from jetkern.ops.triton_tools import CompileCase, define

CANDIDATES = {**triton_fused.CANDIDATES, **triton_wide.CANDIDATES}
SHAPE = "int heads, int blocks, int embed_parts, int parts, str precision"


def _present(embed: MLPParameters, blocks: Sequence[BlockParameters]) -> list[Tensor]:
    """The weights that there are, in the order of their fields."""
    weights = list(embed)
    for block in blocks:
        weights += [*block[:-1], *block.mlp]
    return [w for w in weights if w is not None]


def _take_mlp(weights: list[Tensor], parts: int) -> MLPParameters:
    """Removes an MLP's weights from the front of ``weights``."""
    norm = parts & 2
    return MLPParameters(
        weights.pop(0),
        weights.pop(0) if parts & 1 else None,
        weights.pop(0) if norm else None,
        weights.pop(0) if norm else None,
        weights.pop(0),
        weights.pop(0) if parts & 4 else None,
    )


def _parameters(
    weights: Sequence[Tensor], blocks: int, embed_parts: int, parts: int
) -> tuple[MLPParameters, list[BlockParameters]]:
    """What ``_present`` was made of."""
    left = list(weights)
    embed = _take_mlp(left, embed_parts)
    made = []
    for _ in range(blocks):
        alpha1, gamma1, qkv, out, alpha2, gamma2 = left[:6]
        del left[:6]
        mlp = _take_mlp(left, parts)
        made.append(BlockParameters(alpha1, gamma1, qkv, out, alpha2, gamma2, mlp))
    return embed, made


def _shape(neighbours: Tensor, embed: MLPParameters, blocks: Any, heads: int) -> Shape:
    return Shape(
        neighbours.shape[1],
        embed.fc2_weight.shape[0],
        embed.fc1_weight.shape[0],
        blocks[0].mlp.fc1_weight.shape[0],
        heads,
        len(blocks),
        embed.gamma is not None,
        blocks[0].mlp.gamma is not None,
    )


def _rows(
    embed: MLPParameters, blocks: list[BlockParameters], precision: str
) -> tuple[Tensor, Tensor]:
    """Matrices, rounded to what products may take, and vectors, each in one row."""
    like = embed.fc2_weight

    def given(weight: Tensor | None, size: int, value: float) -> Tensor:
        return like.new_full((size,), value) if weight is None else weight

    def small(p: MLPParameters) -> list[Tensor]:
        out, hidden = p.fc2_weight.shape
        return [
            given(p.fc1_bias, hidden, 0.0),
            given(p.gamma, hidden, 1.0),
            given(p.fc2_bias, out, 0.0),
        ]

    matrices = [embed.fc2_weight]
    vectors = [embed.fc1_weight, *small(embed), given(embed.alpha, 1, 1.0)]
    for b in blocks:
        matrices += [b.qkv_weight, b.out_weight, b.mlp.fc1_weight, b.mlp.fc2_weight]
        vectors += [b.gamma1, b.gamma2, *small(b.mlp)]
        vectors += [b.alpha1, b.alpha2, given(b.mlp.alpha, 1, 1.0)]
    return (
        triton_fused.prepared(matrices, triton_fused.stored(precision)),
        triton_fused.prepared(vectors, torch.float32),
    )


@define(
    "local_block",
    f"(Tensor particles, Tensor neighbours, Tensor[] weights, {SHAPE}, bool keep) "
    "-> (Tensor, Tensor)",
)
def _forward(
    particles: Tensor,
    neighbours: Tensor,
    weights: Sequence[Tensor],
    heads: int,
    blocks: int,
    embed_parts: int,
    parts: int,
    precision: str,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    embed, made = _parameters(weights, blocks, embed_parts, parts)
    shape = _shape(neighbours, embed, made, heads)
    rows = _rows(embed, made, precision)
    return triton_fused.forward(particles, neighbours, *rows, shape, precision, keep)


@define(
    "local_block_backward",
    "(Tensor d_out, Tensor particles, Tensor neighbours, Tensor kept, Tensor[] weights, "
    f"{SHAPE}) -> (Tensor, Tensor, Tensor)",
)
def _backward(
    d_out: Tensor,
    particles: Tensor,
    neighbours: Tensor,
    kept: Tensor,
    weights: Sequence[Tensor],
    heads: int,
    blocks: int,
    embed_parts: int,
    parts: int,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor]:
    embed, made = _parameters(weights, blocks, embed_parts, parts)
    shape = _shape(neighbours, embed, made, heads)
    rows = _rows(embed, made, precision)
    return triton_fused_backward.backward(
        d_out, particles, neighbours, kept, *rows, shape, precision
    )


@torch.library.register_fake("jetkern_triton::local_block")
def _fake(
    particles: Tensor,
    neighbours: Tensor,
    weights: Sequence[Tensor],
    heads: int,
    blocks: int,
    embed_parts: int,
    parts: int,
    precision: str,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    embed, _ = _parameters(weights, blocks, embed_parts, parts)
    width = embed.fc2_weight.shape[0]
    edges = particles.shape[0] * neighbours.shape[1] if keep else 0
    kept = particles.new_empty(2 * blocks, edges, width, dtype=triton_fused.stored(precision))
    return particles.new_empty(particles.shape[0], width), kept


@torch.library.register_fake("jetkern_triton::local_block_backward")
def _fake_backward(
    d_out: Tensor,
    particles: Tensor,
    neighbours: Tensor,
    kept: Tensor,
    weights: Sequence[Tensor],
    heads: int,
    blocks: int,
    embed_parts: int,
    parts: int,
    precision: str,
) -> tuple[Tensor, ...]:
    embed, made = _parameters(weights, blocks, embed_parts, parts)
    shape = _shape(neighbours, embed, made, heads)
    return tuple(
        particles.new_empty(size, dtype=torch.float32)
        for size in triton_fused_backward.gradient_sizes(shape, precision, particles.device)
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    particles, neighbours, weights, *ctx.shape, _ = inputs
    ctx.save_for_backward(particles, neighbours, output[1], *weights)
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx: Any, d_out: Tensor, _: Tensor) -> tuple[Any, ...]:
    particles, neighbours, kept, *weights = ctx.saved_tensors
    heads, blocks, embed_parts, parts, _ = ctx.shape
    sums = torch.ops.jetkern_triton.local_block_backward(
        d_out.contiguous(), particles, neighbours, kept, weights, *ctx.shape
    )
    embed, made = _parameters(weights, blocks, embed_parts, parts)
    shape = _shape(neighbours, embed, made, heads)
    d_embed, d_blocks = triton_fused_backward.by_name(sums, shape)

    def wanted(gradients: MLPParameters, like: MLPParameters) -> MLPParameters:
        pairs = zip(gradients, like, strict=True)
        return MLPParameters(*(None if w is None else g for g, w in pairs))  # type: ignore[arg-type]

    found = _present(
        wanted(d_embed, embed),
        [g._replace(mlp=wanted(g.mlp, b.mlp)) for g, b in zip(d_blocks, made, strict=True)],
    )
    result = [g.to(w.dtype) for g, w in zip(found, weights, strict=True)]
    return None, None, result, *[None] * (len(ctx.shape) + 1)


torch.library.register_autograd(
    "jetkern_triton::local_block", _gradients, setup_context=_setup_context
)


def local_block(
    particles: Tensor,
    neighbours: Tensor,
    embed: MLPParameters,
    blocks: Sequence[BlockParameters],
    heads: int,
    precision: str = "ieee",
) -> Tensor:
    """See ``jetkern.ops.local_block``; a neighbour beyond the last particle is taken as none.

    The reference computes what the kernels do not: gradients with respect to the particles, more
    than 64 neighbours, heads wider than 128.
    """
    k, width = neighbours.shape[1], embed.fc2_weight.shape[0]
    recorded = torch.is_grad_enabled()
    if (
        (particles.requires_grad and recorded)
        or not 1 <= k <= MAX_NEIGHBOURS
        or width > 128 * heads
    ):
        return reference.local_block(particles, neighbours, embed, blocks, heads)
    particles, neighbours = particles.contiguous(), neighbours.contiguous()
    shapes = {(b.mlp.fc1_weight.shape[0], optional_parts(b.mlp)) for b in blocks}
    if len(shapes) != 1 or not triton_fused.fits(
        _shape(neighbours, embed, blocks, heads), precision
    ):
        return wide_local_block(particles, neighbours, embed, blocks, heads, precision)
    weights = _present(embed, blocks)
    out, _ = torch.ops.jetkern_triton.local_block(
        particles,
        neighbours,
        weights,
        heads,
        len(blocks),
        optional_parts(embed),
        shapes.pop()[1],
        precision,
        recorded and any(w.requires_grad for w in weights),
    )
    return out


def compile_cases() -> Iterator[CompileCase]:
    """Every kernel at the presets' sizes."""
    yield from triton_fused.compile_cases()
    yield from triton_fused_backward.compile_cases()
    yield from triton_wide.compile_cases()
