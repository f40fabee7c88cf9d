"""The local block of narrow models (width 16 to 128) as fused Triton kernels.

Forward is one kernel: a program takes a tile of whole neighbourhoods from the particles to their
means, and weights stream from the second-level cache, a group of heads or a chunk of the hidden
layer at a time. Rows of a tile come in sets of ``SET`` rows that hold ``SET // K`` neighbourhoods:
K is not padded, and attention is a batch of small products, one for each set and head.

To train, forward keeps the input of each block and what it is after the attention, (E, D) each.
Backward then is two kernels for each block, one for its MLP and one for its attention. They
recompute what lies between and write what the gradients of the matrices are products of; those
products are sums over fixed runs of edges, added in a fixed order. Gradients of the embedding,
whose input is narrow, stay on chip.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from jetkern.ops.parameters import BlockParameters, MLPParameters
from jetkern.ops.triton_tools import (
    TYPES,
    CompileCase,
    Settings,
    coarse_tanh,
    dot,
    exp2,
    gelu,
    gelu_and_slope,
    launch_settings,
    on_device,
    pair_features,
    reciprocal,
    tanh,
)

MEAN_BACKWARD: Settings = {"ROWS": 32, "COLUMNS": 64, "num_warps": 4, "num_stages": 1}
# The widest that the fused kernels take. In "ieee" factors take three times the registers.
WIDEST = {"ieee": 32, "tf32": 128, "bf16": 128}
MAX_NEIGHBOURS = 64
OPERAND_BYTES = 256 * 2**20  # of the operands of the weight gradients that exist at a time


@triton.jit
def tile_rows(
    neighbours,
    tile,
    total,
    limit,
    K: tl.constexpr,
    SET: tl.constexpr,
    ROWS: tl.constexpr,
):
    """A tile's first particle; of its rows particle and edge from there on, neighbour, two masks.

    The masks: rows in range, and neighbours that exist.
    """
    row = tl.arange(0, ROWS)
    own = row % SET // K  # neighbourhood within the set
    first = tl.cast(tile, tl.int64) * (ROWS // SET * (SET // K))
    particle = row // SET * (SET // K) + own
    inside = (own < SET // K) & (particle < tl.minimum(total - first, ROWS).to(tl.int32))
    edge = row // SET * (SET // K * K) + row % SET
    other = tl.load(neighbours + first * K + edge, inside, -1)
    exists = (other >= 0) & (other < limit)
    return first, particle, edge, other, inside, exists


@triton.jit
def edge_features(centres, particles, particle, other, inside, exists):
    """(ROWS, 16) float32: the seven inputs of the embedding, a one for its bias, zeros."""
    p = centres + particle * 4
    eta_i = tl.load(p, inside, 0.0).to(tl.float32)
    phi_i = tl.load(p + 1, inside, 0.0).to(tl.float32)
    pt_i = tl.load(p + 2, inside, 0.0).to(tl.float32)
    e_i = tl.load(p + 3, inside, 0.0).to(tl.float32)
    p = particles + other * 4
    eta_j = tl.load(p, exists, 0.0).to(tl.float32)
    phi_j = tl.load(p + 1, exists, 0.0).to(tl.float32)
    pt_j = tl.load(p + 2, exists, 0.0).to(tl.float32)
    e_j = tl.load(p + 3, exists, 0.0).to(tl.float32)
    m2, r, kt = pair_features(eta_i, phi_i, pt_i, eta_j, phi_j, pt_j)
    lane = tl.arange(0, 16)[None, :]
    f = tl.where(lane == 0, (eta_i - eta_j)[:, None], tl.where(lane == 7, 1.0, 0.0))
    f = tl.where(lane == 1, (phi_i - phi_j)[:, None], f)
    f = tl.where(lane == 2, (pt_i - pt_j)[:, None], f)
    f = tl.where(lane == 3, (e_i - e_j)[:, None], f)
    f = tl.where(lane == 4, m2[:, None], tl.where(lane == 5, r[:, None], f))
    return tl.where(lane == 6, kt[:, None], f)


@triton.jit
def embed_hidden(
    features, weight, bias, column, C: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr
):
    """Columns of the embedding's first layer before its GELU, in float32 whatever the precision."""
    lane = tl.arange(0, 16)[:, None]
    column = column[None, :]
    w = tl.load(weight + column * 7 + lane, (lane < 7) & (column < C), 0.0)
    w += tl.load(bias + column + lane * 0, (lane == 7) & (column < C), 0.0)
    return dot(features, w, tl.zeros((ROWS, CHUNK), tl.float32), "ieee")


@triton.jit
def norm_tanh(x, PRECISION: tl.constexpr):
    """tanh for a factor of a product at ``PRECISION``."""
    if PRECISION == "bf16":
        return coarse_tanh(x)
    return tanh(x)


@triton.jit
def batch_dot(a, b, BATCH: tl.constexpr, PRECISION: tl.constexpr):
    """a b of each of a batch; of one alone as a plain product, which all warps share."""
    M: tl.constexpr = a.shape[1]
    N: tl.constexpr = b.shape[2]
    if BATCH == 1:
        a = tl.reshape(a, (M, a.shape[2]))
        b = tl.reshape(b, (b.shape[1], N))
        return tl.reshape(dot(a, b, tl.zeros((M, N), tl.float32), PRECISION), (1, M, N))
    else:
        return dot(a, b, tl.zeros((BATCH, M, N), tl.float32), PRECISION)


