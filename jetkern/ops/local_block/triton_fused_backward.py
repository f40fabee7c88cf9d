"""Backward of the fused local block: the gradients of all weights.

``kept`` is what forward kept, the residual stream before each half of each block. From the last
block to the first its gradient goes through the halves, which are recomputed tile by tile; what is
left are sums over all edges, the gradients of the matrices. Two ways to them:

Up to width 32, but in "ieee", they stay on chip, and backward is one kernel. Its programs share the
tiles and take them in passes, one for each chunk of a hidden layer or group of heads, whose
gradients a pass holds in registers. Else one kernel takes the stream's gradient through all blocks
and writes the factors that the sums are products of; the products run over fixed runs of edges and
are added in a fixed order. The embedding, whose input is narrow, is passes over chunks in both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from jetkern.ops.local_block.triton_fused import (
    Shape,
    batch_dot,
    data_type,
    default_settings,
    denominator,
    edge_features,
    embed_hidden,
    factor,
    join_keys,
    join_queries,
    norm_tanh,
    normed,
    preset_shapes,
    probabilities,
    set_keys,
    set_rows,
    settings_of,
    split_keys,
    split_queries,
    stored,
    table_key,
    tile_rows,
    tiles_of,
)
from jetkern.ops.parameters import BlockParameters, MLPParameters
from jetkern.ops.triton_tools import (
    TYPES,
    CompileCase,
    dot,
    gelu_and_slope,
    kernel_name,
    on_device,
)

FACTOR_BYTES = 512 * 2**20  # of the factors of the weights' gradients that exist at a time
NARROW = {"ieee": 0, "tf32": 32, "bf16": 32}  # the widest whose gradients stay on chip
RESIDENT_WARPS = 8  # of an SM, with 255 registers for each thread
SLABS = 8  # launches of the narrow kernel whose sums exist at a time
ROUND_ROWS = 512  # of a program: what passes over them read stays in the first-level cache


@triton.jit
def mlp_gradients(
    h, d, w_fc1, w_fc2, bias, gamma, alpha, NORM: tl.constexpr, PRECISION: tl.constexpr
):
    """Of a chunk of the hidden layer, from the input of fc1 and the gradient of what fc2 gives.

    What fc2 takes, the gradient of what fc1 gives, that of gamma and, of each row, of alpha.
    """
    zero = tl.zeros((h.shape[0], w_fc1.shape[0]), tl.float32)
    u = dot(h, tl.trans(w_fc1), zero, PRECISION)
    t, slope = gelu_and_slope(u + bias[None, :], PRECISION)
    dt = dot(d, w_fc2, zero, PRECISION)
    if NORM:
        y = norm_tanh(alpha * t, PRECISION)
        d_gamma = tl.sum(dt * y, 0)
        dt = dt * gamma[None, :] * (1.0 - y * y)
        d_alpha = tl.sum(dt * t, 1)
        return y * gamma[None, :], alpha * dt * slope, d_gamma, d_alpha
    else:
        nothing = tl.zeros((h.shape[0],), tl.float32)
        return t, dt * slope, tl.zeros((w_fc1.shape[0],), tl.float32), nothing


@triton.jit
def attention_parts(
    h,
    key,
    w_q,
    w_k,
    w_v,
    K: tl.constexpr,
    SET: tl.constexpr,
    HEAD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Queries, keys, values and probabilities of a group of heads, what the last product takes."""
    zero = tl.zeros((h.shape[0], w_q.shape[0]), tl.float32)
    q = split_queries(dot(h, tl.trans(w_q), zero, PRECISION), SET, HEAD)
    k = split_keys(factor(dot(h, tl.trans(w_k), zero, PRECISION), PRECISION), SET, HEAD)
    v = split_keys(factor(dot(h, tl.trans(w_v), zero, PRECISION), PRECISION), SET, HEAD)
    p = factor(probabilities(q, k, key, K, HEAD, PRECISION), PRECISION)
    mixed = join_queries(batch_dot(p, v, PRECISION), w_q.shape[0], SET, HEAD)
    return q, k, v, p, mixed


@triton.jit
def score_gradients(do, v, p, HEAD: tl.constexpr, PRECISION: tl.constexpr):
    """Of the scores before their scale, from the gradient of the result."""
    dp = batch_dot(do, tl.permute(v, (0, 2, 1)), PRECISION)
    p = p.to(tl.float32)
    return factor(p * (dp - tl.sum(p * dp, 2)[:, :, None]) * (HEAD**-0.5), PRECISION)


@triton.jit
def weight_gradient(left, right, acc, PRECISION: tl.constexpr):
    """left^T right + acc."""
    return dot(tl.trans(factor(left, PRECISION)), right, acc, PRECISION)


