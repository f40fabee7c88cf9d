"""Causal attention over packed sets as Triton kernels.

A program has a set, a head and every PROGRAMS-th of the set's tiles: of queries in the forward and
for d_q, of keys for d_k and d_v. Where sets and heads are many, as of jets, a program has all tiles
of a set; a few long showers are shared by more programs. Tiles end with the set, so what is not a
number stays in its own. Keys come in blocks with a running maximum; blocks after a tile's last row
are never read. Kept for the backward: the result and log2 of sum 2^score of each query and head.

The backward is two kernels, for each computes the scores it needs: seven products where one kernel
with atomics has five. Every number is written by one program, and heads that share a key are added
by it in order: any two runs give the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from jetkern.ops.attention.cpu import dense_rows
from jetkern.ops.attention.triton import (
    LOG2_E,
    TYPES,
    WIDEST,
    Defaults,
    Gradients,
    Rows,
    load_rows,
    product,
    store_rows,
    strides_of,
)
from jetkern.ops.causal_attention import reference
from jetkern.ops.gpu.functions import dot, exp2
from jetkern.ops.gpu.launch import Settings, cdiv, launch, launch_settings
from jetkern.ops.gpu.pointwise import padded
from jetkern.ops.gpu.register import gpu_operator

ENOUGH = 2048  # programs of a launch, from which on a set is not shared
MOST = 64  # programs that share a set and head


@triton.jit
def _set(offsets, HEADS: tl.constexpr):
    """A program's set: its first row and number of rows; and its head."""
    one = tl.program_id(0) // HEADS
    start = tl.load(offsets + one)
    return start, (tl.load(offsets + one + 1) - start).to(tl.int32), tl.program_id(0) % HEADS


