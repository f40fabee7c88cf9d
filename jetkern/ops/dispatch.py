"""Which implementation of an op runs: by device, dtype, availability and the caller's wish."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

from torch import Tensor

BACKENDS = ("auto", "reference")


def implementation(op: str, backend: str, tensor: Tensor) -> Callable[..., Any]:
    """The function that computes ``op`` for inputs like ``tensor``.

    Args:
        op: name of a folder below ``jetkern/ops``.
        backend: one of ``BACKENDS``; "auto" follows the environment variable
            ``JETKERN_BACKEND`` and, without it, takes the fastest one that runs.

    Raises:
        ValueError: for an unknown backend, or one asked for by name that cannot run.
    """
    if backend == "auto":
        backend = os.environ.get("JETKERN_BACKEND", "auto")
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}: choose one of {', '.join(BACKENDS)}")
    return getattr(importlib.import_module(f"jetkern.ops.{op}.reference"), op)
