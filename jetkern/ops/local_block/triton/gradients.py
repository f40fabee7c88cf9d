"""Device functions of the fused local block's backward: gradients within a tile."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from jetkern.ops.gpu.functions import dot, gelu_and_slope
from jetkern.ops.local_block.triton.tiles import (
    batch_dot,
    factor,
    join_queries,
    norm_tanh,
    probabilities,
    split_keys,
    split_queries,
)


class Half(NamedTuple):
    """The residual stream around a half of a block, (E, D) each.

    ``kept``: before the half. Gradients: ``d_after`` and ``d_before`` of the stream.
    """

    kept: Any
    d_after: Any
    d_before: Any


@triton.jit
def hidden_gradients(u, dt, alpha, gamma, NORM: tl.constexpr, PRECISION: tl.constexpr):
    """Of columns of a hidden layer, from what fc1 gives and the gradient of what fc2 takes.

    What fc2 takes but for gamma, the gradient of what fc1 gives and, of each row, of alpha.
    """
    t, slope = gelu_and_slope(u, PRECISION)
    if NORM:
        y = norm_tanh(alpha * t, PRECISION)
        dt = dt * gamma[None, :] * (1.0 - y * y)
        return y, alpha * dt * slope, tl.sum(dt * t, 1)
    else:
        return t, dt * slope, tl.zeros((u.shape[0],), tl.float32)


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
def norm_of_half(half, at, inside, alpha, gamma, normed, PRECISION: tl.constexpr):
    """A half's first product takes y gamma; y is written to ``normed``, a factor."""
    y = norm_tanh(alpha * tl.load(half.kept + at, inside, 0.0).to(tl.float32), PRECISION)
    tl.store(normed, y, inside)
    return factor(y * gamma, PRECISION)


@triton.jit
def through_norm(half, at, inside, dh, alpha, gamma, PRECISION: tl.constexpr):
    """Writes the stream's gradient before a half; returns the gradient of the norm's alpha."""
    x = tl.load(half.kept + at, inside, 0.0).to(tl.float32)
    y = norm_tanh(alpha * x, PRECISION)
    dx = dh * gamma * (1.0 - y * y)
    d = tl.load(half.d_after + at, inside, 0.0).to(tl.float32)
    tl.store(half.d_before + at, d + alpha * dx, inside)
    return tl.sum(tl.sum(dx * x, 1), 0)
