"""Device functions of the local block: tiles of edges, their features, attention within sets.

Rows of a tile come in sets of ``SET`` rows that hold ``SET // K`` neighbourhoods: K is not padded,
and attention is a batch of small products.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from jetkern.ops.gpu.functions import coarse_tanh, dot, exp2, reciprocal, tanh


class Batch(NamedTuple):
    """Neighbours (total, K) of a launch: rows of ``limit`` particles; others are no neighbours."""

    neighbours: Any
    total: Any
    limit: Any


@triton.jit
def tile_rows(batch, tile, SHAPE: tl.constexpr, ROWS: tl.constexpr):
    """A tile's first particle; of its rows particle and edge from there on, two masks.

    The masks: rows in range, and neighbours that exist.
    """
    K: tl.constexpr = SHAPE.K
    SET: tl.constexpr = SHAPE.SET
    row = tl.arange(0, ROWS)
    own = row % SET // K  # neighbourhood within the set
    first = tl.cast(tile, tl.int64) * (ROWS // SET * (SET // K))
    particle = row // SET * (SET // K) + own
    inside = (own < SET // K) & (particle < tl.minimum(batch.total - first, ROWS).to(tl.int32))
    edge = row // SET * (SET // K * K) + row % SET
    other = tl.load(batch.neighbours + first * K + edge, inside, -1)
    exists = (other >= 0) & (other < batch.limit)
    return first, particle, edge, inside, exists


@triton.jit
def embed_hidden(
    features, vectors, column, EMBED: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr
):
    """Columns of the embedding's first layer before its GELU, in float32 whatever the precision."""
    C: tl.constexpr = EMBED.gamma - EMBED.fc1_bias
    lane = tl.arange(0, 16)[:, None]
    column = column[None, :]
    weight = vectors + EMBED.fc1_weight + column * 7 + lane
    w = tl.load(weight, (lane < 7) & (column < C), 0.0)
    w += tl.load(vectors + EMBED.fc1_bias + column + lane * 0, (lane == 7) & (column < C), 0.0)
    return dot(features, w, tl.zeros((ROWS, CHUNK), tl.float32), "ieee")


@triton.jit
def norm_tanh(x, PRECISION: tl.constexpr):
    """tanh for a factor of a product at ``PRECISION``."""
    if PRECISION == "bf16":
        return coarse_tanh(x)
    return tanh(x)


@triton.jit
def factor(x, PRECISION: tl.constexpr):
    """What a product at ``PRECISION`` makes of it, before it moves."""
    if PRECISION == "bf16":
        return x.to(tl.bfloat16)
    else:
        return x


@triton.jit
def normed(x, alpha, gamma, PRECISION: tl.constexpr):
    """DynamicTanh as the factor of a product."""
    return factor(norm_tanh(alpha * x.to(tl.float32), PRECISION) * gamma, PRECISION)


@triton.jit
def batch_dot(a, b, PRECISION: tl.constexpr):
    """a b of each of a batch; of one alone as a plain product, which all warps share."""
    BATCH: tl.constexpr = a.shape[0]
    M: tl.constexpr = a.shape[1]
    N: tl.constexpr = b.shape[2]
    if BATCH == 1:
        a = tl.reshape(a, (M, a.shape[2]))
        b = tl.reshape(b, (b.shape[1], N))
        return tl.reshape(dot(a, b, tl.zeros((M, N), tl.float32), PRECISION), (1, M, N))
    else:
        return dot(a, b, tl.zeros((BATCH, M, N), tl.float32), PRECISION)


@triton.jit
def heads_apart(x, SET: tl.constexpr, HEAD: tl.constexpr):
    """(ROWS, GROUP) to (sets x heads, SET, HEAD)."""
    HEADS: tl.constexpr = x.shape[1] // HEAD
    SETS: tl.constexpr = x.shape[0] // SET
    x = tl.permute(tl.reshape(x, (SETS, SET, HEADS, HEAD)), (0, 2, 1, 3))
    return tl.reshape(x, (SETS * HEADS, SET, HEAD))


@triton.jit
def heads_together(x, GROUP: tl.constexpr):
    """(sets x heads, SET, HEAD) to (ROWS, GROUP)."""
    HEADS: tl.constexpr = GROUP // x.shape[2]
    SETS: tl.constexpr = x.shape[0] // HEADS
    x = tl.permute(tl.reshape(x, (SETS, HEADS, x.shape[1], x.shape[2])), (0, 2, 1, 3))
    return tl.reshape(x, (SETS * x.shape[1], GROUP))


@triton.jit
def of_head(x, HEAD: tl.constexpr):
    """(sets, heads, SET, GROUP) without the columns of other heads."""
    mine = tl.arange(0, x.shape[1])[:, None] == tl.arange(0, x.shape[3])[None, :] // HEAD
    return tl.where(mine[None, :, None, :], x, 0.0)


