"""How Triton kernels are launched: the settings of each GPU family, one helper for every launch.

Kernels of an op are in ``jetkern/ops/<op>/triton.py``. Each module asks ``launch_settings`` how to
launch a kernel, launches it through ``launch``, and lists in ``CANDIDATES`` what ``python -m
bench.tune`` may try. With TRITON_INTERPRET=1 in the environment, set before Triton is imported, the
kernels run on CPU tensors in Triton's interpreter.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

Settings = dict[str, int]
Chooser = Callable[[str, str, torch.device], Settings]

TABLES = Path(__file__).parent
# GPU families with the KiB of shared memory that a block of their settings may take.
FAMILIES = {80: 99, 90: 227}


def unsuited(device: torch.device) -> str:
    """Why the kernels cannot run on this GPU, "" if they can."""
    capability, shared = _properties(device.index or 0)
    if _family(capability, shared):
        return ""
    return (
        f"the kernels need a GPU of compute capability 8.0 with {FAMILIES[80]} KiB of shared memory"
        f" for a block, this one has {capability / 10} and {shared} KiB"
    )


def family(device: torch.device) -> int:
    """The newest of ``FAMILIES`` that the GPU is not older than and has the shared memory for.

    A GPU of capability 12.0, whose blocks have 99 KiB as those of 8.6, is launched like 8.0. Not on
    a GPU, in the interpreter, the oldest.

    Raises:
        ValueError: for a GPU that no family's settings fit.
    """
    if device.type != "cuda":
        return min(FAMILIES)
    found = _family(
        *_properties(torch.cuda.current_device() if device.index is None else device.index)
    )
    if not found:
        raise ValueError(unsuited(device))
    return found


def _family(capability: int, shared: int) -> int:
    return max((f for f, kib in FAMILIES.items() if f <= capability and kib <= shared), default=0)


@functools.cache
def _properties(index: int) -> tuple[int, int]:
    """Ten times the compute capability, and KiB of shared memory that a block may ask for."""
    found = torch.cuda.get_device_properties(index)
    shared: int = found.shared_memory_per_block_optin  # type: ignore[attr-defined]
    return 10 * found.major + found.minor, shared // 1024


@functools.cache
def _table(architecture: int) -> dict[str, dict[str, Settings]]:
    path = TABLES / f"sm{architecture}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def of_table(architecture: int) -> Chooser:
    """Chooses what the shipped table of a GPU family says, {} where it says nothing."""
    return lambda kernel, key, device: _table(architecture).get(kernel, {}).get(key, {})


def _shipped(kernel: str, key: str, device: torch.device) -> Settings:
    return _table(family(device)).get(kernel, {}).get(key, {})


_choosers: list[Chooser] = [_shipped]  # the last counts


def launch_settings(kernel: Any, key: str, device: torch.device, default: Settings) -> Settings:
    """How to launch ``kernel``: the shipped table's row for this GPU family, else ``default``.

    Args:
        kernel: the jit function; the table has its name without "_kernel".
        key: what the best choice depends on, such as "d16 n64 bf16"; never a batch size.
    """
    return {**default, **_choosers[-1](kernel_name(kernel), key, device)}


@contextmanager
def chosen_by(chooser: Chooser) -> Iterator[None]:
    """Launches of all threads with what ``chooser`` says of (kernel, key, device), not the table.

    For the tuner and for tests.
    """
    _choosers.append(chooser)
    try:
        yield
    finally:
        _choosers.pop()


def forced_settings(kernel: str, key: str, settings: Settings) -> Any:
    """Context in which a kernel is launched with ``settings``, all others as before."""
    before = _choosers[-1]

    def choose(asked: str, its_key: str, device: torch.device) -> Settings:
        forced = settings if (asked, its_key) == (kernel, key) else {}
        return forced or before(asked, its_key, device)

    return chosen_by(choose)


@contextmanager
def settings_asked() -> Iterator[set[tuple[str, str]]]:
    """The (kernel, key) pairs that launches within the block ask for."""
    before, asked = _choosers[-1], set[tuple[str, str]]()

    def choose(kernel: str, key: str, device: torch.device) -> Settings:
        asked.add((kernel, key))
        return before(kernel, key, device)

    with chosen_by(choose):
        yield asked


def kernel_name(kernel: Any) -> str:
    """Of a jit function, as launch settings, profilers and tables of results have it."""
    return str(kernel.fn.__name__).removesuffix("_kernel")


def launch(
    kernel: Any, grid: tuple[int, ...], device: torch.device, settings: Settings, **arguments: Any
) -> None:
    """Launches a kernel on the tensors' GPU, be it the current one or not; not for an empty grid.

    Args:
        settings: tiles and options of the compiler. arguments: all others of the kernel by name;
            tensors and numbers that belong together as one named tuple.
    """
    if 0 in grid:
        return
    if device.type == "cuda":
        with torch.cuda.device(device):
            kernel[grid](**arguments, **settings)
    else:
        kernel[grid](**arguments, **settings)


def cdiv(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The smallest power of two that is not below n."""
    return 1 << max(n - 1, 0).bit_length()
