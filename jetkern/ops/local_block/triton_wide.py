"""The local block of wide models as Triton kernels around large matrix products.

Rows are the T x K edges; a neighbour that is missing has a row too, which attention and mean leave
out. Three operators, each with its backward: the embedding, whose first layer never exists without
its GELU and norm; a transformer block, with attention as batches of small products for several
neighbourhoods at a time; the mean. A block keeps for its backward its input, queries, keys and
values, the rows between attention and MLP, and the result of fc1: 7 D numbers for an edge.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from jetkern.ops.dynamic_tanh.triton import (
    add_branch,
    add_branch_and_norm,
    column_sums,
    norm,
    norm_backward,
)
from jetkern.ops.linear.triton import product, weight_gradient
from jetkern.ops.local_block.triton_fused import (
    WIDEST,
    batch_dot,
    denominator,
    edge_features,
    embed_hidden,
    norm_tanh,
    prepared,
    probabilities,
    rows_of_set,
    stored,
)
from jetkern.ops.mlp.triton import WEIGHTS, dense, like_weights, wide_backward, wide_forward
from jetkern.ops.parameters import BlockParameters, MLPParameters
from jetkern.ops.triton_tools import (
    TYPES,
    CompileCase,
    Settings,
    define,
    dot,
    gelu,
    gelu_and_slope,
    kernel_name,
    launch_settings,
    on_device,
)

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
    "local_hidden": [
        {"ROWS": r, "CHUNK": c, "num_warps": w}
        for r in (32, 64)
        for c in (32, 64, 128)
        for w in (4, 8)
    ],
    "local_hidden_backward": [
        {"ROWS": r, "CHUNK": c, "num_warps": w} for r in (32, 64) for c in (32, 64) for w in (4, 8)
    ],
    "local_attention": _SETS,
    "local_attention_gradients": _SETS,
    "local_mean": [
        {"ROWS": r, "COLUMNS": c, "num_warps": w}
        for r in (8, 16, 32)
        for c in (64, 128)
        for w in (4, 8)
    ],
    "local_mean_backward": [{"ROWS": r, "num_warps": w} for r in (16, 32, 64) for w in (2, 4, 8)],
}


@triton.jit
def edge_tile(neighbours, tile, edges, limit, K: tl.constexpr, ROWS: tl.constexpr):
    """Of consecutive edges: particle, edge, neighbour; whether they are in range and exist."""
    edge = tile * ROWS + tl.arange(0, ROWS).to(tl.int64)
    inside = edge < edges
    other = tl.load(neighbours + edge, inside, -1)
    return edge // K, edge, other, inside, (other >= 0) & (other < limit)


@triton.jit(do_not_specialize=["edges", "limit"])
def local_hidden_kernel(
    particles,
    neighbours,
    vectors,
    out,
    edges,
    limit,
    K: tl.constexpr,
    C: tl.constexpr,
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """norm(gelu(fc1 of the seven features)) of every edge."""
    particle, edge, other, inside, exists = edge_tile(
        neighbours, tl.program_id(0), edges, limit, K, ROWS
    )
    features = edge_features(particles, particles, particle, other, inside, exists)
    alpha = tl.load(vectors + 9 * C)
    for c in range(0, C, CHUNK):
        part = c + tl.arange(0, CHUNK)
        h = embed_hidden(features, vectors, vectors + 7 * C, part, C, ROWS, CHUNK)
        h = gelu(h, PRECISION)
        if NORM:
            h = norm_tanh(alpha * h, PRECISION)
            h *= tl.load(vectors + 8 * C + part, part < C, 0.0)[None, :]
        at = edge[:, None] * C + part[None, :]
        tl.store(out + at, h, inside[:, None] & (part < C)[None, :])


@triton.jit(do_not_specialize=["edges", "limit"])
def local_hidden_backward_kernel(
    particles,
    neighbours,
    vectors,
    d_out,
    out,
    slab,
    edges,
    limit,
    slab_stride,
    K: tl.constexpr,
    C: tl.constexpr,
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Gradients of the first layer and its norm from every p-th tile, and ``local_hidden`` again.

    A row of ``slab``: [fc1 | fc1's bias | 8 unused] (16 C), gamma (C), alpha (chunks).
    """
    FEATURES: tl.constexpr = "tf32" if PRECISION == "bf16" else PRECISION
    chunk = tl.program_id(1)
    part = chunk * CHUNK + tl.arange(0, CHUNK)
    there = part < C
    alpha = tl.load(vectors + 9 * C)
    gamma = tl.load(vectors + 8 * C + part, there, 0.0)[None, :]
    d_fc1 = tl.zeros((CHUNK, 16), tl.float32)
    d_gamma = tl.zeros((CHUNK,), tl.float32)
    d_alpha = tl.zeros((ROWS,), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(edges, ROWS), tl.num_programs(0)):
        particle, edge, other, inside, exists = edge_tile(neighbours, tile, edges, limit, K, ROWS)
        features = edge_features(particles, particles, particle, other, inside, exists)
        h = embed_hidden(features, vectors, vectors + 7 * C, part, C, ROWS, CHUNK)
        t, slope = gelu_and_slope(h, PRECISION)
        at = edge[:, None] * C + part[None, :]
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
    slab += tl.program_id(0).to(tl.int64) * slab_stride
    lane = tl.arange(0, 16)[None, :]
    tl.store(slab + part[:, None] * 16 + lane, d_fc1, there[:, None] & (lane < 16))
    tl.store(slab + 16 * C + part, d_gamma, there)
    tl.store(slab + 17 * C + chunk, tl.sum(d_alpha, 0))