@triton.jit
def through_norm(
    kept,
    d_half,
    d_after,
    d_before,
    edge,
    inside,
    alpha,
    gamma,
    sum_gamma,
    sum_alpha,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The stream's gradient before a half, from that after it and that of the half's DynamicTanh.

    Stores the sums for its gamma and alpha. Some columns at a time, for want of registers.
    """
    COLUMNS: tl.constexpr = min(D, 64 if PRECISION == "bf16" else 32)
    part = tl.arange(0, COLUMNS)
    at = edge[:, None] * D + part[None, :]
    d_alpha = tl.zeros((edge.shape[0],), tl.float32)
    for c in range(0, D, COLUMNS):
        x = tl.load(kept + at + c, inside, 0.0).to(tl.float32)
        d = tl.load(d_after + at + c, inside, 0.0).to(tl.float32)
        dh = tl.load(d_half + at + c, inside, 0.0).to(tl.float32)
        y = norm_tanh(alpha * x, PRECISION)
        tl.store(sum_gamma + c + part, tl.sum(dh * y, 0))
        dh = dh * tl.load(gamma + c + part)[None, :] * (1.0 - y * y)
        d_alpha += tl.sum(dh * x, 1)
        tl.store(d_before + at + c, d + alpha * dh, inside)
    tl.store(sum_alpha, tl.sum(d_alpha, 0))


@triton.jit
def mean_gradient(
    d_out,
    neighbours,
    particle,
    inside,
    exists,
    limit,
    K: tl.constexpr,
    K_PADDED: tl.constexpr,
    D: tl.constexpr,
):
    """The gradient of each edge's row, from that of the particles' means."""
    number = denominator(neighbours, particle, inside, limit, K, K_PADDED)
    at = particle[:, None] * D + tl.arange(0, D)[None, :]
    return tl.load(d_out + at, exists[:, None], 0.0).to(tl.float32) / number[:, None]


@triton.jit
def embed_gradients(
    centres,
    particles,
    neighbours,
    dx,
    matrices,
    vectors,
    slab,
    total,
    limit,
    chunk,
    start,
    stop,
    step,
    K: tl.constexpr,
    SET: tl.constexpr,
    D: tl.constexpr,
    C: tl.constexpr,
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Gradients of a chunk of the embedding's hidden layer, from every ``step``-th tile.

    ``slab``: fc2 (D C), [fc1 | fc1's bias | 8 unused] (16 C), gamma (C), fc2's bias (D), alpha
    (C / CHUNK).
    """
    FEATURES: tl.constexpr = "tf32" if PRECISION == "bf16" else PRECISION
    part = chunk * CHUNK + tl.arange(0, CHUNK)
    wide = tl.arange(0, D)
    lane = tl.arange(0, 16)[None, :]
    alpha = tl.load(vectors + 9 * C + D)
    gamma = tl.load(vectors + 8 * C + part)[None, :]
    w = tl.load(matrices + wide[:, None] * C + part[None, :])
    d_fc2 = tl.zeros((D, CHUNK), tl.float32)
    d_fc1 = tl.zeros((CHUNK, 16), tl.float32)
    d_gamma = tl.zeros((CHUNK,), tl.float32)
    d_bias = tl.zeros((D,), tl.float32)
    d_alpha = tl.zeros((ROWS,), tl.float32)
    for tile in range(start, stop, step):
        first, particle, edge, other, inside, exists = tile_rows(
            neighbours, tile, total, limit, K, SET, ROWS
        )
        features = edge_features(centres + first * 4, particles, particle, other, inside, exists)
        h = embed_hidden(features, vectors, vectors + 7 * C, part, C, ROWS, CHUNK)
        t, slope = gelu_and_slope(h, PRECISION)
        d = tl.load(dx + first * (K * D) + edge[:, None] * D + wide[None, :], inside[:, None], 0.0)
        d_bias += tl.sum(d.to(tl.float32), 0)
        dt = dot(d, w, tl.zeros((ROWS, CHUNK), tl.float32), PRECISION)
        if NORM:
            y = norm_tanh(alpha * t, PRECISION)
            d_gamma += tl.sum(dt * y, 0)
            dt = dt * gamma * (1.0 - y * y)
            d_alpha += tl.sum(dt * t, 1)
            dt = alpha * dt
            t = y * gamma
        d_fc2 = dot(tl.trans(d), t, d_fc2, PRECISION)
        d_fc1 = dot(tl.trans(dt * slope), features, d_fc1, FEATURES)
    tl.store(slab + wide[:, None] * C + part[None, :], d_fc2)
    slab += D * C
    tl.store(slab + part[:, None] * 16 + lane, d_fc1)
    tl.store(slab + 16 * C + part, d_gamma)
    tl.store(slab + 17 * C + wide, d_bias, (chunk == 0) & (wide < D))
    tl.store(slab + 17 * C + D + chunk, tl.sum(d_alpha, 0))


@triton.jit
def narrow_mlp(
    kept,
    neighbours,
    matrices,
    vectors,
    d_stream,
    d_half,
    partial,
    slab,
    total,
    limit,
    tiles,
    always,
    partial_stride,
    K: tl.constexpr,
    SET: tl.constexpr,
    D: tl.constexpr,
    F: tl.constexpr,
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """A block's MLP of a program's tiles; see ``local_narrow_backward_kernel``."""
    wide = tl.arange(0, D)
    part = tl.arange(0, CHUNK)
    alpha2 = tl.load(vectors + 3 * D + 2 * F + 1)
    alpha = tl.load(vectors + 3 * D + 2 * F + 2)
    gamma2 = tl.load(vectors + D + wide)[None, :]
    for c in range(0, F, CHUNK):
        tl.debug_barrier()  # what other threads wrote in the pass before
        to_fc1 = 4 * D * D + (c + part)[:, None] * D + wide[None, :]
        to_fc2 = 4 * D * D + F * D + wide[:, None] * F + (c + part)[None, :]
        d_fc1 = tl.zeros((CHUNK, D), tl.float32)
        d_fc2 = tl.zeros((D, CHUNK), tl.float32)
        for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), num_stages=1):
            first, _, edge, _, inside, _ = tile_rows(neighbours, tile, total, limit, K, SET, ROWS)
            inside = inside[:, None]
            at = first * (K * D) + edge[:, None] * D + wide[None, :]
            sums = partial + tl.cast(tile, tl.int64) * partial_stride
            h = normed(tl.load(kept + at, inside, 0.0), alpha2, gamma2, PRECISION)
            d = tl.load(d_stream + at, inside, 0.0)
            w_fc1 = tl.load(matrices + to_fc1)
            t, du, d_gamma, d_alpha = mlp_gradients(
                h,
                d,
                w_fc1,
                tl.load(matrices + to_fc2),
                tl.load(vectors + 2 * D + c + part),
                tl.load(vectors + 2 * D + F + c + part),
                alpha,
                NORM,
                PRECISION,
            )
            tl.store(sums + 2 * D + c + part, tl.sum(du, 0))
            tl.store(sums + 2 * D + F + c + part, d_gamma)
            sums += 2 * D + 2 * F + 1
            before = tl.load(sums, c > 0, 0.0)
            tl.store(sums, before + tl.sum(d_alpha, 0))
            dh = tl.load(d_half + at, inside & (c > 0), 0.0).to(tl.float32)
            dh = dot(du, w_fc1, dh, PRECISION)
            if always:  # a branch, for Triton to lay its product out by itself
                d_fc1 = weight_gradient(du, h, d_fc1, PRECISION)
            if always:
                d_fc2 = weight_gradient(d, t, d_fc2, PRECISION)
            tl.store(d_half + at, dh, inside)
        tl.store(slab + to_fc1, d_fc1)
        tl.store(slab + to_fc2, d_fc2)
    tl.debug_barrier()
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), num_stages=1):
        first, _, edge, _, inside, _ = tile_rows(neighbours, tile, total, limit, K, SET, ROWS)
        inside = inside[:, None]
        at = first * (K * D) + edge[:, None] * D + wide[None, :]
        sums = partial + tl.cast(tile, tl.int64) * partial_stride
        tl.store(sums + D + wide, tl.sum(tl.load(d_stream + at, inside, 0.0).to(tl.float32), 0))
        tl.debug_barrier()  # all have read what changes now
        through_norm(
            kept + first * (K * D),
            d_half + first * (K * D),
            d_stream + first * (K * D),
            d_stream + first * (K * D),
            edge,
            inside,
            alpha2,
            vectors + D,
            sums,
            sums + 2 * D + 2 * F,
            D,
            PRECISION,
        )


