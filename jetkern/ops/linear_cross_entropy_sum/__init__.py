"""Sum of cross-entropies of the classes of a linear layer; one pass makes its gradient, too."""

from __future__ import annotations

from torch import Tensor

from jetkern.ops.dispatch import run
from jetkern.ops.linear_cross_entropy import check_inputs, check_values


def linear_cross_entropy_sum(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *,
    precision: str = "ieee",
    backend: str = "auto",
) -> Tensor:
    """The sum over rows of -ln softmax(x W^T + b)[target]: what training on a vocabulary minimises.

    As ``linear_cross_entropy(...).sum()``, but the gradient of a sum is known, up to a factor, as
    soon as a row's logits are: they are computed once and not twice.

    Args:
        x: (T, D) float; weight: (V, D); bias: (V,) or None. A bias of -inf forbids a class.
        target: (T,) int64 classes; a row with a negative one counts as 0 and has no gradient.
        precision: the products may be rounded to this: "ieee" float32, "tf32" or "bf16".

    Returns:
        () float32, float64 for float64 inputs, in nats.

    Raises:
        ValueError: for wrong shapes or dtypes, no class, or, on a CPU, a target that is no class.
    """
    check_inputs(x, weight, bias, target)
    return run(
        "linear_cross_entropy_sum", backend, x, weight, bias, target,
        precision=precision, values=check_values,
    )  # fmt: skip
