"""DynamicTanh, written plainly. This file is the specification."""

from torch import Tensor


def dynamic_tanh(x: Tensor, alpha: Tensor, gamma: Tensor) -> Tensor:
    return gamma * (alpha * x).tanh()
