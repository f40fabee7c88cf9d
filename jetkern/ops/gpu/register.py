"""Operators that launch Triton kernels, in ``torch.ops.jetkern_triton``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jetkern.ops.dispatch import interpreted
from jetkern.ops.register import operator

DEVICES = ("cuda", "cpu") if interpreted() else ("cuda",)
# What runs each operator, for bench.resources, which has no GPU to dispatch to.
LAUNCHERS: dict[str, Callable[..., Any]] = {}


def gpu_operator(
    name: str,
    schema: str,
    *,
    forward: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    **declared: Any,
) -> Any:
    """``operator`` as ``torch.ops.jetkern_triton.<name>``, on tensors that Triton kernels take."""
    LAUNCHERS[name] = forward
    if backward is not None:
        LAUNCHERS[f"{name}_backward"] = backward
    return operator(
        f"jetkern_triton::{name}",
        schema,
        forward=forward,
        backward=backward,
        devices=DEVICES,
        **declared,
    )
