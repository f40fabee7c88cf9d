"""The local block as Triton kernels, registered as operators.

Widths of 16 and 32, and 64 and 128 if not in "ieee", run on the fused kernels of ``forward`` and
``backward``, all others on those of ``wide`` and large matrix products between them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jetkern.ops.gpu.pointwise import stored_type
from jetkern.ops.gpu.register import gpu_operator
from jetkern.ops.local_block import reference
from jetkern.ops.local_block.triton import backward, forward, wide
from jetkern.ops.local_block.triton.launch import MAX_NEIGHBOURS, fits
from jetkern.ops.local_block.triton.layout import rows_of, shape_of
from jetkern.ops.parameters import (
    BlockParameters,
    MLPParameters,
    optional_parts,
    take_block,
    take_mlp,
    tensors,
)

CANDIDATES = {**forward.CANDIDATES, **backward.CANDIDATES, **wide.CANDIDATES}


def _unflatten(
    weights: Sequence[Tensor], blocks: int, embed_parts: int, parts: int
) -> tuple[MLPParameters, list[BlockParameters]]:
    """Embedding and blocks that ``weights`` are the ``tensors`` of."""
    left = iter(weights)
    return take_mlp(left, embed_parts), [take_block(left, parts) for _ in range(blocks)]


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
    embed, made = _unflatten(weights, blocks, embed_parts, parts)
    shape = shape_of(neighbours.shape[1], embed, made, heads)
    rows = rows_of(embed, made, precision)
    return forward.forward(particles, neighbours, rows, shape, precision, keep)


def _backward(
    d_out: Tensor,
    particles: Tensor,
    neighbours: Tensor,
    weights: Sequence[Tensor],
    heads: int,
    blocks: int,
    embed_parts: int,
    parts: int,
    precision: str,
    keep: bool,
    kept: Tensor,
) -> Tensor:
    embed, made = _unflatten(weights, blocks, embed_parts, parts)
    shape = shape_of(neighbours.shape[1], embed, made, heads)
    rows = rows_of(embed, made, precision)
    d_embed, d_blocks = backward.backward(
        d_out, particles, neighbours, kept, rows, shape, precision
    )

    def wanted(gradients: MLPParameters, like: MLPParameters) -> MLPParameters:
        pairs = zip(gradients, like, strict=True)
        return MLPParameters(*(None if w is None else g for g, w in pairs))  # type: ignore[arg-type]

    found = tensors(
        wanted(d_embed, embed),
        *(g._replace(mlp=wanted(g.mlp, b.mlp)) for g, b in zip(d_blocks, made, strict=True)),
    )
    return torch.cat([g.reshape(-1) for g in found]).to(weights[0].dtype)


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
    embed, _ = _unflatten(weights, blocks, embed_parts, parts)
    width = embed.fc2_weight.shape[0]
    edges = particles.shape[0] * neighbours.shape[1] if keep else 0
    kept = particles.new_empty(2 * blocks, edges, width, dtype=stored_type(precision))
    return particles.new_empty(particles.shape[0], width), kept


def _reference(
    particles: Tensor,
    neighbours: Tensor,
    weights: Sequence[Tensor],
    heads: int,
    blocks: int,
    embed_parts: int,
    parts: int,
    precision: str,
    keep: bool,
) -> Tensor:
    embed, made = _unflatten(weights, blocks, embed_parts, parts)
    return reference.local_block(particles, neighbours, embed, made, heads)


_op = gpu_operator(
    "local_block",
    "(Tensor particles, Tensor neighbours, Tensor[] weights, int heads, int blocks,"
    " int embed_parts, int parts, str precision, bool keep) -> (Tensor out, Tensor kept)",
    fake=_fake,
    forward=_forward,
    backward=_backward,
    gradients="weights",
    kept="kept",
    reference=_reference,
)


def covers(
    particles: Tensor,
    neighbours: Tensor,
    embed: MLPParameters,
    blocks: Sequence[BlockParameters],
    heads: int,
) -> str:
    """No gradient of the particles, 1 to 64 neighbours, heads of a width up to 128."""
    if particles.requires_grad and torch.is_grad_enabled():
        return "it has no gradient of the particles"
    if not 1 <= neighbours.shape[1] <= MAX_NEIGHBOURS:
        return f"it takes 1 to {MAX_NEIGHBOURS} neighbours, not {neighbours.shape[1]}"
    return "heads are wider than 128" if embed.fc2_weight.shape[0] > 128 * heads else ""


def local_block(
    particles: Tensor,
    neighbours: Tensor,
    embed: MLPParameters,
    blocks: Sequence[BlockParameters],
    heads: int,
    precision: str = "ieee",
) -> Tensor:
    """See ``jetkern.ops.local_block``; a neighbour beyond the last particle is taken as none."""
    k, recorded = neighbours.shape[1], torch.is_grad_enabled()
    particles, neighbours = particles.contiguous(), neighbours.contiguous()
    shapes = {(b.mlp.fc1_weight.shape[0], optional_parts(b.mlp)) for b in blocks}
    if len(shapes) != 1 or not fits(shape_of(k, embed, blocks, heads), precision):
        return wide.wide_local_block(particles, neighbours, embed, blocks, heads, precision)
    weights = tensors(embed, *blocks)
    out, _ = _op(
        particles,
        neighbours,
        weights,
        heads,
        len(blocks),
        optional_parts(embed),
        optional_parts(blocks[0].mlp),
        precision,
        recorded and any(w.requires_grad for w in weights),
    )
    return out
