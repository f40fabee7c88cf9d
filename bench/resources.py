"""Registers, spills, occupancy and instructions of every GPU kernel, for sm_80 and sm_90.

    python -m bench.resources [--ops knn ...] [--precisions bf16] [--markdown FILE]

Runs the layers of each preset forward and backward on tensors without data, in float32 and
bfloat16, records what their launches would compile, and compiles it: with the arguments, tiles and
options of the launch, for nothing is written down here a second time. No GPU is needed. Exits with
1 if a kernel does not fit or spills for want of registers more than ``NAMED`` has it.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from bench.instructions import WORD, Lost, Walk, issued, parsed
from jetkern.cli.parser import threads
from jetkern.io import write_atomically
from jetkern.tables import table

ROOT = Path(__file__).parents[1]
OPS = ROOT / "jetkern" / "ops"
ARCHITECTURES = (80, 90)
PRECISIONS = ("ieee", "tf32", "bf16")  # those of the ops, whose package would import Triton
SHARED_KB = {80: 164, 90: 228}  # of a multiprocessor (CUDA C++ Programming Guide, table 21)
# Of a block, on the smallest GPU that is launched like this one: sm_86, sm_89 and sm_120; sm_90.
BLOCK_KB = {80: 99, 90: 227}
# Registers of a thread from which on a spill is for want of them. With fewer the assembler has
# spilled a few bytes for one more resident block, its own choice.
LIMIT = 254
WARPS, BLOCKS, REGISTERS = 64, 32, 65536  # of a multiprocessor, both architectures
# Bytes that (kernel, case) may spill: rounding factors to TF32 costs the registers, and no setting
# that was tried does without; in bf16 the setting that spills issues half of what the best of the
# others does (sm_90: 20.7 of 40.4 thousand instructions for a particle).
NAMED = {
    ("local_block_bwd_stream", "micro; tf32; local block"): 8,
    ("local_block_bwd_stream", "small; tf32; local block"): 40,
    ("local_block_bwd_stream", "small; bf16; local block"): 700,
    ("local_block_bwd_stream", "small; bf16; bf16 tensors; local block"): 700,
}
PER_JET = 50  # particles in each jet of a recorded batch
PARAMETERS = {80: 0x160, 90: 0x210}  # where a kernel's parameters begin in its constant bank
# Integer arrays of a recorded batch, element by element; all jets have ``PER_JET`` particles, and
# attention has four tokens more.
ARRAYS: dict[str, Callable[[int], int]] = {
    "offsets": lambda i: PER_JET * i,
    "particles": lambda i: PER_JET * i,
    "queries": lambda i: (PER_JET + 4) * i,
    "keys": lambda i: (PER_JET + 4) * i,
    "jet": lambda i: i // PER_JET,
    "pair_ends": lambda i: PER_JET**2 * (i + 1),
    "lengths": lambda i: PER_JET,
    "ends": lambda i: PER_JET * (PER_JET + 1) // 2 * (i + 1),
}


class Launch(NamedTuple):
    """What Triton compiles for a launch.

    Attributes:
        kernel: "module:name" of the jit function. architecture: of ``ARCHITECTURES``.
        signature, constants, attributes, options: as Triton's compiler takes them.
    """

    kernel: str
    architecture: int
    signature: dict[str, Any]
    constants: dict[Any, Any]
    attributes: dict[Any, Any]
    options: dict[str, Any]

    @property
    def op(self) -> str:
        """The folder of the kernel's file; "gpu" has what several ops share."""
        return self.kernel.split(".")[2]

    @property
    def name(self) -> str:
        """As in launch tables and profiles."""
        return self.kernel.partition(":")[2].removesuffix("_kernel")


class Call(NamedTuple):
    """With what a kernel is launched.

    Attributes:
        grid: number of programs along three axes. arguments: of the parameters that remain after
            compilation, in order: integers; of a tensor its name and bytes of an element.
    """

    grid: tuple[int, ...]
    arguments: tuple[int | tuple[str, int], ...]


class Use(NamedTuple):
    """Where a launch was recorded: all calls of it there, for that many particles."""

    size: str
    precision: str
    kind: str
    name: str
    calls: tuple[Call, ...]
    particles: int


class Row(NamedTuple):
    """Resources of one compiled kernel; spills in bytes of a thread, shared memory of a block.

    Attributes:
        instructions: that it has. issued: that warps issue for each particle, None if unknown.
    """

    op: str
    kernel: str
    label: str
    architecture: int
    warps: int
    registers: int
    spills: int
    shared: int
    instructions: int = 0
    issued: float | None = None

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
        if not self.occupancy or self.shared > BLOCK_KB[self.architecture] * 1024:
            return "does not fit"
        allowed = NAMED.get((self.kernel, self.label), 0)
        return "spills" if self.spills > allowed and self.registers >= LIMIT else ""


