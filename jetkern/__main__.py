"""``python -m jetkern``: what this machine has and which backend each op uses, and why."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch

from jetkern import __version__
from jetkern.build import BuildError, build, build_cuda, compiler, nvcc
from jetkern.ops import dispatch

ROOT = Path(__file__).parents[1]
OPS = sorted(p.parent.name for p in (ROOT / "jetkern" / "ops").glob("*/reference.py"))
INSTRUCTION_SETS = ("portable", "avx2", "avx512", "avx512bf16")


def cpu_model() -> str:
    """The CPU's name as the system gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            return next(line.split(":", 1)[1].strip() for line in info if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


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
    used = INSTRUCTION_SETS[torch.ops.jetkern.cpu_isa()]
    wished = os.environ.get("JETKERN_CPU_ISA")
    return f"loaded, {used} kernels ({'by JETKERN_CPU_ISA' if wished else 'the best of this CPU'})"


def _gpu_libraries() -> list[str]:
    if reason := dispatch.triton_package():
        triton = reason
    else:
        triton = f"{version('triton')}{', its interpreter' if dispatch.interpreted() else ''}"
    return [
        f"Triton     {triton}",
        f"CUDA ops   {dispatch.cuda_library() or 'loaded, run when asked for by name'}",
    ]


def _passed_over(op: str, backend: str, device: str, dtype: torch.dtype) -> str:
    """Why another backend runs ``op``, though ``backend`` comes before it."""
    if reason := dispatch.unavailable(op, backend, device, dtype):
        return reason
    return "by name only" if dispatch.by_name_only(backend, device) else "by JETKERN_BACKEND"


def report() -> str:
    """Machine, versions and a table of ops as text."""
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    gpu = torch.cuda.get_device_name() if len(devices) > 1 else "none that PyTorch can use"
    lines = [
        f"jetkern    {__version__}, Python {platform.python_version()}, torch {torch.__version__}",
        f"CPU        {cpu_model()}, {torch.get_num_threads()} threads",
        f"GPU        {gpu}",
        f"compiler   {_compiler()}",
        f"CPU ops    {_cpu_library()}",
        *_gpu_libraries(),
    ]
    forced = os.environ.get("JETKERN_BACKEND")
    if forced:
        lines.append(f"           JETKERN_BACKEND={forced} overrides the choice")
    lines += ["", f"{'op':16} {'device':7} {'dtype':9} {'backend':10} why"]
    for op in OPS:
        for device in devices:
            for dtype in (torch.float32, torch.float64):
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
                lines.append(f"{op:16} {device:7} {name:9} {chosen:10} {why}")
    return "\n".join(lines)


def main() -> None:
    """Prints the report, or compiles the C++ and CUDA ops."""
    parser = argparse.ArgumentParser(prog="python -m jetkern", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    compile_ = commands.add_parser("build", help="compile csrc/cpu, and csrc/cuda if there is nvcc")
    compile_.add_argument(
        "--into",
        type=Path,
        default=ROOT / "jetkern",
        help="folder for the libraries, to be named in JETKERN_CPU_LIBRARY and JETKERN_CUDA_LIBRARY"
        " (default: the package)",
    )
    compile_.add_argument(
        "--sanitize", action="store_true", help="with the address and undefined sanitizers"
    )
    compile_.add_argument("--cuda", action="store_true", help="fail if CUDA ops cannot be compiled")
    arguments = parser.parse_args()
    try:
        if arguments.command is None:
            return print(report())
        print("compiled", build(ROOT / "csrc", arguments.into, sanitize=arguments.sanitize))
        if not arguments.cuda:
            try:
                nvcc()
            except BuildError as error:
                return print(f"CUDA ops skipped: {error}")
        print("compiled", build_cuda(ROOT / "csrc", arguments.into))
    except (BuildError, ValueError) as error:
        sys.exit(f"python -m jetkern: {error}")


if __name__ == "__main__":
    main()
