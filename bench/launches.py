"""What a training step asks of a GPU, counted without one: launches and waits.

    python -m bench.launches [--sizes micro small] [--objectives classifier pretrain] [--lines 30]
        [--graph] [--optimizer ranger]
    python -m bench.launches --sizes micro --objectives cfm "tokens, 512"   # targets of bench.step

Triton's driver is replaced by one that launches nothing, and PyTorch computes on the CPU, so that
a step runs as on a GPU but for its results. Counted are launches of Triton kernels, calls of
PyTorch ops that compute (views and allocations do not; a call over many tensors is one), and calls
that wait for the device: values read by the host, sizes that depend on values, tensors made from
host values. A call of a PyTorch op is one kernel or a few, so its launches are a lower limit.
``--lines`` lists the lines of this package that most of them come from. Host time is CPU time of a
whole step of two jets, Python and PyTorch's own included, without the driver's.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import statistics
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args
from unittest import mock

ROOT = Path(__file__).parents[1]
SIZES = ("micro", "small", "medium")
Optimizer = Literal["lion", "ranger", "adamw"]
OPTIMIZERS = get_args(Optimizer)
OBJECTIVES = ("classifier", "classifier+generator", "pretrain")
# Ops that allocate, or give another view of the same memory, besides those whose schema says so.
FREE = (
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias",
    "_unsafe_view", "_reshape_alias", "lift_fresh", "resize_", "set_", "promote_types",
    "_record_function_enter_new", "_record_function_exit",
)  # fmt: skip
WAITS = (
    "_local_scalar_dense", "item", "nonzero", "masked_select", "equal", "is_nonzero", "lift_fresh",
    "_unique2", "unique_dim", "unique_consecutive",
)  # fmt: skip


def _fill_rows(out: Any, own: Any, other: Any, KIND: int, **rest: Any) -> None:
    import torch

    from jetkern.ops.gpu.segments import OWNER, RANK

    owner = torch.arange(len(own) - 1).repeat_interleave(own.diff())
    rows = torch.arange(len(owner))
    if KIND in (OWNER, RANK):
        out.copy_(owner if KIND == OWNER else rows - own[owner])
    else:
        out.copy_(rows + (other - own)[1:][owner])


def _fill_joined(order: Any, places: Any, joined: Any, sources: Any, **rest: Any) -> None:
    import torch

    offsets = torch.stack([own for own in sources if own is not None])
    owner = [torch.arange(len(own) - 1).repeat_interleave(own.diff()) for own in offsets]
    order.copy_(torch.cat(owner).argsort(stable=True))
    places[order] = torch.arange(len(order))
    joined.copy_(offsets.sum(0))


def _fill_keep(keep: Any, owner: Any, offsets: Any, hidden: Any, **rest: Any) -> None:
    import torch

    keep.copy_(torch.arange(len(owner)) - offsets[owner] >= hidden[owner])


# Kernels whose results are indices, which the host's stand-ins for PyTorch's kernels read: these
# are computed. Random numbers need only be in range.
FILLED: dict[str, Any] = {
    "random_keep_kernel": _fill_keep,
    "hidden_ranks_kernel": lambda out, **rest: out.zero_(),
    "segment_rows_kernel": _fill_rows,
    "joined_rows_kernel": _fill_joined,
    "random_numbers_kernel": lambda out, **rest: out.fill_(0.5 if out.is_floating_point() else 0),
}


class Counts(collections.Counter[tuple[str, str, str]]):
    """How often (kind, op, line of this package) was met; kinds: triton, torch, wait."""

    def of(self, kind: str) -> int:
        return sum(n for (k, _, _), n in self.items() if k == kind)


def _line() -> str:
    """The innermost line of this package that is running."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT / "jetkern") and path.name not in ("register.py", "launch.py"):
            return f"{path.relative_to(ROOT)}:{frame.lineno}"
    return "autograd"


def _copied(given: Any, out: Any) -> bool:
    """Whether an op that may give a view, such as a change of dtype, did not."""
    import torch

    tensors = isinstance(given, torch.Tensor) and isinstance(out, torch.Tensor)
    return tensors and given.untyped_storage().data_ptr() != out.untyped_storage().data_ptr()


