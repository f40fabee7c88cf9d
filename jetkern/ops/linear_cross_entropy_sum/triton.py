"""The same on GPUs, by the products and kernels of ``linear_cross_entropy``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jetkern.ops.gpu.register import gpu_operator
from jetkern.ops.linear.triton import product, weight_gradient
from jetkern.ops.linear_cross_entropy.triton import backward_in_place, forward_of, runs_of
from jetkern.ops.linear_cross_entropy_sum import reference
from jetkern.ops.linear_cross_entropy_sum.cpu import empty_results, scaled, wants_gradients


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    precision: str,
    gradients: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _, d_x, d_weight, d_bias = empty_results(x, weight, bias, gradients)
    d_weight.zero_()
    d_bias.zero_()
    ones = x.new_ones(len(x), dtype=torch.float32)
    loss, softmax = torch.empty_like(ones), ones.new_empty(len(x), 2)
    for run in runs_of(len(x), len(weight)):
        logits = forward_of(x[run], weight, bias, target[run], loss[run], softmax[run], precision)
        if not gradients:
            continue
        slope = backward_in_place(logits, bias, target[run], ones[run], softmax[run])
        d_x[run] = product(slope, weight, precision, x.dtype)
        d_weight += weight_gradient(slope, x[run], precision, torch.float32)
        if bias is not None:
            d_bias += slope.sum(0)
    return loss.sum(), d_x, d_weight, d_bias


def _backward(
    d_total: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    precision: str,
    gradients: bool,
    *kept: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return scaled(d_total, x, weight, bias, kept)


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    precision: str,
    gradients: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return empty_results(x, weight, bias, gradients)


def _reference(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *_: Any) -> Tensor:
    return reference.linear_cross_entropy_sum(x, weight, bias, target)


_op = gpu_operator(
    "linear_cross_entropy_sum",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor target, str precision, bool gradients)"
    " -> (Tensor total, Tensor d_x, Tensor d_weight, Tensor d_bias)",
    fake=_fake,
    forward=_forward,
    backward=_backward,
    gradients="x weight bias",
    kept="d_x d_weight d_bias",
    reference=_reference,
)


def linear_cross_entropy_sum(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, precision: str = "ieee"
) -> Tensor:
    """See ``jetkern.ops.linear_cross_entropy_sum``. Targets that are no class cannot be seen
    without waiting for the GPU: they are not checked."""
    total, *_ = _op(
        x.contiguous(),
        weight.contiguous(),
        None if bias is None else bias.contiguous(),
        target.contiguous(),
        precision,
        wants_gradients(x, weight, bias),
    )
    return total
