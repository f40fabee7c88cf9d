"""Biased attention over packed sets as Triton kernels, one program per jet and head.

Forward: a tile of queries against all keys of the jet. Up to 64 keys the keys and values stay on
chip and the softmax is one pass; beyond, keys come in blocks with a running maximum, any number of
them. Kept for the backward: the result and one number per query and head, log2 of sum 2^score.

Backward: one kernel. It holds a block of keys with their d_k and d_v in registers and passes over
the queries; scores are computed transposed (keys x queries), so that p and ds enter the products of
d_v and d_k from the registers they were made in. Each entry of d_q, d_k, d_v and d_bias is written
by one program and there are no atomics: any two runs give the same bits. A jet with more than one
block of keys sums d_q in a float32 buffer between blocks.

The numbers of rows are never known to the host: kernels read them and branch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from jetkern.ops.attention import reference
from jetkern.ops.attention.cpu import dense_rows
from jetkern.ops.gpu.counters import more_bits
from jetkern.ops.gpu.functions import dot, exp2
from jetkern.ops.gpu.launch import Settings, launch, launch_settings
from jetkern.ops.gpu.pointwise import padded
from jetkern.ops.gpu.register import gpu_operator
from jetkern.ops.parameters import Dropout
from jetkern.packed import Packed
from jetkern.random import one_in

WIDEST = 128  # head dimension
TYPES = (torch.float32, torch.bfloat16)  # of a bias
Defaults = dict[int, tuple[Settings, Settings, Settings, Settings]]
LOG2_E = tl.constexpr(1.4426950408889634)
BATCH = ["total", "pairs"]  # differ from batch to batch: no compilation for those that 16 divides


class Rows(NamedTuple):
    """Tensors (T, H, d) with dense rows, which may lie apart, or the strides of their rows."""

    q: Any
    k: Any
    v: Any
    out: Any


class Gradients(NamedTuple):
    """As ``Rows``: of the result and the inputs; ``partial`` is float32 room for d_q."""

    d_out: Any
    d_q: Any
    d_k: Any
    d_v: Any
    partial: Any


class Offsets(NamedTuple):
    """(B + 1,) int64 each; ``pair_ends`` (B,): sum of n^2 of the jets up to and with each.

    The last two are None without a bias.
    """

    queries: Tensor
    keys: Tensor
    particles: Tensor | None
    pair_ends: Tensor | None


class Counts(NamedTuple):
    """Numbers of a jet's rows."""

    queries: Any
    keys: Any
    particles: Any


class Drop(NamedTuple):
    """Dropout: weights whose 23 random bits are below ``below`` are left out, others times
    ``kept``; ``keys`` (B,) int64, or in a kernel the random bits of the jet and head."""

    keys: Any
    below: Any
    kept: Any


@triton.jit
def _of_head(drop, HEADS: tl.constexpr):
    """With the random bits of the program's jet and head."""
    if drop is None:
        return drop
    else:
        jet = tl.program_id(0) // HEADS
        bits = more_bits(tl.load(drop.keys + jet).to(tl.uint64), tl.program_id(0) % HEADS)
        return Drop(bits, drop.below, drop.kept)


@triton.jit
def _factor(drop, query, key):
    """What dropout multiplies weights by, 0 or 1 / (1 - p): query and key along either axis."""
    bits = more_bits(more_bits(drop.keys, query), key)
    return tl.where((bits >> 41).to(tl.int32) < drop.below, 0.0, drop.kept)


@triton.jit
def load_rows(
    pointer, stride, start, count, ROWS: tl.constexpr, HEAD: tl.constexpr, PADDED: tl.constexpr
):
    """Rows start .. start + ROWS of a (count, HEAD) matrix as (ROWS, PADDED), zeros outside."""
    row = tl.arange(0, ROWS)
    column = tl.arange(0, PADDED)
    inside = (row < count - start)[:, None] & (column < HEAD)[None, :]
    rows = pointer + tl.cast(start, tl.int64) * stride
    return tl.load(rows + row[:, None] * stride + column[None, :], inside, 0.0)


@triton.jit
def store_rows(pointer, stride, start, count, x, HEAD: tl.constexpr):
    """Writes x (ROWS, PADDED) to rows start .. start + ROWS of a (count, HEAD) matrix."""
    row = tl.arange(0, x.shape[0])
    column = tl.arange(0, x.shape[1])
    inside = (row < count - start)[:, None] & (column < HEAD)[None, :]
    rows = pointer + tl.cast(start, tl.int64) * stride
    tl.store(rows + row[:, None] * stride + column[None, :], x, inside)


