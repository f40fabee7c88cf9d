"""The same on GPUs: logits of some rows at a time, in a buffer that is used again and again.

A run of rows is as long as its logits take 64 MiB, so the products are as large as a GPU wants them
and are those of ``linear`` (which sees to precision and order). A kernel reads the logits once for
the loss; in the backward one turns them, in place, into their gradient. Weight gradients of the
runs are added in order: the same bits from any two runs of the program.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from jetkern.ops.gpu.launch import Settings, cdiv, launch, launch_settings
from jetkern.ops.gpu.register import gpu_operator
from jetkern.ops.linear.triton import product, weight_gradient
from jetkern.ops.linear_cross_entropy import reference

LOGITS = 2**24  # of a run of rows
DEFAULT: Settings = {"COLUMNS": 1024, "num_warps": 4, "num_stages": 1}
CANDIDATES: dict[str, list[Settings]] = {
    kernel: [
        {"COLUMNS": columns, "num_warps": warps, "num_stages": 1}
        for columns in (512, 1024, 2048)
        for warps in (4, 8)
    ]
    for kernel in ("linear_cross_entropy_fwd", "linear_cross_entropy_bwd")
}


@triton.jit(do_not_specialize=["classes"])
def linear_cross_entropy_fwd_kernel(
    logits, bias, target, loss, softmax, classes, COLUMNS: tl.constexpr
):
    """A row: its loss, its largest logit and the inverse of the softmax's denominator."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * classes
    column = tl.arange(0, COLUMNS)
    highest = tl.full((COLUMNS,), float("-inf"), tl.float32)
    for first in range(0, classes, COLUMNS):
        inside = first + column < classes
        x = tl.load(logits + first + column, inside, float("-inf"))
        if bias is not None:
            x += tl.load(bias + first + column, inside, 0.0)
        highest = tl.maximum(highest, x, propagate_nan=tl.PropagateNan.ALL)
    top = tl.max(highest, 0)
    shift = tl.where(top == float("-inf"), 0.0, top)
    sums = tl.zeros((COLUMNS,), tl.float32)
    for first in range(0, classes, COLUMNS):
        inside = first + column < classes
        x = tl.load(logits + first + column, inside, float("-inf"))
        if bias is not None:
            x += tl.load(bias + first + column, inside, 0.0)
        sums += tl.exp(x - shift)
    total = tl.sum(sums, 0)
    wanted = tl.load(target + row)
    picked = tl.load(logits + wanted, wanted >= 0, 0.0)
    if bias is not None:
        picked += tl.load(bias + wanted, wanted >= 0, 0.0)
    tl.store(loss + row, tl.where(wanted < 0, 0.0, tl.log(total) + (top - picked)))
    tl.store(softmax + 2 * row, top)
    tl.store(softmax + 2 * row + 1, 1.0 / total)


@triton.jit(do_not_specialize=["classes"])
def linear_cross_entropy_bwd_kernel(
    logits, bias, target, d_loss, softmax, classes, COLUMNS: tl.constexpr
):
    """Part of a row: its logits become their gradient."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < classes
    wanted = tl.load(target + row)
    x = tl.load(logits + row * classes + column, inside, 0.0)
    if bias is not None:
        x += tl.load(bias + column, inside, 0.0)
    p = tl.exp(x - tl.load(softmax + 2 * row)) * tl.load(softmax + 2 * row + 1)
    slope = (p - tl.where(column == wanted, 1.0, 0.0)) * tl.load(d_loss + row)
    tl.store(logits + row * classes + column, tl.where(wanted < 0, 0.0, slope), inside)


def runs_of(rows: int, classes: int) -> Iterator[slice]:
    step = max(LOGITS // classes, 1)
    return (slice(first, min(first + step, rows)) for first in range(0, rows, step))


def _launch(kernel: Any, rows: int, parts: int, logits: Tensor, **others: Any) -> None:
    classes = logits.shape[1]
    settings = launch_settings(kernel, "", logits.device, DEFAULT)
    grid = (rows, cdiv(classes, settings["COLUMNS"]) if parts else 1)
    launch(kernel, grid, logits.device, settings, logits=logits, classes=classes, **others)


def forward_of(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    loss: Tensor,
    softmax: Tensor,
    precision: str,
) -> Tensor:
    """The logits of a run of rows, without the bias; fills their loss and softmax."""
    logits = product(x, weight.t(), precision, torch.float32)
    given = {"target": target, "loss": loss, "softmax": softmax}
    _launch(linear_cross_entropy_fwd_kernel, len(logits), 0, logits, bias=bias, **given)
    return logits


def backward_in_place(
    logits: Tensor, bias: Tensor | None, target: Tensor, d_loss: Tensor, softmax: Tensor
) -> Tensor:
    """Logits of a run of rows, turned into their gradient."""
    given = {"target": target, "d_loss": d_loss, "softmax": softmax}
    _launch(linear_cross_entropy_bwd_kernel, len(logits), 1, logits, bias=bias, **given)
    return logits


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, precision: str
) -> tuple[Tensor, Tensor]:
    loss = x.new_empty(len(x), dtype=torch.float32)
    softmax = x.new_empty(len(x), 2, dtype=torch.float32)
    for run in runs_of(len(x), len(weight)):
        forward_of(x[run], weight, bias, target[run], loss[run], softmax[run], precision)
    return loss, softmax


def _backward(
    d_loss: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    precision: str,
    softmax: Tensor,
    want_x: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    d_x = x.new_empty(x.shape) if want_x else x.new_empty(0)
    d_weight = weight.new_zeros(weight.shape, dtype=torch.float32)
    d_bias = weight.new_zeros(0 if bias is None else len(bias), dtype=torch.float32)
    for run in runs_of(len(x), len(weight)):
        slope = product(x[run], weight.t(), precision, torch.float32)
        backward_in_place(slope, bias, target[run], d_loss[run], softmax[run])
        if want_x:
            d_x[run] = product(slope, weight, precision, x.dtype)
        d_weight += weight_gradient(slope, x[run], precision, torch.float32)
        if bias is not None:
            d_bias += slope.sum(0)
    return d_x, d_weight.to(weight.dtype), d_bias.to(weight.dtype if bias is None else bias.dtype)


def _fake(x: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    kept = x.new_empty(x.shape[0], 2, dtype=torch.float32)
    return x.new_empty(x.shape[0], dtype=torch.float32), kept


def _reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, precision: str
) -> Tensor:
    return reference.linear_cross_entropy(x, weight, bias, target)


_op = gpu_operator(
    "linear_cross_entropy",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor target, str precision)"
    " -> (Tensor loss, Tensor softmax)",
    fake=_fake,
    forward=_forward,
    backward=_backward,
    gradients="x? weight bias",
    kept="softmax",
    reference=_reference,
)


def linear_cross_entropy(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, precision: str = "ieee"
) -> Tensor:
    """See ``jetkern.ops.linear_cross_entropy``. Targets that are no class cannot be seen without
    waiting for the GPU: they are not checked."""
    loss, _ = _op(
        x.contiguous(),
        weight.contiguous(),
        None if bias is None else bias.contiguous(),
        target.contiguous(),
        precision,
    )
    return loss
