"""The compiled C++ op, ``torch.ops.jetkern.linear``."""

from __future__ import annotations

from torch import Tensor

from jetkern.ops.dispatch import multiplies_bf16
from jetkern.ops.linear import reference
from jetkern.ops.register import operator

_op = operator(
    "jetkern::linear",
    "(Tensor x, Tensor weight, Tensor? bias, bool bf16) -> Tensor",
    gradients="x? weight bias",
    fake=lambda x, weight, bias, bf16: x.new_empty(x.shape[0], weight.shape[0]),
    reference=lambda x, weight, bias, bf16: reference.linear(x, weight, bias),
)


def covers(x: Tensor, weight: Tensor, bias: Tensor | None) -> str:
    """float32."""
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != x.dtype:
            return f"{name} is {tensor.dtype}"
    return ""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, precision: str = "ieee") -> Tensor:
    return _op(
        x.contiguous(),
        weight.contiguous(),
        None if bias is None else bias.contiguous(),
        precision == "bf16" and multiplies_bf16(),
    )
