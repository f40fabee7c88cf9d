"""DynamicTanh on GPUs: the passes of ``jetkern.ops.gpu.pointwise`` as an operator."""

from __future__ import annotations

import torch
from torch import Tensor

from jetkern.ops.dynamic_tanh import reference
from jetkern.ops.gpu.pointwise import CANDIDATES, norm, norm_backward
from jetkern.ops.gpu.register import gpu_operator

__all__ = ["CANDIDATES", "dynamic_tanh"]


def _forward(x: Tensor, alpha: Tensor, gamma: Tensor) -> Tensor:
    return norm(x, alpha, gamma, x.dtype)


def _backward(
    d_out: Tensor, x: Tensor, alpha: Tensor, gamma: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return norm_backward(x, d_out, None, alpha, gamma)


_op = gpu_operator(
    "dynamic_tanh",
    "(Tensor x, Tensor alpha, Tensor gamma) -> Tensor out",
    fake=lambda x, alpha, gamma: torch.empty_like(x),
    forward=_forward,
    backward=_backward,
    gradients="x alpha gamma",
    reference=reference.dynamic_tanh,
)


def dynamic_tanh(x: Tensor, alpha: Tensor, gamma: Tensor) -> Tensor:
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    return _op(rows, alpha, gamma.contiguous()).view(x.shape)
