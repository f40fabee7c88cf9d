"""Time of each op, ours beside its reference in eager PyTorch and under torch.compile.

    python -m bench.ops --device cpu [--sizes micro small medium] [--ops knn ...] [--data DIR]
    python -m bench.ops --device cuda --precision bf16 [...]

Forward (with what the backward needs kept) and backward (all weights and inputs that need a
gradient in training) are timed apart, the contenders in turn, and the fastest repeat counts: a
shared machine only ever adds. Before an op is timed its result and gradients are compared with
float64; it is reported only if it errs at most twice as much as eager float32 (in tf32 and bf16:
2e-3 and 1e-2 of the root mean square).

causal_attention is also compared with scaled_dot_product_attention on sets padded to the longest
and, up to 128 rows, to 128; only it is timed on sets as long as showers.

On a GPU the peers compute in the same precision (bf16: weights and inputs in bfloat16), attention
is also compared with scaled_dot_product_attention and FlexAttention on padded inputs, and each
time of ours is set beside its limit (see ``bench.limits``).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import limits, peers
from bench.cases import MADE_FOR, OPS, PARTICLES, Case, make, our_backends, wrong
from bench.jets import LENGTHS, batch, described
from bench.machine import command, describe, write_results
from jetkern.cli.parser import threads
from jetkern.jets import Jets
from jetkern.model.presets import SIZES
from jetkern.ops import dispatch
from jetkern.tables import table

CHECKED = 16  # jets of the comparison with float64 on a GPU


def contenders(
    op: str, case: Case, precision: str, ours: list[str], with_compile: bool
) -> dict[str, tuple[Callable[[], Tensor], list[Tensor]]]:
    """What runs, by name, with the leaves of its gradients. The first one is ours."""
    device = case.inputs[0].device.type
    runs: dict[str, tuple[Callable[[], Tensor], list[Tensor]]] = {}
    module, inputs, leaves = case.prepare(torch.float32, precision)
    for i, backend in enumerate(ours):
        runs["ours" if not i else backend] = (
            lambda b=backend: case.run(module, inputs, b, precision),  # type: ignore[misc]
            leaves,
        )

    def mixed() -> AbstractContextManager[Any]:
        half = precision == "bf16" and device == "cuda"
        return torch.autocast("cuda", torch.bfloat16) if half else nullcontext()

    def eager() -> Tensor:
        with mixed():
            return case.run(module, inputs, "reference", precision)

    runs["eager"] = (eager, leaves)
    if with_compile:
        runs["compiled"] = (torch.compile(eager), leaves)
    if op == "causal_attention":
        longest = int(case.packed[0].diff().max())
        for name, length in (("sdpa", longest), ("sdpa 128", 128)):
            if length >= longest:
                runs[name] = peers.causal(inputs, case.packed[0], length)
    if op == "attention" and device == "cuda":
        rows, offsets = case.packed
        q, k, v, bias = (t.detach() for t in inputs)
        padded, _ = peers.padded_inputs(q, k, v, rows, bias, offsets)
        runs["sdpa"] = (lambda: peers.sdpa(padded, rows.diff()), padded)
        flex = peers.flex()
        runs["flex"] = (lambda: flex(padded, rows.diff()), padded)
    return runs


def clock(device: str) -> Callable[[], Any]:
    """Marks a moment: seconds, or an event in the GPU's stream."""
    if device == "cpu":
        return time.perf_counter

    def event() -> torch.cuda.Event:
        mark = torch.cuda.Event(enable_timing=True)
        mark.record()
        return mark

    return event


def between(start: Any, end: Any) -> float:
    """Seconds between two marks of ``clock``."""
    if isinstance(start, float):
        return end - start
    end.synchronize()
    return start.elapsed_time(end) * 1e-3


def measure(
    op: str, case: Case, precision: str, ours: list[str], repeats: int, with_compile: bool
) -> dict[str, dict[str, float]]:
    """Best seconds of forward and backward of each contender, and its peak memory on a GPU."""
    torch._dynamo.reset()
    device = case.inputs[0].device.type
    mark = clock(device)
    runs = contenders(op, case, precision, ours, with_compile)
    best: dict[str, dict[str, float]] = {name: {} for name in runs}
    for repeat in range(repeats + 1):
        for name, (run, leaves) in list(runs.items()):
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            try:
                marks = [mark()]
                out = run()
                marks.append(mark())
                if leaves:
                    torch.autograd.grad(out, leaves, torch.ones_like(out))
                    marks.append(mark())
                del out
            except Exception as error:  # a peer that has no answer is left out, and said so
                if name == "ours":
                    raise
                print(f"{op}: {name} fails: {str(error).splitlines()[0]}", file=sys.stderr)
                del runs[name], best[name]
                continue
            if repeat:  # the first one compiles and warms up
                for way, start, end in zip(("forward", "backward"), marks, marks[1:], strict=False):
                    spent = between(start, end)
                    best[name][way] = min(best[name].get(way, spent), spent)
                if device == "cuda":
                    best[name]["peak_mb"] = (torch.cuda.max_memory_allocated() - before) / 2**20
    return best


