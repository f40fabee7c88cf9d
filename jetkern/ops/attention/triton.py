"""Biased attention over packed sets as Triton kernels, one program per jet and head.

Forward: a tile of queries against all keys of the jet. Up to 64 keys the keys and values stay on
chip and the softmax is one pass; beyond, keys come in blocks with a running maximum, any number of
them. Kept for the backward: the result and one number per query and head, log2 of sum 2^score.

Backward: one kernel. It holds a block of keys with their dk and dv in registers and passes over the
queries; scores are computed transposed (keys x queries), so that p and ds enter the products of dv
and dk from the registers they were made in. Each entry of dq, dk, dv and dbias is written by one
program and there are no atomics: any two runs give the same bits. A jet with more than one block of
keys sums dq in a float32 buffer between blocks.

The numbers of rows are never known to the host: kernels read them and branch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from jetkern.ops.attention.cpu import dense_rows
from jetkern.ops.attention.reference import attention as reference
from jetkern.ops.dispatch import PRECISIONS
from jetkern.ops.triton_tools import (
    TYPES,
    CompileCase,
    Settings,
    define,
    dot,
    exp2,
    kernel_name,
    launch_settings,
    on_device,
)

WIDEST = 128  # head dimension
Defaults = dict[int, tuple[Settings, Settings, Settings, Settings]]
LOG2_E = tl.constexpr(1.4426950408889634)
BATCH = ["total", "pairs"]  # differ from batch to batch: no compilation for those that 16 divides


@triton.jit
def _load(pointer, stride, start, count, ROWS: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr):
    """Rows start .. start + ROWS of a (count, WIDTH) matrix as (ROWS, D), zeros outside."""
    row = tl.arange(0, ROWS)
    column = tl.arange(0, D)
    inside = (row < count - start)[:, None] & (column < WIDTH)[None, :]
    rows = pointer + tl.cast(start, tl.int64) * stride
    return tl.load(rows + row[:, None] * stride + column[None, :], inside, 0.0)


@triton.jit
def _store(pointer, stride, start, count, x, WIDTH: tl.constexpr):
    """Writes x (ROWS, D) to rows start .. start + ROWS of a (count, WIDTH) matrix."""
    row = tl.arange(0, x.shape[0])
    column = tl.arange(0, x.shape[1])
    inside = (row < count - start)[:, None] & (column < WIDTH)[None, :]
    rows = pointer + tl.cast(start, tl.int64) * stride
    tl.store(rows + row[:, None] * stride + column[None, :], x, inside)


@triton.jit
def _product(a, b, acc, PRECISION: tl.constexpr):
    """a b^T + acc, a and b as they are in memory: bfloat16 multiplies exactly, so needs no more."""
    if a.dtype == tl.bfloat16:
        return dot(a, tl.trans(b), acc, "bf16")
    else:
        return dot(a, tl.trans(b), acc, PRECISION)


@triton.jit
def _pairs(first_query, first_key, query, key, queries, keys, particles):
    """Where the biases of a tile are: offset of its corner, offsets within, which exist.

    query and key count from first_query and first_key, one of them along either axis. The bias is
    particles x particles; the first rows and columns of the scores, the jet's other tokens, have
    none.
    """
    row = first_query - (queries - particles)
    column = first_key - (keys - particles)
    corner = tl.cast(row, tl.int64) * particles + column
    exists = (query >= -row) & (query < particles - row)
    exists &= (key >= -column) & (key < particles - column)
    return corner, (query * particles + key).to(tl.uint32), exists


@triton.jit
def _load_bias(bias, first_query, first_key, query, key, queries, keys, particles):
    """The biases of a tile, zero where there are none."""
    if bias is None:
        return (query + key) * 0.0
    else:
        corner, entry, exists = _pairs(first_query, first_key, query, key, queries, keys, particles)
        return tl.load(bias + corner + entry, exists, 0.0)


@triton.jit
def _scores(a, b, bias_tile, key, keys, WIDTH: tl.constexpr, PRECISION: tl.constexpr):
    """q k^T + sqrt(d) bias of a tile, -inf where ``key`` is not below ``keys``.

    Queries x keys from a = q, b = k, or keys x queries from a = k, b = q. The bias enters as the
    product's accumulator: added later, it would draw the softmax into the layout of its load.
    """
    score = _product(a, b, bias_tile.to(tl.float32) * WIDTH**0.5, PRECISION)
    return tl.where(key < keys, score, float("-inf"))


@triton.jit
def _forward(
    q,
    k,
    v,
    out,
    lse,
    bias,
    q_stride,
    k_stride,
    v_stride,
    out_stride,
    queries,
    keys,
    particles,
    WIDTH: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    query = tl.arange(0, ROWS)[:, None]
    key = tl.arange(0, KEYS)[None, :]
    SCALE: tl.constexpr = LOG2_E * WIDTH**-0.5
    zero = keys * 0
    if ONE_BLOCK:
        k_tile = _load(k, k_stride, zero, keys, KEYS, WIDTH, D)
        v_tile = _load(v, v_stride, zero, keys, KEYS, WIDTH, D)
    for first in range(0, queries, ROWS):
        q_tile = _load(q, q_stride, first, queries, ROWS, WIDTH, D)
        top = tl.full((ROWS,), float("-inf"), tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        mixed = tl.zeros((ROWS, D), tl.float32)
        if ONE_BLOCK:
            bias_tile = _load_bias(bias, first, zero, query, key, queries, keys, particles)
            score = _scores(q_tile, k_tile, bias_tile, key, keys, WIDTH, PRECISION)
            top = tl.max(score, 1) * SCALE
            top = tl.where(top == float("-inf"), 0.0, top)
            p = exp2(score * SCALE - top[:, None])
            total = tl.sum(p, 1)
            mixed = dot(p, v_tile, mixed, PRECISION)
        else:
            for block in range(0, keys, KEYS):
                k_tile = _load(k, k_stride, block, keys, KEYS, WIDTH, D)
                v_tile = _load(v, v_stride, block, keys, KEYS, WIDTH, D)
                bias_tile = _load_bias(bias, first, block, query, key, queries, keys, particles)
                score = _scores(q_tile, k_tile, bias_tile, key, keys - block, WIDTH, PRECISION)
                higher = tl.maximum(top, tl.max(score, 1) * SCALE)
                shift = tl.where(higher == float("-inf"), 0.0, higher)
                fade = exp2(top - shift)
                p = exp2(score * SCALE - shift[:, None])
                total = total * fade + tl.sum(p, 1)
                mixed = dot(p, v_tile, mixed * fade[:, None], PRECISION)
                top = higher
            top = tl.where(top == float("-inf"), 0.0, top)
        total = tl.where(keys > 0, total, 1.0)
        _store(out, out_stride, first, queries, mixed / total[:, None], WIDTH)
        row = tl.arange(0, ROWS)
        tl.store(lse + first + row, top + tl.log2(total), row < queries - first)


@triton.jit(do_not_specialize=BATCH)
def attention_kernel(
    q,
    k,
    v,
    out,
    lse,
    query_offsets,
    key_offsets,
    bias,
    particle_offsets,
    pair_ends,
    q_stride,
    k_stride,
    v_stride,
    out_stride,
    total: tl.int64,
    pairs: tl.int64,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    HALF: tl.constexpr = max(KEYS // 2, 16)
    jet = tl.program_id(0) // HEADS
    head = tl.program_id(0) % HEADS
    start = tl.load(query_offsets + jet)
    queries = (tl.load(query_offsets + jet + 1) - start).to(tl.int32)
    first_key = tl.load(key_offsets + jet)
    keys = (tl.load(key_offsets + jet + 1) - first_key).to(tl.int32)
    particles = keys * 0
    if bias is not None:
        own = tl.load(particle_offsets + jet + 1) - tl.load(particle_offsets + jet)
        bias += head * pairs + tl.load(pair_ends + jet) - own * own
        particles = own.to(tl.int32)
    q += start * q_stride + head * WIDTH
    k += first_key * k_stride + head * WIDTH
    v += first_key * v_stride + head * WIDTH
    out += start * out_stride + head * WIDTH
    lse += head * total + start
    if keys <= HALF:
        _forward(
            q, k, v, out, lse, bias, q_stride, k_stride, v_stride, out_stride, queries, keys,
            particles, WIDTH, D, ROWS, HALF, True, PRECISION,
        )  # fmt: skip
    elif keys <= KEYS:
        _forward(
            q, k, v, out, lse, bias, q_stride, k_stride, v_stride, out_stride, queries, keys,
            particles, WIDTH, D, ROWS, KEYS, True, PRECISION,
        )  # fmt: skip
    else:
        _forward(
            q, k, v, out, lse, bias, q_stride, k_stride, v_stride, out_stride, queries, keys,
            particles, WIDTH, D, ROWS, min(KEYS, 32), False, PRECISION,
        )  # fmt: skip


@triton.jit
def _backward(
    dout,
    q,
    k,
    v,
    out,
    lse,
    bias,
    dq,
    dk,
    dv,
    dbias,
    partial,
    dout_stride,
    q_stride,
    k_stride,
    v_stride,
    out_stride,
    dq_stride,
    dk_stride,
    dv_stride,
    partial_stride,
    first_key,
    column,
    queries,
    keys,
    particles,
    WIDTH: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    key = tl.arange(0, KEYS)[:, None]
    row = tl.arange(0, ROWS)
    SCALE: tl.constexpr = LOG2_E * WIDTH**-0.5
    zero = tl.zeros((KEYS, ROWS), tl.float32)
    # What goes to shared memory is read a tile ahead, for reads after it would wait for it, unless
    # the products need the registers.
    AHEAD: tl.constexpr = D * (3 if PRECISION == "ieee" else 1) < 96
    end = KEYS if ONE_BLOCK else keys
    for block in range(0, end, KEYS):
        k_tile = _load(k, k_stride, block, keys, KEYS, WIDTH, D)
        v_tile = _load(v, v_stride, block, keys, KEYS, WIDTH, D)
        dk_tile = tl.zeros((KEYS, D), tl.float32)
        dv_tile = tl.zeros((KEYS, D), tl.float32)
        if AHEAD:
            q_next = _load(q, q_stride, 0, queries, ROWS, WIDTH, D)
            dout_next = _load(dout, dout_stride, 0, queries, ROWS, WIDTH, D)
        for first in range(0, queries, ROWS):
            # Counted from the first tile: offsets alike in all tiles would stay in registers.
            query = first + row[None, :]
            bias_tile = _load_bias(bias, 0, block, query, key, queries, keys, particles)
            out_tile = _load(out, out_stride, first, queries, ROWS, WIDTH, D)
            level = tl.load(lse + first + row, row < queries - first, 0.0)
            if AHEAD:
                q_tile, dout_tile = q_next, dout_next
                q_next = _load(q, q_stride, first + ROWS, queries, ROWS, WIDTH, D)
                dout_next = _load(dout, dout_stride, first + ROWS, queries, ROWS, WIDTH, D)
            else:
                q_tile = _load(q, q_stride, first, queries, ROWS, WIDTH, D)
                dout_tile = _load(dout, dout_stride, first, queries, ROWS, WIDTH, D)
            delta = tl.sum(dout_tile.to(tl.float32) * out_tile.to(tl.float32), 1)
            score = _scores(k_tile, q_tile, bias_tile, key, keys - block, WIDTH, PRECISION)
            p = exp2(score * SCALE - level[None, :])
            dv_tile = dot(p, dout_tile, dv_tile, PRECISION)
            ds = p * (_product(v_tile, dout_tile, zero, PRECISION) - delta[None, :])
            if dbias is not None:
                corner, entry, exists = _pairs(0, block, query, key, queries, keys, particles)
                tl.store(dbias + corner + entry, ds, exists)
            dk_tile = dot(ds, q_tile, dk_tile, PRECISION)
            dq_tile = dot(tl.trans(ds), k_tile, tl.zeros((ROWS, D), tl.float32), PRECISION)
            if ONE_BLOCK:
                _store(dq, dq_stride, first, queries, dq_tile * WIDTH**-0.5, WIDTH)
            else:
                if block > 0:
                    dq_tile += _load(partial, partial_stride, first, queries, ROWS, WIDTH, D)
                if block + KEYS < keys:
                    _store(partial, partial_stride, first, queries, dq_tile, WIDTH)
                else:
                    _store(dq, dq_stride, first, queries, dq_tile * WIDTH**-0.5, WIDTH)
        # Not at the kernel's beginning, as the others: they would stay in registers until here.
        dk_rows = dk + (first_key * dk_stride + column)
        dv_rows = dv + (first_key * dv_stride + column)
        _store(dk_rows, dk_stride, block, keys, dk_tile * WIDTH**-0.5, WIDTH)
        _store(dv_rows, dv_stride, block, keys, dv_tile, WIDTH)
        if not ONE_BLOCK:
            tl.debug_barrier()  # the next block's threads read what this one's wrote to partial


@triton.jit(do_not_specialize=BATCH)
def attention_backward_kernel(
    dout,
    q,
    k,
    v,
    out,
    lse,
    query_offsets,
    key_offsets,
    bias,
    particle_offsets,
    pair_ends,
    dq,
    dk,
    dv,
    dbias,
    partial,
    dout_stride,
    q_stride,
    k_stride,
    v_stride,
    out_stride,
    dq_stride,
    dk_stride,
    dv_stride,
    partial_stride,
    total: tl.int64,
    pairs: tl.int64,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    HALF: tl.constexpr = max(KEYS // 2, 16)
    jet = tl.program_id(0) // HEADS
    head = tl.program_id(0) % HEADS
    start = tl.load(query_offsets + jet)
    queries = (tl.load(query_offsets + jet + 1) - start).to(tl.int32)
    first_key = tl.load(key_offsets + jet)
    keys = (tl.load(key_offsets + jet + 1) - first_key).to(tl.int32)
    particles = keys * 0
    if bias is not None:
        own = tl.load(particle_offsets + jet + 1) - tl.load(particle_offsets + jet)
        corner = head * pairs + tl.load(pair_ends + jet) - own * own
        particles = own.to(tl.int32)
        bias += corner
        if dbias is not None:
            dbias += corner
    dout += start * dout_stride + head * WIDTH
    q += start * q_stride + head * WIDTH
    k += first_key * k_stride + head * WIDTH
    v += first_key * v_stride + head * WIDTH
    out += start * out_stride + head * WIDTH
    dq += start * dq_stride + head * WIDTH
    partial += start * partial_stride + head * WIDTH
    lse += head * total + start
    if keys <= HALF:
        _backward(
            dout, q, k, v, out, lse, bias, dq, dk, dv, dbias, partial, dout_stride, q_stride,
            k_stride, v_stride, out_stride, dq_stride, dk_stride, dv_stride, partial_stride,
            first_key, head * WIDTH, queries, keys, particles, WIDTH, D, ROWS, HALF, True,
            PRECISION,
        )  # fmt: skip
    elif keys <= KEYS:
        _backward(
            dout, q, k, v, out, lse, bias, dq, dk, dv, dbias, partial, dout_stride, q_stride,
            k_stride, v_stride, out_stride, dq_stride, dk_stride, dv_stride, partial_stride,
            first_key, head * WIDTH, queries, keys, particles, WIDTH, D, ROWS, KEYS, True,
            PRECISION,
        )  # fmt: skip
    else:
        _backward(
            dout, q, k, v, out, lse, bias, dq, dk, dv, dbias, partial, dout_stride, q_stride,
            k_stride, v_stride, out_stride, dq_stride, dk_stride, dv_stride, partial_stride,
            first_key, head * WIDTH, queries, keys, particles, WIDTH, D, ROWS, min(KEYS, 32), False,
            PRECISION,
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
    32: (_tiles(16, 32, 2), _tiles(16, 32, 2), _tiles(16, 32, 2), _tiles(16, 32, 2)),
    64: (_tiles(16, 32, 4), _tiles(16, 32, 4), _tiles(16, 32, 4), _tiles(16, 32, 4)),
    128: (_tiles(16, 32, 4), _tiles(16, 32, 8), _tiles(16, 32, 4), _tiles(16, 16, 8)),
}


def _default(defaults: Defaults, padded: int, half: bool, precision: str) -> Settings:
    """``half``: whether the tensors are bfloat16."""
    tf32 = 2 if half else 1
    return defaults[padded][{"bf16": 0, "tf32": tf32, "ieee": 3}[precision]]


CANDIDATES: dict[str, list[Settings]] = {
    "attention": [
        {"ROWS": 16 * warps, "KEYS": keys, "num_warps": warps, "num_stages": stages}
        for warps in (1, 2, 4)
        for keys in (32, 64)
        for stages in (1, 2)
    ],
    "attention_backward": [
        {"ROWS": rows, "KEYS": keys, "num_warps": warps, "num_stages": 1}
        for rows in (16, 32)
        for keys in (32, 64)
        for warps in (1, 2, 4)
    ],
}


def _settings(kernel: str, defaults: Defaults, q: Tensor, precision: str) -> dict[str, Any]:
    """Tiles and warps for heads as wide as q's, with the constants that go with them."""
    width = q.shape[2]
    padded = max(16, triton.next_power_of_2(width))
    half = q.dtype == torch.bfloat16
    default = _default(defaults, padded, half, precision)
    key = f"d{padded} {'bf16' if half else 'fp32'} {precision}"
    chosen = launch_settings(kernel, key, q.device, default)
    constants = {"HEADS": q.shape[1], "WIDTH": width, "D": padded, "PRECISION": precision}
    return {**constants, **chosen}