@triton.jit
def narrow_attention(
    kept,
    neighbours,
    matrices,
    vectors,
    d_stream,
    d_half,
    partial,
    slab,
    total,
    limit,
    tiles,
    always,
    partial_stride,
    K: tl.constexpr,
    SET: tl.constexpr,
    D: tl.constexpr,
    F: tl.constexpr,
    HEAD: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """A block's attention of a program's tiles."""
    wide = tl.arange(0, D)
    some = tl.arange(0, GROUP)
    alpha = tl.load(vectors + 3 * D + 2 * F)
    gamma = tl.load(vectors + wide)[None, :]
    for g in range(0, D, GROUP):
        tl.debug_barrier()  # what other threads wrote in the pass before
        to_q = (g + some)[:, None] * D + wide[None, :]
        to_out = 3 * D * D + wide[:, None] * D + (g + some)[None, :]
        d_q = tl.zeros((D, GROUP), tl.float32)
        d_k = tl.zeros((D, GROUP), tl.float32)
        d_v = tl.zeros((D, GROUP), tl.float32)
        d_out = tl.zeros((D, GROUP), tl.float32)
        for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), num_stages=1):
            first, _, edge, _, inside, exists = tile_rows(
                neighbours, tile, total, limit, K, SET, ROWS
            )
            inside = inside[:, None]
            at = first * (K * D) + edge[:, None] * D + wide[None, :]
            key = set_keys(exists, K, SET, GROUP, HEAD)
            h = normed(tl.load(kept + at, inside, 0.0), alpha, gamma, PRECISION)
            d = tl.load(d_stream + at, inside, 0.0)
            w_q = tl.load(matrices + to_q)
            w_k = tl.load(matrices + D * D + to_q)
            w_v = tl.load(matrices + 2 * D * D + to_q)
            q, k, v, p, mixed = attention_parts(h, key, w_q, w_k, w_v, K, SET, HEAD, PRECISION)
            if always:  # branches, for Triton to lay their products out by themselves
                d_out = weight_gradient(d, mixed, d_out, PRECISION)
            zero = tl.zeros((ROWS, GROUP), tl.float32)
            do = factor(dot(d, tl.load(matrices + to_out), zero, PRECISION), PRECISION)
            do = split_queries(do, SET, HEAD)
            dv = batch_dot(tl.permute(p, (0, 2, 1)), do, PRECISION)
            dv = join_keys(dv, GROUP, SET, HEAD)
            dh = tl.load(d_half + at, inside & (g > 0), 0.0).to(tl.float32)
            dh = dot(dv, w_v, dh, PRECISION)
            if always:
                d_v = weight_gradient(h, dv, d_v, PRECISION)
            ds = score_gradients(do, v, p, HEAD, PRECISION)
            dq = join_queries(batch_dot(ds, k, PRECISION), GROUP, SET, HEAD)
            dh = dot(dq, w_q, dh, PRECISION)
            if always:
                d_q = weight_gradient(h, dq, d_q, PRECISION)
            dk = batch_dot(tl.permute(ds, (0, 2, 1)), q, PRECISION)
            dk = join_keys(dk, GROUP, SET, HEAD)
            dh = dot(dk, w_k, dh, PRECISION)
            if always:
                d_k = weight_gradient(h, dk, d_k, PRECISION)
            tl.store(d_half + at, dh, inside)
        to_q = (g + some)[None, :] * D + wide[:, None]
        tl.store(slab + to_q, d_q)
        tl.store(slab + D * D + to_q, d_k)
        tl.store(slab + 2 * D * D + to_q, d_v)
        tl.store(slab + to_out, d_out)
    tl.debug_barrier()
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), num_stages=1):
        first, _, edge, _, inside, _ = tile_rows(neighbours, tile, total, limit, K, SET, ROWS)
        inside = inside[:, None]
        sums = partial + tl.cast(tile, tl.int64) * partial_stride
        through_norm(
            kept + first * (K * D),
            d_half + first * (K * D),
            d_stream + first * (K * D),
            d_stream + first * (K * D),
            edge,
            inside,
            alpha,
            vectors,
            sums,
            sums + D,
            D,
            PRECISION,
        )


