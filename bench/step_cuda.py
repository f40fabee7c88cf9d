"""The ladder of training steps and inference on a GPU: ``python -m bench.step --device cuda``.

    python -m bench.step --device cuda [--peer DIR] [--sizes micro] [--minutes 9] [--json FILE]
    python -m bench.step --device cuda --dry       # without a GPU: what would run, its launches

Rungs of the peer, omnilearned: eager in float32, TF32 and bfloat16 (autocast), and compiled
(``torch.compile`` of the TF32 one); ours in TF32 and bf16, by plain launches and as a CUDA graph.
Each rung is asked at every batch; the last table has it at its best. Rungs run one after the
other in one process. A row is written when it is measured, so that a run that is cut off leaves
what it had.

Of a step: ``wall`` to the end of its work, ``host`` until the call returns, ``stream`` each of many
in a row (this is the rate), ``gpu`` the sum of its kernels' times, ``kernels`` their number, peak
memory, and the rate of the model's matrix products in TFLOP/s; medians of ``--repeats``.
``inference`` is the loss of a batch without gradients, ``classify`` its logits, ``latency`` one
jet's from the CPU and back.

``--dry`` counts launches of our rungs in bf16 with a driver that launches nothing
(``bench.launches``): no times.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench.jets import load_jets
from bench.limits import model_products
from jetkern.machine import environment
from jetkern.model.presets import model_preset
from jetkern.objectives import parse_objective
from jetkern.tables import table

BATCHES = {"micro": (256, 1024, 4096), "small": (256, 1024, 2048), "medium": (64, 256, 512)}


class Rung(NamedTuple):
    """A contender: who, in what precision, and how it is launched."""

    who: str
    precision: str
    how: str

    @property
    def name(self) -> str:
        return " ".join(self)


PEER = (
    Rung("omnilearned", "float32", "eager"),
    Rung("omnilearned", "tf32", "eager"),
    Rung("omnilearned", "bf16", "eager"),
    Rung("omnilearned", "tf32", "compiled"),
)
OURS = tuple(
    Rung("jetkern", precision, how) for precision in ("tf32", "bf16") for how in ("plain", "graph")
)


Runs = dict[str, Callable[[], Any]]  # what is measured of a rung, by name


def of_ours(rung: Rung, size: str, objective: str, jets: Any) -> Runs:
    """Ours; raises ValueError where a step cannot be a graph."""
    from bench.step import our_step
    from jetkern.graphs import Captured
    from jetkern.training.graphed import GraphedStep

    step = our_step(size, objective, rung.precision, jets, "cuda")
    there, one = jets.to("cuda"), jets.select(slice(1))
    model = step.objective.model
    if rung.how == "graph":
        graph, fast = GraphedStep(step), Captured(model)
        runs = {
            "train": lambda: graph(jets, 0),
            "classify": lambda: evaluated(model, lambda: fast.classify(jets)),
            "latency": lambda: evaluated(model, lambda: fast.classify(one).cpu()),
        }
    else:
        runs = {
            "train": lambda: step(there, 0),
            "inference": lambda: evaluated(model, lambda: step.objective(there)),
            "classify": lambda: evaluated(model, lambda: model.classify(there)),
            "latency": lambda: evaluated(model, lambda: model.classify(one.to("cuda")).cpu()),
        }
    return runs


def evaluated(model: Any, work: Callable[[], Any]) -> Any:
    """The work in evaluation mode, without gradients."""
    model.eval()
    with torch.no_grad():
        found = work()
    model.train()
    return found


def of_peer(rung: Rung, size: str, objective: str, jets: Any) -> Runs:
    """The peer's; raises ImportError without it, KeyError for no such mode."""
    from bench.peers import omnilearned, omnilearned_loss, padded_jets
    from bench.step import CLIP, DECAY, LR
    from jetkern import PET
    from jetkern.training.optim import Lion

    torch.manual_seed(0)
    parts = parse_objective(objective)
    model = omnilearned(PET(model_preset(size, parts))).to("cuda")
    optimiser = Lion(model.parameters(), lr=LR, weight_decay=DECAY)
    network = torch.compile(model) if rung.how == "compiled" else model
    loss = omnilearned_loss(network, parts)
    batch = padded_jets(jets.to("cuda"))

    @contextlib.contextmanager
    def arithmetic() -> Iterator[None]:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = rung.precision == "tf32"
        try:
            with torch.autocast("cuda", torch.bfloat16, enabled=rung.precision == "bf16"):
                yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before

    def train() -> None:
        optimiser.zero_grad()
        with arithmetic():
            value = loss(batch)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimiser.step()

    def inference() -> None:
        with arithmetic():
            evaluated(model, lambda: loss(batch))

    return {"train": train, "inference": inference}


