"""The same on GPUs, by the products and kernels of ``linear_cross_entropy``."""

from __future__ import annotations

import torch
from torch import Tensor

from jetkern.ops.gpu.register import gpu_operator
from jetkern.ops.linear.triton import product, weight_gradient
from jetkern.ops.linear_cross_entropy.triton import backward_in_place, forward_of, runs_of
from jetkern.ops.linear_cross_entropy_sum.cpu import (
    backward,
    empty_results,
    through_reference,
    wants_gradients,
)


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    precision: str,
    gradients: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _, d_x, d_weight, d_bias = empty_results(x, weight, bias, target, gradients)
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


_op = gpu_operator(
    "linear_cross_entropy_sum",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor target, str precision, bool gradients)"
    " -> (Tensor total, Tensor d_x, Tensor d_weight, Tensor d_bias)",
    fake=empty_results,
    forward=_forward,
    backward=backward,
    gradients="x weight bias",
    kept="d_x d_weight d_bias",
    reference=through_reference,
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
