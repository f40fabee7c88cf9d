"""The local block of narrow models (width 16 to 128) as a fused Triton kernel: its forward.

A program takes a tile of whole neighbourhoods from their features to the means, and weights
stream from the second-level cache, a group of heads or a chunk of the hidden layer at a time.

To train, it keeps the residual stream before each half of each block, (E, D) each, for
``backward``.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from jetkern.ops.gpu.functions import dot, gelu
from jetkern.ops.gpu.launch import Settings, launch
from jetkern.ops.gpu.pointwise import stored_type
from jetkern.ops.local_block.triton.features import edge_features, features_of
from jetkern.ops.local_block.triton.launch import settings_of, tiles_of
from jetkern.ops.local_block.triton.layout import Shape, Weights
from jetkern.ops.local_block.triton.tiles import (
    Batch,
    batch_dot,
    embed_hidden,
    factor,
    join_queries,
    norm_tanh,
    normed,
    probabilities,
    set_keys,
    split_keys,
    split_queries,
    tile_rows,
)

CANDIDATES: dict[str, list[Settings]] = {
    "local_block_fwd": [
        {"ROWS": r, "num_warps": w, "CHUNK": c, "GROUP": g, "num_stages": s}
        for r, w in ((64, 4), (128, 4), (128, 8))
        for c in (32, 64)
        for g in (16, 32)
        for s in (1, 2)
    ]
}


@triton.jit(do_not_specialize=["total"])
def local_block_fwd_kernel(
    neighbours,
    edges,
    weights,
    out,
    kept,
    total,
    SHAPE: tl.constexpr,
    KEEP: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Means of every particle; with ``KEEP`` also ``kept``, the stream before each half."""
    K: tl.constexpr = SHAPE.K
    SET: tl.constexpr = SHAPE.SET
    D: tl.constexpr = SHAPE.D
    C: tl.constexpr = SHAPE.C
    F: tl.constexpr = SHAPE.F
    HEAD: tl.constexpr = SHAPE.HEAD
    EMBED: tl.constexpr = SHAPE.EMBED
    MATRICES: tl.constexpr = SHAPE.MATRICES
    VECTORS: tl.constexpr = SHAPE.VECTORS
    matrices, vectors = weights.matrices, weights.vectors
    batch = Batch(neighbours, total, total)
    tile = tl.program_id(0)
    first, _, edge, inside, exists = tile_rows(batch, tile, SHAPE, ROWS)
    wide = tl.arange(0, D)
    some = tl.arange(0, GROUP)
    part = tl.arange(0, CHUNK)
    features = features_of(edges, first * K, edge, inside)
    alpha = tl.load(vectors + EMBED.alpha)
    x = tl.zeros((ROWS, D), tl.float32) + tl.load(vectors + EMBED.fc2_bias + wide)[None, :]
    for c in range(0, C, CHUNK):
        h = embed_hidden(features, vectors, c + part, EMBED, ROWS, CHUNK)
        h = gelu(h, PRECISION)
        if SHAPE.EMBED_NORM:
            h = norm_tanh(alpha * h, PRECISION) * tl.load(vectors + EMBED.gamma + c + part)[None, :]
        w = tl.load(matrices + wide[None, :] * C + (c + part)[:, None])
        x = dot(h, w, x, PRECISION)
    key = set_keys(exists, K, SET, GROUP, HEAD)
    kept += first * (K * D)
    kept_at = edge[:, None] * D + wide[None, :]
    kept_stride = total.to(tl.int64) * (K * D)
    m = matrices + D * C  # after the embedding's
    v = vectors + EMBED.end
    for _ in range(SHAPE.BLOCKS):
        w_qkv = m + MATRICES.qkv_weight
        if KEEP:
            tl.store(kept + kept_at, x, inside[:, None])
        h = normed(
            x, tl.load(v + VECTORS.alpha1), tl.load(v + VECTORS.gamma1 + wide)[None, :], PRECISION
        )
        for g in range(0, D, GROUP):
            w = w_qkv + (g + some)[None, :] * D + wide[:, None]
            zero = tl.zeros((ROWS, GROUP), tl.float32)
            q = factor(dot(h, tl.load(w), zero, PRECISION), PRECISION)
            k = factor(dot(h, tl.load(w + D * D), zero, PRECISION), PRECISION)
            q, k = split_queries(q, SET, HEAD), split_keys(k, SET, HEAD)
            p = probabilities(q, k, key, K, HEAD, PRECISION)
            values = factor(dot(h, tl.load(w + 2 * D * D), zero, PRECISION), PRECISION)
            values = split_keys(values, SET, HEAD)
            mixed = join_queries(batch_dot(p, values, PRECISION), GROUP, SET, HEAD)
            w = tl.load(m + MATRICES.out_weight + wide[None, :] * D + (g + some)[:, None])
            x = dot(mixed, w, x, PRECISION)
        if KEEP:
            tl.store(kept + kept_stride + kept_at, x, inside[:, None])
            kept += 2 * kept_stride
        h = normed(
            x, tl.load(v + VECTORS.alpha2), tl.load(v + VECTORS.gamma2 + wide)[None, :], PRECISION
        )
        alpha = tl.load(v + VECTORS.alpha)
        x += tl.load(v + VECTORS.fc2_bias + wide)[None, :]
        for c in range(0, F, CHUNK):
            w = tl.load(m + MATRICES.fc1_weight + (c + part)[None, :] * D + wide[:, None])
            t = dot(h, w, tl.zeros((ROWS, CHUNK), tl.float32), PRECISION)
            t = gelu(t + tl.load(v + VECTORS.fc1_bias + c + part)[None, :], PRECISION)
            if SHAPE.NORM:
                t = norm_tanh(alpha * t, PRECISION) * tl.load(v + VECTORS.gamma + c + part)[None, :]
            w = tl.load(m + MATRICES.fc2_weight + wide[None, :] * F + (c + part)[:, None])
            x = dot(t, w, x, PRECISION)
        m += MATRICES.end
        v += VECTORS.end
    share = tl.load(edges.shares + first * K + edge, inside, 0.0)[:, None]
    x = tl.reshape(tl.where(share > 0, x * share, 0.0), (ROWS // SET, SET, D))
    member = tl.arange(0, SET) // K
    sets = tile.to(tl.int64) * (ROWS // SET) + tl.arange(0, ROWS // SET)
    for g in tl.static_range(SET // K):
        mean = tl.sum(tl.where((member == g)[None, :, None], x, 0.0), 1)
        target = sets * (SET // K) + g
        tl.store(out + target[:, None] * D + wide[None, :], mean, (target < total)[:, None])


def _default(shape: Shape, precision: str) -> Settings:
    wide = shape.width > 64
    half = precision == "bf16"
    return {
        "ROWS": 128 if wide and half else 64 if half or not wide else 32,
        "CHUNK": min(64, 2048 // shape.width) if precision == "tf32" else 32,
        "GROUP": max(32 if wide and half else 16, shape.width // shape.heads),
        "num_warps": 8 if wide else 4,
        "num_stages": 2
        if wide and precision == "tf32"
        else 1
        if wide or precision == "ieee"
        else 3,
    }


def forward(
    particles: Tensor,
    neighbours: Tensor,
    weights: Weights,
    shape: Shape,
    precision: str,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """Means (T, D) and what backward needs, (2 blocks, T K, D) or nothing."""
    total = len(particles)
    out = particles.new_empty(total, shape.width)
    edges = total * shape.k if keep else 0
    kept = particles.new_empty(2 * shape.blocks, edges, shape.width, dtype=stored_type(precision))
    settings = settings_of(
        local_block_fwd_kernel,
        shape,
        precision,
        particles.device,
        _default(shape, precision),
        "training" if keep else "",
    )
    launch(
        local_block_fwd_kernel,
        (tiles_of(total, shape, settings),),
        particles.device,
        settings,
        neighbours=neighbours,
        edges=edge_features(particles, particles, neighbours),
        weights=weights,
        out=out,
        kept=kept,
        total=total,
        SHAPE=shape.constants,
        KEEP=keep,
        PRECISION=precision,
    )
    return out, kept
