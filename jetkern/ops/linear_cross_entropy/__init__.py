"""Cross-entropy of the classes of a linear layer, whose logits are never stored."""

from __future__ import annotations

import torch
from torch import Tensor

from jetkern.ops.checks import check_float, check_shape
from jetkern.ops.dispatch import run
from jetkern.packed import readable


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *,
    precision: str = "ieee",
    backend: str = "auto",
) -> Tensor:
    """-ln softmax(x W^T + b)[target] of each row: the loss of a large vocabulary.

    Neither direction keeps the (T, V) logits: what they are needed for is done tile by tile, and
    the backward computes them again.

    Args:
        x: (T, D) float; weight: (V, D); bias: (V,) or None. A bias of -inf forbids a class.
        target: (T,) int64 classes; a row with a negative one has loss 0 and no gradient.
        precision: the products may be rounded to this: "ieee" float32, "tf32" or "bf16".

    Returns:
        (T,) float32, float64 for float64 inputs, in nats.

    Raises:
        ValueError: for wrong shapes or dtypes, no class, or, on a CPU, a target that is no class.
    """
    check_inputs(x, weight, bias, target)
    return run(
        "linear_cross_entropy", backend, x, weight, bias, target,
        precision=precision, values=check_values,
    )  # fmt: skip


def check_inputs(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> None:
    """Raises ValueError for wrong shapes or dtypes, and without a class."""
    check_float("x", x)
    check_shape("weight", weight, None, None)
    check_shape("x", x, None, weight.shape[1])
    if bias is not None:
        check_shape("bias", bias, weight.shape[0])
    if not weight.shape[0]:
        raise ValueError("weight must have at least one class")
    check_shape("target", target, x.shape[0])
    if target.dtype != torch.int64 or target.device != x.device:
        raise ValueError(
            f"target must be int64 on {x.device}, got {target.dtype} on {target.device}"
        )


def check_values(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> None:
    """Raises ValueError for a target that is no class."""
    if readable(target) and target.numel() and int(target.max()) >= weight.shape[0]:
        row = int((target >= weight.shape[0]).nonzero()[0])
        raise ValueError(
            f"target of row {row} is {int(target[row])}, there are {weight.shape[0]} classes"
        )
