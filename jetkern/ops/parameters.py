"""Weights of the composite ops, as plain tuples of tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class MLPParameters(NamedTuple):
    """Weights of ``fc2(norm(gelu(fc1(x))))``, x of width D_in, hidden width C.

    Attributes:
        fc1_weight: (C, D_in); fc1_bias: (C,) or None.
        alpha: (1,) and gamma: (C,) of the DynamicTanh after the GELU, or None for no norm.
        fc2_weight: (D_out, C); fc2_bias: (D_out,) or None.
    """

    fc1_weight: Tensor
    fc1_bias: Tensor | None
    alpha: Tensor | None
    gamma: Tensor | None
    fc2_weight: Tensor
    fc2_bias: Tensor | None


class LinearParameters(NamedTuple):
    """Weights of one layer of a perceptron of any depth: weight (D_out, D_in), bias (D_out,) or
    None."""

    weight: Tensor
    bias: Tensor | None


class BlockParameters(NamedTuple):
    """Weights of one pre-norm attention block of width D.

    Attributes:
        alpha1: (1,) and gamma1: (D,) of the DynamicTanh before the attention.
        qkv_weight: (3 D, D), rows in the order query, key, value. out_weight: (D, D).
        alpha2: (1,) and gamma2: (D,) of the DynamicTanh before the MLP.
        mlp: the MLP's weights.
    """

    alpha1: Tensor
    gamma1: Tensor
    qkv_weight: Tensor
    out_weight: Tensor
    alpha2: Tensor
    gamma2: Tensor
    mlp: MLPParameters


class Dropout(NamedTuple):
    """Attention weights are 0 with probability p, and 1 / (1 - p) of themselves otherwise.

    Attributes:
        keys: (B,) int64 random bits of each jet, which head, query and key are counted on from.
    """

    keys: Tensor
    p: float


def tensors(*groups: MLPParameters | BlockParameters) -> list[Tensor]:
    """All weights that there are, contiguous, in the order of their fields."""
    found: list[Tensor] = []
    for group in groups:
        for weight in group:
            if isinstance(weight, MLPParameters):
                found += tensors(weight)
            elif weight is not None:
                found.append(weight.contiguous())
    return found


def not_float32(*groups: MLPParameters | BlockParameters | LinearParameters) -> str:
    """Why the C++ ops do not take these weights: one that is not float32 on the CPU; else ""."""
    for group in groups:
        for i, weight in enumerate(group):
            if isinstance(weight, MLPParameters):
                if reason := not_float32(weight):
                    return reason
            elif weight is not None and (weight.dtype != torch.float32 or not weight.is_cpu):
                name = group._fields[i]
                return f"{name} is {weight.dtype} on {weight.device}, not float32 on the CPU"
    return ""


def take_mlp(weights: Iterator[Tensor], parts: int) -> MLPParameters:
    """The next perceptron of weights in the order of ``tensors``, given its ``optional_parts``."""
    taken = [
        next(weights) if always or parts & bit else None
        for always, bit in ((True, 0), (False, 1), (False, 2), (False, 2), (True, 0), (False, 4))
    ]
    return MLPParameters(*taken)  # type: ignore[arg-type]


def take_block(weights: Iterator[Tensor], parts: int) -> BlockParameters:
    """The next block of weights in the order of ``tensors``, given its MLP's ``optional_parts``."""
    return BlockParameters(*(next(weights) for _ in range(6)), take_mlp(weights, parts))  # type: ignore[call-arg, arg-type]


def table(weights: Sequence[Tensor]) -> Tensor:
    """(len(weights), 2) int64 addresses and sizes, as the C++ ops take weights.

    Raises:
        ValueError: for a weight that is not contiguous float32 on the CPU.
    """
    for w in weights:
        if w.dtype != torch.float32 or w.device.type != "cpu" or not w.is_contiguous():
            raise ValueError(f"weights must be contiguous float32 on the CPU, got {w.dtype}")
    return torch.tensor([(w.data_ptr(), w.numel()) for w in weights], dtype=torch.int64)


def optional_parts(parameters: MLPParameters) -> int:
    """Which optional weights there are: 1 for fc1_bias, 2 for the norm, 4 for fc2_bias."""
    p = parameters
    norm = p.alpha is not None and p.gamma is not None
    return (p.fc1_bias is not None) + 2 * norm + 4 * (p.fc2_bias is not None)


class Ahead(NamedTuple):
    """Slow weights of Lookahead, which move in the pass that updates the weights.

    Attributes:
        slow: (N,) of the weights.
        steps: () int64 done, this one with them. interval: of them, between two that move these.
        alpha: size of such a step.
    """

    slow: Tensor
    steps: Tensor
    interval: int
    alpha: float
