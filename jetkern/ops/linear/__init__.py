"""x W^T + b at a precision that the caller names."""

from __future__ import annotations

import torch
from torch import Tensor

from jetkern.ops.checks import check_float, check_shape
from jetkern.ops.dispatch import asked, multiplies_bf16, run


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    precision: str = "ieee",
    backend: str = "auto",
) -> Tensor:
    """x W^T + b on packed rows.

    ``torch.nn.functional.linear`` takes its precision for float32 from a setting of the whole
    process; this takes it from the call.

    Args:
        x: (T, D_in) float; weight: (D_out, D_in); bias: (D_out,) or None.
        precision: the products may be rounded to this: "ieee" float32, "tf32" or "bf16".

    Returns:
        (T, D_out).

    Raises:
        ValueError: for wrong shapes or dtypes.
    """
    check_float("x", x)
    check_shape("weight", weight, None, None)
    check_shape("x", x, None, weight.shape[1])
    if bias is not None:
        check_shape("bias", bias, weight.shape[0])
    wanted = any(t is not None and t.requires_grad for t in (x, weight, bias))
    if wanted and torch.is_grad_enabled() and x.is_cpu and _left_to_pytorch(backend, precision):
        backend = "reference"
    return run("linear", backend, x, weight, bias, precision=precision)


def _left_to_pytorch(backend: str, precision: str) -> bool:
    """Whether a product with a gradient is PyTorch's on a CPU: in float32 its are as fast."""
    return asked(backend) == "auto" and not (precision == "bf16" and multiplies_bf16())


_left_to_pytorch._dynamo_marked_constant = True  # type: ignore[attr-defined]
