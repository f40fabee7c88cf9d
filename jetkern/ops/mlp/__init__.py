"""The two-layer perceptron of the Point-Edge Transformer."""

from __future__ import annotations

from torch import Tensor

from jetkern.ops.checks import check_float, check_mlp, check_shape
from jetkern.ops.dispatch import implementation
from jetkern.ops.parameters import MLPParameters


def mlp(
    x: Tensor, parameters: MLPParameters, *, precision: str = "ieee", backend: str = "auto"
) -> Tensor:
    """fc2(DynamicTanh(gelu(fc1(x)))), with the exact (erf) GELU; the norm is optional.

    Args:
        x: (T, D_in) float.
        parameters: weights, see ``MLPParameters``.
        precision: the products may be rounded to this: "ieee" float32, "tf32" or "bf16".

    Returns:
        (T, D_out).

    Raises:
        ValueError: for wrong shapes or dtypes, also of a weight, which is named.
    """
    check_float("x", x)
    check_shape("x", x, None, None)
    check_mlp("parameters", parameters, x.shape[1])
    return implementation("mlp", backend, x, precision)(x, parameters)
