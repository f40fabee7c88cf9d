"""The compiled C++ op, ``torch.ops.jetkern.spline``."""

from __future__ import annotations

import torch
from torch import Tensor

from jetkern.ops.register import operator
from jetkern.ops.spline import reference

MOST = 64  # bins, as in csrc/cpu/spline.h

_op = operator(
    "jetkern::spline",
    "(Tensor x, Tensor raw, float tail, float least, bool inverse) -> Tensor",
    gradients="x raw",
    fake=lambda x, *_: x.new_empty(x.shape[0], 2),
    reference=reference.spline,
)


def covers(x: Tensor, raw: Tensor, tail: float, least: float, inverse: bool) -> str:
    """Values and numbers of one dtype, up to 64 bins, and no gradient of the inverse."""
    if raw.dtype != x.dtype:
        return f"raw is {raw.dtype}"
    if raw.shape[1] > 3 * MOST - 1:
        return f"at most {MOST} bins"
    if inverse and torch.is_grad_enabled() and (x.requires_grad or raw.requires_grad):
        return "the inverse needs a gradient"
    return ""


def spline(x: Tensor, raw: Tensor, tail: float, least: float, inverse: bool) -> Tensor:
    out: Tensor = _op(x.contiguous(), raw.contiguous(), tail, least, inverse)
    return out
