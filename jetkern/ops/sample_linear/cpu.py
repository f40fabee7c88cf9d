"""The compiled C++ op, ``torch.ops.jetkern.sample_linear``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jetkern.ops.register import operator

_op = operator(
    "jetkern::sample_linear",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor keys, Tensor? forbidden, float temperature, "
    "int top_k, float top_p, bool bf16) -> Tensor",
    fake=lambda x, *_: x.new_empty(x.shape[0], dtype=torch.int64),
)


def covers(x: Tensor, weight: Tensor, bias: Tensor | None, *_: Any) -> str:
    """Weights in float32."""
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != x.dtype:
            return f"{name} is {tensor.dtype}"
    return ""


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
    return _op(
        x.detach().contiguous(),
        weight.detach().contiguous(),
        None if bias is None else bias.detach().contiguous(),
        keys.contiguous(),
        None if forbidden is None else forbidden.contiguous(),
        temperature,
        top_k,
        top_p,
        precision == "bf16",
    )
