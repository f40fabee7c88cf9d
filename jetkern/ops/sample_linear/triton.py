"""Draws from the classes of a linear layer on GPUs: logits of some rows at a time, then a kernel.

Logits of a run of rows take at most 64 MiB, as in ``linear_cross_entropy``, and are the products of
``linear``. A program reads a row of them once and keeps in each lane the best class so far. Random
numbers are made on the way, the bits of ``jetkern.random``, and their logarithms to float32's
accuracy by a series of our own, for those of the hardware are approximate. Where ``top_k`` or
``top_p`` are set PyTorch sorts the logits and takes out those that are cut, as the reference does.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from jetkern.ops.gpu.counters import more_bits
from jetkern.ops.gpu.launch import Settings, launch, launch_settings
from jetkern.ops.gpu.register import gpu_operator
from jetkern.ops.linear.triton import product
from jetkern.ops.linear_cross_entropy.triton import runs_of
from jetkern.ops.sample_linear import reference

# What compiles without spills. Not timed.
DEFAULT: Settings = {"COLUMNS": 512, "num_warps": 4, "num_stages": 1}
CANDIDATES: dict[str, list[Settings]] = {
    "sample_linear": [
        {"COLUMNS": columns, "num_warps": warps, "num_stages": 1}
        for columns in (256, 512, 1024)
        for warps in (2, 4, 8)
    ]
}


@triton.jit
def _log(x):
    """ln x of normal positive float32, to 3e-7 of itself also near 1: ln m + e ln 2, with m between
    1 / sqrt 2 and sqrt 2 and ln m = 2 artanh((m - 1) / (m + 1))."""
    bits = x.to(tl.int32, bitcast=True) - 0x3F3504F3
    power = bits >> 23
    m = ((bits & 0x7FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True)
    s = (m - 1.0) / (m + 1.0)
    t = s * s
    p = t * 0.0909090909 + 0.111111111
    p = p * t + 0.142857143
    p = p * t + 0.2
    p = p * t + 0.333333333
    ln_m = 2.0 * (p * t * s + s)
    return power.to(tl.float32) * 0.693147181 + ln_m


@triton.jit
def _log_exponential(r):
    """ln E, E = -ln(1 - r), of r in (0, 1): a series below 1/16, as 1 - r has lost digits there."""
    p = r * 0.166666667 + 0.2
    p = p * r + 0.25
    p = p * r + 0.333333333
    p = p * r + 0.5
    p = p * r * r + r
    return _log(tl.where(r < 0.0625, p, -_log(1.0 - r)))


@triton.jit(do_not_specialize=["classes"])
def sample_linear_kernel(
    logits, bias, forbidden, keys, out, temperature, classes, COLUMNS: tl.constexpr
):
    """A row: the class with the largest logit - temperature ln E, or -1."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * classes
    key = tl.load(keys + row).to(tl.uint64)
    column = tl.arange(0, COLUMNS)
    best = tl.full((COLUMNS,), float("-inf"), tl.float32)
    drawn = tl.zeros((COLUMNS,), tl.int32) - 1
    bad = tl.zeros((COLUMNS,), tl.int32)
    for first in range(0, classes, COLUMNS):
        one = first + column
        inside = one < classes
        x = tl.load(logits + one, inside, float("-inf"))
        if bias is not None:
            x += tl.load(bias + one, inside, 0.0).to(tl.float32)
        if forbidden is not None:
            x = tl.where(tl.load(forbidden + one, inside, 0) != 0, float("-inf"), x)
        bad = tl.where(x < float("inf"), bad, 1)  # also what is not a number
        bits = more_bits(key, one) >> 33
        r = (bits.to(tl.int64).to(tl.float32) + 0.5) * 4.656612873077393e-10
        score = x - temperature * _log_exponential(tl.minimum(r, 0.99999994))
        better = score > best
        best = tl.where(better, score, best)
        drawn = tl.where(better, one, drawn)
    top = tl.max(best, 0)
    lowest = tl.min(tl.where((best == top) & (drawn >= 0), drawn, classes), 0)
    fails = (tl.max(bad, 0) > 0) | (top == float("-inf"))
    tl.store(out + row, tl.where(fails, -1, lowest).to(tl.int64))


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    keys: Tensor,
    forbidden: Tensor | None,
    temperature: float,
    top_k: int,
    top_p: float,
    precision: str,
) -> Tensor:
    out = torch.empty(len(x), dtype=torch.int64, device=x.device)
    for run in runs_of(len(x), len(weight)):
        logits = product(x[run], weight.t(), precision, torch.float32)
        given = (bias, None if forbidden is None else forbidden.view(torch.uint8))
        bad = None
        if top_k or top_p < 1:
            logits = logits if bias is None else logits + bias
            logits = logits if forbidden is None else logits.masked_fill(forbidden, -torch.inf)
            bad = ~(logits < torch.inf).all(1)
            kept = reference.kept(logits, temperature, top_k, top_p)
            logits, given = logits.masked_fill(~kept, -torch.inf), (None, None)
        launch(
            sample_linear_kernel,
            (len(logits),),
            x.device,
            launch_settings(sample_linear_kernel, "", x.device, DEFAULT),
            logits=logits,
            bias=given[0],
            forbidden=given[1],
            keys=keys[run],
            out=out[run],
            temperature=temperature,
            classes=len(weight),
        )
        if bad is not None:
            out[run].masked_fill_(bad, -1)
    return out


_op = gpu_operator(
    "sample_linear",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor keys, Tensor? forbidden, float temperature, "
    "int top_k, float top_p, str precision) -> Tensor",
    fake=lambda x, *_: x.new_empty(x.shape[0], dtype=torch.int64),
    forward=_forward,
)


def covers(x: Tensor, weight: Tensor, *_: Any) -> str:
    """Fewer than 2^31 classes, weights in float32 or bfloat16."""
    if weight.dtype not in (torch.float32, torch.bfloat16):
        return f"weight is {weight.dtype}"
    return "" if len(weight) < 2**31 else f"{len(weight)} classes, more than 2^31 - 1"


def sample_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    keys: Tensor,
    forbidden: Tensor | None,
    temperature: float,
    top_k: int,
    top_p: float,
    precision: str = "ieee",
) -> Tensor:
    """See ``jetkern.ops.sample_linear``."""
    return _op(
        x.detach().contiguous(),
        weight.detach().contiguous(),
        None if bias is None else bias.detach().contiguous(),
        keys.contiguous(),
        None if forbidden is None else forbidden.contiguous(),
        temperature,
        top_k,
        top_p,
        precision,
    )