@triton.jit
def split_queries(x, SET: tl.constexpr, HEAD: tl.constexpr):
    """(ROWS, GROUP) to the left factors of each head's products with keys or values.

    Heads of 16 and more are a batch. Products are at least 16 deep: narrower heads stand below each
    other with the columns of the others zero, (sets, heads x SET, GROUP), so that all multiply the
    same keys.
    """
    SETS: tl.constexpr = x.shape[0] // SET
    GROUP: tl.constexpr = x.shape[1]
    HEADS: tl.constexpr = GROUP // HEAD
    if HEADS == 1:
        return tl.reshape(x, (SETS, SET, GROUP))
    elif HEAD >= 16:
        return heads_apart(x, SET, HEAD)
    else:
        x = tl.reshape(x, (SETS, 1, SET, GROUP))
        x = of_head(tl.broadcast_to(x, (SETS, HEADS, SET, GROUP)), HEAD)
        return tl.reshape(x, (SETS, HEADS * SET, GROUP))


@triton.jit
def join_queries(x, GROUP: tl.constexpr, SET: tl.constexpr, HEAD: tl.constexpr):
    """Results with a row for each query to (ROWS, GROUP)."""
    HEADS: tl.constexpr = GROUP // HEAD
    SETS: tl.constexpr = x.shape[0]
    if HEADS == 1:
        return tl.reshape(x, (SETS * SET, GROUP))
    elif HEAD >= 16:
        return heads_together(x, GROUP)
    else:
        x = of_head(tl.reshape(x, (SETS, HEADS, SET, GROUP)), HEAD)
        return tl.reshape(tl.sum(x, 1), (SETS * SET, GROUP))


@triton.jit
def split_keys(x, SET: tl.constexpr, HEAD: tl.constexpr):
    """(ROWS, GROUP) to the right factors of products with ``split_queries``."""
    if x.shape[1] // HEAD > 1 and HEAD >= 16:
        return heads_apart(x, SET, HEAD)
    else:
        return tl.reshape(x, (x.shape[0] // SET, SET, x.shape[1]))


@triton.jit
def join_keys(x, GROUP: tl.constexpr, SET: tl.constexpr, HEAD: tl.constexpr):
    """Results with a row for each key, sums over the queries of all heads, to (ROWS, GROUP)."""
    if GROUP // HEAD > 1 and HEAD >= 16:
        return heads_together(x, GROUP)
    else:
        return tl.reshape(x, (x.shape[0] * SET, GROUP))


@triton.jit
def set_keys(exists, K: tl.constexpr, SET: tl.constexpr, GROUP: tl.constexpr, HEAD: tl.constexpr):
    """Which neighbourhood of its set each of ``split_keys`` belongs to, -1 for none."""
    ROWS: tl.constexpr = exists.shape[0]
    HEADS: tl.constexpr = GROUP // HEAD if HEAD >= 16 else 1
    key = tl.where(exists, tl.arange(0, ROWS) % SET // K, -1)
    key = tl.broadcast_to(tl.reshape(key, (ROWS // SET, 1, SET)), (ROWS // SET, HEADS, SET))
    return tl.reshape(key, (ROWS // SET * HEADS, SET))


@triton.jit
def probabilities(q, k, key, K: tl.constexpr, HEAD: tl.constexpr, PRECISION: tl.constexpr):
    """Softmax of attention within neighbourhoods; a row without keys is zero."""
    SET: tl.constexpr = k.shape[1]
    s = batch_dot(q, tl.permute(k, (0, 2, 1)), PRECISION)
    query = tl.arange(0, q.shape[1]) % SET // K
    allowed = key[:, None, :] == query[None, :, None]
    s = tl.where(allowed, s * (1.4426950408889634 * HEAD**-0.5), -1e30)
    p = tl.where(allowed, exp2(s - tl.max(s, 2)[:, :, None]), 0.0)
    return p * reciprocal(tl.maximum(tl.sum(p, 2), 1e-30))[:, :, None]


@triton.jit
def rows_of_set(
    neighbours, tile, total, limit, K: tl.constexpr, SET: tl.constexpr, SETS: tl.constexpr
):
    """(SETS, SET) of the rows of whole sets: edge, whether in range, key as in ``set_keys``."""
    row = tl.arange(0, SET)
    own = (row // K)[None, :]
    sets = (tile * SETS + tl.arange(0, SETS)).to(tl.int64)
    particle = sets[:, None] * (SET // K) + own
    inside = (own < SET // K) & (particle < total)
    edge = particle * K + (row % K)[None, :]
    other = tl.load(neighbours + edge, inside, -1)
    return edge, inside, tl.where((other >= 0) & (other < limit), own, -1)


@triton.jit
def denominator(neighbours, particle, inside, limit, K: tl.constexpr, K_PADDED: tl.constexpr):
    """What the mean divides by: number of neighbours + 1e-9 K."""
    slot = tl.arange(0, K_PADDED)
    there = inside[:, None] & (slot < K)[None, :]
    other = tl.load(neighbours + particle[:, None] * K + slot[None, :], there, -1)
    number = tl.sum(((other >= 0) & (other < limit)).to(tl.float32), 1)
    return number + 1e-9 * K
