"""The compiled C++ op, ``torch.ops.jetkern.linear``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
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

_panels = operator(
    "jetkern::linear_panels",
    "(Tensor weight, bool bf16) -> Tensor",
    fake=lambda weight, bf16: weight.new_empty(_size_of_panels(*weight.shape)),
)
_packed = operator(
    "jetkern::linear_packed",
    "(Tensor x, Tensor panels, Tensor? bias, int outputs, bool bf16) -> Tensor",
    fake=lambda x, panels, bias, outputs, bf16: x.new_empty(x.shape[0], outputs),
)
# Weights that do not change, by their identity, beside what they were packed to.
_kept: ContextVar[dict[tuple[int, bool], tuple[Tensor, Tensor]] | None] = ContextVar(
    "jetkern_linear_kept", default=None
)


def _size_of_panels(outputs: int, inputs: int) -> int:
    return inputs * -(-outputs // 64) * 64


@contextmanager
def constant_weights() -> Iterator[None]:
    """Within it no parameter changes that ``linear`` takes as a weight on a CPU without a gradient:
    each is packed once, and not in every call. For loops over few rows; the same bits."""
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def covers(x: Tensor, weight: Tensor, bias: Tensor | None) -> str:
    """float32."""
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != x.dtype:
            return f"{name} is {tensor.dtype}"
    return ""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, precision: str = "ieee") -> Tensor:
    x, bias = x.contiguous(), None if bias is None else bias.contiguous()
    bf16 = precision == "bf16" and multiplies_bf16()
    kept = None if torch.compiler.is_compiling() else _kept.get()
    if kept is None or torch.is_grad_enabled() or not isinstance(weight, torch.nn.Parameter):
        return _op(x, weight.contiguous(), bias, bf16)
    place = (id(weight), bf16)
    if place not in kept:
        kept[place] = weight, _panels(weight.contiguous(), bf16)
    return _packed(x, kept[place][1], bias, weight.shape[0], bf16)
