"""Kernels for what lies below the ops: numbers and indices of a batch. ``jetkern.ops`` brings them;
without it, and where they do not run, PyTorch's own calls do the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Kernel = Callable[..., Any]
_provided: tuple[Callable[[Tensor], bool], Callable[[str], Kernel]] | None = None


def provide(takes: Callable[[Tensor], bool], load: Callable[[str], Kernel]) -> None:
    """Makes kernels known.

    Args:
        takes: whether they run on a tensor's device.
        load: the kernel of a name.
    """
    global _provided
    _provided = takes, load


def kernel(name: str, tensor: Tensor) -> Kernel | None:
    """The kernel of that name for tensors on the device of this one, or None; none in a graph that
    is being compiled, since a compiler makes its own."""
    if _provided is None or torch.compiler.is_compiling():
        return None
    takes, load = _provided
    return load(name) if takes(tensor) else None