@define(
    "attention",
    "(Tensor q, Tensor k, Tensor v, Tensor query_offsets, Tensor key_offsets, Tensor? bias,"
    " Tensor? particle_offsets, Tensor? pair_ends, str precision) -> (Tensor out, Tensor lse)",
)
def launch_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor,
    bias: Tensor | None,
    particle_offsets: Tensor | None,
    pair_ends: Tensor | None,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """The result and, (H, Tq) float32, log2 of the sum of 2^score.

    Args:
        q, k, v: (T, H, d) with dense rows, which may lie apart. bias: (H, P) contiguous.
        pair_ends: (B,) int64, sum of n^2 of the jets up to and with each.
    """
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[1::-1], dtype=torch.float32, device=q.device)
    programs = (len(query_offsets) - 1) * q.shape[1]
    if programs and q.numel():
        with on_device(q):
            attention_kernel[(programs,)](
                q,
                k,
                v,
                out,
                lse,
                query_offsets,
                key_offsets,
                bias,
                particle_offsets,
                pair_ends,
                q.stride(0),
                k.stride(0),
                v.stride(0),
                out.stride(0),
                len(q),
                0 if bias is None else bias.shape[1],
                **_settings("attention", FORWARD, q, precision),
            )
    return out, lse


@torch.library.register_fake("jetkern_triton::attention")
def _forward_fake(q: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    lse = q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)
    return q.new_empty(q.shape), lse


