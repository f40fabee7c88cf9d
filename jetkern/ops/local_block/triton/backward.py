"""Backward of the fused local block through the factors of its weight gradients.

``kept`` is what forward kept, the residual stream before each half of each block. One kernel takes
the stream's gradient from the last block to the first and through the embedding, recomputes the
halves tile by tile, and writes the factors that the gradients of matrices are products of; one
launch of ``linear_bwd_weights`` computes the products over fixed runs of edges, one adds them in a
fixed order.

A factor behind a DynamicTanh is its tanh y without gamma. With G = d^T y for the product of d and
y gamma W^T, the gradient of W is G gamma, that of gamma the sum of each column of G W. A one beside
the columns of a factor makes a bias's gradient a column of the product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from jetkern.ops.gpu.functions import dot
from jetkern.ops.gpu.launch import Settings, launch
from jetkern.ops.gpu.sums import Slabs, added
from jetkern.ops.linear.triton import weight_slabs
from jetkern.ops.local_block.triton.features import edge_features, features_of
from jetkern.ops.local_block.triton.fold import Folded, fold
from jetkern.ops.local_block.triton.gradients import (
    Half,
    attention_parts,
    hidden_gradients,
    norm_of_half,
    score_gradients,
    through_norm,
)
from jetkern.ops.local_block.triton.launch import settings_of, tiles_of
from jetkern.ops.local_block.triton.layout import Shape, Weights, matrices_of, set_rows, vectors_of
from jetkern.ops.local_block.triton.tiles import (
    Batch,
    batch_dot,
    embed_hidden,
    factor,
    join_keys,
    join_queries,
    set_keys,
    split_queries,
    tile_rows,
)
from jetkern.ops.parameters import BlockParameters, MLPParameters

FACTOR_BYTES = 512 * 2**20  # of the factors of the weights' gradients that exist at a time
ONES = tl.constexpr(8)  # columns behind a factor's own: a one, then zeros
CANDIDATES: dict[str, list[Settings]] = {
    "local_block_bwd_stream": [
        {"ROWS": r, "num_warps": w, "CHUNK": c, "GROUP": g, "num_stages": s}
        for r, w in ((32, 8), (64, 4), (64, 8), (128, 8))
        for c, g in ((16, 16), (32, 16), (32, 32), (64, 32), (64, 64))
        for s in (1, 2)
    ],
}


class Factors(NamedTuple):
    """Of the weights' gradients, dense rows of edges: gradients, and what they are multiplied by.

    For each block (BLOCKS, E, ...) those of queries, keys and values and of the hidden layer, the
    tanh of both norms, what attention mixed and what fc2 takes; the last norm and the hidden
    layers with ``ONES`` columns more. Of the embedding (E, ...) its hidden layer and its gradient.
    ``d_stream``, (2 BLOCKS + 1, E, D): the gradients of what ``kept`` has, then of the last block's
    result.
    """

    d_qkv: Any
    normed1: Any
    mixed: Any
    d_hidden: Any
    normed2: Any
    hidden: Any
    d_stream: Any
    d_embed: Any
    embed: Any


@triton.jit
def put_one(factors, edge, inside, WIDTH: tl.constexpr):
    """The one and the zeros behind a factor's ``WIDTH`` columns."""
    lane = tl.arange(0, ONES)[None, :]
    one = tl.where(lane == 0, 1.0, 0.0) + tl.zeros((edge.shape[0], ONES), tl.float32)
    tl.store(factors + edge[:, None] * (WIDTH + ONES) + WIDTH + lane, one, inside)


