"""The compiled C++ op, ``torch.ops.jetkern.linear``: for inference."""

from __future__ import annotations

import torch
from torch import Tensor

from jetkern.ops.register import operator

_op = operator(
    "jetkern::linear",
    "(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    fake=lambda x, weight, bias: x.new_empty(x.shape[0], weight.shape[0]),
)


def covers(x: Tensor, weight: Tensor, bias: Tensor | None) -> str:
    """float32 without a gradient: PyTorch's product has one."""
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        if tensor.dtype != x.dtype:
            return f"{name} is {tensor.dtype}"
        if tensor.requires_grad and torch.is_grad_enabled():
            return f"{name} needs a gradient"
    return ""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, precision: str = "ieee") -> Tensor:
    return _op(
        x.detach().contiguous(),
        weight.detach().contiguous(),
        None if bias is None else bias.detach().contiguous(),
    )
