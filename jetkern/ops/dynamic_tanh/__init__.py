"""DynamicTanh, the only norm of the Point-Edge Transformer."""

from __future__ import annotations

from torch import Tensor

from jetkern.ops.checks import check_float, check_shape
from jetkern.ops.dispatch import run


def dynamic_tanh(x: Tensor, alpha: Tensor, gamma: Tensor, *, backend: str = "auto") -> Tensor:
    """gamma tanh(alpha x), the model's norm (arXiv 2503.10622, without its shift).

    Args:
        x: (..., D) float; alpha: (1,); gamma: (D,).

    Returns:
        (..., D).

    Raises:
        ValueError: for wrong shapes or dtypes.
    """
    check_float("x", x)
    check_shape("alpha", alpha, 1)
    check_shape("gamma", gamma, *x.shape[-1:])
    return run("dynamic_tanh", backend, x, alpha, gamma)