@triton.jit
def mlp_half(
    rows,
    half,
    matrices,
    vectors,
    factors,
    base,
    SHAPE: tl.constexpr,
    PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """The stream's gradient before an MLP, and its factors, from row ``base`` on, and of alphas."""
    D: tl.constexpr = SHAPE.D
    F: tl.constexpr = SHAPE.F
    MATRICES: tl.constexpr = SHAPE.MATRICES
    VECTORS: tl.constexpr = SHAPE.VECTORS
    edge, inside, _ = rows
    inside = inside[:, None]
    wide = tl.arange(0, D)[None, :]
    part = tl.arange(0, CHUNK)
    at = edge[:, None] * D + wide
    alpha2 = tl.load(vectors + VECTORS.alpha2)
    gamma2 = tl.load(vectors + VECTORS.gamma2 + wide)
    alpha = tl.load(vectors + VECTORS.alpha)
    normed = factors.normed2 + base * (D + ONES)
    h = norm_of_half(half, at, inside, alpha2, gamma2,
                     normed + edge[:, None] * (D + ONES) + wide, PRECISION)  # fmt: skip
    put_one(normed, edge, inside, D)
    hidden = factors.hidden + base * (F + ONES)
    put_one(hidden, edge, inside, F)
    hidden += edge[:, None] * (F + ONES) + part[None, :]
    d_hidden = factors.d_hidden + base * F + edge[:, None] * F + part[None, :]
    d = tl.load(half.d_after + at, inside, 0.0)
    zero = tl.zeros((edge.shape[0], CHUNK), tl.float32)
    dh = tl.zeros((edge.shape[0], D), tl.float32)
    d_alpha = tl.zeros((edge.shape[0],), tl.float32)
    for c in range(0, F, CHUNK):
        w_fc1 = tl.load(matrices + MATRICES.fc1_weight + (c + part)[:, None] * D + wide)
        w = matrices + MATRICES.fc2_weight + tl.arange(0, D)[:, None] * F + (c + part)[None, :]
        bias = tl.load(vectors + VECTORS.fc1_bias + c + part)
        gamma = tl.load(vectors + VECTORS.gamma + c + part)
        u = dot(h, tl.trans(w_fc1), zero, PRECISION) + bias[None, :]
        dt = dot(d, tl.load(w), zero, PRECISION)
        t, du, of_alpha = hidden_gradients(u, dt, alpha, gamma, SHAPE.NORM, PRECISION)
        d_alpha += of_alpha
        du = factor(du, PRECISION)
        tl.store(hidden + c, t, inside)
        tl.store(d_hidden + c, du, inside)
        dh = dot(du, w_fc1, dh, PRECISION)
    return through_norm(half, at, inside, dh, alpha2, gamma2, PRECISION), tl.sum(d_alpha, 0)


@triton.jit
def attention_half(
    rows,
    half,
    matrices,
    vectors,
    factors,
    base,
    SHAPE: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
):
    """The stream's gradient before an attention, its factors, and the gradient of alpha."""
    SET: tl.constexpr = SHAPE.SET
    D: tl.constexpr = SHAPE.D
    HEAD: tl.constexpr = SHAPE.HEAD
    MATRICES: tl.constexpr = SHAPE.MATRICES
    VECTORS: tl.constexpr = SHAPE.VECTORS
    edge, inside, exists = rows
    inside = inside[:, None]
    wide = tl.arange(0, D)[None, :]
    some = tl.arange(0, GROUP)
    at = edge[:, None] * D + wide
    alpha = tl.load(vectors + VECTORS.alpha1)
    gamma = tl.load(vectors + VECTORS.gamma1 + wide)
    normed = factors.normed1 + base * D
    h = norm_of_half(half, at, inside, alpha, gamma, normed + at, PRECISION)
    to_mixed = factors.mixed + base * D + edge[:, None] * D + some[None, :]
    to_qkv = factors.d_qkv + base * (3 * D) + edge[:, None] * (3 * D) + some[None, :]
    key = set_keys(exists, SHAPE.K, SET, GROUP, HEAD)
    d = tl.load(half.d_after + at, inside, 0.0)
    dh = tl.zeros((edge.shape[0], D), tl.float32)
    for g in range(0, D, GROUP):
        w = matrices + MATRICES.qkv_weight + (g + some)[:, None] * D + wide
        w_q = tl.load(w)
        w_k = tl.load(w + D * D)
        w_v = tl.load(w + 2 * D * D)
        q, k, v, p, mixed = attention_parts(h, key, w_q, w_k, w_v, SHAPE, PRECISION)
        tl.store(to_mixed + g, mixed, inside)
        w = matrices + MATRICES.out_weight + tl.arange(0, D)[:, None] * D + (g + some)[None, :]
        do = dot(d, tl.load(w), tl.zeros((edge.shape[0], GROUP), tl.float32), PRECISION)
        do = split_queries(factor(do, PRECISION), SET, HEAD)
        dv = join_keys(batch_dot(tl.permute(p, (0, 2, 1)), do, PRECISION), GROUP, SET, HEAD)
        dv = factor(dv, PRECISION)
        tl.store(to_qkv + 2 * D + g, dv, inside)
        dh = dot(dv, w_v, dh, PRECISION)
        ds = score_gradients(do, v, p, HEAD, PRECISION)
        dq = factor(join_queries(batch_dot(ds, k, PRECISION), GROUP, SET, HEAD), PRECISION)
        tl.store(to_qkv + g, dq, inside)
        dh = dot(dq, w_q, dh, PRECISION)
        dk = join_keys(batch_dot(tl.permute(ds, (0, 2, 1)), q, PRECISION), GROUP, SET, HEAD)
        dk = factor(dk, PRECISION)
        tl.store(to_qkv + D + g, dk, inside)
        dh = dot(dk, w_k, dh, PRECISION)
    return through_norm(half, at, inside, dh, alpha, gamma, PRECISION)


@triton.jit
def embed_half(
    rows,
    edges,
    weights,
    factors,
    first,
    SHAPE: tl.constexpr,
    PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """The embedding's factors, and the gradient of alpha; ``first``: the tile's first edge."""
    D: tl.constexpr = SHAPE.D
    C: tl.constexpr = SHAPE.C
    EMBED: tl.constexpr = SHAPE.EMBED
    ROWS: tl.constexpr = rows[0].shape[0]
    edge, inside, _ = rows
    features = features_of(edges, first, edge, inside)
    inside = inside[:, None]
    wide = tl.arange(0, D)
    part = tl.arange(0, CHUNK)
    vectors = weights.vectors
    alpha = tl.load(vectors + EMBED.alpha)
    d = tl.load(factors.d_stream + first * D + edge[:, None] * D + wide[None, :], inside, 0.0)
    hidden = factors.embed + first * (C + ONES)
    put_one(hidden, edge, inside, C)
    hidden += edge[:, None] * (C + ONES) + part[None, :]
    d_hidden = factors.d_embed + first * C + edge[:, None] * C + part[None, :]
    d_alpha = tl.zeros((ROWS,), tl.float32)
    for c in range(0, C, CHUNK):
        u = embed_hidden(features, vectors, c + part, EMBED, ROWS, CHUNK)
        w = tl.load(weights.matrices + wide[:, None] * C + (c + part)[None, :])
        dt = dot(d, w, tl.zeros((ROWS, CHUNK), tl.float32), PRECISION)
        gamma = tl.load(vectors + EMBED.gamma + c + part)
        t, du, of_alpha = hidden_gradients(u, dt, alpha, gamma, SHAPE.EMBED_NORM, PRECISION)
        d_alpha += of_alpha
        tl.store(hidden + c, t, inside)
        tl.store(d_hidden + c, du, inside)
    return tl.sum(d_alpha, 0)


@triton.jit(do_not_specialize=["total", "limit"], do_not_specialize_on_alignment=["partial"])
def local_block_bwd_stream_kernel(
    d_out,
    neighbours,
    edges,
    kept,
    weights,
    factors,
    partial,
    total,
    limit,
    kept_stride,
    SHAPE: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """The stream's gradient through all blocks, the factors of the weights' gradients, and sums.

    ``partial``: of each tile the gradients of the alphas, of each block those of both norms and
    the hidden layer's, then the embedding's.
    """
    K: tl.constexpr = SHAPE.K
    D: tl.constexpr = SHAPE.D
    C: tl.constexpr = SHAPE.C
    BLOCKS: tl.constexpr = SHAPE.BLOCKS
    MATRICES: tl.constexpr = SHAPE.MATRICES
    VECTORS: tl.constexpr = SHAPE.VECTORS
    EMBED: tl.constexpr = SHAPE.EMBED
    tile = tl.program_id(0)
    number_of_edges = total.to(tl.int64) * K
    batch = Batch(neighbours, total, limit)
    first, particle, edge, inside, exists = tile_rows(batch, tile, SHAPE, ROWS)
    rows = edge, inside, exists
    wide = tl.arange(0, D)[None, :]
    share = tl.load(edges.shares + first * K + edge, inside, 0.0)
    d = tl.load(d_out + first * D + particle[:, None] * D + wide, exists[:, None], 0.0)
    d_stream = factors.d_stream + first * (K * D)
    last = d_stream + 2 * BLOCKS * number_of_edges * D
    tl.store(last + edge[:, None] * D + wide, d.to(tl.float32) * share[:, None], inside[:, None])
    kept += first * (K * D)
    partial += tile.to(tl.int64) * (3 * BLOCKS + 1)
    for number in range(2 * BLOCKS - 1, -1, -1):
        tl.debug_barrier()  # what other threads wrote of the stream's gradient
        b = number // 2
        d_before = d_stream + number * number_of_edges * D
        before = kept + number * kept_stride.to(tl.int64)
        half = Half(before, d_before + number_of_edges * D, d_before)
        matrices = weights.matrices + D * C + b * MATRICES.end
        vectors = weights.vectors + EMBED.end + b * VECTORS.end
        base = b * number_of_edges + first * K
        if number % 2:
            norm, inner = mlp_half(
                rows, half, matrices, vectors, factors, base, SHAPE, PRECISION, CHUNK
            )
            tl.store(partial + 3 * b + 1, norm)
            tl.store(partial + 3 * b + 2, inner)
        else:
            norm = attention_half(
                rows, half, matrices, vectors, factors, base, SHAPE, PRECISION, GROUP
            )
            tl.store(partial + 3 * b, norm)
    tl.debug_barrier()
    of_embed = embed_half(rows, edges, weights, factors, first * K, SHAPE, PRECISION, CHUNK)
    tl.store(partial + 3 * BLOCKS, of_embed)


def _default(shape: Shape, precision: str) -> Settings:
    wide, few = shape.width > 64, set_rows(shape.k)
    half, exact = precision == "bf16", precision == "ieee"
    if wide and half:  # spills a few hundred bytes for half the instructions of eight warps
        return {"ROWS": 64, "CHUNK": 32, "GROUP": 32, "num_warps": 4, "num_stages": 1}
    return {
        "ROWS": few if exact else 64 if half or not wide else 32,
        "CHUNK": 16 if exact else 32,
        "GROUP": max(16, shape.width // shape.heads),
        "num_warps": few // 8 if exact else 8 if wide else 4,
        "num_stages": 2 if wide and not (exact or half) else 1,
    }


def _factor_sizes(shape: Shape, edges: int) -> list[tuple[int, ...]]:
    """Of ``Factors``."""
    d, c, f, ones = shape.width, shape.embed_hidden, shape.hidden, ONES.value
    b = shape.blocks
    return [
        *((b, edges, width) for width in (3 * d, d, d, f, d + ones, f + ones)),
        (2 * b + 1, edges, d),
        (edges, c),
        (edges, c + ones),
    ]


def _products(factors: Factors, features: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Of each block those of qkv, out, fc1 and fc2, then the embedding's of fc1 and fc2."""
    found = []
    for b in range(len(factors.d_qkv)):
        found += [
            (factors.d_qkv[b], factors.normed1[b]),
            (factors.d_stream[2 * b + 1], factors.mixed[b]),
            (factors.d_hidden[b], factors.normed2[b]),
            (factors.d_stream[2 * b + 2], factors.hidden[b]),
        ]
    return [*found, (factors.d_embed, features), (factors.d_stream[0], factors.embed)]


def _gradients(
    products: Sequence[Tensor], alphas: Tensor, weights: Weights, shape: Shape
) -> tuple[MLPParameters, list[BlockParameters]]:
    """Of all weights, from the products of ``_products`` and the sums of ``partial``."""
    d, c, f = shape.width, shape.embed_hidden, shape.hidden
    of_embed, of_blocks = matrices_of(weights, shape)
    embed, blocks = vectors_of(weights, shape)
    parts = [Folded(products[-1], of_embed, embed.gamma)]
    for b, (m, v) in enumerate(zip(of_blocks, blocks, strict=True)):
        qkv, _, fc1, fc2 = products[4 * b : 4 * b + 4]
        parts += [
            Folded(qkv, m.qkv_weight, v.gamma1),
            Folded(fc1, m.fc1_weight, v.gamma2),
            Folded(fc2, m.fc2_weight, v.gamma),
        ]
    (d_embed, d_gamma), *found = fold(parts)
    fc1 = products[-2]
    made = []
    for b in range(shape.blocks):
        (d_qkv, d_gamma1), (d_fc1, d_gamma2), (d_fc2, d_inner) = found[3 * b : 3 * b + 3]
        alpha1, alpha2, alpha = alphas[3 * b : 3 * b + 3].split(1)
        bias1, bias2 = products[4 * b + 2][:, d], products[4 * b + 3][:, f]
        mlp = MLPParameters(d_fc1, bias1, alpha, d_inner, d_fc2, bias2)
        out = products[4 * b + 1]
        made.append(BlockParameters(alpha1, d_gamma1, d_qkv, out, alpha2, d_gamma2, mlp))
    return (
        MLPParameters(fc1[:, :7], fc1[:, 7], alphas[-1:], d_gamma, d_embed, products[-1][:, c]),
        made,
    )


def backward(
    d_out: Tensor,
    particles: Tensor,
    neighbours: Tensor,
    kept: Tensor,
    weights: Weights,
    shape: Shape,
    precision: str,
) -> tuple[MLPParameters, list[BlockParameters]]:
    """The gradients of all weights. Takes the particles a bounded number at a time."""
    k, device, total = shape.k, particles.device, len(particles)
    settings = settings_of(
        local_block_bwd_stream_kernel, shape, precision, device, _default(shape, precision)
    )
    row = sum(map(math.prod, _factor_sizes(shape, 1)))
    step = max(FACTOR_BYTES // (k * row * kept.element_size()) // 16 * 16, 16)
    sums: list[Tensor] = []
    for start in range(0, max(total, 1), step):
        n = min(step, total - start)
        near = neighbours[start : start + n]
        edges = edge_features(particles[start : start + n], particles, near)
        factors = Factors._make(map(kept.new_empty, _factor_sizes(shape, n * k)))
        tiles = tiles_of(n, shape, settings)
        partial = edges.shares.new_empty(tiles, 3 * shape.blocks + 1)
        launch(
            local_block_bwd_stream_kernel,
            (tiles,),
            device,
            settings,
            d_out=d_out[start:],
            neighbours=near,
            edges=edges,
            kept=kept[:, start * k :],
            weights=weights,
            factors=factors,
            partial=partial,
            total=n,
            limit=total,
            kept_stride=kept.stride(0),
            SHAPE=shape.constants,
            PRECISION=precision,
        )
        pairs = _products(factors, edges.features)
        slabs = weight_slabs(pairs, n * k, precision)
        products = added([Slabs(s.flatten(1), (s[0].numel(),)) for s in slabs])
        found = [g.view(s.shape[1:]) for (g,), s in zip(products, slabs, strict=True)]
        found.append(partial.sum(0))
        sums = [a + b for a, b in zip(sums, found, strict=True)] if sums else found
    return _gradients(sums[:-1], sums[-1], weights, shape)
