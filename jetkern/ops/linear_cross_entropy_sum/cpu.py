"""The compiled C++ op, ``torch.ops.jetkern.linear_cross_entropy_sum``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jetkern.ops.linear_cross_entropy.cpu import covers as covers
from jetkern.ops.linear_cross_entropy_sum import reference
from jetkern.ops.register import operator


def wants_gradients(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a backward may follow: only then are the gradients made."""
    if not torch.is_grad_enabled():
        return False
    return x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)


def empty_results(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum, d_x, d_weight and d_bias, not filled; gradients that are not wanted, as the last of
    ``others`` says, have no rows."""
    rows, classes = (x.shape[0], weight.shape[0]) if others[-1] else (0, 0)
    return (
        x.new_empty((), dtype=torch.float32),
        x.new_empty(rows, x.shape[1]),
        weight.new_empty(classes, weight.shape[1], dtype=torch.float32),
        weight.new_empty(0 if bias is None else classes, dtype=torch.float32),
    )


def backward(
    d_total: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients, which are the last of ``others``, times what comes back to the sum."""
    d_x, d_weight, d_bias = (t * d_total for t in others[-3:])
    return (
        d_x.to(x.dtype),
        d_weight.to(weight.dtype),
        d_bias.to(weight.dtype if bias is None else bias.dtype),
    )


def through_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *_: Any
) -> Tensor:
    """The sum, for derivatives of the gradient."""
    return reference.linear_cross_entropy_sum(x, weight, bias, target)


_op = operator(
    "jetkern::linear_cross_entropy_sum",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor target, bool bf16, bool gradients)"
    " -> (Tensor total, Tensor d_x, Tensor d_weight, Tensor d_bias)",
    backward=backward,
    gradients="x weight bias",
    kept="d_x d_weight d_bias",
    fake=empty_results,
    reference=through_reference,
)


def linear_cross_entropy_sum(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, precision: str = "ieee"
) -> Tensor:
    total, *_ = _op(
        x.contiguous(),
        weight.contiguous(),
        None if bias is None else bias.contiguous(),
        target.contiguous(),
        precision == "bf16",
        wants_gradients(x, weight, bias),
    )
    return total
