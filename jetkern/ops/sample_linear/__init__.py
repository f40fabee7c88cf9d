"""Draws from the classes of a linear layer, whose probabilities are never stored."""

from __future__ import annotations

import torch
from torch import Tensor

from jetkern.ops.checks import check_drawing, check_float, check_shape
from jetkern.ops.dispatch import run
from jetkern.packed import readable


def sample_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    keys: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    forbidden: Tensor | None = None,
    precision: str = "ieee",
    backend: str = "auto",
) -> Tensor:
    """A class of each row, drawn from softmax((x W^T + b) / temperature).

    The class with the largest logit - temperature ln E, where E are exponential random numbers:
    the Gumbel maximum. Each E is a function of its row's key and its class, so that a row draws
    the same whatever the batch; rows with equal keys draw with the same numbers. Of equal scores
    the lowest class is taken. For inference: the draws have no gradient.

    Args:
        x: (T, D) float; weight: (V, D); bias: (V,) or None. A logit of -inf is never drawn.
        keys: (T,) int64 random bits, such as ``jetkern.random.random_bits`` of a row's counters.
        temperature: from 0, where the largest logit is taken.
        top_k: classes with the largest logits that can be drawn, of equal ones the lowest; 0 for
            all of them.
        top_p: of these, the fewest that have this probability together, at least one; 1 for all.
        forbidden: (V,) bool, true for classes that cannot be drawn, or None.
        precision: the products may be rounded to this: "ieee" float32, "tf32" or "bf16".

    Returns:
        (T,) int64; -1 for a row from which none can be drawn: all logits are -inf, or one that is
        not forbidden is NaN or inf.

    Raises:
        ValueError: for wrong shapes, dtypes or settings, no class, or, on a CPU, none that is not
            forbidden.
    """
    check_float("x", x)
    check_shape("weight", weight, None, None)
    check_shape("x", x, None, weight.shape[1])
    classes = weight.shape[0]
    if bias is not None:
        check_shape("bias", bias, classes)
    if not classes:
        raise ValueError("weight must have at least one class")
    check_shape("keys", keys, x.shape[0])
    if keys.dtype != torch.int64 or keys.device != x.device:
        raise ValueError(f"keys must be int64 on {x.device}, got {keys.dtype} on {keys.device}")
    check_drawing(temperature, top_k, top_p)
    if forbidden is not None:
        check_shape("forbidden", forbidden, classes)
        if forbidden.dtype != torch.bool or forbidden.device != x.device:
            raise ValueError(
                f"forbidden must be bool on {x.device}, got {forbidden.dtype} on {forbidden.device}"
            )
        if readable(forbidden) and forbidden.all():
            raise ValueError(f"all {classes} classes are forbidden")
    return run(
        "sample_linear", backend, x, weight, bias, keys, forbidden, float(temperature), int(top_k),
        float(top_p), precision=precision,
    )  # fmt: skip