@triton.jit
def product(a, b, acc, PRECISION: tl.constexpr):
    """a b^T + acc, a and b as they are in memory: bfloat16 multiplies exactly, so needs no more."""
    if a.dtype == tl.bfloat16:
        return dot(a, tl.trans(b), acc, "bf16")
    else:
        return dot(a, tl.trans(b), acc, PRECISION)


@triton.jit
def _pairs(first_query, first_key, query, key, count):
    """Where the biases of a tile are: offset of its corner, offsets within, which exist.

    query and key count from first_query and first_key, one of them along either axis. The bias is
    particles x particles; the first rows and columns of the scores, the jet's other tokens, have
    none.
    """
    row = first_query - (count.queries - count.particles)
    column = first_key - (count.keys - count.particles)
    corner = tl.cast(row, tl.int64) * count.particles + column
    exists = (query >= -row) & (query < count.particles - row)
    exists &= (key >= -column) & (key < count.particles - column)
    return corner, (query * count.particles + key).to(tl.uint32), exists


@triton.jit
def _load_bias(bias, first_query, first_key, query, key, count):
    """The biases of a tile, zero where there are none."""
    if bias is None:
        return (query + key) * 0.0
    else:
        corner, entry, exists = _pairs(first_query, first_key, query, key, count)
        return tl.load(bias + corner + entry, exists, 0.0)


@triton.jit
def _scores(a, b, bias_tile, key, keys, HEAD: tl.constexpr, PRECISION: tl.constexpr):
    """q k^T + sqrt(d) bias of a tile, -inf where ``key`` is not below ``keys``.

    Queries x keys from a = q, b = k, or keys x queries from a = k, b = q. The bias enters as the
    product's accumulator: added later, it would draw the softmax into the layout of its load.
    """
    score = product(a, b, bias_tile.to(tl.float32) * HEAD**0.5, PRECISION)
    return tl.where(key < keys, score, float("-inf"))


@triton.jit
def _jet(offsets, pairs, HEADS: tl.constexpr):
    """A program's head, first query, first key, counts of rows, and where its biases begin."""
    jet = tl.program_id(0) // HEADS
    head = tl.program_id(0) % HEADS
    query = tl.load(offsets.queries + jet)
    queries = (tl.load(offsets.queries + jet + 1) - query).to(tl.int32)
    key = tl.load(offsets.keys + jet)
    keys = (tl.load(offsets.keys + jet + 1) - key).to(tl.int32)
    particles = keys * 0
    corner = query * 0
    if offsets.particles is not None:
        own = tl.load(offsets.particles + jet + 1) - tl.load(offsets.particles + jet)
        corner = head * pairs + tl.load(offsets.pair_ends + jet) - own * own
        particles = own.to(tl.int32)
    return head, query, key, Counts(queries, keys, particles), corner


