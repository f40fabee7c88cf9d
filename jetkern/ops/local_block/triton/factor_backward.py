"""Backward of the fused local block through the factors of its weight gradients.

``kept`` is what forward kept, the residual stream before each half of each block. One kernel takes
the stream's gradient from the last block to the first, through halves that are recomputed tile by
tile, and writes the factors that the gradients of matrices are products of; the products run over
fixed runs of edges and are added in a fixed order. The embedding, whose input is narrow, is passes
over chunks of its hidden layer.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from jetkern.ops.gpu.functions import dot
from jetkern.ops.gpu.launch import Settings, cdiv, launch
from jetkern.ops.gpu.layout import offsets
from jetkern.ops.local_block.triton.gradients import (
    Half,
    Norm,
    attention_parts,
    embed_gradients,
    mean_gradient,
    mlp_gradients,
    score_gradients,
    through_norm,
)
from jetkern.ops.local_block.triton.launch import dividing, settings_of, tiles_of
from jetkern.ops.local_block.triton.layout import EmbedSums, Shape, SlabSums, Weights, set_rows
from jetkern.ops.local_block.triton.tiles import (
    Batch,
    batch_dot,
    factor,
    join_keys,
    join_queries,
    normed,
    set_keys,
    split_queries,
    tile_rows,
)

FACTOR_BYTES = 512 * 2**20  # of the factors of the weights' gradients that exist at a time
CANDIDATES: dict[str, list[Settings]] = {
    "local_block_bwd_stream": [
        {"ROWS": r, "num_warps": w, "CHUNK": c, "GROUP": g, "num_stages": s}
        for r, w in ((32, 8), (64, 4), (64, 8), (128, 8))
        for c in (16, 32)
        for g in (16, 32, 64)
        for s in (1, 2, 3)
    ],
    "local_block_bwd_weights": [
        {"ROWS": r, "num_warps": w, "num_stages": s}
        for r in (32, 64)
        for w in (4, 8)
        for s in (2, 3, 4)
    ],
    "local_block_bwd_embed": [
        {"ROWS": r, "CHUNK": c, "num_warps": w} for r in (64, 128) for c in (32, 64) for w in (4, 8)
    ],
}


class Block(NamedTuple):
    """A block's weights, and where a tile's factors and sums go."""

    matrices: Any
    vectors: Any
    factors: Any
    sums: Any


@triton.jit
def tile_half(half, first, STEP: tl.constexpr):
    """A half from the tile's first edge on; what passes over it add up goes to ``d_before``."""
    at = first * STEP
    before = half.d_before + at
    return Half(half.kept + at, before, half.d_after + at, before)