def launch_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor,
    bias: Tensor | None,
    particle_offsets: Tensor | None,
    pair_ends: Tensor | None,
    precision: str,
    gradients: tuple[Tensor, Tensor, Tensor, Tensor | None],
) -> None:
    """Writes the gradients to the given dq, dk, dv and (unless None) dbias.

    The rows of dq, dk and dv are dense and may lie apart: parts of a joint projection's gradient.
    """
    dq, dk, dv, dbias = gradients
    programs = (len(query_offsets) - 1) * q.shape[1]
    if not programs or not q.shape[2]:
        return
    in_place = dq.dtype == torch.float32
    partial = dq if in_place else torch.empty(q.shape, dtype=torch.float32, device=q.device)
    with on_device(q):
        attention_backward_kernel[(programs,)](
            dout,
            q,
            k,
            v,
            out,
            lse,
            query_offsets,
            key_offsets,
            bias,
            particle_offsets,
            pair_ends,
            dq,
            dk,
            dv,
            dbias,
            partial,
            dout.stride(0),
            q.stride(0),
            k.stride(0),
            v.stride(0),
            out.stride(0),
            dq.stride(0),
            dk.stride(0),
            dv.stride(0),
            partial.stride(0),
            len(q),
            0 if bias is None else bias.shape[1],
            **_settings("attention_backward", BACKWARD, q, precision),
        )


