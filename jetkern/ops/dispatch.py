"""Which implementation of an op runs: by device, dtype, availability and the caller's wish.

Every op has ``reference.py``. Ops with faster implementations also have ``op.py``, where the
operators ``torch.ops.jetkern.<op>`` are registered; its function ``<op>`` has the signature of the
reference, and ``op.BACKENDS`` names the backends that it runs on.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

BACKENDS = ("auto", "reference", "cpu")
LIBRARY = Path(os.environ.get("JETKERN_CPU_LIBRARY") or Path(__file__).parents[1] / "_cpu.so")


@functools.cache
def cpu_library() -> str:
    """Loads the compiled CPU ops, once. Returns "" or why they cannot be used.

    Raises:
        ValueError: if ``JETKERN_CPU_ISA`` asks for what this CPU has not.
    """
    if not LIBRARY.is_file():
        return "not compiled (python -m jetkern build)"
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        cause = error.__cause__ or error
        return f"{LIBRARY.name} does not load, compile it again (python -m jetkern build): {cause}"
    try:
        torch.ops.jetkern.cpu_isa()
    except RuntimeError as error:
        raise ValueError(str(error).splitlines()[0]) from None
    return ""


@functools.cache
def _say_once(reason: str) -> None:
    warnings.warn(f"jetkern runs its reference ops on this CPU: {reason}", stacklevel=2)


@functools.cache
def backends_of(op: str) -> tuple[str, ...]:
    """The backends that an op has an implementation for, best first, the reference last."""
    if importlib.util.find_spec(f"jetkern.ops.{op}.op") is None:
        return ("reference",)
    return (*importlib.import_module(f"jetkern.ops.{op}.op").BACKENDS, "reference")


def unavailable(op: str, backend: str, device: str, dtype: torch.dtype) -> str:
    """Why ``backend`` cannot run ``op`` on tensors of this kind, "" if it can."""
    if backend == "reference":
        return ""
    if backend not in backends_of(op):
        return f"{op} has no {backend} implementation"
    if device != "cpu":
        return f"the data is on {device}"
    if dtype != torch.float32:
        return f"it computes in torch.float32, the data is {dtype}"
    return cpu_library()


def covers(op: str, backend: str, device: str, dtype: torch.dtype) -> bool:
    """Whether ``backend`` is made for ``op`` on such tensors, be it available here or not."""
    return backend in backends_of(op) and device == "cpu" and dtype == torch.float32


_loaded: dict[str, Callable[..., Any]] = {}


@torch.compiler.assume_constant_result
def choose(op: str, backend: str, device: str, dtype: torch.dtype) -> str:
    """The backend that runs ``op``: ``backend`` itself, or what "auto" stands for.

    Raises:
        ValueError: for an unknown backend, or one asked for by name that cannot run.
    """
    by_name = backend != "auto"
    if not by_name:
        backend = os.environ.get("JETKERN_BACKEND") or "auto"
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}: choose one of {', '.join(BACKENDS)}")
    if not by_name and backend == "cpu" and not covers(op, backend, device, dtype):
        backend = "reference"
    if backend == "auto":
        backend = next(b for b in backends_of(op) if not unavailable(op, b, device, dtype))
        if backend == "reference" and device == "cpu" and cpu_library():
            _say_once(cpu_library())
    elif reason := unavailable(op, backend, device, dtype):
        raise ValueError(f"the {backend} backend cannot run {op} here: {reason}")
    module = "reference" if backend == "reference" else "op"
    _loaded[f"{op} {module}"] = getattr(importlib.import_module(f"jetkern.ops.{op}.{module}"), op)
    return backend


def implementation(op: str, backend: str, tensor: Tensor) -> Callable[..., Any]:
    """The function that computes ``op`` for inputs like ``tensor``.

    Args:
        op: name of a folder below ``jetkern/ops``.
        backend: one of ``BACKENDS``; "auto" follows the environment variable
            ``JETKERN_BACKEND`` and, without it, takes the fastest one that runs. The variable is
            for a whole program: ops and dtypes that its backend is not made for (float64 on
            "cpu") run on the reference, but a backend that is not available here is an error.

    Raises:
        ValueError: for an unknown backend, or one asked for by name that cannot run.
    """
    chosen = choose(op, backend, tensor.device.type, tensor.dtype)
    return _loaded[f"{op} reference" if chosen == "reference" else f"{op} op"]