@triton.jit(do_not_specialize=["total"])
def causal_attention_fwd_kernel(
    rows,
    strides,
    lse,
    offsets,
    total: tl.int64,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    SCALE: tl.constexpr = LOG2_E * HEAD**-0.5
    start, count, head = _set(offsets, HEADS)
    q = rows.q + (start * strides.q + head * HEAD)
    k = rows.k + (start * strides.k + head // GROUP * HEAD)
    v = rows.v + (start * strides.v + head // GROUP * HEAD)
    out = rows.out + (start * strides.out + head * HEAD)
    lse += head * total + start
    row = tl.arange(0, ROWS)
    key = tl.arange(0, KEYS)
    for first in range(tl.program_id(1) * ROWS, count, tl.num_programs(1) * ROWS):
        q_tile = load_rows(q, strides.q, first, count, ROWS, HEAD, PADDED)
        top = tl.full((ROWS,), float("-inf"), tl.float32)
        sums = tl.zeros((ROWS,), tl.float32)
        mixed = tl.zeros((ROWS, PADDED), tl.float32)
        for block in range(0, tl.minimum(first + ROWS, count), KEYS):
            k_tile = load_rows(k, strides.k, block, count, KEYS, HEAD, PADDED)
            v_tile = load_rows(v, strides.v, block, count, KEYS, HEAD, PADDED)
            score = product(q_tile, k_tile, tl.zeros((ROWS, KEYS), tl.float32), PRECISION)
            seen = (block + key)[None, :] <= (first + row)[:, None]
            score = tl.where(seen, score * SCALE, float("-inf"))
            higher = tl.maximum(top, tl.max(score, 1))  # every row sees the first key
            fade = exp2(top - higher)
            p = exp2(score - higher[:, None])
            sums = sums * fade + tl.sum(p, 1)
            mixed = dot(p, v_tile, mixed * fade[:, None], PRECISION)
            top = higher
        store_rows(out, strides.out, first, count, mixed / sums[:, None], HEAD)
        tl.store(lse + first + row, top + tl.log2(sums), row < count - first)


@triton.jit(do_not_specialize=["total"])
def causal_attention_bwd_queries_kernel(
    rows,
    strides,
    grads,
    grad_strides,
    lse,
    offsets,
    total: tl.int64,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    SCALE: tl.constexpr = LOG2_E * HEAD**-0.5
    start, count, head = _set(offsets, HEADS)
    q = rows.q + (start * strides.q + head * HEAD)
    k = rows.k + (start * strides.k + head // GROUP * HEAD)
    v = rows.v + (start * strides.v + head // GROUP * HEAD)
    out = rows.out + (start * strides.out + head * HEAD)
    d_out = grads.d_out + (start * grad_strides.d_out + head * HEAD)
    d_q = grads.d_q + (start * grad_strides.d_q + head * HEAD)
    lse += head * total + start
    row = tl.arange(0, ROWS)
    key = tl.arange(0, KEYS)
    zero = tl.zeros((ROWS, KEYS), tl.float32)
    for first in range(tl.program_id(1) * ROWS, count, tl.num_programs(1) * ROWS):
        q_tile = load_rows(q, strides.q, first, count, ROWS, HEAD, PADDED)
        do_tile = load_rows(d_out, grad_strides.d_out, first, count, ROWS, HEAD, PADDED)
        out_tile = load_rows(out, strides.out, first, count, ROWS, HEAD, PADDED)
        level = tl.load(lse + first + row, row < count - first, 0.0)
        delta = tl.sum(do_tile.to(tl.float32) * out_tile.to(tl.float32), 1)
        dq_tile = tl.zeros((ROWS, PADDED), tl.float32)
        for block in range(0, tl.minimum(first + ROWS, count), KEYS):
            k_tile = load_rows(k, strides.k, block, count, KEYS, HEAD, PADDED)
            v_tile = load_rows(v, strides.v, block, count, KEYS, HEAD, PADDED)
            score = product(q_tile, k_tile, zero, PRECISION)
            seen = (block + key)[None, :] <= (first + row)[:, None]
            p = tl.where(seen, exp2(score * SCALE - level[:, None]), 0.0)
            slope = product(do_tile, v_tile, zero, PRECISION) - delta[:, None]
            ds = p * tl.where((first + row)[:, None] > 0, slope, 0.0)  # one key has no slope
            dq_tile = dot(ds, k_tile, dq_tile, PRECISION)
        store_rows(d_q, grad_strides.d_q, first, count, dq_tile * HEAD**-0.5, HEAD)


@triton.jit(do_not_specialize=["total"])
def causal_attention_bwd_keys_kernel(
    rows,
    strides,
    grads,
    grad_strides,
    lse,
    offsets,
    total: tl.int64,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    SCALE: tl.constexpr = LOG2_E * HEAD**-0.5
    start, count, head = _set(offsets, HEADS)  # HEADS are those of the keys
    q = rows.q + (start * strides.q + head * GROUP * HEAD)
    out = rows.out + (start * strides.out + head * GROUP * HEAD)
    d_out = grads.d_out + (start * grad_strides.d_out + head * GROUP * HEAD)
    k = rows.k + (start * strides.k + head * HEAD)
    v = rows.v + (start * strides.v + head * HEAD)
    d_k = grads.d_k + (start * grad_strides.d_k + head * HEAD)
    d_v = grads.d_v + (start * grad_strides.d_v + head * HEAD)
    lse += head * GROUP * total + start
    row = tl.arange(0, ROWS)
    key = tl.arange(0, KEYS)
    zero = tl.zeros((KEYS, ROWS), tl.float32)
    for block in range(tl.program_id(1) * KEYS, count, tl.num_programs(1) * KEYS):
        k_tile = load_rows(k, strides.k, block, count, KEYS, HEAD, PADDED)
        v_tile = load_rows(v, strides.v, block, count, KEYS, HEAD, PADDED)
        dk_tile = tl.zeros((KEYS, PADDED), tl.float32)
        dv_tile = tl.zeros((KEYS, PADDED), tl.float32)
        for member in range(GROUP):
            column = member * HEAD
            levels = lse + member * total
            for first in range(block // ROWS * ROWS, count, ROWS):
                q_tile = load_rows(q + column, strides.q, first, count, ROWS, HEAD, PADDED)
                do_tile = load_rows(
                    d_out + column, grad_strides.d_out, first, count, ROWS, HEAD, PADDED
                )
                out_tile = load_rows(out + column, strides.out, first, count, ROWS, HEAD, PADDED)
                level = tl.load(levels + first + row, row < count - first, 0.0)
                delta = tl.sum(do_tile.to(tl.float32) * out_tile.to(tl.float32), 1)
                score = product(k_tile, q_tile, zero, PRECISION)
                seen = (block + key)[:, None] <= (first + row)[None, :]
                p = tl.where(seen, exp2(score * SCALE - level[None, :]), 0.0)
                dv_tile = dot(p, do_tile, dv_tile, PRECISION)
                slope = product(v_tile, do_tile, zero, PRECISION) - delta[None, :]
                ds = p * tl.where((first + row)[None, :] > 0, slope, 0.0)
                dk_tile = dot(ds, q_tile, dk_tile, PRECISION)
        store_rows(d_k, grad_strides.d_k, block, count, dk_tile * HEAD**-0.5, HEAD)
        store_rows(d_v, grad_strides.d_v, block, count, dv_tile, HEAD)


def _tiles(rows: int, keys: int, warps: int) -> Settings:
    return {"ROWS": rows, "KEYS": keys, "num_warps": warps, "num_stages": 1}


# By padded head dimension: in "bf16", in "tf32" for float32 and bfloat16 tensors, in "ieee": what
# compiles without spills. Not timed.
FORWARD: Defaults = {
    16: (_tiles(32, 64, 2), _tiles(32, 64, 2), _tiles(32, 64, 2), _tiles(32, 32, 2)),
    32: (_tiles(32, 64, 2), _tiles(32, 64, 2), _tiles(32, 64, 2), _tiles(32, 32, 2)),
    64: (_tiles(32, 64, 4), _tiles(32, 32, 4), _tiles(32, 64, 4), _tiles(32, 32, 4)),
    128: (_tiles(32, 32, 4), _tiles(16, 32, 4), _tiles(32, 32, 4), _tiles(16, 32, 4)),
}
BACKWARD: Defaults = {
    16: (_tiles(32, 32, 2), _tiles(32, 32, 2), _tiles(32, 32, 2), _tiles(32, 32, 4)),
    32: (_tiles(32, 32, 2), _tiles(32, 32, 4), _tiles(32, 32, 4), _tiles(16, 32, 4)),
    64: (_tiles(32, 32, 4), _tiles(16, 32, 4), _tiles(32, 32, 4), _tiles(16, 32, 8)),
    128: (_tiles(16, 32, 4), _tiles(16, 32, 8), _tiles(16, 32, 4), _tiles(16, 16, 8)),
}
CANDIDATES: dict[str, list[Settings]] = {
    kernel: [
        _tiles(rows, keys, warps)
        for rows in (16, 32, 64)
        for keys in (32, 64)
        for warps in (1, 2, 4)
    ]
    for kernel in (
        "causal_attention_fwd",
        "causal_attention_bwd_queries",
        "causal_attention_bwd_keys",
    )
}


def _launch(
    kernel: Any, defaults: Defaults, rows: Rows, heads: int, precision: str, **others: Any
) -> None:
    """A program for each set and head of ``heads`` and, where these are few, for each tile."""
    q, k = rows.q, rows.k
    if not q.numel():
        return
    wide, half = padded(q.shape[2]), q.dtype == torch.bfloat16
    default = defaults[wide][{"bf16": 0, "tf32": 2 if half else 1, "ieee": 3}[precision]]
    key = f"d{wide} {'bf16' if half else 'fp32'} {precision}"
    units = (len(others["offsets"]) - 1) * heads
    launch(
        kernel,
        (units, min(cdiv(ENOUGH, units), MOST)),
        q.device,
        launch_settings(kernel, key, q.device, default),
        rows=rows,
        strides=strides_of(rows),
        total=len(q),
        HEADS=heads,
        GROUP=q.shape[1] // k.shape[1],
        HEAD=q.shape[2],
        PADDED=wide,
        PRECISION=precision,
        **others,
    )


def _forward(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, precision: str
) -> tuple[Tensor, Tensor]:
    rows = Rows(q, k, v, torch.empty(q.shape, dtype=q.dtype, device=q.device))
    lse = torch.empty(q.shape[1::-1], dtype=torch.float32, device=q.device)
    heads = q.shape[1]
    _launch(causal_attention_fwd_kernel, FORWARD, rows, heads, precision, lse=lse, offsets=offsets)
    return rows.out, lse


def _backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    precision: str,
    out: Tensor,
    lse: Tensor,
) -> tuple[Tensor, ...]:
    d_q, d_k, d_v = (t.new_empty(t.shape) for t in (q, k, v))
    rows, grads = Rows(q, k, v, out), Gradients(d_out, d_q, d_k, d_v, d_q)
    given = {"grads": grads, "grad_strides": strides_of(grads), "lse": lse, "offsets": offsets}
    for kernel, heads in (
        (causal_attention_bwd_queries_kernel, q.shape[1]),
        (causal_attention_bwd_keys_kernel, k.shape[1]),
    ):
        _launch(kernel, BACKWARD, rows, heads, precision, **given)
    return d_q, d_k, d_v


def _fake(q: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)


def _reference(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, precision: str) -> Tensor:
    return reference.causal_attention(q, k, v, offsets)


_op = gpu_operator(
    "causal_attention",
    "(Tensor q, Tensor k, Tensor v, Tensor offsets, str precision) -> (Tensor out, Tensor lse)",
    fake=_fake,
    forward=_forward,
    backward=_backward,
    gradients="q k v",
    kept="out lse",
    reference=_reference,
)


def covers(q: Tensor, *others: Any) -> str:
    """Heads of a width up to 128, in float32 and bfloat16."""
    if q.dtype not in TYPES:
        return f"q is {q.dtype}"
    return f"heads are {q.shape[2]} wide, more than {WIDEST}" if q.shape[2] > WIDEST else ""


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, precision: str = "ieee"
) -> Tensor:
    """See ``jetkern.ops.causal_attention``. Offsets that do not rise cannot be seen without waiting
    for the GPU: they are not checked."""
    out, _ = _op(
        dense_rows(q),
        dense_rows(k.to(q.dtype)),
        dense_rows(v.to(q.dtype)),
        offsets.contiguous(),
        precision,
    )
    return out
