"""Says what this machine has and which implementation of each op runs, and why."""

from __future__ import annotations

import os
import subprocess
import textwrap
import warnings
from importlib import import_module
from pathlib import Path

import torch

from jetkern.build import BuildError, compiler
from jetkern.cli import command
from jetkern.cli.parser import Parser
from jetkern.machine import cpu_model, environment, version
from jetkern.ops import dispatch
from jetkern.tables import show, table

WIDTH = 100
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
OPS = sorted(p.parent.name for p in Path(dispatch.__file__).parent.glob("*/reference.py"))


def _compiler() -> str:
    try:
        command = compiler()
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
        return f"{' '.join(command)}: {done.stdout.splitlines()[0]}"
    except BuildError as error:
        return f"none ({error})"
    except (OSError, IndexError) as error:
        return f"unusable ({error})"


def _cpu_library() -> str:
    if reason := dispatch.cpu_library():
        return reason
    used = dispatch.cpu_kernels()
    wished = os.environ.get("JETKERN_CPU_ISA")
    return f"loaded, {used} kernels ({'by JETKERN_CPU_ISA' if wished else 'the best of this CPU'})"


def _gpu_libraries() -> list[str]:
    if reason := dispatch.triton_package():
        triton = reason
    else:
        triton = f"{version('triton')}{', its interpreter' if dispatch.interpreted() else ''}"
    return [_wrapped("Triton     ", triton)]


def _passed_over(op: str, backend: str, device: str, dtype: torch.dtype) -> str:
    """Why another backend runs ``op``, though ``backend`` comes before it."""
    if reason := dispatch.unavailable(op, backend, device, dtype):
        return reason
    return "by name only" if dispatch.by_name_only(backend, device) else "by JETKERN_BACKEND"


def _wrapped(start: str, text: str) -> str:
    """``start`` and ``text``, which goes on below itself where it does not fit a line."""
    return textwrap.fill(
        text, WIDTH, initial_indent=start, subsequent_indent=" " * len(start),
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _columns(rows: list[list[str]]) -> list[str]:
    """A table, the last column of which goes on below itself."""
    lines = table(rows, "l").splitlines()
    start = lines[0].index(rows[0][-1], sum(map(len, rows[0][:-1])))
    return [_wrapped(line[:start], line[start:]) for line in lines]


def _asks() -> list[str]:
    """What each backend asks of an op's inputs beyond device and dtype, one line each."""
    rows = []
    for op in OPS:
        for backend in dispatch.backends_of(op)[:-1]:
            if backend == "triton" and dispatch.triton_package():
                continue
            covers = getattr(import_module(f"jetkern.ops.{op}.{backend}"), "covers", None)
            if covers is not None:
                rows.append([op, backend, " ".join(covers.__doc__.split())])
    return _columns(rows)


def report() -> str:
    """Machine, versions and a table of ops as text."""
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    here = environment()
    lines = [
        f"jetkern    {here['jetkern']}, Python {here['python']}, torch {here['torch']}",
        f"CPU        {cpu_model()}, {torch.get_num_threads()} threads",
        f"GPU        {here['gpu'] if len(devices) > 1 else 'none that PyTorch can use'}",
        _wrapped("compiler   ", _compiler()),
        _wrapped("CPU ops    ", _cpu_library()),
        *_gpu_libraries(),
    ]
    forced = os.environ.get("JETKERN_BACKEND")
    if forced:
        lines.append(f"           JETKERN_BACKEND={forced} overrides the choice")
    rows = [["op", "device", "dtype", "backend", "why"]]
    for op in OPS:
        for device in devices:
            for dtype in DTYPES:
                try:
                    chosen = dispatch.choose(op, "auto", device, dtype)
                    better = dispatch.backends_of(op)
                    passed = better[: better.index(chosen)]
                    why = "; ".join(
                        f"not {b}: {_passed_over(op, b, device, dtype)}" for b in passed
                    )
                    why = why or ("the only one" if len(better) == 1 else "the fastest that runs")
                except ValueError as error:
                    chosen, why = "none", str(error)
                name = str(dtype).removeprefix("torch.")
                rows.append([op, device, name, chosen, why])
    lines += ["", *_columns(rows)]
    lines += ["", "covered; of other inputs the next backend, at last the reference, runs the op:"]
    lines += _asks()
    return "\n".join(lines)


def parser() -> Parser:
    """The command line."""
    return Parser("doctor", __doc__)


@command
def main(arguments: list[str]) -> int:
    """Prints the report; returns the exit code."""
    parser().parse_args(arguments)
    with warnings.catch_warnings():  # the table says it
        warnings.simplefilter("ignore")
        show(report())
    return 0