@triton.jit
def mlp_half(
    batch,
    half,
    block,
    SHAPE: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """The stream's gradient before an MLP, and factors and sums of a tile."""
    K: tl.constexpr = SHAPE.K
    D: tl.constexpr = SHAPE.D
    F: tl.constexpr = SHAPE.F
    MATRICES: tl.constexpr = SHAPE.MATRICES
    VECTORS: tl.constexpr = SHAPE.VECTORS
    FACTORS: tl.constexpr = SHAPE.FACTORS
    first, _, edge, _, inside, _ = tile_rows(batch, tl.program_id(0), SHAPE, ROWS)
    inside = inside[:, None]
    wide = tl.arange(0, D)
    part = tl.arange(0, CHUNK)
    half = tile_half(half, first, K * D)
    vectors, sums = block.vectors, block.sums
    factors = block.factors + first * (K * FACTORS.end)
    at = edge[:, None] * D + wide[None, :]
    to_factors = edge[:, None] * FACTORS.end + part[None, :]
    norm = Norm(vectors + VECTORS.gamma2, vectors + VECTORS.alpha2)
    alpha2 = tl.load(norm.alpha)
    alpha = tl.load(vectors + VECTORS.alpha)
    gamma2 = tl.load(norm.gamma + wide)[None, :]
    h = normed(tl.load(half.kept + at, inside, 0.0), alpha2, gamma2, PRECISION)
    d = tl.load(half.d_after + at, inside, 0.0)
    tl.store(sums + VECTORS.fc2_bias + wide, tl.sum(d.to(tl.float32), 0))
    dh = tl.zeros((ROWS, D), tl.float32)
    d_alpha = tl.zeros((ROWS,), tl.float32)
    for c in range(0, F, CHUNK):
        fc1 = block.matrices + MATRICES.fc1_weight
        fc2 = block.matrices + MATRICES.fc2_weight
        w_fc1 = tl.load(fc1 + (c + part)[:, None] * D + wide[None, :])
        w_fc2 = tl.load(fc2 + wide[:, None] * F + (c + part)[None, :])
        bias = tl.load(vectors + VECTORS.fc1_bias + c + part)
        gamma = tl.load(vectors + VECTORS.gamma + c + part)
        t, du, of_gamma, of_alpha = mlp_gradients(
            h, d, w_fc1, w_fc2, bias, gamma, alpha, SHAPE.NORM, PRECISION
        )
        d_alpha += of_alpha
        tl.store(sums + VECTORS.fc1_bias + c + part, tl.sum(du, 0))
        tl.store(sums + VECTORS.gamma + c + part, of_gamma)
        tl.store(factors + FACTORS.d_hidden + c + to_factors, du, inside)
        tl.store(factors + FACTORS.hidden + c + to_factors, t, inside)
        dh = dot(du, w_fc1, dh, PRECISION)
    tl.store(sums + VECTORS.alpha, tl.sum(d_alpha, 0))
    tl.store(half.d_half + at, dh, inside)
    tl.debug_barrier()
    to = Norm(sums + VECTORS.gamma2, sums + VECTORS.alpha2)
    through_norm(half, edge, inside, norm, to, D, PRECISION)


@triton.jit
def attention_half(
    batch,
    half,
    block,
    SHAPE: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """The stream's gradient before an attention, and factors and sums of a tile."""
    K: tl.constexpr = SHAPE.K
    SET: tl.constexpr = SHAPE.SET
    D: tl.constexpr = SHAPE.D
    HEAD: tl.constexpr = SHAPE.HEAD
    MATRICES: tl.constexpr = SHAPE.MATRICES
    VECTORS: tl.constexpr = SHAPE.VECTORS
    FACTORS: tl.constexpr = SHAPE.FACTORS
    first, _, edge, _, inside, exists = tile_rows(batch, tl.program_id(0), SHAPE, ROWS)
    inside = inside[:, None]
    wide = tl.arange(0, D)
    some = tl.arange(0, GROUP)
    half = tile_half(half, first, K * D)
    sums = block.sums
    mixed_factors = block.factors + first * (K * FACTORS.end) + FACTORS.mixed
    factors = block.factors + first * (K * FACTORS.end) + FACTORS.d_qkv
    at = edge[:, None] * D + wide[None, :]
    to_factors = edge[:, None] * FACTORS.end + some[None, :]
    norm = Norm(block.vectors + VECTORS.gamma1, block.vectors + VECTORS.alpha1)
    alpha1 = tl.load(norm.alpha)
    gamma1 = tl.load(norm.gamma + wide)[None, :]
    key = set_keys(exists, K, SET, GROUP, HEAD)
    h = normed(tl.load(half.kept + at, inside, 0.0), alpha1, gamma1, PRECISION)
    d = tl.load(half.d_after + at, inside, 0.0)
    dh = tl.zeros((ROWS, D), tl.float32)
    for g in range(0, D, GROUP):
        w = block.matrices + MATRICES.qkv_weight + (g + some)[:, None] * D + wide[None, :]
        w_q = tl.load(w)
        w_k = tl.load(w + D * D)
        w_v = tl.load(w + 2 * D * D)
        q, k, v, p, mixed = attention_parts(h, key, w_q, w_k, w_v, SHAPE, PRECISION)
        tl.store(mixed_factors + g + to_factors, mixed, inside)
        w = block.matrices + MATRICES.out_weight + wide[:, None] * D + (g + some)[None, :]
        do = dot(d, tl.load(w), tl.zeros((ROWS, GROUP), tl.float32), PRECISION)
        do = split_queries(factor(do, PRECISION), SET, HEAD)
        dv = join_keys(batch_dot(tl.permute(p, (0, 2, 1)), do, PRECISION), GROUP, SET, HEAD)
        tl.store(factors + 2 * D + g + to_factors, dv, inside)
        dh = dot(dv, w_v, dh, PRECISION)
        ds = score_gradients(do, v, p, HEAD, PRECISION)
        dq = join_queries(batch_dot(ds, k, PRECISION), GROUP, SET, HEAD)
        tl.store(factors + g + to_factors, dq, inside)
        dh = dot(dq, w_q, dh, PRECISION)
        dk = join_keys(batch_dot(tl.permute(ds, (0, 2, 1)), q, PRECISION), GROUP, SET, HEAD)
        tl.store(factors + D + g + to_factors, dk, inside)
        dh = dot(dk, w_k, dh, PRECISION)
    tl.store(half.d_half + at, dh, inside)
    tl.debug_barrier()
    to = Norm(sums + VECTORS.gamma1, sums + VECTORS.alpha1)
    through_norm(half, edge, inside, norm, to, D, PRECISION)


@triton.jit(do_not_specialize=["total", "limit"], do_not_specialize_on_alignment=["partial"])
def local_block_bwd_stream_kernel(
    d_out,
    neighbours,
    kept,
    weights,
    d_stream,
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

    ``d_stream``, (2 BLOCKS + 1, E, D): the gradients of what ``kept`` has, then of the last block's
    result. ``factors``: for each block and edge a row of ``Factors``. ``partial``: for each tile
    and block a row of ``BlockVectors``.
    """
    K: tl.constexpr = SHAPE.K
    D: tl.constexpr = SHAPE.D
    C: tl.constexpr = SHAPE.C
    BLOCKS: tl.constexpr = SHAPE.BLOCKS
    MATRICES: tl.constexpr = SHAPE.MATRICES
    VECTORS: tl.constexpr = SHAPE.VECTORS
    FACTORS: tl.constexpr = SHAPE.FACTORS
    EMBED: tl.constexpr = SHAPE.EMBED
    tile = tl.program_id(0)
    edges = total.to(tl.int64) * K
    batch = Batch(None, None, neighbours, total, limit)
    first, particle, edge, _, inside, exists = tile_rows(batch, tile, SHAPE, ROWS)
    d = mean_gradient(d_out, batch, first + particle, inside, exists, SHAPE)
    at = first * (K * D) + edge[:, None] * D + tl.arange(0, D)[None, :]
    tl.store(d_stream + 2 * BLOCKS * edges * D + at, d, inside[:, None])
    for number in range(2 * BLOCKS - 1, -1, -1):
        tl.debug_barrier()  # what other threads wrote of the stream's gradient
        b = number // 2
        d_before = d_stream + number * edges * D
        half = Half(
            kept + number * kept_stride.to(tl.int64), d_before, d_before + edges * D, d_before
        )
        block = Block(
            weights.matrices + D * C + b * MATRICES.end,
            weights.vectors + EMBED.end + b * VECTORS.end,
            factors + b * edges * FACTORS.end,
            partial + (tile.to(tl.int64) * BLOCKS + b) * VECTORS.end,
        )
        if number % 2:
            mlp_half(batch, half, block, SHAPE, PRECISION, ROWS, CHUNK)
        else:
            attention_half(batch, half, block, SHAPE, PRECISION, ROWS, GROUP)


@triton.jit(do_not_specialize=["edges", "run"], do_not_specialize_on_alignment=["slab"])
def local_block_bwd_weights_kernel(
    factors,
    d_stream,
    kept,
    vectors,
    slab,
    edges,
    run,
    kept_stride,
    SHAPE: tl.constexpr,
    NORMED: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    WIDE: tl.constexpr,
    DEEP: tl.constexpr,
):
    """left^T right over a run of edges: of qkv and fc1 where NORMED, of out and fc2 else.

    The first two have a DynamicTanh of what was kept on the right, computed here.
    """
    D: tl.constexpr = SHAPE.D
    F: tl.constexpr = SHAPE.F
    MATRICES: tl.constexpr = SHAPE.MATRICES
    VECTORS: tl.constexpr = SHAPE.VECTORS
    FACTORS: tl.constexpr = SHAPE.FACTORS
    EMBED: tl.constexpr = SHAPE.EMBED
    IN: tl.constexpr = D if NORMED else D + F
    tile = tl.program_id(0)
    block = tl.program_id(2)
    first = tl.program_id(1).to(tl.int64) * run
    last = tl.minimum(first + run, edges)
    o = tile // (IN // DEEP) * WIDE
    i = tile % (IN // DEEP) * DEEP
    factors += (block * edges.to(tl.int64) + first) * FACTORS.end
    slab += (tl.program_id(1).to(tl.int64) * SHAPE.BLOCKS + block) * MATRICES.end
    wide = tl.arange(0, WIDE)
    deep = tl.arange(0, DEEP)
    if NORMED:
        # Rows of qkv, then of fc1, as their gradients follow each other in the factors.
        of_mlp = (o >= 3 * D).to(tl.int32)
        vectors += EMBED.end + block * VECTORS.end
        alpha = tl.load(vectors + VECTORS.alpha1 + of_mlp * (VECTORS.alpha2 - VECTORS.alpha1))
        gamma = vectors + VECTORS.gamma1 + of_mlp * (VECTORS.gamma2 - VECTORS.gamma1)
        gamma = tl.load(gamma + i + deep)[None, :]
        left = factors + FACTORS.d_qkv + o
        right = kept + (2 * block + of_mlp) * kept_stride.to(tl.int64) + first * D + i
        beyond = of_mlp * (MATRICES.fc1_weight - MATRICES.qkv_weight - 3 * D * D)
        to = slab + MATRICES.qkv_weight + beyond + (o + wide)[:, None] * D + (i + deep)[None, :]
    else:
        # Columns of out, then of fc2.
        of_mlp = (i >= D).to(tl.int32)
        left = d_stream + ((2 * block + 1 + of_mlp) * edges.to(tl.int64) + first) * D + o
        right = factors + FACTORS.mixed + i
        to = slab + MATRICES.out_weight + of_mlp * (MATRICES.fc2_weight - MATRICES.out_weight)
        to += (o + wide)[:, None] * (D + of_mlp * (F - D)) + (i - of_mlp * D + deep)[None, :]
    LEFT: tl.constexpr = FACTORS.end if NORMED else D
    RIGHT: tl.constexpr = D if NORMED else FACTORS.end
    acc = tl.zeros((WIDE, DEEP), tl.float32)
    for base in range(0, (last - first).to(tl.int32), ROWS):
        row = base + tl.arange(0, ROWS)
        inside = (row < (last - first))[:, None]
        row = row[:, None].to(tl.int64)
        a = tl.load(left + row * LEFT + wide[None, :], inside, 0.0)
        b = tl.load(right + row * RIGHT + deep[None, :], inside, 0.0)
        if NORMED:
            b = normed(b, alpha, gamma, PRECISION)
        acc = dot(tl.trans(a), b, acc, PRECISION)
    tl.store(to, acc)


@triton.jit(do_not_specialize=["total", "limit", "tiles"], do_not_specialize_on_alignment=["slab"])
def local_block_bwd_embed_kernel(
    centres,
    particles,
    neighbours,
    d_stream,
    weights,
    slab,
    total,
    limit,
    tiles,
    SHAPE: tl.constexpr,
    SUMS: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """``embed_gradients`` of fixed runs of tiles, a chunk of the hidden layer each."""
    embed_gradients(
        Batch(centres, particles, neighbours, total, limit),
        d_stream,
        weights,
        slab + tl.program_id(1).to(tl.int64) * SUMS.end,
        tl.program_id(0),
        tl.program_id(1),
        tiles,
        tl.num_programs(1),
        SHAPE,
        SUMS,
        PRECISION,
        ROWS,
        CHUNK,
    )


def _stream_default(shape: Shape, precision: str) -> Settings:
    wide, few = shape.width > 64, set_rows(shape.k)
    half, exact = precision == "bf16", precision == "ieee"
    if wide and half:  # spills a few hundred bytes for half the instructions of eight warps
        return {"ROWS": 64, "CHUNK": 32, "GROUP": 32, "num_warps": 4, "num_stages": 1}
    return {
        "ROWS": few if exact else 64 if half or not wide else 32,
        "CHUNK": 32 if precision == "tf32" else 16,
        "GROUP": max(16, shape.width // shape.heads),
        "num_warps": few // 8 if exact else 8 if wide else 4,
        "num_stages": 1 if exact else 3 if half else 2,
    }


def _weights_default(shape: Shape, precision: str) -> Settings:
    half = precision == "bf16"
    part = dividing(math.gcd(shape.width, shape.hidden), 128 if half else 64)
    return {
        "ROWS": 64 if half else 32,
        "WIDE": part,
        "DEEP": part,
        "num_warps": 8 if shape.width > 64 and half else 4,
        "num_stages": 3 if half else 2,
    }


def _embed_default(shape: Shape, precision: str) -> Settings:
    wide, few = shape.width > 64, max(set_rows(shape.k), 32)
    half, exact = precision == "bf16", precision == "ieee"
    return {
        "ROWS": few if exact else 64 if half or not wide else 32,
        "CHUNK": 16 if exact else 32,
        "num_warps": few // 16 if exact else 8 if wide else 4,
        "num_stages": 2 if half else 1,
    }


def backward(
    d_out: Tensor,
    particles: Tensor,
    neighbours: Tensor,
    kept: Tensor,
    weights: Weights,
    shape: Shape,
    precision: str,
) -> SlabSums:
    """Sums of the gradients of all weights. Takes the particles a bounded number at a time."""
    k, width, blocks = shape.k, shape.width, shape.blocks
    device, total = particles.device, len(particles)
    s_stream, s_weights, s_embed = (
        settings_of(kernel, shape, precision, device, default(shape, precision))
        for kernel, default in (
            (local_block_bwd_stream_kernel, _stream_default),
            (local_block_bwd_weights_kernel, _weights_default),
            (local_block_bwd_embed_kernel, _embed_default),
        )
    )
    constants = shape.constants
    columns = constants.FACTORS.end
    row = (2 * blocks + 1) * width + blocks * columns
    step = max(FACTOR_BYTES // (k * row * kept.element_size()) // 16 * 16, 16)
    run = cdiv(max(1024, cdiv(min(step, total) * k, 48)), 64) * 64
    starts = range(0, total, step)
    sizes = [min(step, total - start) for start in starts]
    tiles = [tiles_of(n, shape, s_stream) for n in sizes]
    runs = [cdiv(n * k, run) for n in sizes]
    embed_tiles = [tiles_of(n, shape, s_embed) for n in sizes]
    embed_runs = [min(n, 64) for n in embed_tiles]
    embed = offsets(EmbedSums, shape.embed_sizes(s_embed["CHUNK"]))

    def sums(*size: int) -> Tensor:
        return torch.empty(size, dtype=torch.float32, device=device)

    partial = sums(sum(tiles), blocks, constants.VECTORS.end)
    slab = sums(sum(runs), blocks, constants.MATRICES.end)
    embed_slab = sums(sum(embed_runs), embed.end)
    edges = max(sizes, default=0) * k
    d_stream = kept.new_empty((2 * blocks + 1) * edges * width)
    factors = kept.new_empty(blocks * edges * columns)
    for i, (start, n) in enumerate(zip(starts, sizes, strict=True)):
        near, inputs = neighbours[start : start + n], kept[:, start * k :]
        launch(
            local_block_bwd_stream_kernel,
            (tiles[i],),
            device,
            s_stream,
            d_out=d_out[start:],
            neighbours=near,
            kept=inputs,
            weights=weights,
            d_stream=d_stream,
            factors=factors,
            partial=partial[sum(tiles[:i]) :],
            total=n,
            limit=total,
            kept_stride=kept.stride(0),
            SHAPE=constants,
            PRECISION=precision,
        )
        for norm, out, deep in (
            (True, 3 * width + shape.hidden, width),
            (False, width, width + shape.hidden),
        ):
            launch(
                local_block_bwd_weights_kernel,
                (out // s_weights["WIDE"] * (deep // s_weights["DEEP"]), runs[i], blocks),
                device,
                s_weights,
                factors=factors,
                d_stream=d_stream,
                kept=inputs,
                vectors=weights.vectors,
                slab=slab[sum(runs[:i]) :],
                edges=n * k,
                run=run,
                kept_stride=kept.stride(0),
                SHAPE=constants,
                NORMED=norm,
                PRECISION=precision,
            )
        launch(
            local_block_bwd_embed_kernel,
            (shape.embed_hidden // s_embed["CHUNK"], embed_runs[i]),
            device,
            s_embed,
            centres=particles[start:],
            particles=particles,
            neighbours=near,
            d_stream=d_stream,
            weights=weights,
            slab=embed_slab[sum(embed_runs[:i]) :],
            total=n,
            limit=total,
            tiles=embed_tiles[i],
            SHAPE=constants,
            SUMS=embed,
            PRECISION=precision,
        )
    return SlabSums(embed_slab.sum(0), slab.sum(0), partial.sum(0))