@triton.jit
def _forward(
    rows,
    strides,
    lse,
    bias,
    count,
    drop,
    HEAD: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A jet and head: ``rows`` begin at their first rows."""
    query = tl.arange(0, ROWS)[:, None]
    key = tl.arange(0, KEYS)[None, :]
    SCALE: tl.constexpr = LOG2_E * HEAD**-0.5
    queries, keys = count.queries, count.keys
    zero = keys * 0
    if ONE_BLOCK:
        k_tile = load_rows(rows.k, strides.k, zero, keys, KEYS, HEAD, PADDED)
        v_tile = load_rows(rows.v, strides.v, zero, keys, KEYS, HEAD, PADDED)
    for first in range(0, queries, ROWS):
        q_tile = load_rows(rows.q, strides.q, first, queries, ROWS, HEAD, PADDED)
        top = tl.full((ROWS,), float("-inf"), tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        mixed = tl.zeros((ROWS, PADDED), tl.float32)
        if ONE_BLOCK:
            bias_tile = _load_bias(bias, first, zero, query, key, count)
            score = _scores(q_tile, k_tile, bias_tile, key, keys, HEAD, PRECISION)
            top = tl.max(score, 1) * SCALE
            top = tl.where(top == float("-inf"), 0.0, top)
            p = exp2(score * SCALE - top[:, None])
            total = tl.sum(p, 1)
            if drop is not None:
                p *= _factor(drop, first + query, key)
            mixed = dot(p, v_tile, mixed, PRECISION)
        else:
            for block in range(0, keys, KEYS):
                k_tile = load_rows(rows.k, strides.k, block, keys, KEYS, HEAD, PADDED)
                v_tile = load_rows(rows.v, strides.v, block, keys, KEYS, HEAD, PADDED)
                bias_tile = _load_bias(bias, first, block, query, key, count)
                score = _scores(q_tile, k_tile, bias_tile, key, keys - block, HEAD, PRECISION)
                higher = tl.maximum(top, tl.max(score, 1) * SCALE)
                shift = tl.where(higher == float("-inf"), 0.0, higher)
                fade = exp2(top - shift)
                p = exp2(score * SCALE - shift[:, None])
                total = total * fade + tl.sum(p, 1)
                if drop is not None:
                    p *= _factor(drop, first + query, block + key)
                mixed = dot(p, v_tile, mixed * fade[:, None], PRECISION)
                top = higher
            top = tl.where(top == float("-inf"), 0.0, top)
        total = tl.where(keys > 0, total, 1.0)
        store_rows(rows.out, strides.out, first, queries, mixed / total[:, None], HEAD)
        row = tl.arange(0, ROWS)
        tl.store(lse + first + row, top + tl.log2(total), row < queries - first)


@triton.jit(do_not_specialize=BATCH)
def attention_fwd_kernel(
    rows,
    strides,
    lse,
    bias,
    offsets,
    drop,
    total: tl.int64,
    pairs: tl.int64,
    HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    HALF: tl.constexpr = KEYS // 2 if KEYS > 32 else 16
    FEW: tl.constexpr = 32 if KEYS > 32 else KEYS  # of several blocks
    head, query, key, count, corner = _jet(offsets, pairs, HEADS)
    drop = _of_head(drop, HEADS)
    if bias is not None:
        bias += corner
    rows = Rows(
        rows.q + (query * strides.q + head * HEAD),
        rows.k + (key * strides.k + head * HEAD),
        rows.v + (key * strides.v + head * HEAD),
        rows.out + (query * strides.out + head * HEAD),
    )
    lse += head * total + query
    if count.keys <= HALF:
        _forward(rows, strides, lse, bias, count, drop, HEAD, PADDED, ROWS, HALF, True, PRECISION)
    elif count.keys <= KEYS:
        _forward(rows, strides, lse, bias, count, drop, HEAD, PADDED, ROWS, KEYS, True, PRECISION)
    else:
        _forward(rows, strides, lse, bias, count, drop, HEAD, PADDED, ROWS, FEW, False, PRECISION)


@triton.jit
def _backward(
    rows,
    strides,
    grads,
    grad_strides,
    lse,
    bias,
    d_bias,
    first_key,
    column,
    count,
    drop,
    HEAD: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A jet and head: tensors begin at their first rows, d_k and d_v at ``first_key, column``."""
    key = tl.arange(0, KEYS)[:, None]
    row = tl.arange(0, ROWS)
    SCALE: tl.constexpr = LOG2_E * HEAD**-0.5
    queries, keys = count.queries, count.keys
    d_out, do_stride = grads.d_out, grad_strides.d_out
    zero = tl.zeros((KEYS, ROWS), tl.float32)
    # What goes to shared memory is read a tile ahead, for reads after it would wait for it, unless
    # the products need the registers.
    AHEAD: tl.constexpr = PADDED * (3 if PRECISION == "ieee" else 1) < 96
    end = KEYS if ONE_BLOCK else keys
    for block in range(0, end, KEYS):
        k_tile = load_rows(rows.k, strides.k, block, keys, KEYS, HEAD, PADDED)
        v_tile = load_rows(rows.v, strides.v, block, keys, KEYS, HEAD, PADDED)
        dk_tile = tl.zeros((KEYS, PADDED), tl.float32)
        dv_tile = tl.zeros((KEYS, PADDED), tl.float32)
        if AHEAD:
            q_next = load_rows(rows.q, strides.q, 0, queries, ROWS, HEAD, PADDED)
            do_next = load_rows(d_out, do_stride, 0, queries, ROWS, HEAD, PADDED)
        for first in range(0, queries, ROWS):
            # Counted from the first tile: offsets alike in all tiles would stay in registers.
            query = first + row[None, :]
            bias_tile = _load_bias(bias, 0, block, query, key, count)
            out_tile = load_rows(rows.out, strides.out, first, queries, ROWS, HEAD, PADDED)
            level = tl.load(lse + first + row, row < queries - first, 0.0)
            if AHEAD:
                q_tile, do_tile = q_next, do_next
                after = first + ROWS
                q_next = load_rows(rows.q, strides.q, after, queries, ROWS, HEAD, PADDED)
                do_next = load_rows(d_out, do_stride, after, queries, ROWS, HEAD, PADDED)
            else:
                q_tile = load_rows(rows.q, strides.q, first, queries, ROWS, HEAD, PADDED)
                do_tile = load_rows(d_out, do_stride, first, queries, ROWS, HEAD, PADDED)
            delta = tl.sum(do_tile.to(tl.float32) * out_tile.to(tl.float32), 1)
            score = _scores(k_tile, q_tile, bias_tile, key, keys - block, HEAD, PRECISION)
            p = exp2(score * SCALE - level[None, :])
            if drop is None:
                dv_tile = dot(p, do_tile, dv_tile, PRECISION)
                ds = p * (product(v_tile, do_tile, zero, PRECISION) - delta[None, :])
            else:
                factor = _factor(drop, query, block + key)
                dv_tile = dot(p * factor, do_tile, dv_tile, PRECISION)
                dp_tile = product(v_tile, do_tile, zero, PRECISION)
                ds = p * (dp_tile * factor - delta[None, :])
            if d_bias is not None:
                corner, entry, exists = _pairs(0, block, query, key, count)
                tl.store(d_bias + corner + entry, ds, exists)
            dk_tile = dot(ds, q_tile, dk_tile, PRECISION)
            dq_tile = dot(tl.trans(ds), k_tile, tl.zeros((ROWS, PADDED), tl.float32), PRECISION)
            to_dq, dq_stride = grads.d_q, grad_strides.d_q
            if ONE_BLOCK:
                store_rows(to_dq, dq_stride, first, queries, dq_tile * HEAD**-0.5, HEAD)
            else:
                to_partial, stride = grads.partial, grad_strides.partial
                if block > 0:
                    dq_tile += load_rows(to_partial, stride, first, queries, ROWS, HEAD, PADDED)
                if block + KEYS < keys:
                    store_rows(to_partial, stride, first, queries, dq_tile, HEAD)
                else:
                    store_rows(to_dq, dq_stride, first, queries, dq_tile * HEAD**-0.5, HEAD)
        # Not at the kernel's beginning, as the others: they would stay in registers until here.
        dk_rows = grads.d_k + (first_key * grad_strides.d_k + column)
        dv_rows = grads.d_v + (first_key * grad_strides.d_v + column)
        store_rows(dk_rows, grad_strides.d_k, block, keys, dk_tile * HEAD**-0.5, HEAD)
        store_rows(dv_rows, grad_strides.d_v, block, keys, dv_tile, HEAD)
        if not ONE_BLOCK:
            tl.debug_barrier()  # the next block's threads read what this one's wrote to partial


@triton.jit(do_not_specialize=BATCH)
def attention_bwd_kernel(
    rows,
    strides,
    grads,
    grad_strides,
    lse,
    bias,
    d_bias,
    offsets,
    drop,
    total: tl.int64,
    pairs: tl.int64,
    HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    HALF: tl.constexpr = KEYS // 2 if KEYS > 32 else 16
    FEW: tl.constexpr = 32 if KEYS > 32 else KEYS  # of several blocks
    head, query, key, count, corner = _jet(offsets, pairs, HEADS)
    drop = _of_head(drop, HEADS)
    if bias is not None:
        bias += corner
        if d_bias is not None:
            d_bias += corner
    column = head * HEAD
    rows = Rows(
        rows.q + (query * strides.q + column),
        rows.k + (key * strides.k + column),
        rows.v + (key * strides.v + column),
        rows.out + (query * strides.out + column),
    )
    grads = Gradients(
        grads.d_out + (query * grad_strides.d_out + column),
        grads.d_q + (query * grad_strides.d_q + column),
        grads.d_k,
        grads.d_v,
        grads.partial + (query * grad_strides.partial + column),
    )
    lse += head * total + query
    if count.keys <= HALF:
        _backward(
            rows, strides, grads, grad_strides, lse, bias, d_bias, key, column, count, drop, HEAD,
            PADDED, ROWS, HALF, True, PRECISION,
        )  # fmt: skip
    elif count.keys <= KEYS:
        _backward(
            rows, strides, grads, grad_strides, lse, bias, d_bias, key, column, count, drop, HEAD,
            PADDED, ROWS, KEYS, True, PRECISION,
        )  # fmt: skip
    else:
        _backward(
            rows, strides, grads, grad_strides, lse, bias, d_bias, key, column, count, drop, HEAD,
            PADDED, ROWS, FEW, False, PRECISION,
        )  # fmt: skip


def _tiles(rows: int, keys: int, warps: int) -> Settings:
    return {"ROWS": rows, "KEYS": keys, "num_warps": warps, "num_stages": 1}


# By padded head dimension: in "bf16", in "tf32" for float32 and bfloat16 tensors, in "ieee", whose
# products take three times the registers. What compiles without spills and leaves most warps
# resident. With four warps and 64 keys sm_90 would take wgmma, too coarse for jets.
FORWARD: Defaults = {
    16: (_tiles(16, 64, 1), _tiles(16, 64, 1), _tiles(16, 64, 1), _tiles(32, 64, 2)),
    32: (_tiles(16, 64, 1), _tiles(32, 64, 2), _tiles(32, 64, 2), _tiles(32, 64, 2)),
    64: (_tiles(32, 64, 2), _tiles(16, 32, 2), _tiles(32, 64, 2), _tiles(16, 32, 2)),
    128: (_tiles(16, 32, 4), _tiles(16, 32, 4), _tiles(16, 32, 4), _tiles(16, 32, 4)),
}
BACKWARD: Defaults = {
    16: (_tiles(16, 64, 2), _tiles(16, 32, 2), _tiles(16, 64, 2), _tiles(16, 32, 2)),
    32: (_tiles(16, 32, 2), _tiles(16, 32, 4), _tiles(16, 32, 2), _tiles(16, 32, 4)),
    64: (_tiles(16, 32, 4), _tiles(16, 32, 4), _tiles(16, 32, 4), _tiles(16, 32, 4)),
    128: (_tiles(16, 32, 4), _tiles(16, 32, 8), _tiles(16, 32, 4), _tiles(16, 16, 8)),
}


CANDIDATES: dict[str, list[Settings]] = {
    "attention_fwd": [
        {"ROWS": 16 * warps, "KEYS": keys, "num_warps": warps, "num_stages": stages}
        for warps in (1, 2, 4)
        for keys in (32, 64)
        for stages in (1, 2)
    ],
    "attention_bwd": [
        {"ROWS": rows, "KEYS": keys, "num_warps": warps, "num_stages": 1}
        for rows in (16, 32)
        for keys in (32, 64)
        for warps in (1, 2, 4)
    ],
}


def _settings(kernel: Any, defaults: Defaults, q: Tensor, precision: str) -> dict[str, Any]:
    """Tiles and warps for heads as wide as q's, with the constants that go with them."""
    _, heads, head = q.shape
    wide = padded(head)
    half = q.dtype == torch.bfloat16
    default = defaults[wide][{"bf16": 0, "tf32": 2 if half else 1, "ieee": 3}[precision]]
    key = f"d{wide} {'bf16' if half else 'fp32'} {precision}"
    chosen = launch_settings(kernel, key, q.device, default)
    return {"HEADS": heads, "HEAD": head, "PADDED": wide, "PRECISION": precision, **chosen}


def strides_of(rows: Any) -> Any:
    return rows._make(t.stride(0) for t in rows)


def launch_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Offsets,
    bias: Tensor | None,
    precision: str,
    drop: Drop | None = None,
) -> tuple[Tensor, Tensor]:
    """The result and, (H, Tq) float32, log2 of the sum of 2^score; bias is (H, P) contiguous."""
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[1::-1], dtype=torch.float32, device=q.device)
    rows = Rows(q, k, v, out)
    if q.numel():
        launch(
            attention_fwd_kernel,
            ((len(offsets.queries) - 1) * q.shape[1],),
            q.device,
            _settings(attention_fwd_kernel, FORWARD, q, precision),
            rows=rows,
            strides=strides_of(rows),
            lse=lse,
            bias=bias,
            offsets=offsets,
            drop=drop,
            total=len(q),
            pairs=0 if bias is None else bias.shape[1],
        )
    return out, lse