@triton.jit
def split_heads(
    x,
    ROWS: tl.constexpr,
    SET: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD: tl.constexpr,
    MASK: tl.constexpr,
):
    """(ROWS, GROUP) to (sets x heads, SET, GROUP), other heads' columns zeroed where MASK."""
    HEADS: tl.constexpr = GROUP // HEAD
    x = tl.reshape(x, (ROWS // SET, SET, GROUP))
    if HEADS > 1:
        x = tl.broadcast_to(x[:, None, :, :], (ROWS // SET, HEADS, SET, GROUP))
        if MASK:
            mine = tl.arange(0, HEADS)[:, None] == tl.arange(0, GROUP)[None, :] // HEAD
            x = tl.where(mine[None, :, None, :], x, 0.0)
        x = tl.reshape(x, (ROWS // SET * HEADS, SET, GROUP))
    return x


@triton.jit
def join_heads(x, ROWS: tl.constexpr, SET: tl.constexpr, GROUP: tl.constexpr, HEAD: tl.constexpr):
    """(sets x heads, SET, GROUP) to (ROWS, GROUP), each head giving its own columns."""
    HEADS: tl.constexpr = GROUP // HEAD
    if HEADS > 1:
        x = tl.reshape(x, (ROWS // SET, HEADS, SET, GROUP))
        mine = tl.arange(0, HEADS)[:, None] == tl.arange(0, GROUP)[None, :] // HEAD
        x = tl.sum(tl.where(mine[None, :, None, :], x, 0.0), 1)
    return tl.reshape(x, (ROWS, GROUP))


@triton.jit
def set_keys(exists, K: tl.constexpr, SET: tl.constexpr, ROWS: tl.constexpr, HEADS: tl.constexpr):
    """(sets x heads, SET): which neighbourhood of its set a row is a key of, -1 for none."""
    key = tl.where(exists, tl.arange(0, ROWS) % SET // K, -1)
    key = tl.broadcast_to(tl.reshape(key, (ROWS // SET, 1, SET)), (ROWS // SET, HEADS, SET))
    return tl.reshape(key, (ROWS // SET * HEADS, SET))


@triton.jit
def probabilities(
    q,
    k,
    key,
    K: tl.constexpr,
    SET: tl.constexpr,
    BATCH: tl.constexpr,
    HEAD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Softmax of attention within neighbourhoods; a row without keys is zero."""
    s = batch_dot(q, tl.permute(k, (0, 2, 1)), BATCH, PRECISION)
    allowed = key[:, None, :] == (tl.arange(0, SET) // K)[None, :, None]
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


@triton.jit(do_not_specialize=["total"])
def local_forward_kernel(
    particles,
    neighbours,
    matrices,
    vectors,
    out,
    kept,
    total,
    K: tl.constexpr,
    SET: tl.constexpr,
    D: tl.constexpr,
    C: tl.constexpr,
    F: tl.constexpr,
    HEAD: tl.constexpr,
    BLOCKS: tl.constexpr,
    EMBED_NORM: tl.constexpr,
    NORM: tl.constexpr,
    KEEP: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    GROUP: tl.constexpr,
):
    HEADS: tl.constexpr = GROUP // HEAD
    BATCH: tl.constexpr = ROWS // SET * HEADS
    tile = tl.program_id(0)
    first, particle, edge, other, inside, exists = tile_rows(
        neighbours, tile, total, total, K, SET, ROWS
    )
    wide = tl.arange(0, D)
    some = tl.arange(0, GROUP)
    part = tl.arange(0, CHUNK)
    features = edge_features(particles + first * 4, particles, particle, other, inside, exists)
    alpha = tl.load(vectors + 9 * C + D)
    x = tl.zeros((ROWS, D), tl.float32) + tl.load(vectors + 9 * C + wide)[None, :]
    for c in range(0, C, CHUNK):
        h = embed_hidden(features, vectors, vectors + 7 * C, c + part, C, ROWS, CHUNK)
        h = gelu(h, PRECISION)
        if EMBED_NORM:
            h = norm_tanh(alpha * h, PRECISION) * tl.load(vectors + 8 * C + c + part)[None, :]
        w = tl.load(matrices + wide[None, :] * C + (c + part)[:, None])
        x = dot(h, w, x, PRECISION)
    key = set_keys(exists, K, SET, ROWS, HEADS)
    kept += first * (K * D)
    kept_at = edge[:, None] * D + wide[None, :]
    kept_stride = total.to(tl.int64) * (K * D)
    w_qkv = matrices + D * C
    v = vectors + 9 * C + D + 1
    for _ in range(BLOCKS):
        w_out = w_qkv + 3 * D * D
        w_fc1 = w_out + D * D
        w_fc2 = w_fc1 + F * D
        if KEEP:
            tl.store(kept + kept_at, x, inside[:, None])
        h = norm_tanh(tl.load(v + 3 * D + 2 * F) * x, PRECISION) * tl.load(v + wide)[None, :]
        if PRECISION == "bf16":
            h = h.to(tl.bfloat16)
        for g in range(0, D, GROUP):
            w = w_qkv + (g + some)[None, :] * D + wide[:, None]
            zero = tl.zeros((ROWS, GROUP), tl.float32)
            q = split_heads(dot(h, tl.load(w), zero, PRECISION), ROWS, SET, GROUP, HEAD, True)
            k = dot(h, tl.load(w + D * D), zero, PRECISION)
            p = probabilities(
                q,
                split_heads(k, ROWS, SET, GROUP, HEAD, False),
                key,
                K,
                SET,
                BATCH,
                HEAD,
                PRECISION,
            )
            values = dot(h, tl.load(w + 2 * D * D), zero, PRECISION)
            values = split_heads(values, ROWS, SET, GROUP, HEAD, False)
            mixed = batch_dot(p, values, BATCH, PRECISION)
            mixed = join_heads(mixed, ROWS, SET, GROUP, HEAD)
            w = tl.load(w_out + wide[None, :] * D + (g + some)[:, None])
            x = dot(mixed, w, x, PRECISION)
        if KEEP:
            tl.store(kept + kept_stride + kept_at, x, inside[:, None])
            kept += 2 * kept_stride
        h = (
            norm_tanh(tl.load(v + 3 * D + 2 * F + 1) * x, PRECISION)
            * tl.load(v + D + wide)[None, :]
        )
        if PRECISION == "bf16":
            h = h.to(tl.bfloat16)
        alpha = tl.load(v + 3 * D + 2 * F + 2)
        x += tl.load(v + 2 * D + 2 * F + wide)[None, :]
        for c in range(0, F, CHUNK):
            w = tl.load(w_fc1 + (c + part)[None, :] * D + wide[:, None])
            t = dot(h, w, tl.zeros((ROWS, CHUNK), tl.float32), PRECISION)
            t = gelu(t + tl.load(v + 2 * D + c + part)[None, :], PRECISION)
            if NORM:
                t = norm_tanh(alpha * t, PRECISION) * tl.load(v + 2 * D + F + c + part)[None, :]
            w = tl.load(w_fc2 + wide[None, :] * F + (c + part)[:, None])
            x = dot(t, w, x, PRECISION)
        w_qkv = w_fc2 + D * F
        v += 3 * D + 2 * F + 3
    # Found again, for want of registers to keep it in.
    _, _, _, _, _, exists = tile_rows(neighbours, tile, total, total, K, SET, ROWS)
    x = tl.where(exists[:, None], x, 0.0)
    x = tl.reshape(x, (ROWS // SET, SET, D))
    member = tl.arange(0, SET) // K
    sets = tile.to(tl.int64) * (ROWS // SET) + tl.arange(0, ROWS // SET)
    for g in tl.static_range(SET // K):
        mean = tl.sum(tl.where((member == g)[None, :, None], x, 0.0), 1)
        number = tl.sum(tl.reshape(exists.to(tl.float32), (ROWS // SET, SET))
                        * (member == g)[None, :], 1)  # fmt: skip
        target = sets * (SET // K) + g
        mean = mean / (number + 1e-9 * K)[:, None]
        tl.store(out + target[:, None] * D + wide[None, :], mean, (target < total)[:, None])


@triton.jit(do_not_specialize=["total", "limit"])
def local_mean_backward_kernel(
    d_out,
    neighbours,
    dx,
    total,
    limit,
    K: tl.constexpr,
    K_PADDED: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    edge = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    particle = edge // K
    inside = particle < total
    other = tl.load(neighbours + edge, inside, -1)
    exists = (other >= 0) & (other < limit)
    number = denominator(neighbours, particle, inside, limit, K, K_PADDED)
    used = exists[:, None] & (column < D)[None, :]
    d = tl.load(d_out + particle[:, None] * D + column[None, :], used, 0.0).to(tl.float32)
    there = inside[:, None] & (column < D)[None, :]
    d = d / number[:, None]
    tl.store(dx + edge[:, None] * D + column[None, :], d, there)


@triton.jit(do_not_specialize=["edges"], do_not_specialize_on_alignment=["vectors", "partial"])
def local_mlp_backward_kernel(
    kept,
    d_out,
    matrices,
    vectors,
    d_middle,
    d_hidden,
    hidden,
    partial,
    edges,
    partial_stride,
    D: tl.constexpr,
    F: tl.constexpr,
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """One block's MLP: d_out to d_middle, and the factors of its weights' gradients.

    ``partial`` is a row of sums for each tile: gamma2, fc2's bias (D each), fc1's bias, gamma (F
    each), alpha2 and alpha. ``matrices`` and ``vectors`` are the block's.
    """
    tile = tl.program_id(0)
    first = tile.to(tl.int64) * ROWS
    row = tl.arange(0, ROWS)
    wide = tl.arange(0, D)
    part = tl.arange(0, CHUNK)
    inside = (first + row < edges)[:, None]
    at = row[:, None] * D + wide[None, :]
    kept += first * D
    d_out += first * D
    d_middle += first * D
    hidden += first * F
    d_hidden += first * F
    partial += tile.to(tl.int64) * partial_stride
    x = tl.load(kept + at, inside, 0.0).to(tl.float32)
    alpha2 = tl.load(vectors + 3 * D + 2 * F + 1)
    alpha = tl.load(vectors + 3 * D + 2 * F + 2)
    gamma2 = tl.load(vectors + D + wide)[None, :]
    h = norm_tanh(alpha2 * x, PRECISION) * gamma2
    d = tl.load(d_out + at, inside, 0.0)
    if PRECISION == "bf16":
        h = h.to(tl.bfloat16)
    w_fc1 = matrices + 4 * D * D
    w_fc2 = w_fc1 + F * D
    dh = tl.zeros((ROWS, D), tl.float32)
    d_alpha = tl.zeros((ROWS,), tl.float32)
    for c in range(0, F, CHUNK):
        w1 = tl.load(w_fc1 + (c + part)[:, None] * D + wide[None, :])
        w2 = tl.load(w_fc2 + wide[:, None] * F + (c + part)[None, :])
        u = dot(h, tl.trans(w1), tl.zeros((ROWS, CHUNK), tl.float32), PRECISION)
        t, slope = gelu_and_slope(u + tl.load(vectors + 2 * D + c + part)[None, :], PRECISION)
        dt = dot(d, w2, tl.zeros((ROWS, CHUNK), tl.float32), PRECISION)
        if NORM:
            gamma = tl.load(vectors + 2 * D + F + c + part)[None, :]
            y = norm_tanh(alpha * t, PRECISION)
            tl.store(partial + 2 * D + F + c + part, tl.sum(dt * y, 0))
            dt = dt * gamma * (1.0 - y * y)
            d_alpha += tl.sum(dt * t, 1)
            dt = alpha * dt
            t = y * gamma
        dt = dt * slope
        tl.store(partial + 2 * D + c + part, tl.sum(dt, 0))
        to = row[:, None] * F + (c + part)[None, :]
        tl.store(hidden + to, t, inside)
        tl.store(d_hidden + to, dt, inside)
        dh = dot(dt, w1, dh, PRECISION)
    x = tl.load(kept + at, inside, 0.0).to(tl.float32)
    d32 = tl.load(d_out + at, inside, 0.0).to(tl.float32)
    y = norm_tanh(alpha2 * x, PRECISION)
    tl.store(partial + wide, tl.sum(dh * y, 0))
    tl.store(partial + D + wide, tl.sum(d32, 0))
    dh = dh * gamma2 * (1.0 - y * y)
    tl.store(d_middle + at, d32 + alpha2 * dh, inside)
    tl.store(partial + 2 * D + 2 * F, tl.sum(tl.sum(dh * x, 1), 0))
    tl.store(partial + 2 * D + 2 * F + 1, tl.sum(d_alpha, 0))


@triton.jit(
    do_not_specialize=["total", "limit"], do_not_specialize_on_alignment=["vectors", "partial"]
)
def local_attention_backward_kernel(
    kept,
    neighbours,
    d_middle,
    matrices,
    vectors,
    dx,
    d_qkv,
    mixed,
    partial,
    total,
    limit,
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
    """One block's attention: d_middle to dx, and the factors of its weights' gradients.

    ``partial`` is a row of sums for each tile: gamma1 (D), alpha1.
    """
    HEADS: tl.constexpr = GROUP // HEAD
    BATCH: tl.constexpr = ROWS // SET * HEADS
    tile = tl.program_id(0)
    first, _, edge, _, inside, exists = tile_rows(neighbours, tile, total, limit, K, SET, ROWS)
    inside = inside[:, None]
    wide = tl.arange(0, D)
    some = tl.arange(0, GROUP)
    edge = edge[:, None]
    kept += first * (K * D)
    d_middle += first * (K * D)
    dx += first * (K * D)
    mixed += first * (K * D)
    d_qkv += first * (K * 3 * D)
    at = edge * D + wide[None, :]
    partial += tile.to(tl.int64) * partial_stride
    x = tl.load(kept + at, inside, 0.0).to(tl.float32)
    alpha = tl.load(vectors + 3 * D + 2 * F)
    gamma = tl.load(vectors + wide)[None, :]
    h = norm_tanh(alpha * x, PRECISION) * gamma
    d = tl.load(d_middle + at, inside, 0.0)
    if PRECISION == "bf16":
        h = h.to(tl.bfloat16)
    key = set_keys(exists, K, SET, ROWS, HEADS)
    dh = tl.zeros((ROWS, D), tl.float32)
    for g in range(0, D, GROUP):
        w = matrices + (g + some)[:, None] * D + wide[None, :]
        w_q = tl.load(w)
        w_k = tl.load(w + D * D)
        w_v = tl.load(w + 2 * D * D)
        zero = tl.zeros((ROWS, GROUP), tl.float32)
        q = dot(h, tl.trans(w_q), zero, PRECISION)
        k = dot(h, tl.trans(w_k), zero, PRECISION)
        v = dot(h, tl.trans(w_v), zero, PRECISION)
        q = split_heads(q, ROWS, SET, GROUP, HEAD, True)
        k = split_heads(k, ROWS, SET, GROUP, HEAD, False)
        v = split_heads(v, ROWS, SET, GROUP, HEAD, False)
        p = probabilities(q, k, key, K, SET, BATCH, HEAD, PRECISION)
        to = edge * D + (g + some)[None, :]
        o = batch_dot(p, v, BATCH, PRECISION)
        o = join_heads(o, ROWS, SET, GROUP, HEAD)
        tl.store(mixed + to, o, inside)
        w_o = tl.load(matrices + 3 * D * D + wide[:, None] * D + (g + some)[None, :])
        do = split_heads(dot(d, w_o, zero, PRECISION), ROWS, SET, GROUP, HEAD, True)
        dv = join_heads(
            batch_dot(tl.permute(p, (0, 2, 1)), do, BATCH, PRECISION), ROWS, SET, GROUP, HEAD
        )
        dp = batch_dot(do, tl.permute(v, (0, 2, 1)), BATCH, PRECISION)
        ds = p * (dp - tl.sum(p * dp, 2)[:, :, None]) * (HEAD**-0.5)
        dq = join_heads(batch_dot(ds, k, BATCH, PRECISION), ROWS, SET, GROUP, HEAD)
        dk = join_heads(
            batch_dot(tl.permute(ds, (0, 2, 1)), q, BATCH, PRECISION), ROWS, SET, GROUP, HEAD
        )
        to = edge * (3 * D) + (g + some)[None, :]
        tl.store(d_qkv + to, dq, inside)
        tl.store(d_qkv + to + D, dk, inside)
        tl.store(d_qkv + to + 2 * D, dv, inside)
        dh = dot(dq, w_q, dh, PRECISION)
        dh = dot(dk, w_k, dh, PRECISION)
        dh = dot(dv, w_v, dh, PRECISION)
    x = tl.load(kept + at, inside, 0.0).to(tl.float32)
    d32 = tl.load(d_middle + at, inside, 0.0).to(tl.float32)
    y = norm_tanh(alpha * x, PRECISION)
    tl.store(partial + wide, tl.sum(dh * y, 0))
    dh = dh * gamma * (1.0 - y * y)
    tl.store(dx + at, d32 + alpha * dh, inside)
    tl.store(partial + D, tl.sum(tl.sum(dh * x, 1), 0))


@triton.jit(
    do_not_specialize=["edges", "run"], do_not_specialize_on_alignment=["alpha", "gamma", "slab"]
)
def local_weights_backward_kernel(
    left,
    right,
    alpha,
    gamma,
    slab,
    edges,
    run,
    slab_stride,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    WIDE: tl.constexpr,
    DEEP: tl.constexpr,
):
    """left^T right over a run of edges, or left^T (gamma tanh(alpha right)): (OUT, IN)."""
    tile = tl.program_id(0)
    o = tile // (IN // DEEP) * WIDE + tl.arange(0, WIDE)
    i = tile % (IN // DEEP) * DEEP + tl.arange(0, DEEP)
    first = tl.program_id(1).to(tl.int64) * run
    last = tl.minimum(first + run, edges)
    if NORM:
        scale = tl.load(alpha)
        factor = tl.load(gamma + i)[None, :]
    acc = tl.zeros((WIDE, DEEP), tl.float32)
    left += first * OUT
    right += first * IN
    for base in range(0, (last - first).to(tl.int32), ROWS):
        row = base + tl.arange(0, ROWS)
        inside = (row < (last - first))[:, None]
        a = tl.load(left + row[:, None].to(tl.int64) * OUT + o[None, :], inside, 0.0)
        b = tl.load(right + row[:, None].to(tl.int64) * IN + i[None, :], inside, 0.0)
        if NORM:
            b = norm_tanh(scale * b.to(tl.float32), PRECISION) * factor
        acc = dot(tl.trans(a), b, acc, PRECISION)
    slab += tl.program_id(1).to(tl.int64) * slab_stride
    tl.store(slab + o[:, None] * IN + i[None, :], acc)


@triton.jit(do_not_specialize=["total", "limit", "tiles"], do_not_specialize_on_alignment=["slab"])
def local_embed_backward_kernel(
    centres,
    particles,
    neighbours,
    dx,
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
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Gradients of the embedding from fixed runs of tiles, a chunk of its hidden layer each.

    A row of ``slab``: fc2 (D C), [fc1 | fc1's bias | 8 unused] (16 C), gamma (C), fc2's bias (D),
    alpha (C / CHUNK).
    """
    FEATURES: tl.constexpr = "tf32" if PRECISION == "bf16" else PRECISION
    chunk = tl.program_id(0)
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
    for tile in range(tl.program_id(1), tiles, tl.num_programs(1)):
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
    slab += tl.program_id(1).to(tl.int64) * slab_stride
    tl.store(slab + wide[:, None] * C + part[None, :], d_fc2)
    slab += D * C
    tl.store(slab + part[:, None] * 16 + lane, d_fc1)
    tl.store(slab + 16 * C + part, d_gamma)
    tl.store(slab + 17 * C + wide, d_bias, (chunk == 0) & (wide < D))
    tl.store(slab + 17 * C + D + chunk, tl.sum(d_alpha, 0))


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
    def constants(self) -> dict[str, Any]:
        return {
            "K": self.k,
            "SET": set_rows(self.k),
            "D": self.width,
            "C": self.embed_hidden,
            "F": self.hidden,
            "HEAD": self.width // self.heads,
        }

    @property
    def matrix_size(self) -> int:
        """Elements of a block's matrices."""
        return 4 * self.width**2 + 2 * self.width * self.hidden

    @property
    def vector_size(self) -> int:
        """Elements of a block's vectors."""
        return 3 * self.width + 2 * self.hidden + 3


def fits(shape: Shape, precision: str) -> bool:
    """Whether the fused kernels are made for this shape."""
    return (
        shape.width in (16, 32, 64, 128)
        and shape.width <= WIDEST[precision]
        and shape.embed_hidden % 32 == 0
        and shape.hidden % 32 == 0
        and 1 <= shape.k <= MAX_NEIGHBOURS
    )


def stored(precision: str) -> torch.dtype:
    """Of what is kept in memory between kernels."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def default_settings(kernel: str, shape: Shape, precision: str) -> Settings:
    """Launch settings where the shipped table has none."""
    wide = shape.width > 64
    half, exact = precision == "bf16", precision == "ieee"
    rows = 64 if half or not wide else 32
    group = max(16, shape.width // shape.heads)
    warps = 8 if wide else 4
    tile = {"ROWS": rows, "CHUNK": 32, "num_warps": warps, "num_stages": 2 if half else 1}
    forward = {
        "ROWS": 128 if wide and half else rows,
        "CHUNK": min(64, 2048 // shape.width) if precision == "tf32" else 32,
        "GROUP": group,
        "num_warps": warps,
        "num_stages": 1 if wide or exact else 2,
    }
    attention = {"ROWS": rows, "GROUP": group, "num_warps": warps, "num_stages": 2}
    embed = tile
    if exact:  # factors take three times the registers: as few rows as hold a neighbourhood
        few = set_rows(shape.k)
        attention |= {"ROWS": few, "num_warps": few // 8, "num_stages": 1}
        few = max(few, 32)
        embed = {**tile, "ROWS": few, "CHUNK": 16, "num_warps": few // 16}
    return {
        "local_forward": forward,
        "local_training": forward,
        "local_mlp_backward": tile,
        "local_attention_backward": attention,
        "local_weights_backward": {
            "ROWS": 64 if half else 32,
            "WIDE": min(128 if half else 64, shape.width),
            "DEEP": min(128 if half else 64, shape.width),
            "num_warps": 8 if wide and half else 4,
            "num_stages": 3 if half else 2,
        },
        "local_embed_backward": embed,
    }[kernel]


_FORWARD: list[Settings] = [
    {"ROWS": r, "num_warps": w, "CHUNK": c, "num_stages": s}
    for r, w in ((64, 4), (128, 4), (128, 8))
    for c in (32, 64)
    for s in (1, 2)
]
CANDIDATES: dict[str, list[Settings]] = {
    "local_forward": _FORWARD,
    "local_training": _FORWARD,
    "local_mlp_backward": [
        {"ROWS": r, "num_warps": w, "num_stages": s}
        for r, w in ((64, 4), (64, 8), (128, 8))
        for s in (1, 2, 3)
    ],
    "local_attention_backward": [
        {"ROWS": r, "num_warps": w, "num_stages": s}
        for r, w in ((32, 4), (64, 4), (64, 8), (128, 8))
        for s in (1, 2, 3)
    ],
    "local_weights_backward": [
        {"ROWS": r, "num_warps": w, "num_stages": s}
        for r in (32, 64)
        for w in (4, 8)
        for s in (2, 3, 4)
    ],
    "local_embed_backward": [
        {"ROWS": r, "CHUNK": c, "num_warps": w} for r in (64, 128) for c in (32, 64) for w in (4, 8)
    ],
    "local_mean_backward": [{"ROWS": r, "num_warps": w} for r in (16, 32, 64) for w in (2, 4, 8)],
}


def settings_of(kernel: str, shape: Shape, precision: str, device: torch.device) -> Settings:
    """How to launch a kernel: as asked for, but tiles hold whole sets and chunks divide layers."""
    key = f"d{shape.width} k{shape.k} {precision}"
    settings = launch_settings(kernel, key, device, default_settings(kernel, shape, precision))
    if "CHUNK" in settings:
        layer = math.gcd(shape.embed_hidden, shape.hidden)
        settings["CHUNK"] = _dividing(layer, settings["CHUNK"])
    if kernel != "local_weights_backward":
        settings["ROWS"] = max(settings["ROWS"], set_rows(shape.k))
    return settings


def prepared(weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """All of them in one row, as the kernels read them."""
    return torch.cat([w.reshape(-1) for w in weights]).to(dtype)


def forward(
    particles: Tensor,
    neighbours: Tensor,
    matrices: Tensor,
    vectors: Tensor,
    shape: Shape,
    precision: str,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """Means (T, D) and what backward needs, (2 blocks, T K, D) or nothing."""
    total = len(particles)
    out = particles.new_empty(total, shape.width)
    edges = total * shape.k if keep else 0
    kept = particles.new_empty(2 * shape.blocks, edges, shape.width, dtype=stored(precision))
    if total:
        name = "local_training" if keep else "local_forward"
        settings = settings_of(name, shape, precision, particles.device)
        with on_device(particles):
            local_forward_kernel[(tiles(total, shape, settings),)](
                particles,
                neighbours,
                matrices,
                vectors,
                out,
                kept,
                total,
                **shape.constants,
                BLOCKS=shape.blocks,
                EMBED_NORM=shape.embed_norm,
                NORM=shape.norm,
                KEEP=keep,
                PRECISION=precision,
                **settings,
            )
    return out, kept


def tiles(particles: int, shape: Shape, settings: Settings) -> int:
    """Number of tiles of whole neighbourhoods."""
    rows = set_rows(shape.k)
    return triton.cdiv(particles, settings["ROWS"] // rows * (rows // shape.k))


def launch_mean_backward(d_out: Tensor, neighbours: Tensor, dx: Tensor, limit: int) -> None:
    """dx of each edge of the particles in ``neighbours``; ``limit``: of all particles."""
    (n, k), width = neighbours.shape, d_out.shape[1]
    settings = launch_settings("local_mean_backward", f"d{width}", d_out.device, MEAN_BACKWARD)
    grid = (triton.cdiv(n * k, settings["ROWS"]), triton.cdiv(width, settings["COLUMNS"]))
    local_mean_backward_kernel[grid](
        d_out,
        neighbours,
        dx,
        n,
        limit,
        K=k,
        K_PADDED=triton.next_power_of_2(k),
        D=width,
        **settings,
    )


def _dividing(size: int, most: int) -> int:
    """The largest power of two up to ``most`` that divides ``size``."""
    return min(size & -size, most)


def embed_row(shape: Shape, settings: Settings) -> int:
    """Elements of the sums of ``local_embed_backward_kernel``."""
    c, width = shape.embed_hidden, shape.width
    return (width + 17) * c + width + c // settings["CHUNK"]


def gradient_sizes(
    shape: Shape, precision: str, device: torch.device
) -> tuple[tuple[int, ...], ...]:
    """Sizes of what ``backward`` returns."""
    settings = settings_of("local_embed_backward", shape, precision, device)
    return (
        (embed_row(shape, settings),),
        (shape.blocks, shape.matrix_size),
        (shape.blocks, 2 * shape.width + 2 * shape.hidden + 2),
        (shape.blocks, shape.width + 1),
    )


def by_name(sums: Sequence[Tensor], shape: Shape) -> tuple[MLPParameters, list[BlockParameters]]:
    """The gradients of each weight, views of what ``backward`` returned."""
    embed, matrices, mlps, attentions = sums
    d, c, f = shape.width, shape.embed_hidden, shape.hidden
    fc2, fc1, gamma, bias2, alpha = embed.split(
        [d * c, 16 * c, c, d, len(embed) - (d + 17) * c - d]
    )
    fc1 = fc1.view(c, 16)
    d_embed = MLPParameters(
        fc1[:, :7], fc1[:, 7], alpha.sum().view(1), gamma, fc2.view(d, c), bias2
    )
    made = []
    for m, p, a in zip(matrices, mlps, attentions, strict=True):
        qkv, out, fc1, fc2 = m.split([3 * d * d, d * d, f * d, d * f])
        gamma2, bias2, bias1, gamma, alpha2, alpha = p.split([d, d, f, f, 1, 1])
        mlp = MLPParameters(fc1.view(f, d), bias1, alpha, gamma, fc2.view(d, f), bias2)
        made.append(
            BlockParameters(a[d:], a[:d], qkv.view(3 * d, d), out.view(d, d), alpha2, gamma2, mlp)
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums of the gradients of all weights in float32, of a bounded number of edges at a time.

    Returns:
        For the embedding, see ``local_embed_backward_kernel``; for each block its matrices, its MLP
        (see ``local_mlp_backward_kernel``) and attention (``local_attention_backward_kernel``).
    """
    k, width, c, f = shape.k, shape.width, shape.embed_hidden, shape.hidden
    device, total, dtype = particles.device, len(particles), stored(precision)
    ask = {
        name: settings_of(name, shape, precision, device)
        for name in CANDIDATES
        if name not in ("local_forward", "local_training", "local_mean_backward")
    }
    s_mlp, s_attention = ask["local_mlp_backward"], ask["local_attention_backward"]
    s_embed = ask["local_embed_backward"]
    row_bytes = k * (7 * width + 2 * f) * dtype.itemsize
    step = max(OPERAND_BYTES // row_bytes // 16 * 16, 16)
    starts = range(0, total, step)
    sizes = [min(step, total - start) for start in starts]
    run = triton.cdiv(max(1024, triton.cdiv(total * k, 48)), 64) * 64
    runs = [triton.cdiv(n * k, run) for n in sizes]
    mlp_tiles = [triton.cdiv(n * k, s_mlp["ROWS"]) for n in sizes]
    attention_tiles = [tiles(n, shape, s_attention) for n in sizes]
    embed_tiles = [tiles(n, shape, s_embed) for n in sizes]
    embed_runs = [min(n, 64) for n in embed_tiles]

    def sums(rows: list[int], *size: int) -> Tensor:
        return torch.empty(sum(rows), *size, dtype=torch.float32, device=device)

    embed_slabs = sums(embed_runs, embed_row(shape, s_embed))
    slabs = sums(runs, shape.blocks, shape.matrix_size)
    mlp_sums = sums(mlp_tiles, shape.blocks, 2 * width + 2 * f + 2)
    attention_sums = sums(attention_tiles, shape.blocks, width + 1)

    def buffer(columns: int) -> Tensor:
        return torch.empty(max(sizes, default=0) * k, columns, dtype=dtype, device=device)

    d, d_middle, mixed, d_qkv = buffer(width), buffer(width), buffer(width), buffer(3 * width)
    d_hidden, hidden = buffer(f), buffer(f)
    block_matrices, block_vectors = width * c, 9 * c + width + 1
    constants = shape.constants
    attention_constants = {n: constants[n] for n in ("K", "SET", "D", "F", "HEAD")}

    def product(left: Tensor, right: Tensor, edges: int, slab: Tensor, norm: Any) -> None:
        settings = {**ask["local_weights_backward"]}
        out, deep = left.shape[1], right.shape[1]
        settings["WIDE"] = _dividing(out, settings["WIDE"])
        settings["DEEP"] = _dividing(deep, settings["DEEP"])
        grid = (out // settings["WIDE"] * (deep // settings["DEEP"]), triton.cdiv(edges, run))
        local_weights_backward_kernel[grid](
            left,
            right,
            *(norm or (left, left)),
            slab,
            edges,
            run,
            slabs.stride(0),
            OUT=out,
            IN=deep,
            NORM=norm is not None,
            PRECISION=precision,
            **settings,
        )

    with on_device(particles):
        for i, (start, n) in enumerate(zip(starts, sizes, strict=True)):
            edges = n * k
            near = neighbours[start : start + n]
            before = [sum(r[:i]) for r in (runs, mlp_tiles, attention_tiles, embed_runs)]
            launch_mean_backward(d_out[start:], near, d, total)
            for b in reversed(range(shape.blocks)):
                x, middle = kept[2 * b, start * k :], kept[2 * b + 1, start * k :]
                m = matrices[block_matrices + b * shape.matrix_size :]
                v = vectors[block_vectors + b * shape.vector_size :]
                alphas = v[3 * width + 2 * f :]
                slab = slabs[before[0], b]
                local_mlp_backward_kernel[(mlp_tiles[i],)](
                    middle,
                    d,
                    m,
                    v,
                    d_middle,
                    d_hidden,
                    hidden,
                    mlp_sums[before[1], b],
                    edges,
                    mlp_sums.stride(0),
                    D=width,
                    F=f,
                    NORM=shape.norm,
                    PRECISION=precision,
                    **s_mlp,
                )
                fc1 = slab[4 * width**2 :]
                product(d_hidden, middle, edges, fc1, (alphas[1:], v[width:]))
                product(d, hidden, edges, fc1[f * width :], None)
                local_attention_backward_kernel[(attention_tiles[i],)](
                    x,
                    near,
                    d_middle,
                    m,
                    v,
                    d,
                    d_qkv,
                    mixed,
                    attention_sums[before[2], b],
                    n,
                    total,
                    attention_sums.stride(0),
                    **attention_constants,
                    PRECISION=precision,
                    **s_attention,
                )
                product(d_qkv, x, edges, slab, (alphas, v))
                product(d_middle, mixed, edges, slab[3 * width**2 :], None)
            local_embed_backward_kernel[(c // s_embed["CHUNK"], embed_runs[i])](
                particles[start:],
                particles,
                near,
                d,
                matrices,
                vectors,
                embed_slabs[before[3]],
                n,
                total,
                embed_tiles[i],
                embed_slabs.stride(0),
                **{name: constants[name] for name in ("K", "SET", "D", "C")},
                NORM=shape.embed_norm,
                PRECISION=precision,
                **s_embed,
            )
    return embed_slabs.sum(0), slabs.sum(0), mlp_sums.sum(0), attention_sums.sum(0)


def compile_cases() -> Iterator[CompileCase]:
    """Every kernel at the sizes of micro and small, at the precisions that run on them."""
    for size, width, heads, k in (("micro", 32, 4, 15), ("small", 128, 8, 10)):
        shape = Shape(k, width, 2 * width, 2 * width, heads, 2, True, True)
        for precision in WIDEST:
            if fits(shape, precision):
                yield from _compile_cases(f"{size} {precision}", shape, precision)


def _compile_cases(label: str, shape: Shape, precision: str) -> Iterator[CompileCase]:
    store = TYPES[stored(precision)]
    data = TYPES[torch.bfloat16 if precision == "bf16" else torch.float32]
    c = {**shape.constants, "PRECISION": precision}
    tensors = {
        **dict.fromkeys(("particles", "centres"), data),
        "neighbours": "*i64",
        "matrices": store,
        "out": data,
        **dict.fromkeys(
            ("kept", "dx", "d_out", "d_middle", "d_hidden", "hidden", "d_qkv", "mixed"), store
        ),
        **dict.fromkeys(("left", "right"), store),
        **dict.fromkeys(("vectors", "partial", "slab", "alpha", "gamma"), "*fp32"),
        **dict.fromkeys(("total", "limit", "edges", "run", "tiles"), "i32"),
        **dict.fromkeys(("partial_stride", "slab_stride"), "i32"),
    }

    def case(kernel: Any, what: str = "", **more: Any) -> CompileCase:
        name = kernel.fn.__name__.removesuffix("_kernel")
        name = "local_training" if more.get("KEEP") else name
        settings = MEAN_BACKWARD
        if kernel is not local_mean_backward_kernel:
            settings = default_settings(name, shape, precision)
        values = {**tensors, **c, **settings, **more}
        arguments = {n: values[n] for n in kernel.arg_names}
        return CompileCase(kernel, label + what, arguments, settings)

    for keep in (False, True):
        norms = {"BLOCKS": shape.blocks, "EMBED_NORM": True, "NORM": True, "KEEP": keep}
        yield case(local_forward_kernel, " training" if keep else "", **norms)
    yield case(local_mean_backward_kernel, d_out=data, K_PADDED=triton.next_power_of_2(shape.k))
    yield case(local_mlp_backward_kernel, NORM=True)
    yield case(local_attention_backward_kernel)
    yield case(local_weights_backward_kernel, OUT=3 * shape.width, IN=shape.width, NORM=True)
    yield case(local_embed_backward_kernel, NORM=True)
