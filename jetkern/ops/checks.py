"""Input checks shared by the ops: one clear ValueError each."""

from __future__ import annotations

import torch
from torch import Tensor


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