def launch_backward(
    rows: Rows,
    lse: Tensor,
    offsets: Offsets,
    bias: Tensor | None,
    precision: str,
    *,
    d_out: Tensor,
    d_q: Tensor,
    d_k: Tensor,
    d_v: Tensor,
    d_bias: Tensor | None,
    drop: Drop | None = None,
) -> None:
    """Writes the gradients to d_q, d_k, d_v and, unless None, d_bias.

    The rows of d_q, d_k, d_v are dense and may lie apart: parts of a joint projection's gradient.
    """
    q = rows.q
    if not q.shape[2]:
        return
    in_place = d_q.dtype == torch.float32
    partial = d_q if in_place else torch.empty(q.shape, dtype=torch.float32, device=q.device)
    grads = Gradients(d_out, d_q, d_k, d_v, partial)
    launch(
        attention_bwd_kernel,
        ((len(offsets.queries) - 1) * q.shape[1],),
        q.device,
        _settings(attention_bwd_kernel, BACKWARD, q, precision),
        rows=rows,
        strides=strides_of(rows),
        grads=grads,
        grad_strides=strides_of(grads),
        lse=lse,
        bias=bias,
        d_bias=d_bias,
        offsets=offsets,
        drop=drop,
        total=len(q),
        pairs=0 if bias is None else bias.shape[1],
    )


