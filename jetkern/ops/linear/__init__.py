"""x W^T + b at a precision that the caller names."""

from __future__ import annotations

from torch import Tensor

from jetkern.ops.checks import check_float, check_shape
from jetkern.ops.dispatch import run


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
    return run("linear", backend, x, weight, bias, precision=precision)
