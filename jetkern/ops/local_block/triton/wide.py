"""The local block of wide models as Triton kernels around large matrix products.

Rows are the T x K edges; a neighbour that is missing has a row too, which attention and mean leave
out. Three operators, each with its backward: the embedding, whose first layer never exists without
its GELU and norm; a transformer block, with attention as batches of small products for several
neighbourhoods at a time; the mean. A block keeps for its backward its input, queries, keys and
values, the rows between attention and MLP, and the result of fc1: 7 D numbers for an edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from jetkern.ops.attention_block.triton import (
    BLOCK_NAMES,
    BLOCK_WEIGHTS,
    block_gradients,
    block_weights,
    in_order,
)
from jetkern.ops.gpu.functions import dot, gelu, gelu_and_slope
from jetkern.ops.gpu.launch import Settings, cdiv, launch, launch_settings, power_of_two
from jetkern.ops.gpu.layout import offsets
from jetkern.ops.gpu.pointwise import (
    add_branch,
    add_branch_and_norm,
    column_sums,
    norm,
    norm_backward,
    padded,
    stored_type,
)
from jetkern.ops.gpu.register import gpu_operator
from jetkern.ops.gpu.sums import Slabs, added
from jetkern.ops.linear.triton import product, weight_gradient
from jetkern.ops.local_block.triton.features import edge_features, features_of
from jetkern.ops.local_block.triton.layout import embed_offsets, embed_vectors
from jetkern.ops.local_block.triton.tiles import (
    batch_dot,
    denominator,
    embed_hidden,
    norm_tanh,
    probabilities,
    rows_of_set,
)
from jetkern.ops.mlp.triton import WEIGHTS, dense, like_weights, wide_backward, wide_forward
from jetkern.ops.parameters import BlockParameters, MLPParameters

HIDDEN: Settings = {"ROWS": 32, "CHUNK": 64, "num_warps": 4, "num_stages": 1}
HIDDEN_BACKWARD: Settings = {"ROWS": 64, "CHUNK": 32, "num_warps": 4, "num_stages": 1}
MEAN_BACKWARD: Settings = {"ROWS": 32, "COLUMNS": 64, "num_warps": 4, "num_stages": 1}
MEAN: Settings = {"ROWS": 16, "COLUMNS": 128, "num_warps": 4, "num_stages": 1}
PROGRAMS = 64  # that share the edges in the embedding's backward, each with all chunks

_SETS = [
    {"SETS": s, "num_warps": w}
    for s, w in ((1, 1), (1, 2), (1, 4), (1, 8), (2, 1), (2, 2), (4, 2), (4, 4), (8, 4), (8, 8))
]
CANDIDATES: dict[str, list[Settings]] = {
    "local_embed_fwd": [
        {"ROWS": r, "CHUNK": c, "num_warps": w}
        for r in (32, 64)
        for c in (32, 64, 128)
        for w in (4, 8)
    ],
    "local_embed_bwd": [
        {"ROWS": r, "CHUNK": c, "num_warps": w} for r in (32, 64) for c in (32, 64) for w in (4, 8)
    ],
    "local_attention_fwd": _SETS,
    "local_attention_bwd": _SETS,
    "local_mean_fwd": [
        {"ROWS": r, "COLUMNS": c, "num_warps": w}
        for r in (8, 16, 32)
        for c in (64, 128)
        for w in (4, 8)
    ],
    "local_mean_bwd": [{"ROWS": r, "num_warps": w} for r in (16, 32, 64) for w in (2, 4, 8)],
}


class Sums(NamedTuple):
    """A slab of the embedding's backward: the gradients of its first layer and norm."""

    fc1: Any  # (C, 16): weight, bias, 8 unused
    gamma: Any  # (C,)
    alpha: Any  # one for each chunk
    end: Any


class Kept(NamedTuple):
    """What a transformer block keeps, (E, width) each."""

    qkv: Tensor
    middle: Tensor
    hidden: Tensor


