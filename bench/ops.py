"""Time of each op, ours beside its reference in eager PyTorch and under torch.compile.

    python -m bench.ops --device cpu [--sizes micro small medium] [--ops knn ...] [--data DIR]
    python -m bench.ops --device cuda --precision bf16 [...]

Forward (with what the backward needs kept) and backward (all weights and inputs that need a
gradient in training) are timed apart, the contenders in turn, and the fastest repeat counts: a
shared machine only ever adds. Before an op is timed its result and gradients are compared with
float64; it is reported only if it errs at most twice as much as eager float32 (in tf32 and bf16:
2e-3 and 1e-2 of the root mean square).

On a GPU the peers compute in the same precision (bf16: weights and inputs in bfloat16), attention
is also compared with scaled_dot_product_attention and FlexAttention on padded inputs, and each
time of ours is set beside its limit (see ``bench.limits``).
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench import limits, peers
from bench.machine import command, describe
from bench.step import load_jets
from jetkern import ops
from jetkern.cli.parser import threads
from jetkern.jets import Jets, offsets_from_counts
from jetkern.model.layers import MLP, AttentionBlock, LocalBlock, initialise
from jetkern.model.presets import SIZES
from jetkern.ops import dispatch
from jetkern.ops.pair_features import DEFAULT

LENGTHS = ("10", "real", "150")
OPS = ("knn", "pair_bias", "pair_mlp", "attention", "attention_block", "local_block", "mlp")
PARTICLES = {  # of a batch: so that memory suffices, on a GPU for the peers
    "cpu": {"micro": 2400, "small": 1200, "medium": 600},
    "cuda": {"micro": 160_000, "small": 80_000, "medium": 20_000, "large": 10_000},
}
MADE_FOR = {"cpu": ("cpu",), "cuda": ("triton", "cuda")}
CHECKED = 16  # jets of the comparison with float64 on a GPU
TINY = 1e-5  # error relative to the largest element that is never held against an op
ROUNDED = {"tf32": 2e-3, "bf16": 1e-2}  # root mean square error allowed, relative


class Case(NamedTuple):
    """``run(module, inputs, backend, precision)``; gradients of weights and ``inputs[:wanted]``.

    ``half`` are the inputs that are kept in bfloat16 at that precision.
    """

    module: nn.Module
    inputs: list[Tensor]
    wanted: int
    run: Callable[[Any, list[Tensor], str, str], Tensor]
    half: tuple[int, ...] = ()
    packed: tuple[Tensor, ...] = ()  # what the padded peers of attention need

    def prepare(
        self, dtype: torch.dtype, precision: str, store: bool = True
    ) -> tuple[nn.Module, list[Tensor], list[Tensor]]:
        """Module, inputs and the leaves that get a gradient, in ``dtype``.

        Inputs named in ``half`` are rounded to bfloat16 and, with ``store``, kept in it.
        """
        module = copy.deepcopy(self.module).to(dtype)
        on_gpu = self.inputs[0].device.type == "cuda"  # the C++ ops take float32
        rounded = self.half if precision == "bf16" and on_gpu else ()
        inputs = []
        for i, tensor in enumerate(self.inputs):
            kept = tensor.to(torch.bfloat16) if i in rounded else tensor
            inputs.append(kept.to(kept.dtype if store and i in rounded else dtype, copy=True))
        leaves = [t.requires_grad_() for t in inputs[: self.wanted]]
        return module, inputs, [*leaves, *module.parameters()]


def make(op: str, size: str, jets: Jets) -> Case:
    """The op as the model of that size uses it, on the jets' device."""
    torch.manual_seed(0)
    shape = SIZES[size]
    dim, heads, k = shape["dim"], shape["heads"], shape["neighbours"]
    particles, offsets = jets.particles, jets.offsets
    device = particles.device
    rows = offsets + 4 * torch.arange(len(offsets), device=device)  # four global tokens
    pairs = int(jets.counts.square().sum())
    bias = torch.randn(heads, pairs, device=device)
    i, j = ops.unordered_pairs(offsets)
    neighbours = ops.knn(particles, offsets, k)
    tokens = torch.randn(3, int(rows[-1]), heads, dim // heads, device=device)
    cases = {
        "knn": lambda: Case(
            nn.Module(), [particles], 0, lambda _, t, b, p: ops.knn(t[0], offsets, k, backend=b)
        ),
        "pair_bias": lambda: Case(
            MLP(3, 2 * dim, heads, norm=False),
            [particles],
            0,
            lambda m, t, b, p: ops.pair_bias(
                t[0], offsets, m.weights, num_pairs=pairs, precision=p, backend=b
            ),
        ),
        "pair_mlp": lambda: Case(  # Particle Transformer's, without its norms
            nn.Sequential(*map(nn.Linear, (4, 64, 64, 64), (64, 64, 64, heads))),
            [ops.pair_features(particles[i], particles[j], (*DEFAULT, "ln_z"))],
            0,
            lambda m, t, b, p: ops.pair_mlp(
                t[0],
                offsets,
                [ops.LinearParameters(x.weight, x.bias) for x in m],
                num_pairs=pairs,
                backend=b,
            ),
        ),
        "attention": lambda: Case(
            nn.Module(),
            [*tokens, bias],
            4,
            lambda _, t, b, p: ops.attention(
                t[0], t[1], t[2], rows, rows, t[3], offsets, precision=p, backend=b
            ),
            (0, 1, 2, 3),
            (rows, offsets),
        ),
        "attention_block": lambda: Case(
            AttentionBlock(dim, heads, 2),
            [tokens[0].flatten(1), bias],
            2,
            lambda m, t, b, p: ops.attention_block(
                t[0], rows, m.weights, heads, t[1], offsets, precision=p, backend=b
            ),
            (1,),
        ),
        "local_block": lambda: Case(
            LocalBlock(dim, heads, shape.get("head_layers", 2), 2),
            [particles],
            0,
            lambda m, t, b, p: ops.local_block(
                t[0],
                neighbours,
                m.embed.weights,
                [x.weights for x in m.blocks],
                heads,
                precision=p,
                backend=b,
            ),
        ),
        "mlp": lambda: Case(
            MLP(4, 2 * dim, dim),
            [particles],
            0,
            lambda m, t, b, p: ops.mlp(t[0], m.weights, precision=p, backend=b),
        ),
    }
    case = cases[op]()
    initialise(case.module)
    return case._replace(module=case.module.to(device))


def our_backends(op: str, device: str) -> list[str]:
    """Our backends that run ``op`` here, best first; the reference is a peer."""
    return [
        b
        for b in dispatch.backends_of(op)
        if b in MADE_FOR[device] and not dispatch.unavailable(op, b, device, torch.float32)
    ]


def outcome(case: Case, backend: str, dtype: torch.dtype, precision: str) -> list[Tensor]:
    """Result and gradients."""
    ours = backend != "reference"
    module, inputs, leaves = case.prepare(dtype, precision, store=ours)
    out = case.run(module, inputs, backend, precision)
    if not leaves:
        return [out]
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    upstream = upstream.to(out.device, out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]


def wrong(case: Case, backend: str, precision: str = "ieee") -> str:
    """What is wrong with our result, "" if nothing."""
    exact, eager, ours = (
        outcome(case, b, d, precision)
        for b, d in (
            ("reference", torch.float64),
            ("reference", torch.float32),
            (backend, torch.float32),
        )
    )
    for i, (want, plain, have) in enumerate(zip(exact, eager, ours, strict=True)):
        if precision in ROUNDED and want.is_floating_point():
            # A sum that cancels, as an alpha's gradient, has no accuracy of its own: its scale is
            # that of the gamma's gradient, the next.
            scale = exact[i + 1].abs().sum() if want.shape == (1,) else want.norm()
            error = ((have - want).norm() / scale).item()
            if not error <= ROUNDED[precision]:
                return f"output {i}: relative error {error:.2g}"
            continue
        error, allowed = ((x - want).abs().max().item() for x in (have, plain))
        if not error <= 2 * allowed + TINY * want.abs().max().item():
            return f"output {i}: error {error:.2g} against eager's {allowed:.2g}"
    return ""


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


def batch(length: str, particles: int, data: str) -> Jets:
    """Jets of 10, 150 or the real number of particles, ``particles`` in all, roughly."""
    if length == "real":
        return load_jets(data, max(2, particles // 41))
    n, many = int(length), max(2, particles // int(length))
    torch.manual_seed(2)
    spread, centre = torch.tensor([0.2, 0.2, 1.0, 1.0]), torch.tensor([0.0, 0.0, 2.0, 2.5])
    return Jets(
        particles=torch.randn(n * many, 4) * spread + centre,
        offsets=offsets_from_counts(torch.full((many,), n)),
    )


def header(names: list[str], limited: bool) -> str:
    """The table's head; a column for each peer."""
    cells = ["op", "size", "n", "jets"]
    for way in ("forward", "backward"):
        cells += [f"{way} us/jet", *names, *(["of limit"] if limited else [])]
    return f"| {' | '.join(cells)} |\n|---|---|---|{'---:|' * (len(cells) - 3)}"


def row(result: dict[str, Any], names: list[str], limited: bool) -> str:
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
    return f"| {' | '.join(cells)} |"


def main() -> None:
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
    parser.add_argument("--json", type=Path, help="also write the results here")
    settings = parser.parse_args()
    device, precision = settings.device, settings.precision
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("bench.ops: PyTorch finds no CUDA GPU")

    torch.set_num_threads(settings.threads)
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"  # what the peers compute in
    machine = describe(settings.threads)
    rates = None
    if device == "cuda":
        rates = limits.measure_rates(precision)
        machine |= {"gpu": torch.cuda.get_device_name(), "precision": precision}
        machine |= {f"measured {name}": f"{rate:.4g}/s" for name, rate in rates._asdict().items()}
    print("\n".join(f"{key:20} {value}" for key, value in machine.items()))
    sizes = settings.sizes or list(PARTICLES[device])
    batches = {}
    for size in sizes:
        for length in settings.lengths:
            jets = batch(length, PARTICLES[device].get(size, 300), settings.data)
            batches[length, size] = jets.to(device)
            counts = jets.counts.double()
            print(
                f"{size}, n = {length}: {len(jets)} jets, multiplicity {counts.mean():.1f} +- "
                f"{counts.std():.1f}, {int(counts.min())} to {int(counts.max())}"
            )
    names = ["eager", *([] if settings.no_compile else ["compiled"])]
    if device == "cuda":
        names += ["sdpa", "flex", "cuda"]
    print(header(names, rates is not None), flush=True)
    results, refused = [], []
    for op in settings.ops or [o for o in OPS if {*dispatch.backends_of(o)} & {*MADE_FOR[device]}]:
        ours = our_backends(op, device)
        if not ours:
            refused.append(f"{op}: none of our backends runs it on {device}")
            continue
        for (length, size), jets in batches.items():
            few = jets if device == "cpu" else jets.select(slice(0, CHECKED))
            faults = {b: wrong(make(op, size, few), b, precision) for b in ours}
            refused += [f"{op} {size} n = {length} ({b}): {f}" for b, f in faults.items() if f]
            right = [b for b in ours if not faults[b]]
            if not right:
                continue
            case = make(op, size, jets)
            seconds = measure(op, case, precision, right, settings.repeats, not settings.no_compile)
            result = {"op": op, "size": size, "n": length, "jets": len(jets), "seconds": seconds}
            result["ours"] = right[0]
            if rates:
                least = limits.work(op, size, jets.counts, 2 if precision == "bf16" else 4)
                result["limit"] = {way: rates.seconds(w) for way, w in least.items()}
                result["bound"] = {way: rates.bound(w) for way, w in least.items()}
            results.append(result)
            print(row(result, names, rates is not None), flush=True)
    if settings.json:
        settings.json.parent.mkdir(parents=True, exist_ok=True)
        document = {"machine": machine, "command": command(), "results": results}
        settings.json.write_text(json.dumps(document, indent=1), encoding="utf-8")
    if refused:
        sys.exit("not reported, wrong:\n" + "\n".join(refused))


if __name__ == "__main__":
    main()
