"""Which implementation of an op runs: by device, dtype, availability and the caller's wish.

Every op has ``reference.py``. Faster implementations are modules beside it with the name of their
backend: ``cpu.py`` the compiled C++, ``triton.py`` Triton kernels. Their function ``<op>`` has the
signature of the reference and, where the op has products, the keyword ``precision``; their function
``covers``, if there is one, takes the op's inputs and returns "" or why they are not for it. So
"auto" finds another backend, and one asked for by name runs or raises.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from jetkern import build, kernels

PRECISIONS = ("ieee", "tf32", "bf16")
LIBRARY = Path(os.environ.get("JETKERN_CPU_LIBRARY") or build.library(build.LIBRARY))


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


def cpu_kernels() -> str:
    """The instruction set of the C++ ops, which are loaded."""
    return list(build.INSTRUCTION_SETS)[torch.ops.jetkern.cpu_isa()]


def multiplies_bf16() -> bool:
    """Whether the C++ ops on rows, ``linear`` and others, have products of bfloat16."""
    return not cpu_library() and cpu_kernels() == "amx"


multiplies_bf16._dynamo_marked_constant = True  # type: ignore[attr-defined]


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
def triton_gpu() -> str:
    """ "" if the current GPU, if there is one, can run the Triton kernels, else why not."""
    if not torch.cuda.is_available():
        return ""
    from jetkern.ops.gpu.launch import unsuited

    return unsuited(torch.device("cuda", torch.cuda.current_device()))


class Backend(NamedTuple):
    """A way to compute ops: the module of its name in the folder of each op that it computes.

    Attributes:
        devices, dtypes: what it is made for.
        missing: "" or why it cannot be used on this machine.
        by_name_only: the devices on which "auto" passes it over.
    """

    devices: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    missing: Callable[[], str]
    by_name_only: tuple[str, ...] = ()


GPU_DTYPES = (torch.float32, torch.bfloat16)
# Best first; the interpreter runs by name only.
TABLE = {
    "cpu": Backend(("cpu",), (torch.float32,), lambda: cpu_library()),
    "triton": Backend(("cuda",), GPU_DTYPES, lambda: triton_package() or triton_gpu(), ("cpu",)),
}
BACKENDS = ("auto", "reference", *TABLE)


def register_compiled() -> None:
    """Makes the C++ ops known to ``torch.ops``, and loads the C++ library if it is there,
    so that compiled and exported graphs find them, and the references, before an op was called.
    Kernels for what lies below the ops are made known there."""
    kernels.provide(triton_takes, kernel_below)
    for path in sorted(Path(__file__).parent.glob("*/*.py")):
        if path.stem in ("cpu", "reference"):
            importlib.import_module(f"jetkern.ops.{path.parent.name}.{path.stem}")
    _load(LIBRARY)


@functools.cache
def _say_once(reason: str) -> None:
    warnings.warn(f"jetkern runs its reference ops here: {reason}", stacklevel=2)


@functools.cache
def backends_of(op: str) -> tuple[str, ...]:
    """The backends that an op has an implementation for, best first, the reference last."""
    folder = Path(__file__).parent / op
    found = {path.stem for path in folder.iterdir()}  # modules and packages
    return (*(b for b in TABLE if b in found), "reference")


def _made_for(op: str, backend: str, device: str, dtype: torch.dtype) -> str:
    """Why ``backend`` is not made for ``op`` on such tensors, "" if it is."""
    if backend == "reference":
        return ""
    if backend not in backends_of(op):
        return f"{op} has no {backend} implementation"
    row = TABLE[backend]
    emulated = backend == "triton" and device == "cpu" and interpreted()
    if device not in row.devices and not emulated:
        return f"the data is on {device}"
    if dtype not in row.dtypes:
        return f"it computes in {' or '.join(map(str, row.dtypes))}, the data is {dtype}"
    return ""


def unavailable(op: str, backend: str, device: str, dtype: torch.dtype) -> str:
    """Why ``backend`` cannot run ``op`` on tensors of this kind, "" if it can."""
    reason = _made_for(op, backend, device, dtype)
    return reason if reason or backend == "reference" else TABLE[backend].missing()


def triton_takes(tensor: Tensor) -> bool:
    """Whether Triton kernels are what "auto" stands for on the tensor's device: for what is no op
    of its own."""
    row = TABLE["triton"]
    if tensor.device.type not in row.devices:
        return False
    return asked("auto") in ("auto", "triton") and not row.missing()


BELOW = {
    "random_numbers": "gpu.counters",
    "class_attention": "attention_block.class_attention",
    "clip": "gpu.update",
    "lion": "gpu.update",
    "adam": "gpu.update",
    "noise_path": "gpu.views",
    "random_keep": "gpu.views",
    "hidden_ranks": "gpu.views",
    "flow_errors": "gpu.errors",
    "class_errors": "gpu.errors",
}


@functools.cache
def kernel_below(name: str) -> Callable[..., Any]:
    """The kernel of that name for what is no op."""
    module = importlib.import_module(f"jetkern.ops.{BELOW.get(name, 'gpu.segments')}")
    kernel: Callable[..., Any] = getattr(module, name)
    return kernel


def by_name_only(backend: str, device: str) -> bool:
    """Whether "auto" passes it over."""
    return device in TABLE[backend].by_name_only


@functools.cache
def _found_by_auto(op: str, device: str, dtype: torch.dtype) -> tuple[str, ...]:
    """The backends made for such tensors that "auto" does not pass over, best first."""
    return tuple(
        b
        for b in backends_of(op)[:-1]
        if not by_name_only(b, device) and not _made_for(op, b, device, dtype)
    )


@functools.cache
def _imported(op: str, backend: str) -> None:
    importlib.import_module(f"jetkern.ops.{op}.{backend}")


def _implementation(op: str, backend: str) -> ModuleType:
    """The module, once imported: an attribute, for ``torch.compile`` reads those when it comes to
    them but has a picture of ``sys.modules`` from when it began."""
    module: ModuleType = getattr(sys.modules[f"jetkern.ops.{op}"], backend)
    return module


def asked(backend: str) -> str:
    """``backend``, or for "auto" what ``JETKERN_BACKEND`` says, if anything."""
    return backend if backend != "auto" else os.environ.get("JETKERN_BACKEND") or "auto"


def candidates(op: str, backend: str, device: str, dtype: torch.dtype) -> tuple[str, ...]:
    """The backends to ask for ``op``, in order: ``backend`` itself, or what "auto" stands for.

    Raises:
        ValueError: for an unknown backend, or one asked for by name that cannot run.
    """
    wish = asked(backend)
    if wish not in BACKENDS:
        raise ValueError(f"unknown backend {wish!r}: choose one of {', '.join(BACKENDS)}")
    found = []
    # That in the environment is for a whole program: others run what it is not made for.
    if wish != "auto" and (wish == backend or not _made_for(op, wish, device, dtype)):
        if reason := unavailable(op, wish, device, dtype):
            raise ValueError(f"the {wish} backend cannot run {op} here: {reason}")
        found.append(wish)
    if backend == "auto" and wish != "reference":
        for b in _found_by_auto(op, device, dtype):
            if b in found:
                continue
            if reason := TABLE[b].missing():
                _say_once(reason)
            else:
                found.append(b)
        found.append("reference")
    for b in found:
        _imported(op, b)
    return tuple(found)


# What depends on the machine and the environment only is a constant of a compiled graph: the mark
# of torch.compiler.assume_constant_result, which would import all of the compiler (1.2 s).
candidates._dynamo_marked_constant = True  # type: ignore[attr-defined]


def choose(op: str, backend: str, device: str, dtype: torch.dtype) -> str:
    """The first of ``candidates``: what runs ``op`` unless its inputs are of a special kind."""
    return candidates(op, backend, device, dtype)[0]


def _transformed() -> bool:
    """Whether forward-mode derivatives or a transform of torch.func may be under way."""
    return not torch.compiler.is_compiling() and (
        forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()
    )


def select(op: str, backend: str, *inputs: Any, values: Callable[..., None] | None = None) -> str:
    """The backend that computes ``op`` of these inputs.

    The first of ``candidates`` whose module's ``covers(*inputs)``, if it has one, gives no reason
    against it. Forward-mode derivatives and the transforms of torch.func see the reference only.

    Args:
        inputs: of the op; the first is a tensor of the data's device and dtype.
        values: checks values of inputs that the C++ ops check by themselves; called where that
            does not wait for a GPU.

    Raises:
        ValueError: for an unknown backend, or one asked for by name that cannot run.
    """
    return _selected(op, backend, inputs, values)[0]


def _selected(
    op: str, backend: str, inputs: tuple[Any, ...], values: Callable[..., None] | None
) -> tuple[str, ModuleType]:
    """What ``select`` finds, and its module."""
    data = inputs[0]
    device = "cpu" if data.is_cpu else data.device.type  # device.type takes seven times as long
    names = candidates(op, backend, device, data.dtype)
    only_reference = _transformed()
    for name in names:
        module = _implementation(op, name)
        if name == "reference":
            break
        covers = getattr(module, "covers", None)
        if only_reference:
            reason = "forward-mode derivatives and torch.func need the reference"
        else:
            reason = "" if covers is None else covers(*inputs)
        if not reason:
            break
        if backend != "auto":
            raise ValueError(f"the {backend} backend cannot run {op} here: {reason}")
    if values is not None and name != "cpu" and device == "cpu":
        values(*inputs)
    return name, module


def run(
    op: str,
    backend: str,
    *inputs: Any,
    precision: str | None = None,
    values: Callable[..., None] | None = None,
    **options: Any,
) -> Any:
    """Computes ``op`` of the inputs with the backend that ``select`` names.

    Args:
        op: name of a folder below ``jetkern/ops``.
        backend: one of ``BACKENDS``; "auto" follows the environment variable ``JETKERN_BACKEND``
            and, without it, takes the fastest one that runs. The variable is for a whole program:
            where its backend is not made for an op, dtype or device (float64 on "cpu") the
            fastest other one runs, but a backend that is not available here is
            an error.
        precision: one of ``PRECISIONS``, what the factors of products may be rounded to (sums are
            float32 or better); None for an op without products. It is a permission: the
            reference never rounds, the C++ ops take "tf32" as "ieee".
        values: see ``select``. options: keywords of the op.

    Raises:
        ValueError: for an unknown backend or precision, or a backend asked for by name that
            cannot run.
    """
    if precision is not None and precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
    name, module = _selected(op, backend, inputs, values)
    if precision is not None and name != "reference":
        options["precision"] = precision
    return getattr(module, op)(*inputs, **options)
