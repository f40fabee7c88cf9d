"""Backward of the fused local block up to width 32: gradients of matrices stay on chip.

``kept`` is what forward kept, the residual stream before each half of each block. From the last
block to the first its gradient goes through the halves, which are recomputed tile by tile. One
kernel: its programs share the tiles and take them in passes, one for each chunk of a hidden layer
or group of heads, whose gradients a pass holds in registers.
"""

from __future__ import annotations

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
from jetkern.ops.local_block.triton.launch import settings_of, tiles_of
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

NARROW = {"ieee": 0, "tf32": 32, "bf16": 32}  # the widest whose gradients stay on chip
RESIDENT_WARPS = 8  # of an SM, with 255 registers for each thread
SLABS = 8  # launches whose sums exist at a time
ROUND_ROWS = 512  # of a program: what passes over them read stays in the first-level cache
CANDIDATES: dict[str, list[Settings]] = {
    "local_block_bwd_narrow": [
        {"ROWS": r, "num_warps": w, "CHUNK": c}
        for r, w in ((32, 2), (64, 4), (128, 8))
        for c in (16, 32)
    ]
}


class Sums(NamedTuple):
    """A program's gradients of all matrices, and of all of the embedding."""

    matrices: Any
    embed: Any
    end: Any


class Block(NamedTuple):
    """A block's weights and where its sums go, of a tile ``partial``, of a program ``slab``."""

    matrices: Any
    vectors: Any
    partial: Any
    slab: Any


@triton.jit
def weight_gradient(left, right, acc, PRECISION: tl.constexpr):
    """left^T right + acc."""
    return dot(tl.trans(factor(left, PRECISION)), right, acc, PRECISION)


@triton.jit
def tile_half(half, first, STEP: tl.constexpr):
    """A half from the tile's first edge on."""
    at = first * STEP
    return Half(half.kept + at, half.d_half + at, half.d_after + at, half.d_before + at)


@triton.jit
def narrow_mlp(
    batch,
    half,
    block,
    tiles,
    always,
    SHAPE: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """A block's MLP of a program's tiles; see ``local_block_bwd_narrow_kernel``."""
    K: tl.constexpr = SHAPE.K
    D: tl.constexpr = SHAPE.D
    F: tl.constexpr = SHAPE.F
    MATRICES: tl.constexpr = SHAPE.MATRICES
    VECTORS: tl.constexpr = SHAPE.VECTORS
    SUMS: tl.constexpr = SHAPE.BLOCKS * VECTORS.end  # of a tile
    wide = tl.arange(0, D)
    part = tl.arange(0, CHUNK)
    vectors = block.vectors
    norm = Norm(vectors + VECTORS.gamma2, vectors + VECTORS.alpha2)
    alpha2 = tl.load(norm.alpha)
    alpha = tl.load(vectors + VECTORS.alpha)
    gamma2 = tl.load(norm.gamma + wide)[None, :]
    for c in range(0, F, CHUNK):
        tl.debug_barrier()  # what other threads wrote in the pass before
        to_fc1 = MATRICES.fc1_weight + (c + part)[:, None] * D + wide[None, :]
        to_fc2 = MATRICES.fc2_weight + wide[:, None] * F + (c + part)[None, :]
        d_fc1 = tl.zeros((CHUNK, D), tl.float32)
        d_fc2 = tl.zeros((D, CHUNK), tl.float32)
        for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), num_stages=1):
            first, _, edge, _, inside, _ = tile_rows(batch, tile, SHAPE, ROWS)
            inside = inside[:, None]
            at = first * (K * D) + edge[:, None] * D + wide[None, :]
            sums = block.partial + tl.cast(tile, tl.int64) * SUMS
            h = normed(tl.load(half.kept + at, inside, 0.0), alpha2, gamma2, PRECISION)
            d = tl.load(half.d_after + at, inside, 0.0)
            w_fc1 = tl.load(block.matrices + to_fc1)
            t, du, d_gamma, d_alpha = mlp_gradients(
                h,
                d,
                w_fc1,
                tl.load(block.matrices + to_fc2),
                tl.load(vectors + VECTORS.fc1_bias + c + part),
                tl.load(vectors + VECTORS.gamma + c + part),
                alpha,
                SHAPE.NORM,
                PRECISION,
            )
            tl.store(sums + VECTORS.fc1_bias + c + part, tl.sum(du, 0))
            tl.store(sums + VECTORS.gamma + c + part, d_gamma)
            before = tl.load(sums + VECTORS.alpha, c > 0, 0.0)
            tl.store(sums + VECTORS.alpha, before + tl.sum(d_alpha, 0))
            dh = tl.load(half.d_half + at, inside & (c > 0), 0.0).to(tl.float32)
            dh = dot(du, w_fc1, dh, PRECISION)
            if always:  # a branch, for Triton to lay its product out by itself
                d_fc1 = weight_gradient(du, h, d_fc1, PRECISION)
            if always:
                d_fc2 = weight_gradient(d, t, d_fc2, PRECISION)
            tl.store(half.d_half + at, dh, inside)
        tl.store(block.slab + to_fc1, d_fc1)
        tl.store(block.slab + to_fc2, d_fc2)
    tl.debug_barrier()
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), num_stages=1):
        first, _, edge, _, inside, _ = tile_rows(batch, tile, SHAPE, ROWS)
        inside = inside[:, None]
        at = first * (K * D) + edge[:, None] * D + wide[None, :]
        sums = block.partial + tl.cast(tile, tl.int64) * SUMS
        d = tl.load(half.d_after + at, inside, 0.0).to(tl.float32)
        tl.store(sums + VECTORS.fc2_bias + wide, tl.sum(d, 0))
        tl.debug_barrier()  # all have read what changes now
        to = Norm(sums + VECTORS.gamma2, sums + VECTORS.alpha2)
        through_norm(tile_half(half, first, K * D), edge, inside, norm, to, D, PRECISION)


