"""Matrix products on GPUs at a precision that each call names.

PyTorch chooses between float32 and TF32 by a flag of the whole process, which threads share and
``torch.compile`` captures. So float32 factors are multiplied by a Triton kernel, as three TF32
products ("ieee") or one ("tf32"); in "bf16" cuBLAS multiplies factors rounded to bfloat16. Weight
gradients, sums over all rows of the batch, are cut into parts that depend on the shapes alone, each
summed by one program into a slab of its own; the slabs are added in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from jetkern.ops.triton_tools import CompileCase, Settings, define, dot, launch_settings, on_device

DEFAULTS: dict[str, Settings] = {
    "ieee": {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2},
    "tf32": {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 3},
    "bf16": {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 4},
}
CANDIDATES = {
    "product": [
        {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "num_warps": warps, "num_stages": stages}
        for m, n, k, warps, stages in (
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
BAND = 8  # row tiles that share a column tile's factor while it is in the second-level cache
PARTS = 512  # programs that a weight gradient should have, for a few per multiprocessor
LEAST = 256  # rows that a part has at least


@triton.jit(do_not_specialize=["rows", "part"])
def product_kernel(
    a,
    b,
    out,
    rows,
    part,
    a_row,
    a_column,
    b_row,
    b_column,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
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
    a_tile = a + row[:, None] * a_row + here[None, :] * a_column
    b_tile = b + here[:, None] * b_row + column[None, :] * b_column
    in_rows, in_columns = row[:, None] < height_m, column[None, :] < N
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for base in range(0, count, BLOCK_K):
        inside = base + inner < count
        left = tl.load(a_tile, in_rows & inside[None, :], 0.0)
        right = tl.load(b_tile, inside[:, None] & in_columns, 0.0)
        acc = dot(left, right, acc, PRECISION)
        a_tile += tl.cast(BLOCK_K, tl.int64) * a_column
        b_tile += tl.cast(BLOCK_K, tl.int64) * b_row
    slab = out + tl.program_id(1).to(tl.int64) * height_m * N
    tl.store(slab + row[:, None] * N + column[None, :], acc, in_rows & in_columns)


def _settings(layout: str, precision: str, device: torch.device) -> Settings:
    return launch_settings("product", f"{layout} {precision}", device, DEFAULTS[precision])


def product(a: Tensor, b: Tensor, precision: str, dtype: torch.dtype) -> Tensor:
    """Rows a (T, K) times b (K, N), any strides, as ``dtype``; factors rounded to ``precision``."""
    if precision == "bf16":
        a, b = a.bfloat16(), b.bfloat16()
        if not a.is_cuda:  # cuBLAS's products with float32 results have no twin on CPUs
            return (a.float() @ b.float()).to(dtype)
        return torch.mm(a, b) if dtype == torch.bfloat16 else torch.mm(a, b, out_dtype=dtype)
    (rows, k), n = a.shape, b.shape[1]
    out = a.new_empty(rows, n, dtype=dtype)
    settings = _settings("rows", precision, a.device)
    tiles = triton.cdiv(rows, settings["BLOCK_M"]) * triton.cdiv(n, settings["BLOCK_N"])
    if tiles:
        with on_device(a):
            product_kernel[(tiles,)](
                a,
                b,
                out,
                rows,
                0,
                *a.stride(),
                *b.stride(),
                None,
                n,
                k,
                precision,
                BAND,
                **settings,
            )
    return out


def weight_gradient(d_out: Tensor, x: Tensor, precision: str, dtype: torch.dtype) -> Tensor:
    """d_out^T x for rows d_out (T, M) and x (T, N), summed in float32 in a fixed order."""
    (rows, m), n = d_out.shape, x.shape[1]
    if min(m, n) > 128 and precision == "bf16" and d_out.dtype == x.dtype == torch.bfloat16:
        return product(d_out.t(), x, precision, torch.float32).to(dtype)
    settings = _settings("weights", precision, x.device)
    tiles = triton.cdiv(m, settings["BLOCK_M"]) * triton.cdiv(n, settings["BLOCK_N"])
    parts = max(min(triton.cdiv(PARTS, max(tiles, 1)), triton.cdiv(rows, LEAST)), 1)
    part = triton.cdiv(max(rows, 1), 64 * parts) * 64
    slabs = x.new_empty(triton.cdiv(max(rows, 1), part), m, n, dtype=torch.float32)
    if tiles:
        with on_device(x):
            product_kernel[(tiles, len(slabs))](
                d_out,
                x,
                slabs,
                rows,
                part,
                *d_out.stride()[::-1],
                *x.stride(),
                m,
                n,
                None,
                precision,
                BAND,
                **settings,
            )
    return (slabs[0] if len(slabs) == 1 else slabs.sum(0)).to(dtype)


@define("linear", "(Tensor x, Tensor weight, Tensor? bias, str precision) -> Tensor")
def _launch(x: Tensor, weight: Tensor, bias: Tensor | None, precision: str) -> Tensor:
    out = product(x, weight.t(), precision, x.dtype)
    return out if bias is None else out.add_(bias)


@define(
    "linear_backward",
    "(Tensor d_out, Tensor x, Tensor weight, Tensor? bias, str precision, bool need_dx)"
    " -> (Tensor, Tensor, Tensor)",
)
def _launch_backward(
    d_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, precision: str, need_dx: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dx = product(d_out, weight, precision, x.dtype) if need_dx else x.new_empty(0, x.shape[1])
    d_weight = weight_gradient(d_out, x, precision, weight.dtype)
    if bias is None:
        return dx, d_weight, weight.new_empty(0)
    return dx, d_weight, d_out.sum(0, dtype=torch.float32).to(bias.dtype)


@torch.library.register_fake("jetkern_triton::linear")
def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, precision: str) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@torch.library.register_fake("jetkern_triton::linear_backward")
def _fake_backward(
    d_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, precision: str, need_dx: bool
) -> tuple[Tensor, Tensor, Tensor]:
    d_bias = weight.new_empty(0) if bias is None else torch.empty_like(bias)
    return x.new_empty(x.shape[0] if need_dx else 0, x.shape[1]), torch.empty_like(weight), d_bias


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ctx.precision = inputs
    ctx.save_for_backward(x, weight, bias)


def _backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias = ctx.saved_tensors
    need_dx = ctx.needs_input_grad[0]
    dx, d_weight, d_bias = torch.ops.jetkern_triton.linear_backward(
        d_out.contiguous(), x, weight, bias, ctx.precision, need_dx
    )
    return dx if need_dx else None, d_weight, None if bias is None else d_bias, None


torch.library.register_autograd("jetkern_triton::linear", _backward, setup_context=_setup_context)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, precision: str = "ieee") -> Tensor:
    return torch.ops.jetkern_triton.linear(x.contiguous(), weight.contiguous(), bias, precision)


def compile_cases() -> Iterator[CompileCase]:
    """Products of the presets' MLPs: rows times weights, and weight gradients."""
    for width in (32, 128, 512, 1024):
        layouts = {
            "rows": {"a_row": width, "a_column": 1, "b_row": 1, "b_column": width},
            "weights": {"a_row": 1, "a_column": 2 * width, "b_row": width, "b_column": 1},
        }
        shapes: dict[str, dict[str, int | None]] = {
            "rows": {"M": None, "N": 2 * width, "K": width},
            "weights": {"M": 2 * width, "N": width, "K": None},
        }
        for precision, settings in DEFAULTS.items():
            for layout, strides in layouts.items():
                if precision == "bf16" and (layout == "rows" or width > 128):
                    continue  # cuBLAS's
                tensor = "*bf16" if precision == "bf16" else "*fp32"
                arguments: dict[str, Any] = {"a": tensor, "b": tensor, "out": "*fp32"}
                arguments |= {"rows": "i32", "part": "i32", **strides, **shapes[layout]}
                arguments |= {"PRECISION": precision, "BAND": BAND}
                arguments |= {k: v for k, v in settings.items() if k.isupper()}
                label = f"{layout} D = {width} {precision}"
                row = ("product", f"{layout} {precision}")
                yield CompileCase(product_kernel, label, arguments, settings, row)
                if precision == "bf16":  # a block's gradient is float32
                    mixed = {**arguments, "a": "*fp32"}
                    yield CompileCase(product_kernel, f"{label}, fp32 rows", mixed, settings, row)
