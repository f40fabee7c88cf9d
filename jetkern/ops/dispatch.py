"""Which implementation of an op runs: by device, dtype, availability and the caller's wish.

Every op has ``reference.py``. Faster implementations are modules beside it, whose function
``<op>`` has the signature of the reference and, where the op has products, the keyword
``precision``: ``cpu.py`` the compiled C++ ("cpu"), ``triton.py`` Triton kernels ("triton"),
``cuda.py`` compiled CUDA ("cuda").
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

from jetkern import build

BACKENDS = ("auto", "reference", "cpu", "triton", "cuda")
MODULES = {"cpu": "cpu", "triton": "triton", "cuda": "cuda"}
PRECISIONS = ("ieee", "tf32", "bf16")
LIBRARY = Path(os.environ.get("JETKERN_CPU_LIBRARY") or build.library(build.LIBRARY))
CUDA_LIBRARY = Path(os.environ.get("JETKERN_CUDA_LIBRARY") or LIBRARY.with_name("_cuda.so"))


@functools.cache
def cpu_library() -> str:
    """Loads the compiled CPU ops, once. Returns "" or why they cannot be used.

    Raises:
        ValueError: if ``JETKERN_CPU_ISA`` asks for what this CPU has not.
    """
    if reason := _load(LIBRARY):
        return reason
    try:
        torch.ops.jetkern.cpu_isa()
    except RuntimeError as error:
        raise ValueError(str(error).splitlines()[0]) from None
    return ""


@functools.cache
def cuda_library() -> str:
    """Loads the compiled CUDA ops, once. Returns "" or why they cannot be used."""
    return _load(CUDA_LIBRARY)


def _load(library: Path) -> str:
    if not library.is_file():
        return "not compiled (jetkern build)"
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        cause = error.__cause__ or error
        return f"{library.name} does not load, compile it again (jetkern build): {cause}"
    return ""


def interpreted() -> bool:
    """Whether Triton's interpreter stands in for a GPU: slow, on CPU tensors, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def triton_package() -> str:
    """ "" if Triton can be imported, else why not."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return ""


@functools.cache
def _say_once(reason: str) -> None:
    warnings.warn(f"jetkern runs its reference ops here: {reason}", stacklevel=2)


@functools.cache
def backends_of(op: str) -> tuple[str, ...]:
    """The backends that an op has an implementation for, best first, the reference last."""
    folder = Path(__file__).parent / op
    found = {path.stem for path in folder.iterdir()}  # modules and packages
    made = [b for b in MODULES if MODULES[b] in found]
    return (*made, "reference")


def _runs_on(backend: str, device: str) -> bool:
    if backend == "cpu":
        return device == "cpu"
    return device == "cuda" or (backend == "triton" and device == "cpu" and interpreted())


def covers(op: str, backend: str, device: str, dtype: torch.dtype) -> bool:
    """Whether ``backend`` is made for ``op`` on such tensors, be it available here or not."""
    if backend not in backends_of(op):
        return False
    if backend == "reference":
        return True
    made_for = (torch.float32,) if backend == "cpu" else (torch.float32, torch.bfloat16)
    return _runs_on(backend, device) and dtype in made_for


def unavailable(op: str, backend: str, device: str, dtype: torch.dtype) -> str:
    """Why ``backend`` cannot run ``op`` on tensors of this kind, "" if it can."""
    if backend == "reference":
        return ""
    if backend not in backends_of(op):
        return f"{op} has no {backend} implementation"
    if not _runs_on(backend, device):
        return f"the data is on {device}"
    if not covers(op, backend, device, dtype):
        made = "torch.float32" if backend == "cpu" else "torch.float32 or torch.bfloat16"
        return f"it computes in {made}, the data is {dtype}"
    if backend == "cpu":
        return cpu_library()
    return triton_package() if backend == "triton" else cuda_library()


def by_name_only(backend: str, device: str) -> bool:
    """Whether "auto" passes it over: the interpreter and, until it has won, CUDA."""
    return backend == "cuda" or (backend == "triton" and device == "cpu")


def _best(op: str, device: str, dtype: torch.dtype) -> str:
    """What "auto" stands for."""
    for backend in backends_of(op):
        if not by_name_only(backend, device) and not unavailable(op, backend, device, dtype):
            break
    if backend == "reference" and dtype == torch.float32 and len(backends_of(op)) > 1:
        reason = cpu_library() if device == "cpu" else triton_package()
        if reason:
            _say_once(reason)
    return backend


def asked(backend: str) -> str:
    """``backend``, or for "auto" what ``JETKERN_BACKEND`` says, if anything."""
    return backend if backend != "auto" else os.environ.get("JETKERN_BACKEND") or "auto"


_loaded: dict[str, Callable[..., Any]] = {}


@torch.compiler.assume_constant_result
def choose(op: str, backend: str, device: str, dtype: torch.dtype) -> str:
    """The backend that runs ``op``: ``backend`` itself, or what "auto" stands for.

    Raises:
        ValueError: for an unknown backend, or one asked for by name that cannot run.
    """
    by_name = backend != "auto"
    backend = asked(backend)
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}: choose one of {', '.join(BACKENDS)}")
    if not by_name and backend != "auto" and not covers(op, backend, device, dtype):
        backend = "auto"
    if backend == "auto":
        backend = _best(op, device, dtype)
    elif reason := unavailable(op, backend, device, dtype):
        raise ValueError(f"the {backend} backend cannot run {op} here: {reason}")
    module = MODULES.get(backend, "reference")
    _loaded[f"{op} {backend}"] = getattr(importlib.import_module(f"jetkern.ops.{op}.{module}"), op)
    return backend


def implementation(
    op: str, backend: str, tensor: Tensor, precision: str | None = None
) -> Callable[..., Any]:
    """The function that computes ``op`` for inputs like ``tensor``.

    Args:
        op: name of a folder below ``jetkern/ops``.
        backend: one of ``BACKENDS``; "auto" follows the environment variable
            ``JETKERN_BACKEND`` and, without it, takes the fastest one that runs. The variable is
            for a whole program: where its backend is not made for an op, dtype or device (float64
            on "cpu", all ops but two on "cuda") the fastest other one runs, but a backend that is
            not available here is an error.
        precision: one of ``PRECISIONS``, what the factors of products may be rounded to (sums are
            float32 or better); None for an op without products. It is a permission: the
            reference never rounds, the C++ ops take "tf32" as "ieee".

    Raises:
        ValueError: for an unknown backend or precision, or a backend asked for by name that
            cannot run.
    """
    if precision is not None and precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
    chosen = choose(op, backend, tensor.device.type, tensor.dtype)
    run = _loaded[f"{op} {chosen}"]
    if precision is None or chosen == "reference":
        return run
    return functools.partial(run, precision=precision)