@contextlib.contextmanager
def counting(counts: Counts, *, lines: bool = False) -> Iterator[None]:
    """Within it, ops of CPU tensors run as those of a GPU would, and are counted."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from bench.resources import StandIn
    from jetkern.ops import dispatch
    from jetkern.ops.gpu.launch import chosen_by, of_table
    from jetkern.ops.gpu.register import LAUNCHERS
    from jetkern.ops.linear import triton as linear

    def met(kind: str, name: str) -> None:
        counts[kind, name, _line() if lines else ""] += 1

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            space, name = func._schema.name.split("::")
            if space == "jetkern_triton":
                with self:
                    return LAUNCHERS[name](*args, **(kwargs or {}))
            of_masks = name in ("index", "index_put_", "index_put") and any(
                i is not None and i.dtype == torch.bool for i in args[1]
            )
            unsized = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
            if name in WAITS or of_masks or unsized:
                met("wait", name)
            views = any(a.alias_info and not a.alias_info.is_write for a in func._schema.arguments)
            out = func(*args, **(kwargs or {}))
            if name not in FREE and (not views or _copied(args[0], out)):
                met("torch", name)
            return out

    def launch_nothing(kernel: Any, key: Any, signature: Any, *others: Any) -> None:
        pass

    run = JITFunction.run

    def counted(kernel: Any, *args: Any, **kwargs: Any) -> Any:
        name = kernel.fn.__name__
        met("triton", name)
        launched = run(kernel, *args, **kwargs)
        if name in FILLED:
            with _disable_current_modes():
                FILLED[name](**kwargs)
        return launched

    def of_halves(*args: Any) -> Any:
        met("torch", "mm")
        with _disable_current_modes():  # casts that only the CPU's twin of cuBLAS makes
            return product(*args)

    product = linear.of_halves
    on_cpu = dispatch.TABLE["triton"]._replace(devices=("cpu",), by_name_only=())
    nowhere = dispatch.TABLE["cpu"]._replace(devices=())
    ours = [module for name, module in sys.modules.items() if name.startswith("jetkern")]
    with contextlib.ExitStack() as stack:
        driver.set_active(StandIn(90))
        stack.enter_context(mock.patch.dict(dispatch.TABLE, triton=on_cpu, cpu=nowhere))
        stack.enter_context(mock.patch.object(JITFunction, "_do_compile", launch_nothing))
        stack.enter_context(mock.patch.object(JITFunction, "run", counted))
        # Values are out of reach; nothing but the counting intercepts, as in a plain step.
        for name, answer in (("readable", False), ("plainly_eager", True)):
            for module in ours:
                if hasattr(module, name):
                    stack.enter_context(mock.patch.object(module, name, return_value=answer))
        stack.enter_context(mock.patch.object(linear, "of_halves", of_halves))
        stack.enter_context(chosen_by(of_table(90)))
        dispatch._found_by_auto.cache_clear()
        stack.callback(dispatch._found_by_auto.cache_clear)
        stack.enter_context(Counting())
        yield


def counted_step(
    size: str, objective: str, *, optimizer: Optimizer = "lion", lines: bool = False
) -> tuple[Counts, float]:
    """Counts of one step of two jets, and its seconds of CPU time without the counting."""
    from bench.jets import load_jets
    from bench.step import our_step

    jets = load_jets("", 2)
    step = our_step(size, objective, "bf16", jets, optimizer=optimizer)
    jets = step.objective.prepared(jets).to("cpu")  # as to a GPU
    counts, times = Counts(), []
    with counting(Counts()):
        for _ in range(2):
            step(jets, 0)
        for _ in range(5):
            start = time.process_time()
            step(jets, 0)
            times.append(time.process_time() - start)
    with counting(counts, lines=lines):
        step(jets, 0)
    return counts, statistics.median(times)


def counted_region(
    size: str, objective: str, *, optimizer: Optimizer = "lion", lines: bool = False
) -> Counts:
    """Counts of what a CUDA graph of a step would hold.

    Raises:
        ValueError: if the step cannot be recorded.
    """
    from bench.jets import load_jets
    from bench.step import our_step
    from jetkern.training.graphed import WARM, GraphedStep

    jets, counts = load_jets("", 16), Counts()
    step = our_step(size, objective, "bf16", jets, optimizer=optimizer)
    graph = GraphedStep(step, record=lambda work: (None, work))
    with counting(Counts()):
        for number in range(WARM + 1):
            graph(jets, number)
        if graph.plain:
            raise ValueError(f"{graph.plain} batches did not fit into the capacity")
    with counting(counts, lines=lines):
        graph.region()
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.launches",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=SIZES)
    parser.add_argument("--objectives", nargs="+", default=OBJECTIVES)
    parser.add_argument(
        "--graph", action="store_true", help="what a CUDA graph of the step would hold, no times"
    )
    parser.add_argument("--lines", type=int, default=0, help="so many lines with most launches")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="lion")
    settings = parser.parse_args()
    print(
        "| size | objective | Triton | PyTorch | waits | host ms |\n|---|---|---:|---:|---:|---:|"
    )
    options: Any = {"optimizer": settings.optimizer, "lines": bool(settings.lines)}
    for size in settings.sizes:
        for objective in settings.objectives:
            time = ""
            if settings.graph:
                counts = counted_region(size, objective, **options)
            else:
                counts, seconds = counted_step(size, objective, **options)
                time = f"{seconds * 1e3:.1f}"
            kinds = [counts.of(kind) for kind in ("triton", "torch", "wait")]
            print(f"| {size} | {objective} | {' | '.join(map(str, kinds))} | {time} |")
            for (kind, name, line), n in counts.most_common(settings.lines):
                print(f"    {n:4} {kind:6} {name:30} {line}")


if __name__ == "__main__":
    main()