@triton.jit(do_not_specialize=["total"])
def local_attention_kernel(
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
def local_attention_gradients_kernel(
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
    """Gradients of ``local_attention``, and its result again."""
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
def local_mean_kernel(
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
def local_mean_backward_kernel(
    d_out,
    neighbours,
    dx,
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
    tl.store(dx + edge[:, None] * D + column[None, :], d, there)


def _settings(kernel: str, width: int, precision: str, like: Tensor, default: Settings) -> Settings:
    return launch_settings(kernel, f"d{width} {precision}", like.device, default)


def _vectors(p: MLPParameters) -> Tensor:
    """fc1's weight and bias, gamma and alpha in one row, as ``local_hidden_kernel`` reads them."""
    like, hidden = p.fc1_weight, p.fc1_weight.shape[0]
    bias = like.new_zeros(hidden) if p.fc1_bias is None else p.fc1_bias
    gamma = like.new_ones(hidden) if p.gamma is None else p.gamma
    alpha = like.new_ones(1) if p.alpha is None else p.alpha
    return prepared([like, bias, gamma, alpha], torch.float32)


@define("local_embed", f"(Tensor particles, Tensor neighbours, {WEIGHTS}, str precision) -> Tensor")
def _embed(particles: Tensor, neighbours: Tensor, *weights: Any) -> Tensor:
    p, precision = MLPParameters(*weights[:6]), weights[6]
    edges, k, hidden = neighbours.numel(), neighbours.shape[1], p.fc1_weight.shape[0]
    u = particles.new_empty(edges, hidden, dtype=stored(precision))
    if edges:
        settings = _settings("local_hidden", hidden // 2, precision, particles, HIDDEN)
        with on_device(particles):
            local_hidden_kernel[(triton.cdiv(edges, settings["ROWS"]),)](
                particles,
                neighbours,
                _vectors(p),
                u,
                edges,
                len(particles),
                K=k,
                C=hidden,
                NORM=p.gamma is not None,
                PRECISION=precision,
                **settings,
            )
    x = product(u, p.fc2_weight.t(), precision, stored(precision))
    return x if p.fc2_bias is None else x.add_(p.fc2_bias)


@define(
    "local_embed_backward",
    f"(Tensor dx, Tensor particles, Tensor neighbours, {WEIGHTS}, str precision) -> "
    f"({', '.join(['Tensor'] * 6)})",
)
def _embed_backward(
    dx: Tensor, particles: Tensor, neighbours: Tensor, *weights: Any
) -> tuple[Tensor, ...]:
    p, precision = MLPParameters(*weights[:6]), weights[6]
    edges, k, hidden = neighbours.numel(), neighbours.shape[1], p.fc1_weight.shape[0]
    d_u = product(dx, p.fc2_weight, precision, stored(precision))
    u = torch.empty_like(d_u)
    settings = _settings(
        "local_hidden_backward", hidden // 2, precision, particles, HIDDEN_BACKWARD
    )
    programs = min(PROGRAMS, triton.cdiv(edges, settings["ROWS"]))
    chunks = triton.cdiv(hidden, settings["CHUNK"])
    slabs = particles.new_empty(programs, 17 * hidden + chunks, dtype=torch.float32)
    if edges:
        with on_device(particles):
            local_hidden_backward_kernel[(programs, chunks)](
                particles,
                neighbours,
                _vectors(p),
                d_u,
                u,
                slabs,
                edges,
                len(particles),
                slabs.stride(0),
                K=k,
                C=hidden,
                NORM=p.gamma is not None,
                PRECISION=precision,
                **settings,
            )
    d_fc1, d_gamma, d_alpha = slabs.sum(0).split([16 * hidden, hidden, chunks])
    d_fc1 = d_fc1.view(hidden, 16)
    d_fc2 = weight_gradient(dx, u, precision, torch.float32)
    d_alpha = d_alpha.sum(0, keepdim=True)
    found = MLPParameters(d_fc1[:, :7], d_fc1[:, 7], d_alpha, d_gamma, d_fc2, column_sums(dx))
    return tuple(t.clone() if t.numel() else t for t in like_weights(found, p))


BLOCK = (
    "Tensor x, Tensor neighbours, Tensor alpha1, Tensor gamma1, Tensor qkv_weight,"
    f" Tensor out_weight, Tensor alpha2, Tensor gamma2, {WEIGHTS}, int heads, str precision"
)
KEPT = "Tensor qkv, Tensor middle, Tensor hidden"


def attention_rows(k: int) -> int:
    """Rows of a set in the attention kernels, where fewer are fewer products than well filled ones.

    10 neighbours: 16 x 16 products of keys and queries for one neighbourhood, or 32 x 32 for three.
    """
    return max(triton.next_power_of_2(k), 16)


def attention_settings(rows: int) -> Settings:
    """A warp has a set of 16 rows to itself; all warps share a larger one."""
    if rows == 16:
        return {"SETS": 4, "num_warps": 4, "num_stages": 1}
    return {"SETS": 1, "num_warps": rows // 8, "num_stages": 1}


def _attention(kernel: str, neighbours: Tensor, width: int, heads: int, precision: str) -> Any:
    """Grid and constants of an attention kernel."""
    k = neighbours.shape[1]
    head = width // heads
    rows = attention_rows(k)
    key, default = f"d{head} k{k} {precision}", attention_settings(rows)
    settings = launch_settings(kernel, key, neighbours.device, default)
    grid = (triton.cdiv(len(neighbours), settings["SETS"] * (rows // k)), heads)
    constants = {
        "K": k,
        "SET": rows,
        "D": width,
        "HEAD": head,
        "PADDED": max(triton.next_power_of_2(head), 16),
        "PRECISION": precision,
    }
    return grid, {**constants, **settings}


@define("local_transformer", f"({BLOCK}) -> (Tensor out, {KEPT})")
def _block(x: Tensor, neighbours: Tensor, *others: Any) -> tuple[Tensor, ...]:
    p, (heads, precision) = _parameters(others), others[12:]
    dtype = stored(precision)
    normed = norm(x, p.alpha1, p.gamma1, dtype)
    qkv = product(normed, p.qkv_weight.t(), precision, dtype)
    mixed = normed  # no longer needed: its memory takes the result
    if len(x):
        grid, constants = _attention("local_attention", neighbours, x.shape[1], heads, precision)
        with on_device(x):
            local_attention_kernel[grid](qkv, neighbours, mixed, len(neighbours), **constants)
    branch = product(mixed, p.out_weight.t(), precision, dtype)
    middle, normed = add_branch_and_norm(x, branch, p.alpha2, p.gamma2, dtype)
    branch, hidden = wide_forward(normed, p.mlp, precision, dtype)
    return add_branch(middle, branch, p.mlp.fc2_bias), qkv, middle, hidden


def _parameters(weights: Any) -> BlockParameters:
    alpha1, gamma1, qkv, out, alpha2, gamma2 = weights[:6]
    return BlockParameters(alpha1, gamma1, qkv, out, alpha2, gamma2, MLPParameters(*weights[6:12]))


@define(
    "local_transformer_backward",
    f"(Tensor d_out, {KEPT}, {BLOCK}) -> ({', '.join(['Tensor'] * 13)})",
)
def _block_backward(
    d_out: Tensor,
    qkv: Tensor,
    middle: Tensor,
    hidden: Tensor,
    x: Tensor,
    neighbours: Tensor,
    *others: Any,
) -> tuple[Tensor, ...]:
    p, (heads, precision) = _parameters(others), others[12:]
    d_hidden, of_mlp = wide_backward(hidden, d_out, p.mlp, precision)
    d_normed = product(d_hidden, p.mlp.fc1_weight, precision, stored(precision))
    normed = torch.empty_like(middle)
    d_middle, d_alpha2, d_gamma2 = norm_backward(
        middle, d_normed, d_out, p.alpha2, p.gamma2, out=normed
    )
    d_fc1 = weight_gradient(d_hidden, normed, precision, torch.float32)
    of_mlp = of_mlp._replace(fc1_weight=d_fc1, fc2_bias=column_sums(d_out))
    del d_hidden
    d_mixed = product(d_middle, p.out_weight, precision, stored(precision))
    d_qkv, mixed = torch.empty_like(qkv), normed
    if len(x):
        grid, constants = _attention(
            "local_attention_gradients", neighbours, x.shape[1], heads, precision
        )
        with on_device(x):
            local_attention_gradients_kernel[grid](
                qkv, d_mixed, neighbours, d_qkv, mixed, len(neighbours), **constants
            )
    d_out_weight = weight_gradient(d_middle, mixed, precision, torch.float32)
    d_normed = product(d_qkv, p.qkv_weight, precision, stored(precision))
    dx, d_alpha1, d_gamma1 = norm_backward(x, d_normed, d_middle, p.alpha1, p.gamma1, out=normed)
    d_qkv_weight = weight_gradient(d_qkv, normed, precision, torch.float32)
    of_block = (d_alpha1, d_gamma1, d_qkv_weight, d_out_weight, d_alpha2, d_gamma2)
    return (
        dx,
        *(g.to(w.dtype) for g, w in zip(of_block, p[:6], strict=True)),
        *like_weights(of_mlp, p.mlp),
    )


@define("local_mean", "(Tensor x, Tensor neighbours, ScalarType dtype) -> Tensor")
def _mean(x: Tensor, neighbours: Tensor, dtype: torch.dtype) -> Tensor:
    total, width = len(neighbours), x.shape[1]
    out = x.new_empty(total, width, dtype=dtype)
    if total:
        settings = launch_settings("local_mean", f"d{width}", x.device, MEAN)
        grid = (triton.cdiv(total, settings["ROWS"]), triton.cdiv(width, settings["COLUMNS"]))
        with on_device(x):
            local_mean_kernel[grid](
                x, neighbours, out, total, K=neighbours.shape[1], D=width, **settings
            )
    return out


@define("local_mean_backward", "(Tensor d_out, Tensor neighbours, ScalarType dtype) -> Tensor")
def _mean_backward(d_out: Tensor, neighbours: Tensor, dtype: torch.dtype) -> Tensor:
    (total, k), width = neighbours.shape, d_out.shape[1]
    dx = d_out.new_empty(total * k, width, dtype=dtype)
    if len(dx):
        settings = launch_settings("local_mean_backward", f"d{width}", d_out.device, MEAN_BACKWARD)
        grid = (triton.cdiv(total * k, settings["ROWS"]), triton.cdiv(width, settings["COLUMNS"]))
        with on_device(d_out):
            local_mean_backward_kernel[grid](
                d_out,
                neighbours,
                dx,
                total,
                K=k,
                K_PADDED=triton.next_power_of_2(k),
                D=width,
                **settings,
            )
    return dx


@torch.library.register_fake("jetkern_triton::local_embed")
def _fake_embed(particles: Tensor, neighbours: Tensor, *weights: Any) -> Tensor:
    edges = neighbours.shape[0] * neighbours.shape[1]
    return particles.new_empty(edges, weights[4].shape[0], dtype=stored(weights[6]))


@torch.library.register_fake("jetkern_triton::local_embed_backward")
def _fake_embed_backward(
    dx: Tensor, particles: Tensor, neighbours: Tensor, *weights: Any
) -> tuple[Tensor, ...]:
    return _like(weights[:6], weights[0])


def _like(weights: Sequence[Tensor | None], present: Tensor) -> tuple[Tensor, ...]:
    """Empty tensors like the weights, without elements for those that there are not."""
    return tuple(present.new_empty(0) if w is None else w.new_empty(w.shape) for w in weights)


def _embed_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.precision = inputs
    ctx.save_for_backward(*tensors)


def _embed_gradients(ctx: Any, dx: Tensor) -> tuple[Tensor | None, ...]:
    weights = ctx.saved_tensors[2:]
    found = torch.ops.jetkern_triton.local_embed_backward(
        dx.contiguous(), *ctx.saved_tensors, ctx.precision
    )
    return None, None, *_wanted(found, weights), None


def _wanted(gradients: Sequence[Tensor], weights: Sequence[Tensor | None]) -> Iterator[Any]:
    return (None if w is None else g for g, w in zip(gradients, weights, strict=True))


torch.library.register_autograd(
    "jetkern_triton::local_embed", _embed_gradients, setup_context=_embed_context
)


@torch.library.register_fake("jetkern_triton::local_transformer")
def _fake_block(x: Tensor, neighbours: Tensor, *others: Any) -> tuple[Tensor, ...]:
    edges, width = x.shape
    hidden = x.new_empty(edges, others[6].shape[0])
    return torch.empty_like(x), x.new_empty(edges, 3 * width), torch.empty_like(x), hidden


@torch.library.register_fake("jetkern_triton::local_transformer_backward")
def _fake_block_backward(d_out: Tensor, *others: Any) -> tuple[Tensor, ...]:
    weights = others[5:17]
    return torch.empty_like(d_out), *_like(weights, weights[0])


def _block_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.heads, ctx.precision = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:], *tensors)


def _block_gradients(ctx: Any, d_out: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    weights = ctx.saved_tensors[5:]
    dx, *found = torch.ops.jetkern_triton.local_transformer_backward(
        d_out.contiguous(), *ctx.saved_tensors, ctx.heads, ctx.precision
    )
    return dx, None, *_wanted(found, weights), None, None


torch.library.register_autograd(
    "jetkern_triton::local_transformer", _block_gradients, setup_context=_block_context
)


@torch.library.register_fake("jetkern_triton::local_mean")
def _fake_mean(x: Tensor, neighbours: Tensor, dtype: torch.dtype) -> Tensor:
    return x.new_empty(neighbours.shape[0], x.shape[1], dtype=dtype)


@torch.library.register_fake("jetkern_triton::local_mean_backward")
def _fake_mean_backward(d_out: Tensor, neighbours: Tensor, dtype: torch.dtype) -> Tensor:
    edges = neighbours.shape[0] * neighbours.shape[1]
    return d_out.new_empty(edges, d_out.shape[1], dtype=dtype)


def _mean_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, neighbours, _ = inputs
    ctx.dtype = x.dtype
    ctx.save_for_backward(neighbours)


def _mean_gradients(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
    (neighbours,) = ctx.saved_tensors
    dx = torch.ops.jetkern_triton.local_mean_backward(d_out.contiguous(), neighbours, ctx.dtype)
    return dx, None, None


torch.library.register_autograd(
    "jetkern_triton::local_mean", _mean_gradients, setup_context=_mean_context
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
    op = torch.ops.jetkern_triton
    x = op.local_embed(particles, neighbours, *dense(embed), precision)
    for block in blocks:
        *weights, of_mlp = block
        own = [w.contiguous() for w in weights]
        x = op.local_transformer(x, neighbours, *own, *dense(of_mlp), heads, precision)[0]
    return op.local_mean(x, neighbours, particles.dtype)


def compile_cases() -> Iterator[CompileCase]:
    """Every kernel at the sizes of medium and large, and of small where the fused do not run."""
    k = 10
    for width, heads in ((128, 8), (512, 16), (1024, 32)):
        head = width // heads
        rows = attention_rows(k)
        shape = {"K": k, "SET": rows, "HEAD": head, "PADDED": head}
        for precision, widest in WIDEST.items():
            if width <= widest:
                continue
            store = TYPES[stored(precision)]
            tensors = {
                **dict.fromkeys(("particles", "vectors", "slab"), "*fp32"),
                "neighbours": "*i64",
                **dict.fromkeys(("x", "dx", "qkv", "mixed", "d_mixed", "d_qkv", "d_out"), store),
                **dict.fromkeys(("total", "limit", "edges", "slab_stride"), "i32"),
            }
            constants = {**shape, "K_PADDED": 16, "D": width, "C": 2 * width, "NORM": True}
            of_width, of_head = f"d{width} {precision}", f"d{head} k{k} {precision}"
            for kernel, key, settings, out in (
                (local_hidden_kernel, of_width, HIDDEN, store),
                (local_hidden_backward_kernel, of_width, HIDDEN_BACKWARD, store),
                (local_attention_kernel, of_head, attention_settings(rows), store),
                (local_attention_gradients_kernel, of_head, attention_settings(rows), store),
                (local_mean_kernel, f"d{width}", MEAN, "*fp32"),
                (local_mean_backward_kernel, f"d{width}", MEAN_BACKWARD, store),
            ):
                given = {**tensors, **constants, **settings, "out": out, "PRECISION": precision}
                arguments = {name: given[name] for name in kernel.arg_names}
                row = (kernel_name(kernel), key)
                yield CompileCase(kernel, f"D = {width} {precision}", arguments, settings, row)
