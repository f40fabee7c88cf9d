"""Registers, spills, shared memory and occupancy of every GPU kernel, for sm_80 and sm_90.

    python -m bench.resources [--ops knn ...] [--precisions bf16] [--markdown FILE]

Compiles each Triton kernel at the sizes of the presets, and the CUDA files where nvcc is there. No
GPU is needed. Exits with 1 if a kernel spills registers or does not fit the architecture.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from jetkern.build import BuildError, cuda_resources

TYPE = re.compile(r"\*bf16|\*?(fp|i|u)\d+")  # of a run-time argument; other values are constants
OPS = Path(__file__).parents[1] / "jetkern" / "ops"
ARCHITECTURES = (80, 90)
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")  # of the compiler
PRECISIONS = ("ieee", "tf32", "bf16")  # those of the ops, whose package would import Triton
SHARED_KB = {80: 164, 90: 228}  # of a multiprocessor (CUDA C++ Programming Guide, table 21)
WARPS, BLOCKS, REGISTERS = 64, 32, 65536  # of a multiprocessor, both architectures


class Row(NamedTuple):
    """Resources of one compiled kernel; spills in bytes of a thread, shared memory of a block."""

    op: str
    kernel: str
    label: str
    architecture: int
    warps: int
    registers: int
    spills: int
    shared: int

    @property
    def occupancy(self) -> float:
        """Fraction of the multiprocessor's warps that can be resident; 0 if not a block fits."""
        per_warp = -(-max(self.registers, 1) // 8) * 256
        by_registers = REGISTERS // per_warp // self.warps
        room = SHARED_KB[self.architecture] * 1024
        reserved = -(-self.shared // 128) * 128 + 1024
        fits = min(by_registers, WARPS // self.warps, BLOCKS, room // reserved)
        return fits * self.warps / WARPS

    @property
    def fault(self) -> str:
        """What must not be, "" if nothing."""
        if not self.occupancy:
            return "does not fit"
        return "spills" if self.spills else ""


def triton_ops() -> list[str]:
    """Ops with Triton kernels."""
    return sorted(p.parent.name for p in OPS.glob("*/triton.py"))


def cases(op: str) -> list[Any]:
    """The compilations that an op asks for."""
    return list(importlib.import_module(f"jetkern.ops.{op}.triton").compile_cases())


def triton_type(argument: Any) -> Any:
    """Of a run-time argument, or of each of a tuple of them; "constexpr" for another value."""
    if isinstance(argument, tuple):
        return tuple(triton_type(a) for a in argument)
    return argument if isinstance(argument, str) and TYPE.fullmatch(argument) else "constexpr"


def leaves(types: Iterable[Any]) -> Iterator[tuple[tuple[int, ...], str]]:
    """Path and type of each argument, those in tuples one by one."""
    for i, kind in enumerate(types):
        if isinstance(kind, tuple):
            yield from (((i, *rest), one) for rest, one in leaves(kind))
        else:
            yield (i,), kind


def compiled(task: tuple[str, int, int]) -> Row:
    """Compiles case number ``task[1]`` of op ``task[0]`` for architecture ``task[2]``."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from jetkern.ops.triton_tools import kernel_name, shipped

    op, number, architecture = task
    case = shipped(cases(op)[number], architecture)
    types = {k: triton_type(v) for k, v in case.arguments.items()}
    constants = {k: v for k, v in case.arguments.items() if types[k] == "constexpr"}
    # PyTorch's allocations are aligned to 16 bytes and Triton specialises on it.
    aligned = {p: [["tt.divisibility", 16]] for p, kind in leaves(types.values()) if kind[0] == "*"}
    source = ASTSource(case.kernel, signature=types, constexprs=constants, attrs=aligned)
    options = {k: v for k, v in case.settings.items() if k in OPTIONS}
    result = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    registers, spills = inspect(result.asm["cubin"], result.asm["ptx"], architecture)
    name = kernel_name(case.kernel)
    return Row(
        op,
        name,
        case.label,
        architecture,
        result.metadata.num_warps,
        registers,
        spills,
        result.metadata.shared,
    )


def inspect(cubin: bytes, ptx: str, architecture: int) -> tuple[int, int]:
    """Registers and bytes of spills of a thread; the assembler is asked only if it has a stack."""
    import triton.backends.nvidia

    tools = Path(triton.backends.nvidia.__file__).parent / "bin"
    with tempfile.TemporaryDirectory() as folder:
        binary, text = Path(folder) / "kernel.cubin", Path(folder) / "kernel.ptx"
        binary.write_bytes(cubin)
        usage = _run([tools / "cuobjdump", "-res-usage", binary])
        found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
        if not found:
            raise SystemExit(f"bench.resources: cuobjdump says nothing of registers: {usage}")
        if found[2] == "0":
            return int(found[1]), 0
        text.write_text(ptx, encoding="utf-8")
        suffix = "a" if architecture == 90 else ""
        said = _run(
            [tools / "ptxas", "-v", f"--gpu-name=sm_{architecture}{suffix}", text, "-o", binary]
        )
    return int(found[1]), sum(int(n) for n in re.findall(r"(\d+) bytes spill stores", said))


def _run(command: list[Any]) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"bench.resources: {command[0]} failed: {done.stderr.strip()}")
    return done.stdout + done.stderr


def _not_interpreted() -> None:
    os.environ["TRITON_INTERPRET"] = "0"


def chosen(op: str, precisions: Sequence[str] = PRECISIONS) -> list[int]:
    """Numbers of the cases of an op at these precisions; a kernel without products has none."""
    found = [case.arguments.get("PRECISION") for case in cases(op)]
    return [i for i, precision in enumerate(found) if precision in (None, *precisions)]


def rows(
    ops: list[str],
    architectures: tuple[int, ...] = ARCHITECTURES,
    precisions: Sequence[str] = PRECISIONS,
    jobs: int | None = None,
) -> Iterator[Row]:
    """Compiles everything, ``jobs`` at a time, and yields the rows in order."""
    tasks = [(op, i, a) for op in ops for i in chosen(op, precisions) for a in architectures]
    with ProcessPoolExecutor(
        jobs or os.cpu_count(), mp_context=get_context("spawn"), initializer=_not_interpreted
    ) as pool:
        yield from pool.map(compiled, tasks)


def cuda_rows(architectures: tuple[int, ...] = ARCHITECTURES) -> list[Row]:
    """The CUDA kernels through nvcc.

    Raises:
        BuildError: where there is no nvcc.
    """
    made = cuda_resources(OPS.parents[1] / "csrc", architectures)
    return [Row(k.op, k.kernel, f"CUDA {k.label}", k.architecture, k.warps, *k[5:]) for k in made]


HEADER = (
    "| op | kernel | case | sm | warps | registers | spilled bytes | shared bytes | occupancy |\n"
    "|---|---|---|---:|---:|---:|---:|---:|---:|"
)


def line(row: Row) -> str:
    """A row of the table."""
    values = (*row, f"{row.occupancy:.0%}")
    return f"| {' | '.join(str(v) for v in values)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.resources",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--ops", nargs="+", choices=triton_ops(), default=triton_ops())
    parser.add_argument(
        "--architectures", nargs="+", type=int, choices=ARCHITECTURES, default=ARCHITECTURES
    )
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--jobs", type=int, help="compilations at a time (default: one per core)")
    parser.add_argument("--markdown", type=Path, help="also write the table here")
    settings = parser.parse_args()

    import triton

    lines = [f"Triton {triton.__version__}, `python -m bench.resources`", "", HEADER]
    faults = []
    print("\n".join(lines), flush=True)
    architectures = tuple(settings.architectures)
    try:
        compiled_cuda = [r for r in cuda_rows(architectures) if r.op in settings.ops]
    except BuildError as error:
        print(f"bench.resources: CUDA kernels left out: {error}", file=sys.stderr)
        compiled_cuda = []
    for row in chain(
        rows(settings.ops, architectures, settings.precisions, settings.jobs), compiled_cuda
    ):
        lines.append(line(row))
        print(lines[-1], flush=True)
        if row.fault:
            faults.append(f"{row.kernel}, {row.label}, sm_{row.architecture}: {row.fault}")
    if settings.markdown:
        settings.markdown.parent.mkdir(parents=True, exist_ok=True)
        settings.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
