"""Input checks shared by the ops: one clear ValueError each."""

from __future__ import annotations

import torch
from torch import Tensor

from jetkern.ops.parameters import BlockParameters, MLPParameters


def check_shape(name: str, tensor: Tensor, *shape: int | None) -> None:
    """Raises ValueError unless ``tensor`` has the given shape; None matches any length."""
    fits = tensor.ndim == len(shape) and all(
        want is None or have == want for have, want in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(f"{name} must have shape ({wanted}), got {tuple(tensor.shape)}")


def check_float(name: str, tensor: Tensor) -> None:
    """Raises ValueError unless ``tensor`` is floating point."""
    if not tensor.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {tensor.dtype}")


def check_offsets(name: str, offsets: Tensor, device: torch.device) -> None:
    """Raises ValueError unless ``offsets`` is (B + 1,) int64 on ``device``."""
    if offsets.ndim != 1 or offsets.dtype != torch.int64 or not len(offsets):
        raise ValueError(
            f"{name} must be (B + 1,) int64, got {tuple(offsets.shape)} {offsets.dtype}"
        )
    if offsets.device != device:
        raise ValueError(f"{name} is on {offsets.device}, the data on {device}")


def check_mlp(name: str, p: MLPParameters, inputs: int, outputs: int | None = None) -> None:
    """Raises ValueError unless the perceptron's weights fit each other and these widths."""
    check_shape(f"{name}.fc1_weight", p.fc1_weight, None, inputs)
    hidden = len(p.fc1_weight)
    check_shape(f"{name}.fc2_weight", p.fc2_weight, outputs, hidden)
    if (p.alpha is None) != (p.gamma is None):
        raise ValueError(f"{name} must have both alpha and gamma, or neither")
    for field, weight, size in (
        ("fc1_bias", p.fc1_bias, hidden),
        ("alpha", p.alpha, 1),
        ("gamma", p.gamma, hidden),
        ("fc2_bias", p.fc2_bias, len(p.fc2_weight)),
    ):
        if weight is not None:
            check_shape(f"{name}.{field}", weight, size)


def check_block(name: str, p: BlockParameters, width: int, heads: int) -> None:
    """Raises ValueError unless the block's weights fit the width, and the heads divide it."""
    if heads < 1 or width % heads:
        raise ValueError(f"heads must divide the width {width}, got {heads}")
    check_shape(f"{name}.alpha1", p.alpha1, 1)
    check_shape(f"{name}.gamma1", p.gamma1, width)
    check_shape(f"{name}.qkv_weight", p.qkv_weight, 3 * width, width)
    check_shape(f"{name}.out_weight", p.out_weight, width, width)
    check_shape(f"{name}.alpha2", p.alpha2, 1)
    check_shape(f"{name}.gamma2", p.gamma2, width)
    check_mlp(f"{name}.mlp", p.mlp, width, width)
