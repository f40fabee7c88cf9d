"""Rate and memory of training steps and of inference, ours beside the reference's.

    python -m bench.step --device cpu [--sizes micro small medium] [--peer DIR] [--data DIR]
    python -m bench.step --device cuda [--dry]       # the ladder of ``bench.step_cuda``
    python -m bench.step --device cpu --sizes micro --objectives --targets "cfm" "cnf"

Contenders of one case run in turn, step by step, each in a process of its own: jetkern's compiled
ops, jetkern's reference ops, and eager omnilearned 0.2.0 (skipped if it cannot be imported; install
it with its einops and torchdiffeq, ``--no-deps --target DIR``). The peer gets its batch trimmed to
the longest jet. A train step is forward, backward, gradient clipping and Lion. "cpu bf16" rounds
the factors of products to bfloat16, "omnilearned bf16" runs under PyTorch's autocast; the others
compute in float32.

Inference is the loss of the batch without gradients, and of one jet. Rates are medians; behind each
is (slowest - fastest) / median of its repeats.

Memory is the process's peak during training above that with the model loaded, less a gradient and a
momentum per weight, which every contender has. Divided by the jets it contains what is needed once;
what each further jet needs is the rise of the peak when the batch is doubled: about 0 where the
gradients of a large model, not its small batch, make the peak.

With --targets there are rows of masked particle modelling by target, and how long each takes beside
regression on the same scale.

Where the time of "jetkern cpu" goes is taken from PyTorch's profiler in further train steps: the
share of each op, forward and backward, and the fraction of the float32 matrix rate that the op's
products reach in it (more than 1 where the op does without some of them); the rest is PyTorch's
(heads, loss, gradient clipping) and Python's.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from bench.jets import described, load_jets
from bench.limits import model_products
from bench.machine import command, describe, write_results
from bench.peers import omnilearned, omnilearned_loss, padded_jets
from bench.targets import CASES, learner
from jetkern import PET, Jets
from jetkern.cli.parser import threads
from jetkern.machine import repeating
from jetkern.model.presets import model_preset
from jetkern.objectives import Objective, parse_objective
from jetkern.ops import dispatch
from jetkern.tables import table
from jetkern.training.distributed import World
from jetkern.training.flat import FlatParameters
from jetkern.training.optim import Lion, build_optimizer
from jetkern.training.step import Step

# Small enough that the peer does not page: at 256 micro jets it runs at a quarter of its rate.
BATCH = {"micro": 64, "small": 32, "medium": 8}
OBJECTIVES = ("classifier", "classifier+generator", "pretrain")
CONTENDERS = {  # backend and precision
    "jetkern cpu": ("auto", "ieee"),
    "jetkern cpu bf16": ("auto", "bf16"),
    "jetkern reference": ("reference", "ieee"),
    "omnilearned": ("auto", "ieee"),
    "omnilearned bf16": ("auto", "bf16"),
}
MEASURES = ("train", "inference", "latency")


class Steps(NamedTuple):
    """What a contender can do with a batch that it has prepared, and its number of weights."""

    prepare: Callable[[Any], Any]
    train: Callable[[Any], None]
    inference: Callable[[Any], None]
    weights: int


LR, DECAY, CLIP = 1e-5, 0.1, 1.0
BETAS = (0.95, 0.99)


def our_step(
    size: str,
    objective: str,
    precision: str,
    jets: Jets | None = None,
    device: str = "cpu",
    optimizer: Literal["lion", "ranger", "adamw"] = "lion",
) -> Step:
    """Our train step, as ``Trainer`` makes it; ``jets`` scale targets' features."""
    if objective in CASES:
        assert jets is not None
        losses = learner(size, objective, jets, precision)
        model = losses.model
    else:
        torch.manual_seed(0)
        model = PET(model_preset(size, parse_objective(objective)), precision=precision)
        losses = Objective(model)
    losses.to(device)
    weights = FlatParameters([{"params": list(model.parameters()), "weight_decay": DECAY}])
    update = build_optimizer(optimizer, weights.groups, lr=LR, betas=BETAS)
    world = World(0, 1, torch.device(device))
    return Step(losses, weights, update, world, lr=lambda _: LR, clip=CLIP, per_pass=1 << 30)


