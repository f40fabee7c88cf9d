"""What a local block is compiled for: its sizes, and where everything is in the rows it reads
and writes.

Matrices and vectors reach the kernels as one row each, the embedding's first, then block after
block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jetkern.ops.gpu.layout import offsets, views
from jetkern.ops.gpu.pointwise import stored_type
from jetkern.ops.parameters import BlockParameters, MLPParameters


class EmbedVectors(NamedTuple):
    """All of the embedding's weights but fc2's matrix."""

    fc1_weight: Any  # (C, 7)
    fc1_bias: Any  # (C,)
    gamma: Any  # (C,)
    fc2_bias: Any  # (D,)
    alpha: Any
    end: Any


class BlockMatrices(NamedTuple):
    """A block's matrices."""

    qkv_weight: Any  # (3 D, D)
    out_weight: Any  # (D, D)
    fc1_weight: Any  # (F, D)
    fc2_weight: Any  # (D, F)
    end: Any


class BlockVectors(NamedTuple):
    """A block's other weights."""

    gamma1: Any  # (D,)
    gamma2: Any  # (D,)
    fc1_bias: Any  # (F,)
    gamma: Any  # (F,)
    fc2_bias: Any  # (D,)
    alpha1: Any
    alpha2: Any
    alpha: Any
    end: Any


class Weights(NamedTuple):
    """Of embedding and blocks as the kernels read them, one row each."""

    matrices: Tensor
    vectors: Tensor


class Constants(NamedTuple):
    """What the kernels are compiled for, besides precision and tiles.

    K neighbours in sets of SET rows, width D, hidden widths C of the embedding and F of the blocks,
    heads of HEAD, and where the parts of rows begin.
    """

    K: int
    SET: int
    D: int
    C: int
    F: int
    HEAD: int
    BLOCKS: int
    EMBED_NORM: bool
    NORM: bool
    EMBED: EmbedVectors
    MATRICES: BlockMatrices
    VECTORS: BlockVectors


def set_rows(k: int) -> int:
    """Rows of a set: the fewest that leave at most an eighth unused, else the best of those."""
    sizes = [s for s in (16, 32, 64) if s >= k]
    used = {s: s // k * k / s for s in sizes}
    return next((s for s in sizes if used[s] >= 0.875), max(sizes, key=lambda s: used[s]))


class Shape(NamedTuple):
    """Sizes of a local block; ``embed_norm``, ``norm``: whether those MLPs have a DynamicTanh."""

    k: int
    width: int
    embed_hidden: int
    hidden: int
    heads: int
    blocks: int
    embed_norm: bool
    norm: bool

    @property
    def matrix_sizes(self) -> tuple[int, ...]:
        d, f = self.width, self.hidden
        return 3 * d * d, d * d, f * d, d * f

    @property
    def vector_sizes(self) -> tuple[int, ...]:
        d, f = self.width, self.hidden
        return d, d, f, f, d, 1, 1, 1

    @property
    def constants(self) -> Constants:
        d, f = self.width, self.hidden
        return Constants(
            self.k,
            set_rows(self.k),
            d,
            self.embed_hidden,
            f,
            d // self.heads,
            self.blocks,
            self.embed_norm,
            self.norm,
            embed_offsets(self.embed_hidden, d),
            offsets(BlockMatrices, self.matrix_sizes),
            offsets(BlockVectors, self.vector_sizes),
        )


def embed_sizes(hidden: int, width: int) -> tuple[int, ...]:
    return 7 * hidden, hidden, hidden, width, 1


def embed_offsets(hidden: int, width: int) -> EmbedVectors:
    return offsets(EmbedVectors, embed_sizes(hidden, width))


def shape_of(k: int, embed: MLPParameters, blocks: Sequence[BlockParameters], heads: int) -> Shape:
    """Of k neighbours; the blocks have one shape."""
    return Shape(
        k,
        embed.fc2_weight.shape[0],
        embed.fc1_weight.shape[0],
        blocks[0].mlp.fc1_weight.shape[0],
        heads,
        len(blocks),
        embed.gamma is not None,
        blocks[0].mlp.gamma is not None,
    )


def _whole(p: MLPParameters) -> MLPParameters:
    """With zeros for biases that there are not, and ones for a norm that there is not."""
    (hidden, _), outputs = p.fc1_weight.shape, p.fc2_weight.shape[0]
    like = p.fc1_weight
    return p._replace(
        fc1_bias=like.new_zeros(hidden) if p.fc1_bias is None else p.fc1_bias,
        alpha=like.new_ones(1) if p.alpha is None else p.alpha,
        gamma=like.new_ones(hidden) if p.gamma is None else p.gamma,
        fc2_bias=like.new_zeros(outputs) if p.fc2_bias is None else p.fc2_bias,
    )


def _row(parts: Sequence[Any], dtype: torch.dtype) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts]).to(dtype)


def _embed_vectors(p: MLPParameters) -> list[Tensor]:
    whole = _whole(p)._asdict()
    return [whole[name] for name in EmbedVectors._fields[:-1]]


def embed_vectors(p: MLPParameters) -> Tensor:
    """The row of ``EmbedVectors``, float32."""
    return _row(_embed_vectors(p), torch.float32)


def rows_of(embed: MLPParameters, blocks: Sequence[BlockParameters], precision: str) -> Weights:
    """Matrices, rounded to what products may take, and vectors, each in one row."""
    matrices = [embed.fc2_weight]
    vectors = _embed_vectors(embed)
    for block in blocks:
        named = {**_whole(block.mlp)._asdict(), **block._asdict()}
        matrices += [named[name] for name in BlockMatrices._fields[:-1]]
        vectors += [named[name] for name in BlockVectors._fields[:-1]]
    return Weights(_row(matrices, stored_type(precision)), _row(vectors, torch.float32))


def matrices_of(weights: Weights, shape: Shape) -> tuple[Tensor, list[BlockMatrices]]:
    """The embedding's fc2 and the blocks' matrices, views of the row."""
    d, c, f = shape.width, shape.embed_hidden, shape.hidden
    embed, *blocks = weights.matrices.split([d * c] + shape.blocks * [sum(shape.matrix_sizes)])
    made = [views(BlockMatrices, shape.matrix_sizes, row) for row in blocks]
    return embed.view(d, c), [
        BlockMatrices(
            m.qkv_weight.view(3 * d, d),
            m.out_weight.view(d, d),
            m.fc1_weight.view(f, d),
            m.fc2_weight.view(d, f),
            None,
        )
        for m in made
    ]


def vectors_of(weights: Weights, shape: Shape) -> tuple[EmbedVectors, list[BlockVectors]]:
    """The other weights of embedding and blocks, views of the row."""
    sizes = embed_sizes(shape.embed_hidden, shape.width)
    of_block = sum(shape.vector_sizes)
    embed, *blocks = weights.vectors.split([sum(sizes)] + shape.blocks * [of_block])
    return views(EmbedVectors, sizes, embed), [
        views(BlockVectors, shape.vector_sizes, row) for row in blocks
    ]