@triton.jit
def narrow_attention(
    batch,
    half,
    block,
    tiles,
    always,
    SHAPE: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """A block's attention of a program's tiles."""
    K: tl.constexpr = SHAPE.K
    SET: tl.constexpr = SHAPE.SET
    D: tl.constexpr = SHAPE.D
    HEAD: tl.constexpr = SHAPE.HEAD
    MATRICES: tl.constexpr = SHAPE.MATRICES
    VECTORS: tl.constexpr = SHAPE.VECTORS
    SUMS: tl.constexpr = SHAPE.BLOCKS * VECTORS.end  # of a tile
    wide = tl.arange(0, D)
    some = tl.arange(0, GROUP)
    norm = Norm(block.vectors + VECTORS.gamma1, block.vectors + VECTORS.alpha1)
    alpha = tl.load(norm.alpha)
    gamma = tl.load(norm.gamma + wide)[None, :]
    qkv = block.matrices + MATRICES.qkv_weight
    for g in range(0, D, GROUP):
        tl.debug_barrier()  # what other threads wrote in the pass before
        to_q = (g + some)[:, None] * D + wide[None, :]
        to_out = MATRICES.out_weight + wide[:, None] * D + (g + some)[None, :]
        d_q = tl.zeros((D, GROUP), tl.float32)
        d_k = tl.zeros((D, GROUP), tl.float32)
        d_v = tl.zeros((D, GROUP), tl.float32)
        d_out = tl.zeros((D, GROUP), tl.float32)
        for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), num_stages=1):
            first, _, edge, _, inside, exists = tile_rows(batch, tile, SHAPE, ROWS)
            inside = inside[:, None]
            at = first * (K * D) + edge[:, None] * D + wide[None, :]
            key = set_keys(exists, K, SET, GROUP, HEAD)
            h = normed(tl.load(half.kept + at, inside, 0.0), alpha, gamma, PRECISION)
            d = tl.load(half.d_after + at, inside, 0.0)
            w_q = tl.load(qkv + to_q)
            w_k = tl.load(qkv + D * D + to_q)
            w_v = tl.load(qkv + 2 * D * D + to_q)
            q, k, v, p, mixed = attention_parts(h, key, w_q, w_k, w_v, SHAPE, PRECISION)
            if always:  # branches, for Triton to lay their products out by themselves
                d_out = weight_gradient(d, mixed, d_out, PRECISION)
            zero = tl.zeros((ROWS, GROUP), tl.float32)
            do = factor(dot(d, tl.load(block.matrices + to_out), zero, PRECISION), PRECISION)
            do = split_queries(do, SET, HEAD)
            dv = batch_dot(tl.permute(p, (0, 2, 1)), do, PRECISION)
            dv = join_keys(dv, GROUP, SET, HEAD)
            dh = tl.load(half.d_half + at, inside & (g > 0), 0.0).to(tl.float32)
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
            tl.store(half.d_half + at, dh, inside)
        to_q = MATRICES.qkv_weight + (g + some)[None, :] * D + wide[:, None]
        tl.store(block.slab + to_q, d_q)
        tl.store(block.slab + D * D + to_q, d_k)
        tl.store(block.slab + 2 * D * D + to_q, d_v)
        tl.store(block.slab + to_out, d_out)
    tl.debug_barrier()
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), num_stages=1):
        first, _, edge, _, inside, _ = tile_rows(batch, tile, SHAPE, ROWS)
        inside = inside[:, None]
        sums = block.partial + tl.cast(tile, tl.int64) * SUMS
        to = Norm(sums + VECTORS.gamma1, sums + VECTORS.alpha1)
        through_norm(tile_half(half, first, K * D), edge, inside, norm, to, D, PRECISION)