def _drop(jet_keys: Tensor | None, dropout_p: float) -> Drop | None:
    return None if jet_keys is None else Drop(jet_keys, one_in(dropout_p), 1 / (1 - dropout_p))


def _operator_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor,
    bias: Tensor | None,
    particle_offsets: Tensor | None,
    pair_ends: Tensor | None,
    precision: str,
    jet_keys: Tensor | None,
    dropout_p: float,
) -> tuple[Tensor, Tensor]:
    offsets = Offsets(query_offsets, key_offsets, particle_offsets, pair_ends)
    return launch_forward(q, k, v, offsets, bias, precision, _drop(jet_keys, dropout_p))


def _operator_backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor,
    bias: Tensor | None,
    particle_offsets: Tensor | None,
    pair_ends: Tensor | None,
    precision: str,
    jet_keys: Tensor | None,
    dropout_p: float,
    out: Tensor,
    lse: Tensor,
    want_bias: bool,
) -> tuple[Tensor, ...]:
    d_q, d_k, d_v = (t.new_empty(t.shape) for t in (q, k, v))
    d_bias = None if bias is None or not want_bias else torch.empty_like(bias)
    launch_backward(
        Rows(q, k, v, out),
        lse,
        Offsets(query_offsets, key_offsets, particle_offsets, pair_ends),
        bias,
        precision,
        d_out=d_out,
        d_q=d_q,
        d_k=d_k,
        d_v=d_v,
        d_bias=d_bias,
        drop=_drop(jet_keys, dropout_p),
    )
    return d_q, d_k, d_v, q.new_empty(0) if d_bias is None else d_bias