@define(
    "attention_backward",
    "(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor query_offsets,"
    " Tensor key_offsets, Tensor? bias, Tensor? particle_offsets, Tensor? pair_ends,"
    " str precision, bool want_dbias) -> (Tensor dq, Tensor dk, Tensor dv, Tensor dbias)",
)
def _launch_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, *others: Any
) -> tuple[Tensor, ...]:
    *inputs, want_dbias = others
    bias = inputs[4]
    dq, dk, dv, dbias = _gradients(q, k, v, bias, want_dbias)
    wanted = None if bias is None or not want_dbias else dbias
    arguments = (*inputs, (dq, dk, dv, wanted))
    launch_backward(dout, q, k, v, *arguments)
    return dq, dk, dv, dbias


def _gradients(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, want_dbias: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dbias = q.new_empty((0, 0)) if bias is None or not want_dbias else bias.new_empty(bias.shape)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), dbias


@torch.library.register_fake("jetkern_triton::attention_backward")
def _backward_fake(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, *others: Any
) -> tuple[Tensor, ...]:
    return _gradients(q, k, v, others[4], others[-1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.precision = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(*tensors[:3], out, lse, *tensors[3:])


def _backward_step(ctx: Any, dout: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    want_dbias = ctx.needs_input_grad[5]
    dq, dk, dv, dbias = torch.ops.jetkern_triton.attention_backward(
        dense_rows(dout), *ctx.saved_tensors, ctx.precision, want_dbias
    )
    return dq, dk, dv, None, None, dbias if want_dbias else None, None, None, None


torch.library.register_autograd(
    "jetkern_triton::attention", _backward_step, setup_context=_setup_context
)


def pair_ends(particle_offsets: Tensor) -> Tensor:
    """(B,) int64 sum of n^2 of the jets up to and with each."""
    return particle_offsets.diff().square().cumsum(0)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor,
    bias: Tensor | None,
    particle_offsets: Tensor | None,
    precision: str = "ieee",
) -> Tensor:
    """See ``jetkern.ops.attention``. Heads wider than 128 and mixed dtypes go to the reference.

    With a bias a jet has at most 65,535 particles, as in ``pair_bias``.
    Offsets that do not rise, or a bias of the wrong length, cannot be seen without waiting for the
    GPU: they are not checked.
    """
    usual = q.dtype == k.dtype == v.dtype and (bias is None or bias.dtype in TYPES)
    if not usual or q.shape[2] > WIDEST:
        return reference(q, k, v, query_offsets, key_offsets, bias, particle_offsets)
    ends = None
    if bias is None or particle_offsets is None:
        bias = particle_offsets = None
    else:
        bias, particle_offsets = bias.contiguous(), particle_offsets.contiguous()
        ends = pair_ends(particle_offsets)
    out, _ = torch.ops.jetkern_triton.attention(
        dense_rows(q),
        dense_rows(k),
        dense_rows(v),
        query_offsets.contiguous(),
        key_offsets.contiguous(),
        bias,
        particle_offsets,
        ends,
        precision,
    )
    return out


PRESETS = {"micro": (8, 4), "small": (16, 8), "medium, large": (32, 16)}  # d, heads
KINDS = [(dtype, precision) for dtype in ("fp32", "bf16") for precision in PRECISIONS]


def compile_cases() -> Iterator[CompileCase]:
    """Both kernels for self-attention at the presets' sizes, class attention and wide heads."""
    sizes = PRESETS | {f"d = {d}": (d, 8) for d in (64, 128)}
    cases = [(name, *size, *kind, True) for name, size in sizes.items() for kind in KINDS]
    cases += [("class attention, small", *PRESETS["small"], *kind, False) for kind in KINDS[:3]]
    for name, width, heads, dtype, precision, biased in cases:
        padded, joint = max(16, width), 3 * heads * width
        pointer, label = f"*{dtype}", f"{name} {dtype} {precision}"
        inputs: dict[str, Any] = dict.fromkeys(("q", "k", "v", "out"), pointer) | {"lse": "*fp32"}
        pairs = {"bias": pointer, "particle_offsets": "*i64", "pair_ends": "*i64"}
        inputs |= {"query_offsets": "*i64", "key_offsets": "*i64"}
        inputs |= pairs if biased else dict.fromkeys(pairs)
        gradients = {"dq": pointer, "dk": pointer, "dv": pointer, "dbias": inputs["bias"]}
        inputs |= dict.fromkeys(("q_stride", "k_stride", "v_stride"), joint)
        inputs |= {"out_stride": heads * width, "total": "i64", "pairs": "i64"}
        inputs |= {"HEADS": heads, "WIDTH": width, "D": padded, "PRECISION": precision}
        strides = ("dout_stride", "dq_stride", "dk_stride", "dv_stride", "partial_stride")
        gradients |= {"dout": pointer, "partial": "*fp32", **dict.fromkeys(strides, heads * width)}
        for kernel, defaults, others in (
            (attention_kernel, FORWARD, {}),
            (attention_backward_kernel, BACKWARD, gradients),
        ):
            settings = _default(defaults, padded, dtype == "bf16", precision)
            given = {**inputs, **others, **settings}
            arguments = {n: given[n] for n in kernel.arg_names}
            row = (kernel_name(kernel), f"d{padded} {dtype} {precision}")
            yield CompileCase(kernel, label, arguments, settings, row)