def our_steps(size: str, objective: str, precision: str, jets: Jets | None = None) -> Steps:
    """The step and inference, on the CPU."""
    step = our_step(size, objective, precision, jets)
    return Steps(
        lambda jets: jets,
        lambda jets: step(jets, 0),
        without_gradients(step.objective.model, step.objective),
        len(step.weights.values),
    )


def without_gradients(model: Any, loss: Callable[[Any], Any]) -> Callable[[Any], None]:
    """Inference: the loss of a batch."""

    @torch.no_grad()
    def inference(batch: Any) -> None:
        model.eval()
        loss(batch)
        model.train()

    return inference


def peer_steps(size: str, objective: str, precision: str) -> Steps:
    """The same with omnilearned, in bfloat16 by autocast.

    Raises:
        ImportError: without it. KeyError: if it has no such mode.
    """
    if objective in CASES:
        raise KeyError(objective)
    torch.manual_seed(0)
    parts = parse_objective(objective)
    model = omnilearned(PET(model_preset(size, parts)))
    in_float = omnilearned_loss(model, parts)

    def loss(batch: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return in_float(batch)

    optimiser = Lion(model.parameters(), lr=LR, weight_decay=DECAY)

    def train(batch: Any) -> None:
        optimiser.zero_grad()
        loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimiser.step()

    size_of_model = sum(p.numel() for p in model.parameters())
    return Steps(padded_jets, train, without_gradients(model, loss), size_of_model)


def resident_mb() -> float:
    """Memory of this process now."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024


def contender(pipe: Connection, name: str, case: tuple[str, str], settings: Any) -> None:
    """A process that runs one contender: sends "ready" or why not, then does what it is told.

    "train", "inference" and "latency" (one jet) are answered with seconds and peak memory in MB,
    "further" with the MB
    by which the peak rises for each jet of a doubled batch, "profile" with the seconds of each part
    of a train step.
    """
    backend, precision = CONTENDERS[name]
    os.environ["JETKERN_BACKEND"] = "" if backend == "auto" else backend
    if settings.peer:
        sys.path.append(settings.peer)
    torch.set_num_threads(settings.threads)
    size, objective = case
    jets = load_jets(settings.data, settings.batch or BATCH[size])
    if name.startswith("jetkern cpu") and (reason := dispatch.cpu_library()):
        pipe.send(f"skipped: {reason}")
        return
    try:
        ours = not name.startswith("omnilearned")
        if ours:
            steps = our_steps(size, objective, precision, jets)
        else:
            steps = peer_steps(size, objective, precision)
    except (ImportError, KeyError) as error:
        reason = f"no mode for {error}" if isinstance(error, KeyError) else str(error)
        pipe.send(f"skipped: {reason}")
        return
    clock = time.process_time if settings.cpu_time else time.perf_counter
    before = resident_mb() + 2 * 4 * steps.weights / 2**20

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before

    batches = steps.prepare(jets), steps.prepare(jets.select(slice(1)))
    pipe.send("ready")
    with repeating() if ours else nullcontext():  # as ``Trainer`` does
        serve(pipe, steps, jets, batches, clock, peak)


def serve(
    pipe: Connection,
    steps: Steps,
    jets: Any,
    batches: tuple[Any, Any],
    clock: Callable[[], float],
    peak: Callable[[], float],
) -> None:
    """Does what it is told until it is told no more; ``batches``: all jets, and the first one."""
    batch, one = batches
    for task in iter(pipe.recv, None):
        if task == "further":
            low = peak()
            steps.train(steps.prepare(type(jets).concat([jets, jets])))
            pipe.send((peak() - low) / len(jets))
            continue
        if task == "profile":
            pipe.send(profile(lambda: steps.train(batch)))
            continue
        # A step first that does not count: the one before was another process's, whose threads may
        # still spin and whose data are in the caches.
        run = getattr(steps, "inference" if task == "latency" else task)
        given = one if task == "latency" else batch
        run(given)
        start = clock()
        run(given)
        pipe.send((clock() - start, peak()))


def profile(step: Callable[[], None]) -> dict[str, float]:
    """Seconds of a ``step`` in each of our compiled ops, in the optimiser, and in the rest."""
    step()
    steps = 5
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        start = time.perf_counter()
        for _ in range(steps):
            step()
        total = (time.perf_counter() - start) / steps
    parts: dict[str, float] = {}
    for event in profiler.key_averages():
        if found := re.fullmatch(r"jetkern::(?:cpu_)?(\w+?)(?:_backward)?", event.key):
            name, spent = found[1], event.self_cpu_time_total
        elif event.key.startswith("Optimizer.step"):
            name, spent = "optimiser", event.cpu_time_total
        else:
            continue
        parts[name] = parts.get(name, 0.0) + spent / 1e6 / steps
    return parts | {"rest": total - sum(parts.values())}


def run_case(case: tuple[str, str], settings: Any) -> list[dict[str, Any]]:
    """Rates and memory of all contenders, which take turns."""
    os.environ["KINETO_LOG_LEVEL"] = "99"  # the profiler of a contender would announce itself
    context = multiprocessing.get_context("spawn")
    running: dict[str, tuple[Any, Connection]] = {}
    rows: list[dict[str, Any]] = []
    for name in settings.contenders:
        ours, theirs = context.Pipe()
        process = context.Process(target=contender, args=(theirs, name, case, settings))
        process.start()
        answer = ours.recv()
        if answer == "ready":
            running[name] = (process, ours)
        else:
            process.join()
            rows.append({"contender": name, "skipped": answer})
    samples: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for measure in MEASURES:
        for repeat in range(settings.repeats + 1):
            for name, (_, pipe) in running.items():
                pipe.send(measure)
                sample = pipe.recv()
                if repeat:  # the first warms up
                    samples.setdefault((name, measure), []).append(sample)
    for name, (process, pipe) in running.items():
        row: dict[str, Any] = {"contender": name}
        if name == "jetkern cpu":
            pipe.send("profile")
            row["profile_seconds"] = pipe.recv()
        pipe.send("further")
        row["further_mb_per_jet"] = pipe.recv()
        pipe.send(None)
        process.join()
        for measure in MEASURES:
            times = [seconds for seconds, _ in samples[name, measure]]
            row[f"{measure}_seconds"] = statistics.median(times)
            row[f"{measure}_spread"] = (max(times) - min(times)) / statistics.median(times)
        row["peak_mb"] = samples[name, "train"][-1][1]  # inference, run after, needs less
        rows.append(row)
    return rows


def shares(row: dict[str, Any], products: dict[str, float], rate: float) -> str:
    """Where a train step's time goes: share of each part, and what of ``rate`` it reaches."""
    seconds = row["profile_seconds"]
    total = sum(seconds.values())
    parts = []
    for name, spent in sorted(seconds.items(), key=lambda item: -item[1]):
        reached = 3 * products.get(name, 0.0) / spent / rate
        parts.append(f"{name} {spent / total:.0%}" + (f" (at {reached:.0%})" if reached else ""))
    return ", ".join(parts)


HEAD = (
    "size", "objective", "contender", "train jets/s", "x peer", "inference jets/s", "x peer",
    "ms for one jet", "x peer", "peak MB/jet", "MB per further jet", "of float32 matrix rate",
)  # fmt: skip


def rows_of(result: dict[str, Any]) -> list[list[str]]:
    """A line of the table for each contender."""
    rows: list[dict[str, Any]] = result["rows"]
    peer = next((r for r in rows if r["contender"] == "omnilearned"), None)
    lines = []
    for row in rows:
        cells = [result["size"], result["objective"], row["contender"]]
        if "skipped" in row:
            lines.append([*cells, row["skipped"], *[""] * (len(HEAD) - 4)])
            continue
        for measure in MEASURES:
            seconds = row[f"{measure}_seconds"]
            rate = 1e3 * seconds if measure == "latency" else result["jets"] / seconds
            cells.append(f"{rate:.1f} ({row[f'{measure}_spread']:.0%})")
            other = peer.get(f"{measure}_seconds") if peer else None
            cells.append(f"{other / seconds:.1f}" if other else "")
        cells.append(f"{row['peak_mb'] / result['jets']:.2f}")
        cells.append(f"{row['further_mb_per_jet']:.2f}")
        cells.append(f"{row['of_matrix_rate']:.0%}" if "of_matrix_rate" in row else "")
        lines.append(cells)
    return lines


def shown(results: list[dict[str, Any]]) -> str:
    """The table of some results, to paste."""
    return table([HEAD, *(row for r in results for row in rows_of(r))], "lllr", markdown=True)


def beside_regression(results: list[dict[str, Any]]) -> str:
    """Seconds of a training step with each target over those with regression, to paste."""
    seconds = {
        (r["size"], r["objective"], row["contender"]): row["train_seconds"]
        for r in results
        for row in r["rows"]
        if r["objective"] in CASES and "skipped" not in row
    }
    names = list(dict.fromkeys(contender for _, _, contender in seconds))
    rows = [["size", "target", *names]]
    for size, case in dict.fromkeys((size, case) for size, case, _ in seconds):
        cells = []
        for name in names:
            base = seconds.get((size, "regression", name))
            own = seconds.get((size, case, name))
            cells.append(f"{own / base:.2f}" if own and base else "")
        rows.append([size, case, *cells])
    return table(rows, "llr", markdown=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dry", action="store_true", help="cuda: count launches, without a GPU")
    parser.add_argument("--minutes", type=float, default=9.0, help="cuda: then stop")
    parser.add_argument("--sizes", nargs="+", choices=BATCH, default=list(BATCH))
    parser.add_argument("--objectives", nargs="*", choices=OBJECTIVES, default=OBJECTIVES)
    parser.add_argument("--targets", nargs="*", choices=CASES, default=(), help="default: none")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--data", default="", help="folder of HDF5 files; without it, drawn jets")
    parser.add_argument("--peer", default="", help="folder that omnilearned is installed in")
    parser.add_argument("--batch", type=int, help=f"jets per step; default {BATCH}")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=threads, default=os.cpu_count())
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="count the processes' CPU time, on a machine that others use (with --threads 1)",
    )
    parser.add_argument("--json", type=Path, help="also write the results here, case by case")
    settings = parser.parse_args()
    if settings.device == "cuda":
        from bench.step_cuda import ladder

        ladder(settings)
        return
    if settings.cpu_time and settings.threads != 1:
        parser.error("--cpu-time needs --threads 1: waiting threads count too")

    torch.set_num_threads(settings.threads)
    clock = time.process_time if settings.cpu_time else time.perf_counter
    machine = describe(settings.threads, clock)
    machine["clock"] = "CPU time" if settings.cpu_time else "wall time"
    print("\n".join(f"{key:14} {value}" for key, value in machine.items()))
    results: list[dict[str, Any]] = []
    rate = machine["matrix_gflops"] * 1e9
    for size in settings.sizes:
        jets = load_jets(settings.data, settings.batch or BATCH[size])
        print(f"{size}: {described(jets, settings.data)}", flush=True)
        for objective in (*settings.objectives, *settings.targets):
            rows = run_case((size, objective), settings)
            products: dict[str, float] = {}
            if objective not in CASES:
                products = model_products(size, parse_objective(objective), jets.counts)
            for row in rows:
                if "skipped" not in row and products:
                    row["of_matrix_rate"] = 3 * sum(products.values()) / row["train_seconds"] / rate
                if "profile_seconds" in row:
                    row["shares"] = shares(row, products, rate)
            results.append({"size": size, "objective": objective, "jets": len(jets), "rows": rows})
            print(shown(results[-1:]))
            for row in rows:
                if "shares" in row:
                    print(f"{row['contender']}: {row['shares']}", flush=True)
            document = {"machine": machine, "command": command(), "results": results}
            write_results(settings.json, document)
    print(f"\n{shown(results)}")
    if settings.targets:
        print(f"\nseconds of a step, over those of regression\n{beside_regression(results)}")


if __name__ == "__main__":
    main()