def _fake(q: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)


def _reference(q: Tensor, k: Tensor, v: Tensor, *others: Any) -> Tensor:
    query_offsets, key_offsets, bias, particle_offsets, _, _, jet_keys, dropout_p = others
    particles = None if particle_offsets is None else Packed.trusted(particle_offsets)
    dropout = None if jet_keys is None else Dropout(jet_keys, dropout_p)
    return reference.attention(q, k, v, query_offsets, key_offsets, bias, particles, dropout)


_op = gpu_operator(
    "attention",
    "(Tensor q, Tensor k, Tensor v, Tensor query_offsets, Tensor key_offsets, Tensor? bias,"
    " Tensor? particle_offsets, Tensor? pair_ends, str precision, Tensor? jet_keys,"
    " float dropout_p) -> (Tensor out, Tensor lse)",
    fake=_fake,
    forward=_operator_forward,
    backward=_operator_backward,
    gradients="q k v bias?",
    kept="out lse",
    reference=_reference,
)


def covers(q: Tensor, *others: Any) -> str:
    """Heads of a width up to 128."""
    return f"heads are {q.shape[2]} wide, more than {WIDEST}" if q.shape[2] > WIDEST else ""


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor,
    bias: Tensor | None,
    particles: Packed | None,
    dropout: Dropout | None = None,
    precision: str = "ieee",
) -> Tensor:
    """See ``jetkern.ops.attention``. What has another dtype than q is converted.

    With a bias a jet has at most 65,535 particles, as in ``pair_bias``.
    Offsets that do not rise, or a bias of the wrong length, cannot be seen without waiting for the
    GPU: they are not checked.
    """
    if bias is not None:
        bias = (bias if bias.dtype in TYPES else bias.float()).contiguous()
    out, _ = _op(
        dense_rows(q),
        dense_rows(k.to(q.dtype)),
        dense_rows(v.to(q.dtype)),
        query_offsets.contiguous(),
        key_offsets.contiguous(),
        bias,
        None if particles is None else particles.offsets.contiguous(),
        None if particles is None else particles.pair_ends,
        precision,
        None if dropout is None else dropout.keys.contiguous(),
        0.0 if dropout is None else dropout.p,
    )
    return out
