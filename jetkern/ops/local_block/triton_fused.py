"""The local block of narrow models (width 16 to 128) as a fused Triton kernel: its forward.

A program takes a tile of whole neighbourhoods from the particles to their means, and weights
stream from the second-level cache, a group of heads or a chunk of the hidden layer at a time. Rows
of a tile come in sets of ``SET`` rows that hold ``SET // K`` neighbourhoods: K is not padded, and
attention is a batch of small products.

To train, it keeps the residual stream before each half of each block, (E, D) each, for
``triton_fused_backward``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from jetkern.ops.triton_tools import (
    TYPES,
    CompileCase,
    Settings,
    coarse_tanh,
    dot,
    exp2,
    gelu,
    launch_settings,
    on_device,
    pair_features,
    reciprocal,
    tanh,
)

# The widest that the fused kernels take. In "ieee" factors take three times the registers.
WIDEST = {"ieee": 32, "tf32": 128, "bf16": 128}
WIDEST_HEAD = 32  # wider ones need more shared memory than there is
MAX_NEIGHBOURS = 64


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
    key = set_keys(exists, K, SET, GROUP, HEAD)
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
        h = normed(x, tl.load(v + 3 * D + 2 * F), tl.load(v + wide)[None, :], PRECISION)
        for g in range(0, D, GROUP):
            w = w_qkv + (g + some)[None, :] * D + wide[:, None]
            zero = tl.zeros((ROWS, GROUP), tl.float32)
            q = factor(dot(h, tl.load(w), zero, PRECISION), PRECISION)
            k = factor(dot(h, tl.load(w + D * D), zero, PRECISION), PRECISION)
            q, k = split_queries(q, SET, HEAD), split_keys(k, SET, HEAD)
            p = probabilities(q, k, key, K, HEAD, PRECISION)
            values = factor(dot(h, tl.load(w + 2 * D * D), zero, PRECISION), PRECISION)
            values = split_keys(values, SET, HEAD)
            mixed = join_queries(batch_dot(p, values, PRECISION), GROUP, SET, HEAD)
            w = tl.load(w_out + wide[None, :] * D + (g + some)[:, None])
            x = dot(mixed, w, x, PRECISION)
        if KEEP:
            tl.store(kept + kept_stride + kept_at, x, inside[:, None])
            kept += 2 * kept_stride
        h = normed(x, tl.load(v + 3 * D + 2 * F + 1), tl.load(v + D + wide)[None, :], PRECISION)
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
    def depth(self) -> dict[str, Any]:
        return {"BLOCKS": self.blocks, "EMBED_NORM": self.embed_norm, "NORM": self.norm}

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
        and shape.width <= WIDEST_HEAD * shape.heads
        and shape.embed_hidden % 32 == 0
        and shape.hidden % 32 == 0
        and 1 <= shape.k <= MAX_NEIGHBOURS
    )


def stored(precision: str) -> torch.dtype:
    """Of what is kept in memory between kernels."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def default_settings(kernel: str, shape: Shape, precision: str) -> Settings:
    """Launch settings where the shipped table has none: chosen by registers and spills."""
    wide = shape.width > 64
    half, exact = precision == "bf16", precision == "ieee"
    rows = 64 if half or not wide else 32
    group = max(16, shape.width // shape.heads)
    warps = 8 if wide else 4
    few = set_rows(shape.k)  # rows; in "ieee" factors take three times the registers
    part = dividing(math.gcd(shape.width, shape.hidden), 128 if half else 64)
    return {
        "local_forward": {
            "ROWS": 128 if wide and half else rows,
            "CHUNK": min(64, 2048 // shape.width) if precision == "tf32" else 32,
            "GROUP": group,
            "num_warps": warps,
            "num_stages": 1 if wide or exact else 3,
        },
        "local_narrow_backward": {
            "ROWS": 64 if half else max(few, 32),
            "CHUNK": 16,
            "GROUP": group,
            "num_warps": 4 if half else max(few // 16, 2),
            "num_stages": 1,
        },
        "local_backward": {
            "ROWS": few if exact else rows,
            "CHUNK": 32 if precision == "tf32" else 16,
            "GROUP": group,
            "num_warps": few // 8 if exact else warps,
            "num_stages": 1 if exact else 3 if half else 2,
        },
        "local_weights_backward": {
            "ROWS": 64 if half else 32,
            "WIDE": part,
            "DEEP": part,
            "num_warps": 8 if wide and half else 4,
            "num_stages": 3 if half else 2,
        },
        "local_embed_backward": {
            "ROWS": max(few, 32) if exact else rows,
            "CHUNK": 16 if exact else 32,
            "num_warps": max(few, 32) // 16 if exact else warps,
            "num_stages": 2 if half else 1,
        },
    }["local_forward" if kernel == "local_training" else kernel]


_FORWARD: list[Settings] = [
    {"ROWS": r, "num_warps": w, "CHUNK": c, "GROUP": g, "num_stages": s}
    for r, w in ((64, 4), (128, 4), (128, 8))
    for c in (32, 64)
    for g in (16, 32)
    for s in (1, 2)
]
CANDIDATES: dict[str, list[Settings]] = {
    "local_forward": _FORWARD,
    "local_training": _FORWARD,
    "local_narrow_backward": [
        {"ROWS": r, "num_warps": w, "CHUNK": c}
        for r, w in ((32, 2), (64, 4), (128, 8))
        for c in (16, 32)
    ],
    "local_backward": [
        {"ROWS": r, "num_warps": w, "CHUNK": c, "GROUP": g, "num_stages": s}
        for r, w in ((32, 8), (64, 8))
        for c in (16, 32)
        for g in (16, 32, 64)
        for s in (2, 3)
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
}


def table_key(shape: Shape, precision: str) -> str:
    """What the best settings depend on."""
    return f"d{shape.width} k{shape.k} {precision}"


def settings_of(kernel: str, shape: Shape, precision: str, device: torch.device) -> Settings:
    """How to launch a kernel: as asked for, but tiles hold whole sets and parts divide layers."""
    default = default_settings(kernel, shape, precision)
    settings = launch_settings(kernel, table_key(shape, precision), device, default)
    if "CHUNK" in settings:
        layer = math.gcd(shape.embed_hidden, shape.hidden)
        settings["CHUNK"] = dividing(layer, settings["CHUNK"])
    if "GROUP" in settings:  # whole heads
        head = shape.width // shape.heads
        settings["GROUP"] = max(min(settings["GROUP"], shape.width), head)
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
            local_forward_kernel[(tiles_of(total, shape, settings),)](
                particles,
                neighbours,
                matrices,
                vectors,
                out,
                kept,
                total,
                **shape.constants,
                **shape.depth,
                KEEP=keep,
                PRECISION=precision,
                **settings,
            )
    return out, kept


def tiles_of(particles: int, shape: Shape, settings: Settings) -> int:
    """Number of tiles of whole neighbourhoods."""
    rows = set_rows(shape.k)
    return triton.cdiv(particles, settings["ROWS"] // rows * (rows // shape.k))


def dividing(size: int, most: int) -> int:
    """The largest power of two up to ``most`` that divides ``size``."""
    return min(size & -size, most)


def data_type(precision: str) -> str:
    """Triton's type of the caller's tensors in the compiled cases."""
    return TYPES[torch.bfloat16 if precision == "bf16" else torch.float32]


def preset_shapes() -> Iterator[tuple[str, Shape, str]]:
    """Label, shape and precision of each preset that the fused kernels take."""
    for size, width, heads, k in (("micro", 32, 4, 15), ("small", 128, 8, 10)):
        shape = Shape(k, width, 2 * width, 2 * width, heads, 2, True, True)
        for precision in WIDEST:
            if fits(shape, precision):
                yield f"{size} {precision}", shape, precision


def compile_cases() -> Iterator[CompileCase]:
    """The forward at the sizes of micro and small, at the precisions that run on it."""
    for label, shape, precision in preset_shapes():
        for keep in (False, True):
            settings = default_settings("local_forward", shape, precision)
            given = {
                **dict.fromkeys(("particles", "out"), data_type(precision)),
                "neighbours": "*i64",
                **dict.fromkeys(("matrices", "kept"), TYPES[stored(precision)]),
                "vectors": "*fp32",
                "total": "i32",
                **shape.constants,
                **shape.depth,
                **settings,
                "KEEP": keep,
                "PRECISION": precision,
            }
            arguments = {name: given[name] for name in local_forward_kernel.arg_names}
            what = f"{label} training" if keep else label
            row = ("local_training" if keep else "local_forward", table_key(shape, precision))
            yield CompileCase(local_forward_kernel, what, arguments, settings, row)