@triton.jit(
    do_not_specialize=["total", "limit", "tiles", "always"],
    do_not_specialize_on_alignment=["slab", "partial"],
)
def local_block_bwd_narrow_kernel(
    d_out,
    centres,
    particles,
    neighbours,
    kept,
    weights,
    d_stream,
    d_half,
    partial,
    slab,
    total,
    limit,
    tiles,
    always,
    kept_stride,
    SHAPE: tl.constexpr,
    SUMS: tl.constexpr,
    EMBED_SUMS: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """All gradients of a round: so few tiles a program that passes over them hit the cache.

    ``d_stream``, ``d_half``: of their edges, the stream's gradient, changed in place, and what
    passes over a half add up. ``partial``: of each tile, for each block, a row of ``BlockVectors``.
    ``slab``: of each program a row of ``Sums``, with ``BlockMatrices`` for each block and
    ``EmbedSums``.
    """
    K: tl.constexpr = SHAPE.K
    D: tl.constexpr = SHAPE.D
    C: tl.constexpr = SHAPE.C
    MATRICES: tl.constexpr = SHAPE.MATRICES
    VECTORS: tl.constexpr = SHAPE.VECTORS
    EMBED: tl.constexpr = SHAPE.EMBED
    batch = Batch(centres, particles, neighbours, total, limit)
    wide = tl.arange(0, D)
    slab += tl.program_id(0).to(tl.int64) * SUMS.end
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), num_stages=1):
        first, particle, edge, _, inside, exists = tile_rows(batch, tile, SHAPE, ROWS)
        d = mean_gradient(d_out, batch, first + particle, inside, exists, SHAPE)
        at = first * (K * D) + edge[:, None] * D + wide[None, :]
        tl.store(d_stream + at, d, inside[:, None])
    for i in range(SHAPE.BLOCKS):
        b = SHAPE.BLOCKS - 1 - i
        block = Block(
            weights.matrices + D * C + b * MATRICES.end,
            weights.vectors + EMBED.end + b * VECTORS.end,
            partial + b * VECTORS.end,
            slab + SUMS.matrices + b * MATRICES.end,
        )
        before = kept + 2 * b * kept_stride.to(tl.int64)
        half = Half(before + kept_stride, d_half, d_stream, d_stream)
        narrow_mlp(batch, half, block, tiles, always, SHAPE, PRECISION, ROWS, CHUNK)
        half = Half(before, d_half, d_stream, d_stream)
        narrow_attention(batch, half, block, tiles, always, SHAPE, PRECISION, ROWS, GROUP)
    tl.debug_barrier()
    for chunk in range(C // CHUNK):
        embed_gradients(
            batch,
            d_stream,
            weights,
            slab + SUMS.embed,
            chunk,
            tl.program_id(0),
            tiles,
            tl.num_programs(0),
            SHAPE,
            EMBED_SUMS,
            PRECISION,
            ROWS,
            CHUNK,
        )


def narrow(shape: Shape, precision: str) -> bool:
    """Whether the weights' gradients stay on chip; in "ieee" there are too few registers."""
    return shape.width <= NARROW[precision]


def settings(shape: Shape, precision: str, device: torch.device) -> Settings:
    """How to launch the kernel; in "ieee" factors take three times the registers."""
    half, few = precision == "bf16", set_rows(shape.k)
    default = {
        "ROWS": 64 if half else max(few, 32),
        "CHUNK": 16,
        "GROUP": max(16, shape.width // shape.heads),
        "num_warps": 4 if half else max(few // 16, 2),
        "num_stages": 1,
    }
    return settings_of(local_block_bwd_narrow_kernel, shape, precision, device, default)


def processors(tensor: Tensor) -> int:
    """Streaming multiprocessors of the tensor's GPU; few in the interpreter, to share the tiles."""
    if not tensor.is_cuda:
        return 1
    return int(torch.cuda.get_device_properties(tensor.device).multi_processor_count)


def backward(
    d_out: Tensor,
    particles: Tensor,
    neighbours: Tensor,
    kept: Tensor,
    weights: Weights,
    shape: Shape,
    precision: str,
) -> SlabSums:
    """Sums of the gradients of all weights."""
    device = particles.device
    chosen = settings(shape, precision, device)
    total, k, rows = len(particles), shape.k, chosen["ROWS"]
    tiles = tiles_of(total, shape, chosen)
    programs = min(tiles, processors(particles) * RESIDENT_WARPS // chosen["num_warps"])
    rounds = cdiv(tiles * rows, max(programs, 1) * ROUND_ROWS)
    step = cdiv(tiles, max(rounds, 1)) * (rows // set_rows(k)) * (set_rows(k) // k)
    constants = shape.constants
    of_blocks = shape.blocks * constants.MATRICES.end
    embed = offsets(EmbedSums, shape.embed_sizes(chosen["CHUNK"]))
    layout = offsets(Sums, (of_blocks, embed.end))

    def sums(*size: int) -> Tensor:
        return torch.empty(size, dtype=torch.float32, device=device)

    partial = sums(tiles, shape.blocks, constants.VECTORS.end)
    slab = sums(min(rounds, SLABS), programs, layout.end)
    d_stream, d_half = kept.new_empty(2, step * k, shape.width)
    found = sums(layout.end).zero_()
    for i, start in enumerate(range(0, total, max(step, 1))):
        n = min(step, total - start)
        launch(
            local_block_bwd_narrow_kernel,
            (programs,),
            device,
            chosen,
            d_out=d_out[start:],
            centres=particles[start:],
            particles=particles,
            neighbours=neighbours[start:],
            kept=kept[:, start * k :],
            weights=weights,
            d_stream=d_stream,
            d_half=d_half,
            partial=partial[tiles_of(start, shape, chosen) :],
            slab=slab[i % SLABS],
            total=n,
            limit=total,
            tiles=tiles_of(n, shape, chosen),
            always=1,
            kept_stride=kept.stride(0),
            SHAPE=constants,
            SUMS=layout,
            EMBED_SUMS=embed,
            PRECISION=precision,
        )
        if i % SLABS == SLABS - 1 or start + n == total:
            found += slab[: i % SLABS + 1].sum((0, 1))
    of_matrices, of_embed = found.split([of_blocks, embed.end])
    return SlabSums(of_embed, of_matrices.view(shape.blocks, -1), partial.sum(0))
