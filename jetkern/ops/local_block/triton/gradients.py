"""Device functions of both backwards of the fused local block: gradients within a tile."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from jetkern.ops.gpu.functions import dot, gelu_and_slope
from jetkern.ops.local_block.triton.tiles import (
    batch_dot,
    denominator,
    edge_features,
    embed_hidden,
    factor,
    join_queries,
    norm_tanh,
    probabilities,
    split_keys,
    split_queries,
    tile_rows,
)


class Half(NamedTuple):
    """The residual stream around a half of a block, (E, D) each.

    ``kept``: before the half. Gradients: ``d_half`` of the half's DynamicTanh, ``d_after`` and
    ``d_before`` of the stream; the last may be the memory of either other.
    """

    kept: Any
    d_half: Any
    d_after: Any
    d_before: Any


class Norm(NamedTuple):
    """A DynamicTanh's weights, or where their gradients go."""

    gamma: Any
    alpha: Any


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
def attention_parts(h, key, w_q, w_k, w_v, SHAPE: tl.constexpr, PRECISION: tl.constexpr):
    """Queries, keys, values and probabilities of a group of heads, what the last product takes."""
    SET: tl.constexpr = SHAPE.SET
    HEAD: tl.constexpr = SHAPE.HEAD
    zero = tl.zeros((h.shape[0], w_q.shape[0]), tl.float32)
    q = split_queries(dot(h, tl.trans(w_q), zero, PRECISION), SET, HEAD)
    k = split_keys(factor(dot(h, tl.trans(w_k), zero, PRECISION), PRECISION), SET, HEAD)
    v = split_keys(factor(dot(h, tl.trans(w_v), zero, PRECISION), PRECISION), SET, HEAD)
    p = factor(probabilities(q, k, key, SHAPE.K, HEAD, PRECISION), PRECISION)
    mixed = join_queries(batch_dot(p, v, PRECISION), w_q.shape[0], SET, HEAD)
    return q, k, v, p, mixed


@triton.jit
def score_gradients(do, v, p, HEAD: tl.constexpr, PRECISION: tl.constexpr):
    """Of the scores before their scale, from the gradient of the result."""
    dp = batch_dot(do, tl.permute(v, (0, 2, 1)), PRECISION)
    p = p.to(tl.float32)
    return factor(p * (dp - tl.sum(p * dp, 2)[:, :, None]) * (HEAD**-0.5), PRECISION)


@triton.jit
def through_norm(half, edge, inside, weights, sums, D: tl.constexpr, PRECISION: tl.constexpr):
    """Writes the stream's gradient before a half, and the sums for its DynamicTanh.

    Some columns at a time, for want of registers.
    """
    MOST: tl.constexpr = 64 if PRECISION == "bf16" else 32
    COLUMNS: tl.constexpr = D if D < MOST else MOST
    part = tl.arange(0, COLUMNS)
    at = edge[:, None] * D + part[None, :]
    alpha = tl.load(weights.alpha)
    d_alpha = tl.zeros((edge.shape[0],), tl.float32)
    for c in range(0, D, COLUMNS):
        x = tl.load(half.kept + at + c, inside, 0.0).to(tl.float32)
        d = tl.load(half.d_after + at + c, inside, 0.0).to(tl.float32)
        dh = tl.load(half.d_half + at + c, inside, 0.0).to(tl.float32)
        y = norm_tanh(alpha * x, PRECISION)
        tl.store(sums.gamma + c + part, tl.sum(dh * y, 0))
        dh = dh * tl.load(weights.gamma + c + part)[None, :] * (1.0 - y * y)
        d_alpha += tl.sum(dh * x, 1)
        tl.store(half.d_before + at + c, d + alpha * dh, inside)
    tl.store(sums.alpha, tl.sum(d_alpha, 0))


@triton.jit
def mean_gradient(d_out, batch, particle, inside, exists, SHAPE: tl.constexpr):
    """The gradient of each edge's row, from that of the particles' means."""
    D: tl.constexpr = SHAPE.D
    number = denominator(batch.neighbours, particle, inside, batch.limit, SHAPE.K, SHAPE.K_PADDED)
    at = particle[:, None] * D + tl.arange(0, D)[None, :]
    return tl.load(d_out + at, exists[:, None], 0.0).to(tl.float32) / number[:, None]


@triton.jit
def embed_gradients(
    batch,
    d_stream,
    weights,
    slab,
    chunk,
    start,
    stop,
    step,
    SHAPE: tl.constexpr,
    SUMS: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Gradients of a chunk of the embedding's hidden layer, from every ``step``-th tile.

    ``slab`` is of ``EmbedSums``, at SUMS.
    """
    FEATURES: tl.constexpr = "tf32" if PRECISION == "bf16" else PRECISION
    K: tl.constexpr = SHAPE.K
    D: tl.constexpr = SHAPE.D
    C: tl.constexpr = SHAPE.C
    EMBED: tl.constexpr = SHAPE.EMBED
    vectors = weights.vectors
    part = chunk * CHUNK + tl.arange(0, CHUNK)
    wide = tl.arange(0, D)
    lane = tl.arange(0, 16)[None, :]
    alpha = tl.load(vectors + EMBED.alpha)
    gamma = tl.load(vectors + EMBED.gamma + part)[None, :]
    w = tl.load(weights.matrices + wide[:, None] * C + part[None, :])
    d_fc2 = tl.zeros((D, CHUNK), tl.float32)
    d_fc1 = tl.zeros((CHUNK, 16), tl.float32)
    d_gamma = tl.zeros((CHUNK,), tl.float32)
    d_bias = tl.zeros((D,), tl.float32)
    d_alpha = tl.zeros((ROWS,), tl.float32)
    for tile in range(start, stop, step):
        first, particle, edge, other, inside, exists = tile_rows(batch, tile, SHAPE, ROWS)
        features = edge_features(
            batch.centres + first * 4, batch.particles, particle, other, inside, exists
        )
        h = embed_hidden(features, vectors, part, EMBED, ROWS, CHUNK)
        t, slope = gelu_and_slope(h, PRECISION)
        at = first * (K * D) + edge[:, None] * D + wide[None, :]
        d = tl.load(d_stream + at, inside[:, None], 0.0)
        d_bias += tl.sum(d.to(tl.float32), 0)
        dt = dot(d, w, tl.zeros((ROWS, CHUNK), tl.float32), PRECISION)
        if SHAPE.EMBED_NORM:
            y = norm_tanh(alpha * t, PRECISION)
            d_gamma += tl.sum(dt * y, 0)
            dt = dt * gamma * (1.0 - y * y)
            d_alpha += tl.sum(dt * t, 1)
            dt = alpha * dt
            t = y * gamma
        d_fc2 = dot(tl.trans(d), t, d_fc2, PRECISION)
        d_fc1 = dot(tl.trans(dt * slope), features, d_fc1, FEATURES)
    tl.store(slab + SUMS.fc2_weight + wide[:, None] * C + part[None, :], d_fc2)
    tl.store(slab + SUMS.fc1 + part[:, None] * 16 + lane, d_fc1)
    tl.store(slab + SUMS.gamma + part, d_gamma)
    tl.store(slab + SUMS.fc2_bias + wide, d_bias, (chunk == 0) & (wide < D))
    tl.store(slab + SUMS.alpha + chunk, tl.sum(d_alpha, 0))
