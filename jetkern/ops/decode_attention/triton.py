"""Attention of new rows to a cache as a Triton kernel.

A program has a slot and a head and passes over the slot's rows, a block of them at a time. Each
lane has a maximum, a sum and a mean of its own, which are joined at the end: nothing is exchanged
inside the loop, whose time is that of reading keys and values. Heads that share a key are
neighbours in the grid, so that one of them reads it and the others find it in the cache. A query is
alone with its rows: any slots and any two runs give the same bits. Products are float32 at any
precision.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from jetkern.ops.attention.triton import LOG2_E, WIDEST, load_rows
from jetkern.ops.gpu.functions import exp2
from jetkern.ops.gpu.launch import Settings, launch, launch_settings
from jetkern.ops.gpu.pointwise import padded
from jetkern.ops.gpu.register import gpu_operator

# By padded head dimension: what compiles without spills. Not timed.
DEFAULTS: dict[int, Settings] = {
    16: {"KEYS": 64, "num_warps": 2, "num_stages": 1},
    32: {"KEYS": 64, "num_warps": 2, "num_stages": 1},
    64: {"KEYS": 32, "num_warps": 4, "num_stages": 1},
    128: {"KEYS": 32, "num_warps": 4, "num_stages": 1},
}
CANDIDATES: dict[str, list[Settings]] = {
    "decode_attention": [
        {"KEYS": keys, "num_warps": warps, "num_stages": 1}
        for keys in (16, 32, 64)
        for warps in (1, 2, 4)
    ]
}


@triton.jit(do_not_specialize=["capacity"])
def decode_attention_kernel(
    q,
    keys,
    values,
    lengths,
    out,
    capacity,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD: tl.constexpr,
    PADDED: tl.constexpr,
    KEYS: tl.constexpr,
):
    SCALE: tl.constexpr = LOG2_E * HEAD**-0.5
    STRIDE: tl.constexpr = HEADS // GROUP * HEAD  # of a row of the cache
    one = tl.program_id(0).to(tl.int64)
    slot, head = one // HEADS, one % HEADS
    count = tl.minimum(tl.load(lengths + slot), capacity).to(tl.int32)
    keys += slot * capacity * STRIDE + head // GROUP * HEAD
    values += slot * capacity * STRIDE + head // GROUP * HEAD
    column = tl.arange(0, PADDED)
    key = tl.arange(0, KEYS)
    query = tl.load(q + one * HEAD + column, column < HEAD, 0.0).to(tl.float32) * SCALE
    top = tl.full((KEYS,), -3.0e38, tl.float32)  # not -inf, whose differences are no numbers
    sums = tl.zeros((KEYS,), tl.float32)
    mixed = tl.zeros((KEYS, PADDED), tl.float32)
    for block in range(0, count, KEYS):
        k_tile = load_rows(keys, STRIDE, block, count, KEYS, HEAD, PADDED).to(tl.float32)
        v_tile = load_rows(values, STRIDE, block, count, KEYS, HEAD, PADDED).to(tl.float32)
        score = tl.sum(k_tile * query[None, :], 1)
        score = tl.where(block + key < count, score, float("-inf"))
        higher = tl.maximum(top, score)
        fade = exp2(top - higher)
        p = exp2(score - higher)
        sums = sums * fade + p
        mixed = mixed * fade[:, None] + v_tile * p[:, None]
        top = higher
    share = exp2(top - tl.max(top, 0))
    result = tl.sum(mixed * share[:, None], 0) / tl.sum(sums * share, 0)
    tl.store(out + one * HEAD + column, result, column < HEAD)


def _forward(q: Tensor, keys: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
    slots, heads, width = q.shape
    out = torch.empty_like(q)
    if not q.numel():
        return out
    wide = padded(width)
    key = f"d{wide} {'bf16' if q.dtype == torch.bfloat16 else 'fp32'}"
    launch(
        decode_attention_kernel,
        (slots * heads,),
        q.device,
        launch_settings(decode_attention_kernel, key, q.device, DEFAULTS[wide]),
        q=q,
        keys=keys,
        values=values,
        lengths=lengths,
        out=out,
        capacity=keys.shape[1],
        HEADS=heads,
        GROUP=heads // keys.shape[2],
        HEAD=width,
        PADDED=wide,
    )
    return out


_op = gpu_operator(
    "decode_attention",
    "(Tensor q, Tensor keys, Tensor values, Tensor lengths) -> Tensor",
    fake=lambda q, keys, values, lengths: q.new_empty(q.shape),
    forward=_forward,
)


def covers(q: Tensor, *others: Any) -> str:
    """Heads of a width up to 128."""
    return f"heads are {q.shape[2]} wide, more than {WIDEST}" if q.shape[2] > WIDEST else ""


def decode_attention(
    q: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, precision: str = "ieee"
) -> Tensor:
    """See ``jetkern.ops.decode_attention``. Lengths out of range cannot be seen without waiting for
    the GPU: they are not checked, and rows past the capacity never read."""
    return _op(
        q.detach().contiguous(),
        keys.detach().to(q.dtype).contiguous(),
        values.detach().to(q.dtype).contiguous(),
        lengths.contiguous(),
    )
