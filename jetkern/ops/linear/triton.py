"""Matrix products on GPUs at a precision that each call names.

PyTorch chooses between float32 and TF32 by a flag of the whole process, which threads share and
``torch.compile`` captures. So float32 factors are multiplied by a Triton kernel, as three TF32
products ("ieee") or one ("tf32"). In "bf16" cuBLAS multiplies factors rounded to bfloat16; where
its result is bfloat16 too it may split the inner sum and add the parts in bfloat16, unless
``torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction`` is off. Weight gradients, sums
over all rows of the batch, are float32: they are cut into parts that depend on the shapes alone,
each summed by one program into a slab of its own; the slabs are added in order. All those of a
perceptron or a block are one launch, and one that adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from jetkern.ops.gpu.functions import dot
from jetkern.ops.gpu.launch import Settings, cdiv, launch, launch_settings
from jetkern.ops.gpu.register import gpu_operator
from jetkern.ops.gpu.sums import Slabs, added
from jetkern.ops.linear import reference
from jetkern.ops.rounding import rounded

DEFAULTS: dict[str, Settings] = {
    "ieee": {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 16, "num_warps": 4, "num_stages": 3},
    "tf32": {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 3},
    "bf16": {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 4},
}
CANDIDATES = {
    "linear_product": [
        {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "num_warps": warps, "num_stages": stages}
        for m, n, k, warps, stages in (
            (64, 64, 16, 4, 3),
            (64, 64, 32, 4, 2),
            (64, 64, 32, 4, 3),
            (64, 64, 64, 4, 3),
            (128, 64, 32, 4, 3),
            (128, 64, 32, 8, 3),
            (64, 128, 32, 4, 3),
            (64, 128, 32, 8, 3),
            (128, 128, 32, 8, 2),
            (128, 128, 32, 8, 3),
            (128, 128, 64, 8, 2),
            (32, 64, 64, 4, 3),
            (32, 32, 64, 2, 3),
        )
    ]
}
CANDIDATES["linear_bwd_weights"] = CANDIDATES["linear_product"]
BAND = 8  # row tiles that share a column tile's factor while it is in the second-level cache
PARTS = 512  # programs that a weight gradient should have, for a few per multiprocessor
LEAST = 256  # rows that a part has at least


class Strides(NamedTuple):
    """Of a matrix, in elements."""

    row: Any
    column: Any


@triton.jit(do_not_specialize=["rows", "part"])
def linear_product_kernel(
    a,
    b,
    out,
    a_strides,
    b_strides,
    rows,
    part,
    M,
    N,
    K,
    PRECISION: tl.constexpr,
    BAND: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out[s] = a b over the inner indices s part ... (s + 1) part.

    One of M and K is None: the number of rows of the batch, which is not compiled in.
    """
    tile = tl.program_id(0)
    if K is None:
        start = tl.program_id(1) * part
        count = tl.minimum(part, rows - start)
        height_m = M
    else:
        start = tl.program_id(1) * 0
        count = K
        height_m = rows
    tiles_m = tl.cdiv(height_m, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    first = tile // (BAND * tiles_n) * BAND
    height = tl.minimum(tiles_m - first, BAND)
    place = tile % (BAND * tiles_n)
    row = (first + place % height).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = (place // height).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    here = start.to(tl.int64) + inner
    a_tile = a + row[:, None] * a_strides.row + here[None, :] * a_strides.column
    b_tile = b + here[:, None] * b_strides.row + column[None, :] * b_strides.column
    in_rows, in_columns = row[:, None] < height_m, column[None, :] < N
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for base in range(0, count, BLOCK_K):
        inside = base + inner < count
        left = tl.load(a_tile, in_rows & inside[None, :], 0.0)
        right = tl.load(b_tile, inside[:, None] & in_columns, 0.0)
        acc = dot(left, right, acc, PRECISION)
        a_tile += tl.cast(BLOCK_K, tl.int64) * a_strides.column
        b_tile += tl.cast(BLOCK_K, tl.int64) * b_strides.row
    slab = out + tl.program_id(1).to(tl.int64) * height_m * N
    tl.store(slab + row[:, None] * N + column[None, :], acc, in_rows & in_columns)


class Factors(NamedTuple):
    """Of a weight gradient, dense rows (T, M) and (T, N), and its slabs (S, M, N)."""

    d_out: Any
    x: Any
    out: Any


class Size(NamedTuple):
    """Of a weight."""

    m: int
    n: int


@triton.jit
def _weights_tile(
    factors,
    tile,
    start,
    count,
    SIZE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile of a weight, if it is one; returns what number it is among the tiles behind."""
    M: tl.constexpr = SIZE.m
    N: tl.constexpr = SIZE.n
    ACROSS: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    TILES: tl.constexpr = (M + BLOCK_M - 1) // BLOCK_M * ACROSS
    if (tile >= 0) & (tile < TILES):
        inner = tl.arange(0, BLOCK_K)
        row = tile // ACROSS * BLOCK_M + tl.arange(0, BLOCK_M)
        column = tile % ACROSS * BLOCK_N + tl.arange(0, BLOCK_N)
        left_tile = factors.d_out + start * M + inner[None, :] * M + row[:, None]
        right_tile = factors.x + start * N + inner[:, None] * N + column[None, :]
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for base in range(0, count, BLOCK_K):
            inside = base + inner < count
            left = tl.load(left_tile, (row < M)[:, None] & inside[None, :], 0.0)
            right = tl.load(right_tile, inside[:, None] & (column < N)[None, :], 0.0)
            acc = dot(left, right, acc, PRECISION)
            left_tile += BLOCK_K * M
            right_tile += BLOCK_K * N
        slab = factors.out + tl.program_id(1).to(tl.int64) * (M * N)
        at = row[:, None] * N + column[None, :]
        tl.store(slab + at, acc, (row < M)[:, None] & (column < N)[None, :])
    return tile - TILES


@triton.jit(do_not_specialize=["rows", "part"])
def linear_bwd_weights_kernel(
    factors,
    rows,
    part,
    SIZES: tl.constexpr,
    NUMBER: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out[s] = d_out^T x over the rows s part ... (s + 1) part, of several weights."""
    start = tl.program_id(1) * part
    count = tl.minimum(part, rows - start)
    tile = tl.program_id(0)
    for i in tl.static_range(NUMBER):
        tile = _weights_tile(
            factors[i], tile, start.to(tl.int64), count, SIZES[i],
            PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip


def _product(
    a: Tensor, b: Tensor, out: Tensor, layout: str, precision: str, **sizes: int | None
) -> None:
    """a b into the slabs ``out`` (S, M, N); one of the ``sizes`` M and K is None."""
    settings = launch_settings(
        linear_product_kernel, f"{layout} {precision}", a.device, DEFAULTS[precision]
    )
    m, n = out.shape[1:]
    launch(
        linear_product_kernel,
        (cdiv(m, settings["BLOCK_M"]) * cdiv(n, settings["BLOCK_N"]), len(out)),
        a.device,
        settings,
        a=a,
        b=b,
        out=out,
        a_strides=Strides(*a.stride()),
        b_strides=Strides(*b.stride()),
        N=n,
        PRECISION=precision,
        BAND=BAND,
        **sizes,
    )


def of_halves(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """cuBLAS's product of bfloat16 factors, summed in float32, as ``dtype``."""
    if not a.is_cuda:  # such products with float32 results have no twin on CPUs
        return (a.float() @ b.float()).to(dtype)
    return torch.mm(a, b) if dtype == torch.bfloat16 else torch.mm(a, b, out_dtype=dtype)


def product(a: Tensor, b: Tensor, precision: str, dtype: torch.dtype) -> Tensor:
    """Rows a (T, K) times b (K, N), any strides, as ``dtype``; factors rounded to ``precision``."""
    if precision == "bf16":
        return of_halves(a.bfloat16(), rounded(b), dtype)
    out = a.new_empty(1, len(a), b.shape[1], dtype=dtype)
    _product(a, b, out, "rows", precision, rows=len(a), part=0, M=None, K=a.shape[1])
    return out[0]


def weight_gradient(d_out: Tensor, x: Tensor, precision: str, dtype: torch.dtype) -> Tensor:
    """d_out^T x for rows d_out (T, M) and x (T, N), summed in float32 in a fixed order."""
    (rows, m), n = d_out.shape, x.shape[1]
    if min(m, n) > 128 and precision == "bf16" and d_out.dtype == x.dtype == torch.bfloat16:
        return product(d_out.t(), x, precision, torch.float32).to(dtype)
    default = DEFAULTS[precision]
    tiles = cdiv(m, default["BLOCK_M"]) * cdiv(n, default["BLOCK_N"])
    parts = max(min(cdiv(PARTS, max(tiles, 1)), cdiv(rows, LEAST)), 1)
    part = cdiv(max(rows, 1), 64 * parts) * 64
    slabs = x.new_empty(cdiv(max(rows, 1), part), m, n, dtype=torch.float32)
    _product(d_out.t(), x, slabs, "weights", precision, rows=rows, part=part, M=m, K=None)
    return (slabs[0] if len(slabs) == 1 else slabs.sum(0)).to(dtype)


class Unsummed(NamedTuple):
    """Gradients of weights that sums over rows are left of.

    Attributes:
        products: d_out (T, M) and x (T, N), dense, of each matrix d_out^T x.
        slabs: of the other weights.
    """

    products: tuple[tuple[Tensor, Tensor], ...]
    slabs: Slabs


def summed(parts: Sequence[Unsummed], precision: str) -> list[tuple[list[Tensor], list[Tensor]]]:
    """The matrices (M, N) and the sums of the slabs of each part, float32.

    One launch for all products over the same number of rows, and one that adds.
    """
    products = [pair for part in parts for pair in part.products]
    slabs: dict[int, Tensor] = {}
    for rows in dict.fromkeys(len(x) for _, x in products):
        chosen = [i for i, (_, x) in enumerate(products) if len(x) == rows]
        made = weight_slabs([products[i] for i in chosen], rows, precision)
        slabs.update(zip(chosen, made, strict=True))
    flat = [Slabs(slabs[i].flatten(1), (slabs[i][0].numel(),)) for i in range(len(products))]
    sums = added([*(part.slabs for part in parts), *flat])
    matrices = iter(found[0].view(slabs[i].shape[1:]) for i, found in enumerate(sums[len(parts) :]))
    return [([next(matrices) for _ in part.products], sums[i]) for i, part in enumerate(parts)]


def weight_slabs(
    products: Sequence[tuple[Tensor, Tensor]], rows: int, precision: str
) -> list[Tensor]:
    """(S, M, N) of d_out^T x for each of ``products``, over that many rows: sums to be added."""
    device = products[0][1].device
    deep = {"BLOCK_K": 64, "num_stages": 3} if precision == "bf16" else {}  # many rows
    settings = launch_settings(
        linear_bwd_weights_kernel, precision, device, {**DEFAULTS[precision], **deep}
    )
    sizes = [Size(d_out.shape[1], x.shape[1]) for d_out, x in products]
    tiles = sum(cdiv(m, settings["BLOCK_M"]) * cdiv(n, settings["BLOCK_N"]) for m, n in sizes)
    # Not by the settings: the order of the sums does not depend on what was tuned.
    default = DEFAULTS[precision]
    likely = sum(cdiv(m, default["BLOCK_M"]) * cdiv(n, default["BLOCK_N"]) for m, n in sizes)
    parts = max(min(cdiv(PARTS, max(likely, 1)), cdiv(rows, LEAST)), 1)
    part = cdiv(max(rows, 1), 64 * parts) * 64
    number = cdiv(max(rows, 1), part)
    outs = [
        x.new_empty(number, *size, dtype=torch.float32)
        for (_, x), size in zip(products, sizes, strict=True)
    ]
    launch(
        linear_bwd_weights_kernel,
        (tiles, number),
        device,
        settings,
        factors=tuple(
            Factors(d_out, x, out) for (d_out, x), out in zip(products, outs, strict=True)
        ),
        rows=rows,
        part=part,
        SIZES=tuple(sizes),
        NUMBER=len(sizes),
        PRECISION=precision,
    )
    return outs


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, precision: str) -> Tensor:
    out = product(x, weight.t(), precision, x.dtype)
    return out if bias is None else out.add_(bias)


def _backward(
    d_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, precision: str, want_x: bool
) -> tuple[Tensor, Tensor, Tensor]:
    d_x = product(d_out, weight, precision, x.dtype) if want_x else x.new_empty(0)
    d_weight = weight_gradient(d_out, x, precision, weight.dtype)
    if bias is None:
        return d_x, d_weight, weight.new_empty(0)
    return d_x, d_weight, d_out.sum(0, dtype=torch.float32).to(bias.dtype)


_op = gpu_operator(
    "linear",
    "(Tensor x, Tensor weight, Tensor? bias, str precision) -> Tensor out",
    fake=lambda x, weight, bias, precision: x.new_empty(x.shape[0], weight.shape[0]),
    forward=_forward,
    backward=_backward,
    gradients="x? weight bias",
    reference=lambda x, weight, bias, precision: reference.linear(x, weight, bias),
)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, precision: str = "ieee") -> Tensor:
    return _op(x.contiguous(), weight.contiguous(), bias, precision)
