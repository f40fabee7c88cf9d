"""Time of each op, ours beside its reference in eager PyTorch and under torch.compile.

    python -m bench.ops --device cpu [--sizes micro small medium] [--ops knn ...] [--data DIR]

Forward (with what the backward needs kept) and backward (all weights and inputs that need a
gradient in training) are timed apart, the contenders in turn, and the fastest repeat counts: a
shared machine only ever adds. Before an op is timed its result and gradients are compared with
float64; it is reported only if it errs at most twice as much as eager float32.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench.machine import describe
from bench.step import load_jets
from jetkern import ops
from jetkern.jets import Jets, offsets_from_counts
from jetkern.layers import MLP, AttentionBlock, LocalBlock, initialise
from jetkern.presets import SIZES

LENGTHS = ("10", "real", "150")
PARTICLES = {"micro": 2400, "small": 1200, "medium": 600}  # of a batch, so that memory suffices
TINY = 1e-5  # error relative to the largest element that is never held against an op


class Case(NamedTuple):
    """``run(module, inputs, backend)``; gradients are of the weights and of ``inputs[:wanted]``."""

    module: nn.Module
    inputs: list[Tensor]
    wanted: int
    run: Callable[[Any, list[Tensor], str], Tensor]

    def prepare(self, dtype: torch.dtype) -> tuple[nn.Module, list[Tensor], list[Tensor]]:
        """Module, inputs and the leaves that get a gradient, in ``dtype``."""
        module = copy.deepcopy(self.module).to(dtype)
        inputs = [t.to(dtype, copy=True) for t in self.inputs]
        leaves = [t.requires_grad_() for t in inputs[: self.wanted]]
        return module, inputs, [*leaves, *module.parameters()]


def make(op: str, size: str, jets: Jets) -> Case:
    """The op as the model of that size uses it."""
    torch.manual_seed(0)
    shape = SIZES[size]
    dim, heads, k = shape["dim"], shape["heads"], shape["neighbours"]
    particles, offsets = jets.particles, jets.offsets
    rows = offsets + 4 * torch.arange(len(offsets))  # four global tokens
    bias = torch.randn(heads, int(jets.counts.square().sum()))
    neighbours = ops.knn(particles, offsets, k, backend="reference")
    attended = [*torch.randn(3, int(rows[-1]), heads, dim // heads), bias]
    cases = {
        "knn": lambda: Case(
            nn.Module(), [particles], 0, lambda _, t, b: ops.knn(t[0], offsets, k, backend=b)
        ),
        "pair_bias": lambda: Case(
            MLP(3, 2 * dim, heads, norm=False),
            [particles],
            0,
            lambda m, t, b: ops.pair_bias(t[0], offsets, m.weights, backend=b),
        ),
        "attention": lambda: Case(
            nn.Module(),
            attended,
            4,
            lambda _, t, b: ops.attention(t[0], t[1], t[2], rows, rows, t[3], offsets, backend=b),
        ),
        "attention_block": lambda: Case(
            AttentionBlock(dim, heads, 2),
            [torch.randn(int(rows[-1]), dim), bias],
            2,
            lambda m, t, b: ops.attention_block(
                t[0], rows, m.weights, heads, t[1], offsets, backend=b
            ),
        ),
        "local_block": lambda: Case(
            LocalBlock(dim, heads, 2, 2),
            [particles],
            0,
            lambda m, t, b: ops.local_block(
                t[0], neighbours, m.embed.weights, [x.weights for x in m.blocks], heads, backend=b
            ),
        ),
        "mlp": lambda: Case(
            MLP(4, 2 * dim, dim),
            [particles],
            0,
            lambda m, t, b: ops.mlp(t[0], m.weights, backend=b),
        ),
    }
    case = cases[op]()
    initialise(case.module)
    return case


OPS = ("knn", "pair_bias", "attention", "attention_block", "local_block", "mlp")


def outcome(case: Case, backend: str, dtype: torch.dtype) -> list[Tensor]:
    """Result and gradients."""
    module, inputs, leaves = case.prepare(dtype)
    out = case.run(module, inputs, backend)
    if not leaves:
        return [out]
    torch.manual_seed(1)
    upstream = torch.randn(out.shape).to(dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]


def wrong(case: Case) -> str:
    """What is wrong with our result, "" if nothing."""
    exact, eager, ours = (
        outcome(case, b, d)
        for b, d in (
            ("reference", torch.float64),
            ("reference", torch.float32),
            ("cpu", torch.float32),
        )
    )
    for i, (want, plain, have) in enumerate(zip(exact, eager, ours, strict=True)):
        error, allowed = ((x - want).abs().max().item() for x in (have, plain))
        if error > 2 * allowed + TINY * want.abs().max().item():
            return f"output {i}: error {error:.2g} against eager's {allowed:.2g}"
    return ""


def measure(case: Case, repeats: int, with_compile: bool) -> dict[str, dict[str, float]]:
    """Best seconds of forward and backward of each contender."""
    torch._dynamo.reset()
    module, inputs, leaves = case.prepare(torch.float32)
    runs: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: case.run(module, inputs, "cpu"),
        "eager": lambda: case.run(module, inputs, "reference"),
    }
    if with_compile:
        runs["compiled"] = torch.compile(lambda: case.run(module, inputs, "reference"))
    best = {name: {"forward": float("inf"), "backward": float("inf")} for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            times = [time.perf_counter()]
            out = run()
            times.append(time.perf_counter())
            if leaves:
                torch.autograd.grad(out, leaves, torch.ones_like(out))
            times.append(time.perf_counter())
            if repeat:  # the first one compiles and warms up
                for way, start, end in zip(best[name], times, times[1:], strict=False):
                    best[name][way] = min(best[name][way], end - start)
    return best


def batch(length: str, size: str, data: str) -> Jets:
    """Jets of 10, 150 or the real number of particles."""
    if length == "real":
        return load_jets(data, max(2, PARTICLES[size] // 41))
    n, many = int(length), max(2, PARTICLES[size] // int(length))
    torch.manual_seed(2)
    spread, centre = torch.tensor([0.2, 0.2, 1.0, 1.0]), torch.tensor([0.0, 0.0, 2.0, 2.5])
    return Jets(
        particles=torch.randn(n * many, 4) * spread + centre,
        offsets=offsets_from_counts(torch.full((many,), n)),
    )


HEADER = (
    "| op | size | n | jets | forward us/jet | eager | compiled | backward us/jet | eager "
    "| compiled |\n|---|---|---|---:|---:|---:|---:|---:|---:|---:|"
)


def row(result: dict[str, Any]) -> str:
    """One line of the table: our time, and how many times longer the others take."""
    cells = [result["op"], result["size"], result["n"], str(result["jets"])]
    for way in ("forward", "backward"):
        ours = result["seconds"]["ours"][way]
        if way == "backward" and result["op"] == "knn":
            cells += ["", "", ""]
            continue
        cells.append(f"{ours / result['jets'] * 1e6:.1f}")
        for name in ("eager", "compiled"):
            other = result["seconds"].get(name)
            cells.append(f"{other[way] / ours:.1f}x" if other else "")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.ops",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=["cpu"], default="cpu")
    parser.add_argument("--ops", nargs="+", choices=OPS, default=list(OPS))
    parser.add_argument("--sizes", nargs="+", choices=PARTICLES, default=list(PARTICLES))
    parser.add_argument("--lengths", nargs="+", choices=LENGTHS, default=list(LENGTHS))
    parser.add_argument("--data", default="", help="folder of HDF5 files; without it, drawn jets")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--json", type=Path, help="also write the results here")
    settings = parser.parse_args()

    torch.set_num_threads(settings.threads)
    machine = describe(settings.threads)
    print("\n".join(f"{key:14} {value}" for key, value in machine.items()))
    results, refused = [], []
    batches = {(n, s): batch(n, s, settings.data) for s in settings.sizes for n in settings.lengths}
    for (length, size), jets in batches.items():
        counts = jets.counts.double()
        print(
            f"{size}, n = {length}: {len(jets)} jets, multiplicity {counts.mean():.1f} +- "
            f"{counts.std():.1f}, {int(counts.min())} to {int(counts.max())}"
        )
    print(HEADER, flush=True)
    for op in settings.ops:
        for (length, size), jets in batches.items():
            case = make(op, size, jets)
            if reason := wrong(case):
                refused.append(f"{op} {size} n = {length}: {reason}")
                continue
            seconds = measure(case, settings.repeats, not settings.no_compile)
            results.append(
                {"op": op, "size": size, "n": length, "jets": len(jets), "seconds": seconds}
            )
            print(row(results[-1]), flush=True)
    if settings.json:
        settings.json.parent.mkdir(parents=True, exist_ok=True)
        document = {"machine": machine, "command": sys.argv[1:], "results": results}
        settings.json.write_text(json.dumps(document, indent=1), encoding="utf-8")
    if refused:
        sys.exit("not reported, wrong:\n" + "\n".join(refused))


if __name__ == "__main__":
    main()
