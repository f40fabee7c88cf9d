"""The compiled C++ op, ``torch.ops.jetkern.linear_cross_entropy``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from jetkern.ops.linear_cross_entropy import reference
from jetkern.ops.register import operator


def _fake(x: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0]), x.new_empty(x.shape[0], 2)


_op = operator(
    "jetkern::linear_cross_entropy",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor target, bool bf16)"
    " -> (Tensor loss, Tensor softmax)",
    gradients="x? weight bias",
    kept="softmax",
    fake=_fake,
    reference=lambda x, weight, bias, target, bf16: reference.linear_cross_entropy(
        x, weight, bias, target
    ),
)


def covers(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> str:
    """Weights in float32."""
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != x.dtype:
            return f"{name} is {tensor.dtype}"
    return ""


def linear_cross_entropy(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, precision: str = "ieee"
) -> Tensor:
    loss, _ = _op(
        x.contiguous(),
        weight.contiguous(),
        None if bias is None else bias.contiguous(),
        target.contiguous(),
        precision == "bf16",
    )
    return loss