def header(names: list[str], limited: bool) -> list[str]:
    """The table's head; a column for each peer."""
    cells = ["op", "size", "n", "jets"]
    for way in ("forward", "backward"):
        cells += [f"{way} us/jet", *names, *(["of limit"] if limited else [])]
    return cells


def row(result: dict[str, Any], names: list[str], limited: bool) -> list[str]:
    """One line of the table: our time, and how many times longer the others take."""
    cells = [result["op"], result["size"], result["n"], str(result["jets"])]
    for way in ("forward", "backward"):
        if way not in result["seconds"]["ours"]:  # no gradient
            cells += [""] * (1 + len(names) + limited)
            continue
        ours = result["seconds"]["ours"][way]
        cells.append(f"{ours / result['jets'] * 1e6:.4g}")
        for name in names:
            other = result["seconds"].get(name)
            cells.append(f"{other[way] / ours:.1f}x" if other else "")
        if limited:
            cells.append(f"{result['limit'][way] / ours:.0%} ({result['bound'][way]})")
    return cells


def compare(
    op: str, size: str, length: str, jets: Jets, settings: Any, rates: limits.Rates | None
) -> tuple[dict[str, Any] | None, list[str]]:
    """The result of one case, None if none of our backends is right, and what is wrong."""
    ours = our_backends(op, settings.device)
    if not ours:
        return None, [f"{op}: none of our backends runs it on {settings.device}"]
    precision = settings.precision
    few = jets if settings.device == "cpu" else jets.select(slice(0, CHECKED))
    faults = {b: wrong(make(op, size, few), b, precision) for b in ours}
    refused = [f"{op} {size} n = {length} ({b}): {fault}" for b, fault in faults.items() if fault]
    right = [b for b in ours if not faults[b]]
    if not right:
        return None, refused
    case = make(op, size, jets)
    seconds = measure(op, case, precision, right, settings.repeats, not settings.no_compile)
    result = {"op": op, "size": size, "n": length, "jets": len(jets), "seconds": seconds}
    result["ours"] = right[0]
    if rates:
        least = limits.work(op, size, jets.counts, 2 if precision == "bf16" else 4)
        result["limit"] = {way: rates.seconds(w) for way, w in least.items()}
        result["bound"] = {way: rates.bound(w) for way, w in least.items()}
    return result, refused


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.ops",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=list(PARTICLES), default="cpu")
    parser.add_argument("--precision", choices=dispatch.PRECISIONS, default="ieee")
    parser.add_argument("--ops", nargs="+", choices=OPS, help="default: all with a backend")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, help="default: all but large on a CPU")
    parser.add_argument("--lengths", nargs="+", choices=LENGTHS, default=list(LENGTHS))
    parser.add_argument("--data", default="", help="folder of HDF5 files; without it, drawn jets")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=threads, default=os.cpu_count())
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--json", type=Path, help="also write the results here, case by case")
    return parser.parse_args()


def main() -> None:
    settings = arguments()
    device, precision = settings.device, settings.precision
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("bench.ops: PyTorch finds no CUDA GPU")
    torch.set_num_threads(settings.threads)
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"  # what the peers compute in
    document: dict[str, Any] = {"machine": describe(settings.threads), "command": command()}
    rates = None
    if device == "cuda":
        rates = limits.measure_rates(precision)
        measured = {f"measured {name}": f"{rate:.4g}/s" for name, rate in rates._asdict().items()}
        document["machine"] |= {"precision": precision, **measured}
    print("\n".join(f"{key:20} {value}" for key, value in document["machine"].items()))
    batches = {}
    for size in settings.sizes or list(PARTICLES[device]):
        for length in settings.lengths:
            jets = batch(length, PARTICLES[device].get(size, 300), settings.data)
            batches[length, size] = jets.to(device)
            kind = settings.data if length == "real" else ""
            print(f"{size}, n = {length}: {described(jets, kind)}")
    names = ["eager", *([] if settings.no_compile else ["compiled"]), "sdpa", "sdpa 128"]
    if device == "cuda":
        names += ["flex"]
    head = header(names, rates is not None)
    print(", ".join(head), flush=True)
    document["results"] = results = []
    refused, rows = [], []
    for op in settings.ops or [o for o in OPS if {*dispatch.backends_of(o)} & {*MADE_FOR[device]}]:
        for (length, size), jets in batches.items():
            if length == "showers" and op != "causal_attention":
                continue
            result, faults = compare(op, size, length, jets, settings, rates)
            refused += [fault for fault in faults if fault not in refused]
            if result is None:
                continue
            results.append(result)
            rows.append(row(result, names, rates is not None))
            print(", ".join(rows[-1]), flush=True)
            write_results(settings.json, document)
    print(f"\n{table([head, *rows], 'lllr', markdown=True)}")
    if refused:
        sys.exit("not reported, wrong:\n" + "\n".join(refused))


if __name__ == "__main__":
    main()
