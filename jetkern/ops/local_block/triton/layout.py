"""What a local block is compiled for: its sizes, and where everything is in the rows it reads
and writes.

Matrices and vectors reach the kernels as one row each, the embedding's first, then block after
block; sums for the vectors' gradients have the vectors' layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jetkern.ops.gpu.launch import power_of_two
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


class EmbedSums(NamedTuple):
    """A slab of the embedding's gradients."""

    fc2_weight: Any  # (D, C)
    fc1: Any  # (C, 16): weight, bias, 8 unused
    gamma: Any  # (C,)
    fc2_bias: Any  # (D,)
    alpha: Any  # one for each chunk of the hidden layer
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


class Factors(NamedTuple):
    """Columns of an edge's factors of a block's weight gradients.

    Gradients of queries, keys and values and of the hidden layer, what attention mixed, what fc2
    takes.
    """

    d_qkv: Any  # 3 D
    d_hidden: Any  # F
    mixed: Any  # D
    hidden: Any  # F
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
    K_PADDED: int
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
    FACTORS: Factors


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

    def embed_sizes(self, chunk: int) -> tuple[int, ...]:
        """Of ``EmbedSums`` where a program holds ``chunk`` hidden units at a time."""
        d, c = self.width, self.embed_hidden
        return d * c, 16 * c, c, d, -(-c // chunk)

    @property
    def constants(self) -> Constants:
        d, f = self.width, self.hidden
        return Constants(
            self.k,
            power_of_two(self.k),
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
            offsets(Factors, (3 * d, f, d, f)),
        )


def embed_offsets(hidden: int, width: int) -> EmbedVectors:
    return offsets(EmbedVectors, (7 * hidden, hidden, hidden, width, 1))


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


def embed_vectors(p: MLPParameters) -> Tensor:
    """The row of ``EmbedVectors``, float32."""
    whole = _whole(p)._asdict()
    return _row([whole[name] for name in EmbedVectors._fields[:-1]], torch.float32)


def rows_of(embed: MLPParameters, blocks: Sequence[BlockParameters], precision: str) -> Weights:
    """Matrices, rounded to what products may take, and vectors, each in one row."""
    matrices = [embed.fc2_weight]
    vectors = [embed_vectors(embed)]
    for block in blocks:
        named = {**_whole(block.mlp)._asdict(), **block._asdict()}
        matrices += [named[name] for name in BlockMatrices._fields[:-1]]
        vectors += [named[name] for name in BlockVectors._fields[:-1]]
    return Weights(_row(matrices, stored_type(precision)), _row(vectors, torch.float32))


class SlabSums(NamedTuple):
    """Sums of the gradients of all weights, float32.

    Attributes:
        embed: a row of ``EmbedSums``. matrices, vectors: for each block a row of ``BlockMatrices``
            and of ``BlockVectors``.
    """

    embed: Tensor
    matrices: Tensor
    vectors: Tensor


def by_name(sums: SlabSums, shape: Shape) -> tuple[MLPParameters, list[BlockParameters]]:
    """The gradients of each weight, views of the sums."""
    d, c, f = shape.width, shape.embed_hidden, shape.hidden
    *sizes, _ = shape.embed_sizes(c)
    e = views(EmbedSums, (*sizes, len(sums.embed) - sum(sizes)), sums.embed)
    fc1 = e.fc1.view(c, 16)
    d_embed = MLPParameters(
        fc1[:, :7],
        fc1[:, 7],
        e.alpha.sum(0, keepdim=True),
        e.gamma,
        e.fc2_weight.view(d, c),
        e.fc2_bias,
    )
    made = []
    for matrices, vectors in zip(sums.matrices, sums.vectors, strict=True):
        m = views(BlockMatrices, shape.matrix_sizes, matrices)
        v = views(BlockVectors, shape.vector_sizes, vectors)
        mlp = MLPParameters(
            m.fc1_weight.view(f, d),
            v.fc1_bias,
            v.alpha,
            v.gamma,
            m.fc2_weight.view(d, f),
            v.fc2_bias,
        )
        made.append(
            BlockParameters(
                v.alpha1,
                v.gamma1,
                m.qkv_weight.view(3 * d, d),
                m.out_weight.view(d, d),
                v.alpha2,
                v.gamma2,
                mlp,
            )
        )
    return d_embed, made