def timed(work: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Milliseconds of some work, after four runs that do not count."""
    begin = time.perf_counter()
    work()
    torch.cuda.synchronize()
    found = {"first_s": time.perf_counter() - begin}
    for _ in range(4):
        work()
    torch.cuda.synchronize()
    wall, host = [], []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        host.append(time.perf_counter() - begin)
        torch.cuda.synchronize()
        wall.append(time.perf_counter() - begin)
    begin = time.perf_counter()
    for _ in range(repeats):
        work()
    torch.cuda.synchronize()
    found["stream_ms"] = (time.perf_counter() - begin) / repeats * 1e3
    found["wall_ms"] = statistics.median(wall) * 1e3
    found["host_ms"] = statistics.median(host) * 1e3
    found["spread"] = (max(wall) - min(wall)) / statistics.median(wall)
    return found


def profiled(work: Callable[[], Any]) -> dict[str, Any]:
    """Number of kernels of some work, their milliseconds in all, and the longest."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize()
    sums: dict[str, tuple[int, float]] = {}
    for event in profiler.events() or ():
        if event.device_type.name == "CUDA":
            number, spent = sums.get(event.name[:60], (0, 0.0))
            sums[event.name[:60]] = number + 1, spent + event.device_time / 1e3
    longest = sorted(sums.items(), key=lambda item: -item[1][1])[:12]
    return {
        "kernels": sum(number for number, _ in sums.values()),
        "gpu_ms": sum(spent for _, spent in sums.values()),
        "longest": [(name, number, round(spent, 3)) for name, (number, spent) in longest],
    }


def measured(rung: Rung, size: str, objective: str, batch: int, settings: Any) -> dict[str, Any]:
    """A row of the ladder."""
    jets = load_jets(settings.data, batch)
    try:
        make = of_ours if rung in OURS else of_peer
        runs = make(rung, size, objective, jets)
        torch.cuda.reset_peak_memory_stats()
        row: dict[str, Any] = {"train": timed(runs["train"], settings.repeats)}
        row["peak_mb"] = torch.cuda.max_memory_allocated() / 2**20
        row["train"] |= profiled(runs["train"])
        for name in ("inference", "classify", "latency"):
            if name in runs:
                row[name] = timed(runs[name], settings.repeats)
        products = 3 * sum(model_products(size, parse_objective(objective), jets.counts).values())
        row["train"]["tflops"] = products / row["train"]["stream_ms"] / 1e9
        row["jets_per_s"] = batch / row["train"]["stream_ms"] * 1e3
    except (ImportError, KeyError, ValueError, RuntimeError) as error:
        row = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    torch.cuda.empty_cache()
    return row


def counted(rung: Rung, size: str, objective: str) -> dict[str, Any]:
    """What a rung would launch."""
    if rung in PEER:
        return {"note": "not counted"}
    if rung.precision != "bf16":
        return {"note": "counted in bf16"}
    from bench.launches import counted_region, counted_step

    try:
        graph = rung.how == "graph"
        counts = counted_region(size, objective) if graph else counted_step(size, objective)[0]
    except ValueError as error:
        return {"note": str(error)}
    return {kind: counts.of(kind) for kind in ("triton", "torch", "wait")}


def shown(rows: list[dict[str, Any]]) -> str:
    """Each rung at its best batch."""
    head = ["size", "objective", "rung", "batch", "jets/s", "x TF32", "x best rung of the peer"]
    head += ["host ms", "gpu ms", "kernels", "MB", "TFLOP/s"]
    best: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in rows:
        key = row["size"], row["objective"], row["rung"]
        if (
            "failed" not in row
            and row["jets_per_s"] > best.get(key, {"jets_per_s": 0})["jets_per_s"]
        ):
            best[key] = row
    lines = [head]
    for (size, objective, rung), row in best.items():
        rates = {r: b["jets_per_s"] for (s, o, r), b in best.items() if (s, o) == (size, objective)}
        eager = rates.get("omnilearned tf32 eager")
        peer = max((rate for name, rate in rates.items() if "omnilearned" in name), default=None)
        train, rate = row["train"], row["jets_per_s"]
        ratios = [f"{rate / other:.1f}" if other else "" for other in (eager, peer)]
        cells = [size, objective, rung, str(row["batch"]), f"{rate:,.0f}", *ratios]
        cells += [f"{train['host_ms']:.2f}", f"{train['gpu_ms']:.2f}", str(train["kernels"])]
        lines.append([*cells, f"{row['peak_mb']:.0f}", f"{train['tflops']:.1f}"])
    return table(lines, "lllr", markdown=True)


def ladder(settings: Any) -> None:
    """Measures, or with ``dry`` counts, and prints a line of JSON for each row."""
    begin = time.monotonic()
    if not settings.dry and not torch.cuda.is_available():
        sys.exit("bench.step: no GPU here; --dry says what would run")
    if settings.peer:
        sys.path.append(settings.peer)
    facts = environment() | ({} if settings.dry else {"gpu": torch.cuda.get_device_name()})
    print(json.dumps(facts), flush=True)
    rows: list[dict[str, Any]] = []
    rungs = [*OURS, *(PEER if settings.peer or settings.dry else ())]
    for size in settings.sizes:
        for objective in settings.objectives:
            for rung in rungs:
                for batch in (settings.batch,) if settings.batch else BATCHES[size]:
                    if time.monotonic() - begin > 60 * settings.minutes:
                        print("out of time")
                        break
                    case = {"size": size, "objective": objective, "rung": rung.name, "batch": batch}
                    if settings.dry:
                        case |= counted(rung, size, objective)
                        case["batch"] = "any"
                    else:
                        case |= measured(rung, size, objective, batch, settings)
                    rows.append(case)
                    print(json.dumps(case), flush=True)
                    kept(settings.json, {"machine": facts, "rows": rows})
                    if settings.dry:
                        break
    if not settings.dry:
        print(shown(rows))


def kept(path: Path | None, document: dict[str, Any]) -> None:
    """Writes what there is so far."""
    from bench.machine import write_results

    write_results(path, document)
