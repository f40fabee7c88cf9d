"""The sum of the losses of ``linear_cross_entropy``. It is the specification."""

from torch import Tensor

from jetkern.ops.linear_cross_entropy import reference


def linear_cross_entropy_sum(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor
) -> Tensor:
    return reference.linear_cross_entropy(x, weight, bias, target).sum()