@triton.jit(do_not_specialize=["number"])
def local_embed_fwd_kernel(
    edges,
    vectors,
    out,
    number,
    EMBED: tl.constexpr,
    C: tl.constexpr,
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """norm(gelu(fc1 of the seven features)) of every edge."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    inside = first + tl.arange(0, ROWS) < number
    features = features_of(edges, first, tl.arange(0, ROWS), inside)
    alpha = tl.load(vectors + EMBED.alpha)
    for c in range(0, C, CHUNK):
        part = c + tl.arange(0, CHUNK)
        h = embed_hidden(features, vectors, part, EMBED, ROWS, CHUNK)
        h = gelu(h, PRECISION)
        if NORM:
            h = norm_tanh(alpha * h, PRECISION)
            h *= tl.load(vectors + EMBED.gamma + part, part < C, 0.0)[None, :]
        at = first * C + tl.arange(0, ROWS)[:, None] * C + part[None, :]
        tl.store(out + at, h, inside[:, None] & (part < C)[None, :])


@triton.jit(do_not_specialize=["number"])
def local_embed_bwd_kernel(
    edges,
    vectors,
    d_out,
    out,
    slab,
    number,
    EMBED: tl.constexpr,
    SUMS: tl.constexpr,
    C: tl.constexpr,
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Gradients of the first layer and its norm from every p-th tile, and the forward again.

    A row of ``slab`` is of ``Sums``.
    """
    FEATURES: tl.constexpr = "tf32" if PRECISION == "bf16" else PRECISION
    chunk = tl.program_id(1)
    part = chunk * CHUNK + tl.arange(0, CHUNK)
    there = part < C
    alpha = tl.load(vectors + EMBED.alpha)
    gamma = tl.load(vectors + EMBED.gamma + part, there, 0.0)[None, :]
    d_fc1 = tl.zeros((CHUNK, 16), tl.float32)
    d_gamma = tl.zeros((CHUNK,), tl.float32)
    d_alpha = tl.zeros((ROWS,), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(number, ROWS), tl.num_programs(0)):
        first = tl.cast(tile, tl.int64) * ROWS
        inside = first + tl.arange(0, ROWS) < number
        features = features_of(edges, first, tl.arange(0, ROWS), inside)
        h = embed_hidden(features, vectors, part, EMBED, ROWS, CHUNK)
        t, slope = gelu_and_slope(h, PRECISION)
        at = first * C + tl.arange(0, ROWS)[:, None] * C + part[None, :]
        used = inside[:, None] & there[None, :]
        d = tl.load(d_out + at, used, 0.0).to(tl.float32)
        if NORM:
            y = norm_tanh(alpha * t, PRECISION)
            d_gamma += tl.sum(d * y, 0)
            d = d * gamma * (1.0 - y * y)
            d_alpha += tl.sum(d * t, 1)
            d = alpha * d
            t = y * gamma
        tl.store(out + at, t, used)
        d_fc1 = dot(tl.trans(d * slope), features, d_fc1, FEATURES)
    slab += tl.program_id(0).to(tl.int64) * SUMS.end
    lane = tl.arange(0, 16)[None, :]
    tl.store(slab + SUMS.fc1 + part[:, None] * 16 + lane, d_fc1, there[:, None] & (lane < 16))
    tl.store(slab + SUMS.gamma + part, d_gamma, there)
    tl.store(slab + SUMS.alpha + chunk, tl.sum(d_alpha, 0))


@triton.jit(do_not_specialize=["total"])
def local_attention_fwd_kernel(
    qkv,
    neighbours,
    mixed,
    total,
    K: tl.constexpr,
    SET: tl.constexpr,
    D: tl.constexpr,
    HEAD: tl.constexpr,
    PADDED: tl.constexpr,
    PRECISION: tl.constexpr,
    SETS: tl.constexpr,
):
    """Attention of one head within the neighbourhoods of ``SETS`` sets."""
    edge, inside, key = rows_of_set(neighbours, tl.program_id(0), total, total, K, SET, SETS)
    column = tl.arange(0, PADDED)
    own = tl.program_id(1) * HEAD + column
    there = inside[:, :, None] & (column < HEAD)[None, None, :]
    at = qkv + edge[:, :, None] * (3 * D) + own[None, None, :]
    q = tl.load(at, there, 0.0)
    k = tl.load(at + D, there, 0.0)
    v = tl.load(at + 2 * D, there, 0.0)
    p = probabilities(q, k, key, K, HEAD, PRECISION)
    o = batch_dot(p, v, PRECISION)
    tl.store(mixed + edge[:, :, None] * D + own[None, None, :], o, there)


@triton.jit(do_not_specialize=["total"])
def local_attention_bwd_kernel(
    qkv,
    d_mixed,
    neighbours,
    d_qkv,
    mixed,
    total,
    K: tl.constexpr,
    SET: tl.constexpr,
    D: tl.constexpr,
    HEAD: tl.constexpr,
    PADDED: tl.constexpr,
    PRECISION: tl.constexpr,
    SETS: tl.constexpr,
):
    """Gradients of ``local_attention_fwd``, and its result again."""
    edge, inside, key = rows_of_set(neighbours, tl.program_id(0), total, total, K, SET, SETS)
    column = tl.arange(0, PADDED)
    own = (tl.program_id(1) * HEAD + column)[None, None, :]
    there = inside[:, :, None] & (column < HEAD)[None, None, :]
    at = edge[:, :, None] * (3 * D) + own
    narrow = edge[:, :, None] * D + own
    q = tl.load(qkv + at, there, 0.0)
    k = tl.load(qkv + at + D, there, 0.0)
    v = tl.load(qkv + at + 2 * D, there, 0.0)
    p = probabilities(q, k, key, K, HEAD, PRECISION)
    tl.store(mixed + narrow, batch_dot(p, v, PRECISION), there)
    d = tl.load(d_mixed + narrow, there, 0.0)
    dv = batch_dot(tl.permute(p, (0, 2, 1)), d, PRECISION)
    tl.store(d_qkv + at + 2 * D, dv, there)
    dp = batch_dot(d, tl.permute(v, (0, 2, 1)), PRECISION)
    ds = p * (dp - tl.sum(p * dp, 2)[:, :, None]) * (HEAD**-0.5)
    tl.store(d_qkv + at, batch_dot(ds, k, PRECISION), there)
    dk = batch_dot(tl.permute(ds, (0, 2, 1)), q, PRECISION)
    tl.store(d_qkv + at + D, dk, there)


@triton.jit(do_not_specialize=["total"])
def local_mean_fwd_kernel(
    x,
    neighbours,
    out,
    total,
    K: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Mean over the neighbours that exist."""
    particle = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = particle < total
    wide = (column < D)[None, :]
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    number = tl.zeros((ROWS,), tl.float32)
    for k in range(K):
        edge = particle * K + k
        other = tl.load(neighbours + edge, inside, -1)
        exists = (other >= 0) & (other < total)
        row = tl.load(x + edge[:, None] * D + column[None, :], exists[:, None] & wide, 0.0)
        acc += row.to(tl.float32)
        number += exists.to(tl.float32)
    mean = acc / (number + 1e-9 * K)[:, None]
    tl.store(out + particle[:, None] * D + column[None, :], mean, inside[:, None] & wide)


@triton.jit(do_not_specialize=["total"])
def local_mean_bwd_kernel(
    d_out,
    neighbours,
    d_x,
    total,
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
    exists = (other >= 0) & (other < total)
    number = denominator(neighbours, particle, inside, total, K, K_PADDED)
    used = exists[:, None] & (column < D)[None, :]
    d = tl.load(d_out + particle[:, None] * D + column[None, :], used, 0.0).to(tl.float32)
    there = inside[:, None] & (column < D)[None, :]
    d = d / number[:, None]
    tl.store(d_x + edge[:, None] * D + column[None, :], d, there)


def _settings(kernel: Any, width: int, precision: str, like: Tensor, default: Settings) -> Settings:
    return launch_settings(kernel, f"d{width} {precision}", like.device, default)


def _embed_constants(p: MLPParameters, precision: str) -> dict[str, Any]:
    hidden, width = p.fc1_weight.shape[0], p.fc2_weight.shape[0]
    return {
        "EMBED": embed_offsets(hidden, width),
        "C": hidden,
        "NORM": p.gamma is not None,
        "PRECISION": precision,
    }


def _embed_forward(particles: Tensor, neighbours: Tensor, *others: Any) -> Tensor:
    *weights, precision = others
    p = MLPParameters(*weights)
    edges, hidden = neighbours.numel(), p.fc1_weight.shape[0]
    stored = stored_type(precision)
    u = particles.new_empty(edges, hidden, dtype=stored)
    settings = _settings(local_embed_fwd_kernel, hidden // 2, precision, particles, HIDDEN)
    launch(
        local_embed_fwd_kernel,
        (cdiv(edges, settings["ROWS"]),),
        particles.device,
        settings,
        edges=edge_features(particles, particles, neighbours),
        vectors=embed_vectors(p),
        out=u,
        number=edges,
        **_embed_constants(p, precision),
    )
    x = product(u, p.fc2_weight.t(), precision, stored)
    return x if p.fc2_bias is None else x.add_(p.fc2_bias)


def _embed_backward(
    d_out: Tensor, particles: Tensor, neighbours: Tensor, *others: Any
) -> tuple[Tensor, ...]:
    *weights, precision = others
    p = MLPParameters(*weights)
    edges, hidden = neighbours.numel(), p.fc1_weight.shape[0]
    d_u = product(d_out, p.fc2_weight, precision, stored_type(precision))
    u = torch.empty_like(d_u)
    kernel = local_embed_bwd_kernel
    settings = _settings(kernel, hidden // 2, precision, particles, HIDDEN_BACKWARD)
    programs = min(PROGRAMS, cdiv(edges, settings["ROWS"]))
    chunks = cdiv(hidden, settings["CHUNK"])
    sizes = (16 * hidden, hidden, chunks)
    layout = offsets(Sums, sizes)
    slabs = particles.new_empty(programs, layout.end, dtype=torch.float32)
    launch(
        kernel,
        (programs, chunks),
        particles.device,
        settings,
        edges=edge_features(particles, particles, neighbours),
        vectors=embed_vectors(p),
        d_out=d_u,
        out=u,
        slab=slabs,
        number=edges,
        SUMS=layout,
        **_embed_constants(p, precision),
    )
    total = Sums._make([*added([Slabs(slabs, sizes, whole=(2,))])[0], None])
    fc1 = total.fc1.view(hidden, 16)
    found = MLPParameters(
        fc1[:, :7].contiguous(),
        fc1[:, 7].contiguous(),
        total.alpha,
        total.gamma,
        weight_gradient(d_out, u, precision, torch.float32),
        column_sums(d_out),
    )
    return like_weights(found, p)


def _embed_fake(particles: Tensor, neighbours: Tensor, *others: Any) -> Tensor:
    *weights, precision = others
    edges, width = (
        neighbours.shape[0] * neighbours.shape[1],
        MLPParameters(*weights).fc2_weight.shape[0],
    )
    return particles.new_empty(edges, width, dtype=stored_type(precision))


_embed_op = gpu_operator(
    "local_embed",
    f"(Tensor particles, Tensor neighbours, {WEIGHTS}, str precision) -> Tensor out",
    fake=_embed_fake,
    forward=_embed_forward,
    backward=_embed_backward,
    gradients=" ".join(MLPParameters._fields),
)


def attention_rows(k: int) -> int:
    """Rows of a set in the attention kernels, where fewer are fewer products than well filled ones.

    10 neighbours: 16 x 16 products of keys and queries for one neighbourhood, or 32 x 32 for three.
    """
    return padded(k)


def _attention(
    kernel: Any, qkv: Tensor, neighbours: Tensor, heads: int, precision: str, **tensors: Tensor
) -> None:
    """Launches an attention kernel on the neighbourhoods of qkv (E, 3 D)."""
    total, k = neighbours.shape
    width = qkv.shape[1] // 3
    head, rows = width // heads, attention_rows(k)
    # A warp has a set of 16 rows to itself; all warps share a larger one.
    default = {
        "SETS": 4 if rows == 16 else 1,
        "num_warps": 4 if rows == 16 else rows // 8,
        "num_stages": 1,
    }
    settings = launch_settings(kernel, f"d{head} k{k} {precision}", qkv.device, default)
    launch(
        kernel,
        (cdiv(total, settings["SETS"] * (rows // k)), heads),
        qkv.device,
        settings,
        qkv=qkv,
        neighbours=neighbours,
        total=total,
        K=k,
        SET=rows,
        D=width,
        HEAD=head,
        PADDED=padded(head),
        PRECISION=precision,
        **tensors,
    )


def _block_forward(x: Tensor, neighbours: Tensor, *others: Any) -> tuple[Tensor, ...]:
    *weights, heads, precision = others
    p, dtype = block_weights(weights), stored_type(precision)
    normed = norm(x, p.alpha1, p.gamma1, dtype)
    qkv = product(normed, p.qkv_weight.t(), precision, dtype)
    mixed = normed  # no longer needed: its memory takes the result
    _attention(local_attention_fwd_kernel, qkv, neighbours, heads, precision, mixed=mixed)
    branch = product(mixed, p.out_weight.t(), precision, dtype)
    middle, normed = add_branch_and_norm(x, branch, p.alpha2, p.gamma2, dtype)
    branch, hidden = wide_forward(normed, p.mlp, precision, dtype)
    return add_branch(middle, branch, p.mlp.fc2_bias), *Kept(qkv, middle, hidden)


def _block_backward(
    d_out: Tensor, x: Tensor, neighbours: Tensor, *others: Any
) -> tuple[Tensor, ...]:
    *weights, heads, precision, qkv, middle, hidden = others
    p, dtype = block_weights(weights), stored_type(precision)
    d_hidden, inner = wide_backward(hidden, d_out, p.mlp, precision)
    d_normed = product(d_hidden, p.mlp.fc1_weight, precision, dtype)
    normed = torch.empty_like(middle)
    d_middle, d_alpha2, d_gamma2 = norm_backward(
        middle, d_normed, d_out, p.alpha2, p.gamma2, out=normed
    )
    d_fc1 = weight_gradient(d_hidden, normed, precision, torch.float32)
    of_mlp = inner.joined(d_fc1, column_sums(d_out))
    del d_hidden
    d_mixed = product(d_middle, p.out_weight, precision, dtype)
    d_qkv, mixed = torch.empty_like(qkv), normed
    _attention(
        local_attention_bwd_kernel,
        qkv,
        neighbours,
        heads,
        precision,
        d_mixed=d_mixed,
        d_qkv=d_qkv,
        mixed=mixed,
    )
    d_out_weight = weight_gradient(d_middle, mixed, precision, torch.float32)
    d_normed = product(d_qkv, p.qkv_weight, precision, dtype)
    d_x, d_alpha1, d_gamma1 = norm_backward(x, d_normed, d_middle, p.alpha1, p.gamma1, out=normed)
    d_qkv_weight = weight_gradient(d_qkv, normed, precision, torch.float32)
    of_block = BlockParameters(
        d_alpha1, d_gamma1, d_qkv_weight, d_out_weight, d_alpha2, d_gamma2, of_mlp
    )
    return d_x, *block_gradients(of_block, p)


def _block_fake(x: Tensor, neighbours: Tensor, *others: Any) -> tuple[Tensor, ...]:
    *weights, _, _ = others
    edges, width = x.shape
    hidden = x.new_empty(edges, block_weights(weights).mlp.fc1_weight.shape[0])
    kept = Kept(x.new_empty(edges, 3 * width), torch.empty_like(x), hidden)
    return torch.empty_like(x), *kept


_block_op = gpu_operator(
    "local_transformer",
    f"(Tensor x, Tensor neighbours, {BLOCK_WEIGHTS}, int heads, str precision)"
    f" -> (Tensor out, {', '.join(f'Tensor {name}' for name in Kept._fields)})",
    fake=_block_fake,
    forward=_block_forward,
    backward=_block_backward,
    gradients=f"x {' '.join(BLOCK_NAMES)}",
    kept=" ".join(Kept._fields),
)


def _mean_forward(x: Tensor, neighbours: Tensor, dtype: torch.dtype) -> Tensor:
    (total, k), width = neighbours.shape, x.shape[1]
    out = x.new_empty(total, width, dtype=dtype)
    settings = launch_settings(local_mean_fwd_kernel, f"d{width}", x.device, MEAN)
    launch(
        local_mean_fwd_kernel,
        (cdiv(total, settings["ROWS"]), cdiv(width, settings["COLUMNS"])),
        x.device,
        settings,
        x=x,
        neighbours=neighbours,
        out=out,
        total=total,
        K=k,
        D=width,
    )
    return out


def _mean_backward(d_out: Tensor, x: Tensor, neighbours: Tensor, dtype: torch.dtype) -> Tensor:
    (total, k), width = neighbours.shape, d_out.shape[1]
    d_x = torch.empty_like(x)
    settings = launch_settings(local_mean_bwd_kernel, f"d{width}", d_out.device, MEAN_BACKWARD)
    launch(
        local_mean_bwd_kernel,
        (cdiv(total * k, settings["ROWS"]), cdiv(width, settings["COLUMNS"])),
        d_out.device,
        settings,
        d_out=d_out,
        neighbours=neighbours,
        d_x=d_x,
        total=total,
        K=k,
        K_PADDED=power_of_two(k),
        D=width,
    )
    return d_x


def _mean_fake(x: Tensor, neighbours: Tensor, dtype: torch.dtype) -> Tensor:
    return x.new_empty(neighbours.shape[0], x.shape[1], dtype=dtype)


_mean_op = gpu_operator(
    "local_mean",
    "(Tensor x, Tensor neighbours, ScalarType dtype) -> Tensor out",
    fake=_mean_fake,
    forward=_mean_forward,
    backward=_mean_backward,
    gradients="x",
)


def wide_local_block(
    particles: Tensor,
    neighbours: Tensor,
    embed: MLPParameters,
    blocks: Sequence[BlockParameters],
    heads: int,
    precision: str,
) -> Tensor:
    """The local block of any width for dense particles and neighbours, K at most 64."""
    x = _embed_op(particles, neighbours, *dense(embed), precision)
    for block in blocks:
        x, *_ = _block_op(x, neighbours, *in_order(block), heads, precision)
    return _mean_op(x, neighbours, particles.dtype)