def triton_ops() -> list[str]:
    """Folders with Triton kernels."""
    found = {path.parent.name for path in OPS.glob("*/triton.py")}
    return sorted({*found, "local_block", "gpu"} - {"dynamic_tanh"})


def uses(size: str, precision: str, half: bool) -> dict[str, Callable[[], Any]]:
    """Each layer of a preset as the model uses it, a batch of it on tensors without data.

    The values are functions that return a result to differentiate, or None.
    """
    import torch

    from bench.cases import PARTICLES
    from jetkern import ops
    from jetkern.model.layers import (
        MLP,
        AttentionBlock,
        DynamicTanh,
        LocalBlock,
        TokenBlock,
        set_precision,
    )
    from jetkern.model.presets import SIZES
    from jetkern.ops.gpu.counters import random_numbers
    from jetkern.ops.gpu.errors import class_errors, flow_errors
    from jetkern.ops.gpu.segments import joined_rows, last_rows, owners, ranks
    from jetkern.ops.gpu.update import adam, clip, lion
    from jetkern.ops.gpu.views import hidden_ranks, noise_path, random_keep
    from jetkern.ops.parameters import Ahead

    shape = SIZES[size]
    dim, heads, k = shape["dim"], shape["heads"], shape["neighbours"]
    total = PARTICLES["cuda"][size]
    jets = total // PER_JET
    pairs, tokens = jets * PER_JET**2, total + 4 * jets
    dtype = torch.bfloat16 if half else torch.float32
    bias_dtype = torch.bfloat16 if precision == "bf16" else dtype

    def rows(*size: int, dtype: Any = dtype) -> Any:
        return torch.empty(size, dtype=dtype, requires_grad=dtype != torch.int64)

    def made(layer: Any) -> Any:
        set_precision(layer, precision)
        return layer

    offsets = rows(jets + 1, dtype=torch.int64)
    particles, neighbours = rows(total, 4).detach(), rows(total, k, dtype=torch.int64)
    bias = rows(heads, pairs, dtype=bias_dtype)
    local = made(LocalBlock(dim, heads, shape.get("head_layers", 2), 2))
    block, token_block = made(AttentionBlock(dim, heads, 2)), made(TokenBlock(dim, heads, 2))

    def inference() -> None:
        with torch.no_grad():
            local(particles, neighbours)

    def attention() -> Any:
        q, k, v = rows(3, tokens, heads, dim // heads).unbind(0)
        b = rows(heads, pairs)
        return ops.attention(q, k, v, offsets, offsets, b, offsets, precision=precision)

    def causal_attention() -> Any:
        q, k, v = rows(3, total, heads, dim // heads).unbind(0)
        return ops.causal_attention(q, k, v, offsets, precision=precision)

    def generation() -> None:
        keys, values = rows(2, jets, PER_JET, 1, dim // heads).detach().unbind(0)
        ends = rows(jets, dtype=torch.int64)
        with torch.no_grad():
            ops.decode_attention(rows(jets, heads, dim // heads), keys, values, ends)
            layer = rows(jets, dim), rows(8194, dim), rows(8194)
            ops.sample_linear(*layer, ends, precision=precision)

    def pair_bias() -> Any:
        p = MLP(3, 2 * dim, heads, norm=False).weights
        many = ops.shared_pair_bias(
            particles, offsets, p, shape["layers"], num_pairs=pairs, dtype=bias_dtype,
            precision=precision,
        )  # fmt: skip
        return sum(b.sum() for b in many)

    def indices() -> Any:
        numbers = rows(total, dtype=torch.int64).detach()
        starts = rows(3, dtype=torch.int64).detach()
        random_numbers(starts, (numbers,), "uniform")
        random_numbers(starts[:1], (numbers, numbers), "uniform")
        random_numbers(starts[:1], (numbers[:, None], numbers[:, None], numbers[:4]), "normal")
        owners(offsets, total)
        ranks(offsets, total)
        last_rows(offsets, offsets, total)
        for sources in (2, 3, 4):
            joined_rows([offsets] * sources, [total] * sources)

    def views_and_losses() -> Any:
        owner, index = rows(total, dtype=torch.int64), rows(jets, dtype=torch.int64)
        start, time = index[:1], rows(jets).detach()
        noise_path(particles, time, owner, owner, index, start, particles[0], particles[0])
        keep = random_keep(index, owner, offsets, index, start)
        hidden_ranks(keep, owner, offsets, 150)
        errors = [flow_errors(rows(total, 4), particles, w, owner, offsets, jets)
                  for w in (None, particles[0])]  # fmt: skip
        errors += [class_errors(rows(jets, 10), index, t) for t in (None, time)]
        return torch.stack(errors)

    def update() -> None:
        weights, gradient, mean, square, slow = rows(5, total).detach().unbind(0)
        norm, steps = rows().detach(), rows(dtype=torch.int64)
        _, applied = clip(norm, 1.0, steps)
        ahead = Ahead(slow, steps, 6, 0.5)
        for lr in (1e-3, norm):
            options: Any = {"lr": lr, "decay": 0.1, "betas": (0.95, 0.999)}
            lion(weights, mean, gradient, applied, **options)
            for more in ({"rectified": False}, {"rectified": True, "ahead": ahead}):
                adam(weights, mean, square, gradient, applied, norm, eps=1e-5, **options, **more)

    tensors = {
        "attention": attention,
        "causal attention": causal_attention,
        "block": lambda: block(rows(tokens, dim), offsets, bias, offsets),
        "pair bias": pair_bias,
        "local block": lambda: local(particles, neighbours),
    }
    if half and precision == "bf16":
        return tensors
    if half:
        return {"attention": attention, "causal attention": causal_attention}
    return {
        **tensors,
        "inference": inference,
        "knn": lambda: ops.knn(particles, offsets, k) * 0.0,
        "vocabulary": lambda: ops.linear_cross_entropy(
            rows(total, dim),
            rows(8194, dim),
            rows(8194),
            rows(total, dtype=torch.int64),
            precision=precision,
        ),
        "tokens": lambda: ops.nearest_code(particles, rows(1024, 4).detach()) * 0.0,
        "spline": lambda: torch.stack(ops.spline(rows(total), rows(total, 23))),
        "generation": generation,
        "indices": indices,
        "views and losses": views_and_losses,
        "update": update,
        "class attention": lambda: token_block(
            rows(4 * jets, dim), offsets, rows(tokens, dim), offsets
        ),
        "head": lambda: block(rows(total, dim), offsets),
        "embedding": lambda: made(MLP(4, 2 * dim, dim))(particles),
        "type": lambda: made(MLP(dim, 2 * dim, dim, norm=False))(rows(total, dim)),
        "time": lambda: made(MLP(dim, 2 * dim, dim, bias=False))(rows(jets, dim)),
        "norm": lambda: DynamicTanh(dim)(rows(tokens, dim)),
    }


class StandIn:
    """Of Triton's driver: a GPU of an architecture, that nothing is launched on."""

    def __init__(self, architecture: int) -> None:
        from triton.backends.compiler import GPUTarget

        self.architecture = architecture
        self.target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return self.architecture

    def get_current_stream(self, device: int) -> int:
        return 0


def called(signature: Any, values: Any, name: str = "") -> Iterator[int | tuple[str, int]]:
    """The arguments that remain after compilation, as ``Call`` has them."""
    if isinstance(signature, dict):
        for key, kind in signature.items():
            yield from called(kind, values[key] if kind != "constexpr" else None, key)
    elif isinstance(signature, tuple):
        names = getattr(signature, "_fields", [name] * len(signature))
        for kind, value, key in zip(signature, values, names, strict=True):
            yield from called(kind, value, key)
    elif signature.startswith("*"):
        yield name, values.element_size()
    elif signature != "constexpr":
        yield int(values)


def recorded(size: str, precision: str, half: bool) -> list[tuple[str, Launch, Call]]:
    """Use, launch and call of all launches of a preset's layers, forward and backward."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from jetkern.ops import dispatch
    from jetkern.ops.gpu.launch import chosen_by, of_table
    from jetkern.ops.gpu.register import LAUNCHERS

    found: list[tuple[str, Launch, Call]] = []
    use = ""
    grid, arguments = (1,), dict[str, Any]()
    run_kernel = JITFunction.run

    class Launching(TorchDispatchMode):
        """Runs the launchers where tensors without data would get the operators' shapes."""

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            space, name = func._schema.name.split("::")
            run = LAUNCHERS[name] if space == "jetkern_triton" else func
            return run(*args, **(kwargs or {}))

    def noting(kernel: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal grid, arguments
        grid, arguments = kwargs["grid"], kwargs
        return run_kernel(kernel, *args, **kwargs)

    def compile_nothing(
        kernel: Any,
        key: Any,
        signature: Any,
        device: int,
        constants: Any,
        options: Any,
        attributes: Any,
        warmup: bool,
    ) -> None:
        name = f"{kernel.fn.__module__}:{kernel.fn.__qualname__}"
        given = (signature, constants, attributes, dict(options.__dict__))
        call = Call(grid, tuple(called(signature, arguments)))
        found.append((use, Launch(name, device, *given), call))

    on_meta = dispatch.TABLE["triton"]._replace(devices=("meta",))
    for architecture in ARCHITECTURES:
        driver.set_active(StandIn(architecture))
        with (
            mock.patch.dict(dispatch.TABLE, triton=on_meta),
            mock.patch.object(JITFunction, "run", noting),
            mock.patch.object(JITFunction, "_do_compile", compile_nothing),
            chosen_by(of_table(architecture)),
            torch.device("meta"),
            Launching(),
        ):
            for use, run in uses(size, precision, half).items():  # noqa: B007 (recorded)
                out = run()
                if out is not None and out.requires_grad:
                    out.sum().backward()
    return found


def compiled(launch: Launch, label: str, use: Use) -> Row:
    """Compiles what a launch compiles, and counts what its first use issues."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, _, name = launch.kernel.partition(":")
    kernel = getattr(importlib.import_module(module), name)
    source = ASTSource(kernel, launch.signature, launch.constants, launch.attributes)
    target = GPUTarget("cuda", launch.architecture, 32)
    result = triton.compile(source, target=target, options=launch.options)
    registers, spills, code = inspect(result.asm["cubin"], result.asm["ptx"], launch.architecture)
    warps = result.metadata.num_warps
    return Row(
        launch.op,
        launch.name,
        label,
        launch.architecture,
        warps,
        registers,
        spills,
        result.metadata.shared,
        sum(not step.name.startswith("NOP") for step in parsed(code)[0]),
        issued_by(code, launch.architecture, warps, use),
    )


def issued_by(code: str, architecture: int, warps: int, use: Use) -> float | None:
    """Instructions that warps issue for each particle of a use, None if data decides."""
    try:
        walks = {call: _walked(code, architecture, call) for call in set(use.calls)}
    except Lost:
        return None
    return sum(walks[c] * warps * math.prod(c.grid) for c in use.calls) / use.particles


def _walked(code: str, architecture: int, call: Call) -> int:
    """Instructions that a warp of the program in the middle of the grid issues."""
    place, base = PARAMETERS[architecture], 1 << 44
    bank, memory = {0x28: 1 << 24}, {}
    for i, argument in enumerate(call.arguments):
        if isinstance(argument, int):
            bank[place] = argument & WORD
            place += 4
            continue
        name, size = argument
        place = -(-place // 8) * 8
        bank[place], bank[place + 4] = 0, (base >> 32) * (i + 1)
        place += 8
        if name in ARRAYS and size == 8:
            memory[base * (i + 1)] = functools.partial(_word_of, ARRAYS[name])
    middle = [n // 2 for n in (*call.grid, 1, 1)]
    special = dict(zip(("SR_CTAID.X", "SR_CTAID.Y", "SR_CTAID.Z"), middle, strict=False))
    sizes = {"SR_NCTAID.X": 0, "SR_NCTAID.Y": 1, "SR_NCTAID.Z": 2}
    grid = (*call.grid, 1, 1)
    for axis, offset in enumerate((0xC, 0x10, 0x14)):
        bank[offset] = grid[axis]
    special |= {name: grid[axis] for name, axis in sizes.items()}
    return issued(code, Walk(bank, special, memory)).total()


def _word_of(array: Callable[[int], int], at: int) -> int:
    """A half of an int64 array's element, by its place in bytes."""
    return array(at // 8) >> (32 if at % 8 else 0) & WORD


def inspect(cubin: bytes, ptx: str, architecture: int) -> tuple[int, int, str]:
    """Registers and bytes of spills of a thread, and the code of ``nvdisasm``.

    The assembler is asked for spills only if there is a stack.
    """
    import triton.backends.nvidia

    tools = Path(triton.backends.nvidia.__file__).parent / "bin"
    with tempfile.TemporaryDirectory() as folder:
        binary, text = Path(folder) / "kernel.cubin", Path(folder) / "kernel.ptx"
        binary.write_bytes(cubin)
        usage = _run([tools / "cuobjdump", "-res-usage", binary])
        found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
        if not found:
            raise SystemExit(f"bench.resources: cuobjdump says nothing of registers: {usage}")
        code = _run([tools / "nvdisasm", "-c", binary])
        if found[2] == "0":
            return int(found[1]), 0, code
        text.write_text(ptx, encoding="utf-8")
        suffix = "a" if architecture == 90 else ""
        said = _run(
            [tools / "ptxas", "-v", f"--gpu-name=sm_{architecture}{suffix}", text, "-o", binary]
        )
    spills = sum(int(n) for n in re.findall(r"(\d+) bytes spill stores", said))
    return int(found[1]), spills, code


def _run(command: list[Any]) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"bench.resources: {command[0]} failed: {done.stderr.strip()}")
    return done.stdout + done.stderr


def _not_interpreted() -> None:
    os.environ["TRITON_INTERPRET"] = "0"


Task = tuple[str, str, bool]  # size, precision, whether tensors are bfloat16


def tasks(sizes: Sequence[str] = (), precisions: Sequence[str] = PRECISIONS) -> list[Task]:
    """What is recorded."""
    from jetkern.model.presets import SIZES

    return [
        (size, precision, half)
        for size, precision in product(sizes or SIZES, precisions)
        for half in (False, True)
    ]


def labelled(
    recordings: dict[Task, list[tuple[str, Launch, Call]]],
) -> list[tuple[Launch, str, Use]]:
    """The launches that differ, each once, with a label of all its uses, and the first of these."""
    from bench.cases import PARTICLES

    where: dict[str, tuple[Launch, dict[tuple[str, str, str, str], list[Call]]]] = {}
    for (size, precision, half), launches in recordings.items():
        for use, launch, call in launches:
            _, places = where.setdefault(repr(launch), (launch, {}))
            place = size, precision, "bf16 tensors" if half else "", use
            places.setdefault(place, []).append(call)
    found = []
    for launch, places in where.values():
        sizes, precisions, kinds, uses_ = (
            ", ".join(dict.fromkeys(p)) for p in zip(*places, strict=True)
        )
        kind = kinds if kinds == "bf16 tensors" else ""
        first = next(iter(places))
        made = Use(*first, tuple(places[first]), PARTICLES["cuda"][first[0]])
        found.append((launch, "; ".join(filter(None, (sizes, precisions, kind, uses_))), made))
    return sorted(found, key=lambda f: (f[0].op, f[0].name, f[1], f[0].architecture))


def rows(
    ops: Sequence[str] | None = None,
    architectures: Sequence[int] = ARCHITECTURES,
    precisions: Sequence[str] = PRECISIONS,
    sizes: Sequence[str] = (),
    jobs: int | None = None,
) -> Iterator[Row]:
    """Records and compiles everything, ``jobs`` at a time, and yields the rows in order."""
    with ProcessPoolExecutor(
        jobs or os.cpu_count(), mp_context=get_context("spawn"), initializer=_not_interpreted
    ) as pool:
        wanted = tasks(sizes, precisions)
        recordings = dict(zip(wanted, pool.map(recorded, *zip(*wanted, strict=True)), strict=True))
        todo = [
            (launch, label, use)
            for launch, label, use in labelled(recordings)
            if launch.architecture in architectures and (ops is None or launch.op in ops)
        ]
        yield from pool.map(compiled, *zip(*todo, strict=True)) if todo else ()


HEADER = (
    "op", "kernel", "case", "sm", "warps", "registers", "spilled bytes", "shared bytes",
    "occupancy", "instructions", "issued per particle",
)  # fmt: skip


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
    parser.add_argument("--sizes", nargs="+", default=(), help="presets (default: all)")
    parser.add_argument("--jobs", type=threads, help="compilations at a time; default: cores")
    parser.add_argument("--markdown", type=Path, help="also write the table here")
    settings = parser.parse_args()

    import triton

    title = f"Triton {triton.__version__}, `python -m bench.resources`"
    lines: list[Sequence[str]] = [HEADER]
    faults = []
    print(f"{title}\n{', '.join(HEADER)}", flush=True)
    architectures = tuple(settings.architectures)
    chosen = settings.precisions, settings.sizes, settings.jobs
    for row in rows(settings.ops, architectures, *chosen):
        issued_text = "" if row.issued is None else f"{row.issued:.0f}"
        text = f"{row.instructions}" if row.instructions else ""
        lines.append((*map(str, row[:8]), f"{row.occupancy:.0%}", text, issued_text))
        print(", ".join(lines[-1]), flush=True)
        if row.fault:
            faults.append(f"{row.kernel}, {row.label}, sm_{row.architecture}: {row.fault}")
    if settings.markdown:
        text = f"{title}\n\n{table(lines, 'lllr', markdown=True)}\n"
        settings.markdown.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(settings.markdown, text.encode())
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