@triton.jit(
    do_not_specialize=["total", "limit", "tiles", "always"],
    do_not_specialize_on_alignment=["slab", "partial"],
)
def local_narrow_backward_kernel(
    d_out,
    centres,
    particles,
    neighbours,
    kept,
    matrices,
    vectors,
    d_stream,
    d_half,
    partial,
    slab,
    total,
    limit,
    tiles,
    always,
    kept_stride,
    slab_stride,
    K: tl.constexpr,
    K_PADDED: tl.constexpr,
    SET: tl.constexpr,
    D: tl.constexpr,
    C: tl.constexpr,
    F: tl.constexpr,
    HEAD: tl.constexpr,
    BLOCKS: tl.constexpr,
    EMBED_NORM: tl.constexpr,
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """All gradients of a round: so few tiles a program that passes over them hit the cache.

    ``d_stream``, ``d_half``: of their edges, the stream's gradient, changed in place, and what
    passes over a half add up. ``partial``: of each tile as in ``local_backward_kernel``. A row of
    ``slab``: the matrices of each block, then as ``embed_gradients`` has it.
    """
    MATRICES: tl.constexpr = 4 * D * D + 2 * D * F
    VECTORS: tl.constexpr = 3 * D + 2 * F + 3
    wide = tl.arange(0, D)
    slab += tl.program_id(0).to(tl.int64) * slab_stride
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), num_stages=1):
        first, particle, edge, _, inside, exists = tile_rows(
            neighbours, tile, total, limit, K, SET, ROWS
        )
        d = mean_gradient(
            d_out, neighbours, first + particle, inside, exists, limit, K, K_PADDED, D
        )
        at = first * (K * D) + edge[:, None] * D + wide[None, :]
        tl.store(d_stream + at, d, inside[:, None])
    for i in range(BLOCKS):
        b = BLOCKS - 1 - i
        of_block = matrices + D * C + b * MATRICES
        vectors_of_block = vectors + 9 * C + D + 1 + b * VECTORS
        before = kept + 2 * b * kept_stride.to(tl.int64)
        narrow_mlp(
            before + kept_stride,
            neighbours,
            of_block,
            vectors_of_block,
            d_stream,
            d_half,
            partial + b * VECTORS,
            slab + b * MATRICES,
            total,
            limit,
            tiles,
            always,
            BLOCKS * VECTORS,
            K,
            SET,
            D,
            F,
            NORM,
            PRECISION,
            ROWS,
            CHUNK,
        )
        narrow_attention(
            before,
            neighbours,
            of_block,
            vectors_of_block,
            d_stream,
            d_half,
            partial + b * VECTORS + 2 * D + 2 * F + 2,
            slab + b * MATRICES,
            total,
            limit,
            tiles,
            always,
            BLOCKS * VECTORS,
            K,
            SET,
            D,
            F,
            HEAD,
            PRECISION,
            ROWS,
            GROUP,
        )
    tl.debug_barrier()
    for chunk in range(C // CHUNK):
        embed_gradients(
            centres,
            particles,
            neighbours,
            d_stream,
            matrices,
            vectors,
            slab + BLOCKS * MATRICES,
            total,
            limit,
            chunk,
            tl.program_id(0),
            tiles,
            tl.num_programs(0),
            K,
            SET,
            D,
            C,
            EMBED_NORM,
            PRECISION,
            ROWS,
            CHUNK,
        )


@triton.jit
def mlp_half(
    kept,
    neighbours,
    matrices,
    vectors,
    d_after,
    d_before,
    factors,
    partial,
    total,
    limit,
    K: tl.constexpr,
    SET: tl.constexpr,
    D: tl.constexpr,
    F: tl.constexpr,
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """The stream's gradient before an MLP, and factors and sums; see ``local_backward_kernel``."""
    COLUMNS: tl.constexpr = 4 * D + 2 * F
    tile = tl.program_id(0)
    first, _, edge, _, inside, _ = tile_rows(neighbours, tile, total, limit, K, SET, ROWS)
    inside = inside[:, None]
    wide = tl.arange(0, D)
    part = tl.arange(0, CHUNK)
    kept += first * (K * D)
    d_after += first * (K * D)
    d_before += first * (K * D)
    factors += first * (K * COLUMNS)
    at = edge[:, None] * D + wide[None, :]
    to_factors = edge[:, None] * COLUMNS + 3 * D + part[None, :]
    alpha2 = tl.load(vectors + 3 * D + 2 * F + 1)
    alpha = tl.load(vectors + 3 * D + 2 * F + 2)
    gamma2 = tl.load(vectors + D + wide)[None, :]
    h = normed(tl.load(kept + at, inside, 0.0), alpha2, gamma2, PRECISION)
    d = tl.load(d_after + at, inside, 0.0)
    tl.store(partial + D + wide, tl.sum(d.to(tl.float32), 0))
    dh = tl.zeros((ROWS, D), tl.float32)
    d_alpha = tl.zeros((ROWS,), tl.float32)
    for c in range(0, F, CHUNK):
        w_fc1 = tl.load(matrices + 4 * D * D + (c + part)[:, None] * D + wide[None, :])
        w_fc2 = tl.load(matrices + 4 * D * D + F * D + wide[:, None] * F + (c + part)[None, :])
        bias = tl.load(vectors + 2 * D + c + part)
        gamma = tl.load(vectors + 2 * D + F + c + part)
        t, du, of_gamma, of_alpha = mlp_gradients(
            h, d, w_fc1, w_fc2, bias, gamma, alpha, NORM, PRECISION
        )
        d_alpha += of_alpha
        tl.store(partial + 2 * D + c + part, tl.sum(du, 0))
        tl.store(partial + 2 * D + F + c + part, of_gamma)
        tl.store(factors + c + to_factors, du, inside)
        tl.store(factors + F + D + c + to_factors, t, inside)
        dh = dot(du, w_fc1, dh, PRECISION)
    to = partial + 2 * D + 2 * F
    tl.store(to + 1, tl.sum(d_alpha, 0))
    tl.store(d_before + at, dh, inside)
    tl.debug_barrier()
    through_norm(
        kept,
        d_before,
        d_after,
        d_before,
        edge,
        inside,
        alpha2,
        vectors + D,
        partial,
        to,
        D,
        PRECISION,
    )


@triton.jit
def attention_half(
    kept,
    neighbours,
    matrices,
    vectors,
    d_after,
    d_before,
    factors,
    partial,
    total,
    limit,
    K: tl.constexpr,
    SET: tl.constexpr,
    D: tl.constexpr,
    F: tl.constexpr,
    HEAD: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """The stream's gradient before an attention, and factors and sums."""
    COLUMNS: tl.constexpr = 4 * D + 2 * F
    tile = tl.program_id(0)
    first, _, edge, _, inside, exists = tile_rows(neighbours, tile, total, limit, K, SET, ROWS)
    inside = inside[:, None]
    wide = tl.arange(0, D)
    some = tl.arange(0, GROUP)
    kept += first * (K * D)
    d_after += first * (K * D)
    d_before += first * (K * D)
    factors += first * (K * COLUMNS)
    at = edge[:, None] * D + wide[None, :]
    to_factors = edge[:, None] * COLUMNS + some[None, :]
    alpha1 = tl.load(vectors + 3 * D + 2 * F)
    gamma1 = tl.load(vectors + wide)[None, :]
    key = set_keys(exists, K, SET, GROUP, HEAD)
    h = normed(tl.load(kept + at, inside, 0.0), alpha1, gamma1, PRECISION)
    d = tl.load(d_after + at, inside, 0.0)
    dh = tl.zeros((ROWS, D), tl.float32)
    for g in range(0, D, GROUP):
        w = matrices + (g + some)[:, None] * D + wide[None, :]
        w_q = tl.load(w)
        w_k = tl.load(w + D * D)
        w_v = tl.load(w + 2 * D * D)
        q, k, v, p, mixed = attention_parts(h, key, w_q, w_k, w_v, K, SET, HEAD, PRECISION)
        tl.store(factors + 3 * D + F + g + to_factors, mixed, inside)
        w_out = tl.load(matrices + 3 * D * D + wide[:, None] * D + (g + some)[None, :])
        do = dot(d, w_out, tl.zeros((ROWS, GROUP), tl.float32), PRECISION)
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
    to = partial + 2 * D + 2 * F + 2
    tl.store(d_before + at, dh, inside)
    tl.debug_barrier()
    through_norm(
        kept,
        d_before,
        d_after,
        d_before,
        edge,
        inside,
        alpha1,
        vectors,
        to,
        to + D,
        D,
        PRECISION,
    )


@triton.jit(do_not_specialize=["total", "limit"], do_not_specialize_on_alignment=["partial"])
def local_backward_kernel(
    d_out,
    neighbours,
    kept,
    matrices,
    vectors,
    d_stream,
    factors,
    partial,
    total,
    limit,
    kept_stride,
    K: tl.constexpr,
    K_PADDED: tl.constexpr,
    SET: tl.constexpr,
    D: tl.constexpr,
    C: tl.constexpr,
    F: tl.constexpr,
    HEAD: tl.constexpr,
    BLOCKS: tl.constexpr,
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """The stream's gradient through all blocks, the factors of the weights' gradients, and sums.

    ``d_stream``, (2 BLOCKS + 1, E, D): the gradients of what ``kept`` has, then of the last block's
    result. ``factors``, (BLOCKS, E, 4 D + 2 F): gradients of queries, keys, values and the hidden
    layer, what attention mixed, what fc2 takes. A tile's row of ``partial``: for each block the
    sums for gamma2, fc2's bias (D each), fc1's bias, gamma (F each), alpha2, alpha, gamma1 (D) and
    alpha1.
    """
    MATRICES: tl.constexpr = 4 * D * D + 2 * D * F
    VECTORS: tl.constexpr = 3 * D + 2 * F + 3
    tile = tl.program_id(0)
    edges = total.to(tl.int64) * K
    first, particle, edge, _, inside, exists = tile_rows(
        neighbours, tile, total, limit, K, SET, ROWS
    )
    d = mean_gradient(d_out, neighbours, first + particle, inside, exists, limit, K, K_PADDED, D)
    at = first * (K * D) + edge[:, None] * D + tl.arange(0, D)[None, :]
    tl.store(d_stream + 2 * BLOCKS * edges * D + at, d, inside[:, None])
    for half in range(2 * BLOCKS - 1, -1, -1):
        tl.debug_barrier()  # what other threads wrote of the stream's gradient
        block = half // 2
        before = kept + half * kept_stride.to(tl.int64)
        d_before = d_stream + half * edges * D
        m = matrices + D * C + block * MATRICES
        v = vectors + 9 * C + D + 1 + block * VECTORS
        of_block = factors + block * edges * (4 * D + 2 * F)
        sums = partial + (tile.to(tl.int64) * BLOCKS + block) * VECTORS
        if half % 2:
            mlp_half(
                before,
                neighbours,
                m,
                v,
                d_before + edges * D,
                d_before,
                of_block,
                sums,
                total,
                limit,
                K,
                SET,
                D,
                F,
                NORM,
                PRECISION,
                ROWS,
                CHUNK,
            )
        else:
            attention_half(
                before,
                neighbours,
                m,
                v,
                d_before + edges * D,
                d_before,
                of_block,
                sums,
                total,
                limit,
                K,
                SET,
                D,
                F,
                HEAD,
                PRECISION,
                ROWS,
                GROUP,
            )


@triton.jit(do_not_specialize=["edges", "run"], do_not_specialize_on_alignment=["slab"])
def local_weights_backward_kernel(
    factors,
    d_stream,
    kept,
    vectors,
    slab,
    edges,
    run,
    kept_stride,
    slab_stride,
    D: tl.constexpr,
    C: tl.constexpr,
    F: tl.constexpr,
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    WIDE: tl.constexpr,
    DEEP: tl.constexpr,
):
    """left^T right over a run of edges: of qkv and fc1 where NORM, of out and fc2 else.

    The first two have a DynamicTanh of what was kept on the right, computed here.
    """
    MATRICES: tl.constexpr = 4 * D * D + 2 * D * F
    VECTORS: tl.constexpr = 3 * D + 2 * F + 3
    COLUMNS: tl.constexpr = 4 * D + 2 * F
    IN: tl.constexpr = D if NORM else D + F
    tile = tl.program_id(0)
    block = tl.program_id(2)
    first = tl.program_id(1).to(tl.int64) * run
    last = tl.minimum(first + run, edges)
    o = tile // (IN // DEEP) * WIDE
    i = tile % (IN // DEEP) * DEEP
    factors += (block * edges.to(tl.int64) + first) * COLUMNS
    slab += tl.program_id(1).to(tl.int64) * slab_stride + block * MATRICES
    wide = tl.arange(0, WIDE)
    deep = tl.arange(0, DEEP)
    if NORM:
        of_mlp = (o >= 3 * D).to(tl.int32)
        vectors += 9 * C + D + 1 + block * VECTORS
        alpha = tl.load(vectors + 3 * D + 2 * F + of_mlp)
        gamma = tl.load(vectors + of_mlp * D + i + deep)[None, :]
        left = factors + o
        right = kept + (2 * block + of_mlp) * kept_stride.to(tl.int64) + first * D + i
        to = slab + (o + of_mlp * D + wide)[:, None] * D + (i + deep)[None, :]
    else:
        of_mlp = (i >= D).to(tl.int32)
        left = d_stream + ((2 * block + 1 + of_mlp) * edges.to(tl.int64) + first) * D + o
        right = factors + 3 * D + F + i
        to = slab + (3 + of_mlp) * D * D + of_mlp * F * D
        to += (o + wide)[:, None] * (D + of_mlp * (F - D)) + (i - of_mlp * D + deep)[None, :]
    LEFT: tl.constexpr = COLUMNS if NORM else D
    RIGHT: tl.constexpr = D if NORM else COLUMNS
    acc = tl.zeros((WIDE, DEEP), tl.float32)
    for base in range(0, (last - first).to(tl.int32), ROWS):
        row = base + tl.arange(0, ROWS)
        inside = (row < (last - first))[:, None]
        row = row[:, None].to(tl.int64)
        a = tl.load(left + row * LEFT + wide[None, :], inside, 0.0)
        b = tl.load(right + row * RIGHT + deep[None, :], inside, 0.0)
        if NORM:
            b = normed(b, alpha, gamma, PRECISION)
        acc = dot(tl.trans(a), b, acc, PRECISION)
    tl.store(to, acc)


@triton.jit(do_not_specialize=["total", "limit", "tiles"], do_not_specialize_on_alignment=["slab"])
def local_embed_backward_kernel(
    centres,
    particles,
    neighbours,
    d_stream,
    matrices,
    vectors,
    slab,
    total,
    limit,
    tiles,
    slab_stride,
    K: tl.constexpr,
    SET: tl.constexpr,
    D: tl.constexpr,
    C: tl.constexpr,
    EMBED_NORM: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """``embed_gradients`` of fixed runs of tiles, a chunk of the hidden layer each."""
    embed_gradients(
        centres,
        particles,
        neighbours,
        d_stream,
        matrices,
        vectors,
        slab + tl.program_id(1).to(tl.int64) * slab_stride,
        total,
        limit,
        tl.program_id(0),
        tl.program_id(1),
        tiles,
        tl.num_programs(1),
        K,
        SET,
        D,
        C,
        EMBED_NORM,
        PRECISION,
        ROWS,
        CHUNK,
    )


def narrow(shape: Shape, precision: str) -> bool:
    """Whether the weights' gradients stay on chip; in "ieee" there are too few registers."""
    return shape.width <= NARROW[precision]


def embed_row(shape: Shape, chunk: int) -> int:
    """Elements of the sums of ``embed_gradients``."""
    c, width = shape.embed_hidden, shape.width
    return (width + 17) * c + width + c // chunk


def embed_chunk(shape: Shape, precision: str, device: torch.device) -> int:
    """Hidden units of the embedding that a program holds at a time."""
    name = "local_narrow_backward" if narrow(shape, precision) else "local_embed_backward"
    return settings_of(name, shape, precision, device)["CHUNK"]


def gradient_sizes(
    shape: Shape, precision: str, device: torch.device
) -> tuple[tuple[int, ...], ...]:
    """Sizes of what ``backward`` returns."""
    return (
        (embed_row(shape, embed_chunk(shape, precision, device)),),
        (shape.blocks, shape.matrix_size),
        (shape.blocks, shape.vector_size),
    )


def by_name(sums: Sequence[Tensor], shape: Shape) -> tuple[MLPParameters, list[BlockParameters]]:
    """The gradients of each weight, views of what ``backward`` returned."""
    embed, matrices, vectors = sums
    d, c, f = shape.width, shape.embed_hidden, shape.hidden
    fc2, fc1, gamma, bias2, alpha = embed.split(
        [d * c, 16 * c, c, d, len(embed) - (d + 17) * c - d]
    )
    fc1 = fc1.view(c, 16)
    d_embed = MLPParameters(
        fc1[:, :7], fc1[:, 7], alpha.sum().view(1), gamma, fc2.view(d, c), bias2
    )
    made = []
    for m, v in zip(matrices, vectors, strict=True):
        qkv, out, fc1, fc2 = m.split([3 * d * d, d * d, f * d, d * f])
        gamma2, bias2, bias1, gamma, alpha2, alpha, gamma1, alpha1 = v.split(
            [d, d, f, f, 1, 1, d, 1]
        )
        mlp = MLPParameters(fc1.view(f, d), bias1, alpha, gamma, fc2.view(d, f), bias2)
        made.append(
            BlockParameters(alpha1, gamma1, qkv.view(3 * d, d), out.view(d, d), alpha2, gamma2, mlp)
        )
    return d_embed, made


def backward(
    d_out: Tensor,
    particles: Tensor,
    neighbours: Tensor,
    kept: Tensor,
    matrices: Tensor,
    vectors: Tensor,
    shape: Shape,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of the gradients of all weights in float32.

    Returns:
        For the embedding as ``embed_gradients`` has them; for each block its matrices, and the
        vectors' as ``local_backward_kernel`` has them.
    """
    run = _narrow_backward if narrow(shape, precision) else _factor_backward
    with on_device(particles):
        return run(d_out, particles, neighbours, kept, matrices, vectors, shape, precision)


def _sums(like: Tensor, *size: int) -> Tensor:
    return torch.empty(size, dtype=torch.float32, device=like.device)


def _narrow_backward(
    d_out: Tensor,
    particles: Tensor,
    neighbours: Tensor,
    kept: Tensor,
    matrices: Tensor,
    vectors: Tensor,
    shape: Shape,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor]:
    settings = settings_of("local_narrow_backward", shape, precision, particles.device)
    total, k, rows = len(particles), shape.k, settings["ROWS"]
    tiles = tiles_of(total, shape, settings)
    programs = min(tiles, _processors(particles) * RESIDENT_WARPS // settings["num_warps"])
    rounds = triton.cdiv(tiles * rows, max(programs, 1) * ROUND_ROWS)
    step = triton.cdiv(tiles, max(rounds, 1)) * (rows // set_rows(k)) * (set_rows(k) // k)
    of_blocks = shape.blocks * shape.matrix_size
    partial = _sums(particles, tiles, shape.blocks, shape.vector_size)
    row = of_blocks + embed_row(shape, settings["CHUNK"])
    slab = _sums(particles, min(rounds, SLABS), programs, row)
    scratch = kept.new_empty(2, step * k, shape.width)
    sums = _sums(particles, row).zero_()
    for i, start in enumerate(range(0, total, max(step, 1))):
        n = min(step, total - start)
        local_narrow_backward_kernel[(programs,)](
            d_out[start:],
            particles[start:],
            particles,
            neighbours[start:],
            kept[:, start * k :],
            matrices,
            vectors,
            *scratch,
            partial[tiles_of(start, shape, settings) :],
            slab[i % SLABS],
            n,
            total,
            tiles_of(n, shape, settings),
            1,
            kept.stride(0),
            slab.stride(1),
            K_PADDED=triton.next_power_of_2(k),
            **shape.constants,
            **shape.depth,
            PRECISION=precision,
            **settings,
        )
        if i % SLABS == SLABS - 1 or start + n == total:
            sums += slab[: i % SLABS + 1].sum((0, 1))
    of_embed = sums[of_blocks:].clone()  # results share no memory
    return of_embed, sums[:of_blocks].view(shape.blocks, -1), partial.sum(0)


def _processors(tensor: Tensor) -> int:
    """Streaming multiprocessors of the tensor's GPU; few in the interpreter, to share the tiles."""
    if not tensor.is_cuda:
        return 1
    return int(torch.cuda.get_device_properties(tensor.device).multi_processor_count)


def _factor_backward(
    d_out: Tensor,
    particles: Tensor,
    neighbours: Tensor,
    kept: Tensor,
    matrices: Tensor,
    vectors: Tensor,
    shape: Shape,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Takes the particles a bounded number at a time."""
    k, width, f, blocks = shape.k, shape.width, shape.hidden, shape.blocks
    device, total = particles.device, len(particles)
    s_stream, s_weights, s_embed = (
        settings_of(f"local_{name}backward", shape, precision, device)
        for name in ("", "weights_", "embed_")
    )
    row = (2 * blocks + 1) * width + blocks * (4 * width + 2 * f)
    step = max(FACTOR_BYTES // (k * row * kept.element_size()) // 16 * 16, 16)
    run = triton.cdiv(max(1024, triton.cdiv(min(step, total) * k, 48)), 64) * 64
    starts = range(0, total, step)
    sizes = [min(step, total - start) for start in starts]
    tiles = [tiles_of(n, shape, s_stream) for n in sizes]
    runs = [triton.cdiv(n * k, run) for n in sizes]
    embed_tiles = [tiles_of(n, shape, s_embed) for n in sizes]
    embed_runs = [min(n, 64) for n in embed_tiles]
    partial = _sums(particles, sum(tiles), blocks, shape.vector_size)
    slab = _sums(particles, sum(runs), blocks, shape.matrix_size)
    embed_slab = _sums(particles, sum(embed_runs), embed_row(shape, s_embed["CHUNK"]))
    edges = max(sizes, default=0) * k
    d_stream = kept.new_empty((2 * blocks + 1) * edges * width)
    factors = kept.new_empty(blocks * edges * (4 * width + 2 * f))
    constants = shape.constants
    for i, (start, n) in enumerate(zip(starts, sizes, strict=True)):
        near, inputs = neighbours[start : start + n], kept[:, start * k :]
        local_backward_kernel[(tiles[i],)](
            d_out[start:],
            near,
            inputs,
            matrices,
            vectors,
            d_stream,
            factors,
            partial[sum(tiles[:i]) :],
            n,
            total,
            kept.stride(0),
            K_PADDED=triton.next_power_of_2(k),
            **constants,
            BLOCKS=blocks,
            NORM=shape.norm,
            PRECISION=precision,
            **s_stream,
        )
        for norm, out, deep in ((True, 3 * width + f, width), (False, width, width + f)):
            tile = out // s_weights["WIDE"] * (deep // s_weights["DEEP"])
            local_weights_backward_kernel[(tile, runs[i], blocks)](
                factors,
                d_stream,
                inputs,
                vectors,
                slab[sum(runs[:i]) :],
                n * k,
                run,
                kept.stride(0),
                slab.stride(0),
                **{name: constants[name] for name in ("D", "C", "F")},
                NORM=norm,
                PRECISION=precision,
                **s_weights,
            )
        local_embed_backward_kernel[(shape.embed_hidden // s_embed["CHUNK"], embed_runs[i])](
            particles[start:],
            particles,
            near,
            d_stream,
            matrices,
            vectors,
            embed_slab[sum(embed_runs[:i]) :],
            n,
            total,
            embed_tiles[i],
            embed_slab.stride(0),
            **{name: constants[name] for name in ("K", "SET", "D", "C")},
            EMBED_NORM=shape.embed_norm,
            PRECISION=precision,
            **s_embed,
        )
    return embed_slab.sum(0), slab.sum(0), partial.sum(0)


def compile_cases() -> Iterator[CompileCase]:
    """Every kernel at the sizes of micro and small, at the precisions that run on them."""
    for label, shape, precision in preset_shapes():
        store = TYPES[stored(precision)]
        tensors = {
            **dict.fromkeys(("particles", "centres", "d_out"), data_type(precision)),
            "neighbours": "*i64",
            **dict.fromkeys(("matrices", "kept", "d_stream", "d_half", "factors"), store),
            **dict.fromkeys(("vectors", "partial", "slab"), "*fp32"),
            **dict.fromkeys(("total", "limit", "edges", "run", "tiles", "always"), "i32"),
            "kept_stride": "i64",
            "slab_stride": "i32",
        }
        given = {
            **tensors,
            **shape.constants,
            **shape.depth,
            "K_PADDED": triton.next_power_of_2(shape.k),
            "PRECISION": precision,
        }
        if narrow(shape, precision):
            kernels = [local_narrow_backward_kernel]
        else:
            kernels = [local_backward_kernel, local_weights_backward_kernel]
            kernels += [local_weights_backward_kernel, local_embed_backward_kernel]
        for i, kernel in enumerate(kernels):
            row = (kernel_name(kernel), table_key(shape, precision))
            settings = default_settings(row[0], shape, precision)
            norm = {"NORM": False} if i == 2 else {}
            values = {**given, **settings, **norm}
            arguments = {name: values[name] for name in kernel.arg_names}
            yield CompileCase(kernel, label, arguments, settings, row)
