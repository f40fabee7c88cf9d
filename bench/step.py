"""Rate and memory of training steps and of inference, ours beside the reference's.

    python -m bench.step --device cpu [--sizes micro small medium] [--peer DIR] [--data DIR]

Contenders of one case run in turn, step by step, each in a process of its own: jetkern's compiled
ops, jetkern's reference ops, and eager omnilearned 0.2.0 (skipped if it cannot be imported; install
it with its einops and torchdiffeq, ``--no-deps --target DIR``). The peer gets its batch trimmed to
the longest jet. A train step is forward, backward, gradient clipping and Lion. "cpu bf16" rounds
the factors of products to bfloat16; the others compute in float32.

Rates are medians; behind each is (slowest - fastest) / median of its repeats.

Memory is the process's peak during training above that with the model loaded, less a gradient and a
momentum per weight, which every contender has. Divided by the jets it contains what is needed once;
what each further jet needs is the rise of the peak when the batch is doubled: about 0 where the
gradients of a large model, not its small batch, make the peak.

Where the time of "jetkern cpu" goes is taken from PyTorch's profiler in further train steps: the
share of each op, forward and backward, and the fraction of the float32 matrix rate that the op's
products reach in it (more than 1 where the op does without some of them); the rest is PyTorch's
(heads, loss, gradient clipping) and Python's.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from jetkern.cli.parser import threads

# Small enough that the peer does not page: at 256 micro jets it runs at a quarter of its rate.
BATCH = {"micro": 64, "small": 32, "medium": 8}
OBJECTIVES = ("classifier", "classifier+generator", "pretrain")
CONTENDERS = {  # backend and precision
    "jetkern cpu": ("auto", "ieee"),
    "jetkern cpu bf16": ("auto", "bf16"),
    "jetkern reference": ("reference", "ieee"),
    "omnilearned": ("auto", "ieee"),
}
MEASURES = ("train", "inference")


def load_jets(data: str, count: int) -> Any:
    """``count`` jets: a few of each file below ``data``, or drawn where ``data`` is empty.

    Drawn jets have the multiplicities of simulated JetClass jets, roughly: a negative binomial
    of mean 41 and standard deviation 18, between 2 and 128; their particles are noise.
    """
    import numpy as np
    import torch

    from jetkern import Jets
    from jetkern.jets import offsets_from_counts

    rng = np.random.default_rng(0)
    if not data:
        counts = np.clip(rng.negative_binomial(6, 6 / (6 + 41), count), 2, 128)
        particles = rng.normal([0, 0, 2, 2.5], [0.2, 0.2, 1, 1], (counts.sum(), 4))
        pid, tracks = rng.integers(1, 9, counts.sum()), rng.normal(0, 1, (counts.sum(), 4))
        label = rng.integers(0, 10, count)
    else:
        import h5py

        files = sorted(Path(data).rglob("*.h5"))
        if not files:
            raise SystemExit(f"bench.step: no *.h5 below {data}")
        rows, labels = [], []
        for i, file in enumerate(files):
            share = (count * (i + 1)) // len(files) - (count * i) // len(files)
            with h5py.File(file) as f:
                if share > len(f["data"]):
                    raise SystemExit(f"bench.step: {file} has fewer than {share} jets")
                for jet, n in zip(f["data"][:share], f["num_particles"][:share], strict=True):
                    rows.append(jet[:n])
                labels += list(f["pid"][:share] - f.attrs.get("label_shift", 0))
        order = rng.permutation(count)
        rows = [rows[i] for i in order]
        counts, label = np.array([len(r) for r in rows]), np.array(labels)[order]
        flat = np.concatenate(rows)
        particles, pid, tracks = flat[:, :4], flat[:, 4], flat[:, 5:9]
    return Jets(
        particles=torch.tensor(particles, dtype=torch.float32),
        offsets=offsets_from_counts(torch.tensor(counts)),
        pid=torch.tensor(pid, dtype=torch.int64),
        tracks=torch.tensor(tracks, dtype=torch.float32),
        label=torch.tensor(label, dtype=torch.int64),
        index=torch.arange(count),
    )


class Steps(NamedTuple):
    """What a contender can do with a batch that it has prepared, and its number of weights."""

    prepare: Callable[[Any], Any]
    train: Callable[[Any], None]
    inference: Callable[[Any], None]
    weights: int


LR, DECAY, CLIP = 1e-5, 0.1, 1.0


def our_steps(size: str, objective: str, precision: str) -> Steps:
    """Our train step, as ``Trainer`` makes it, and inference."""
    import torch

    from jetkern import PET
    from jetkern.model.presets import model_preset
    from jetkern.objectives import Objective, parse_objective
    from jetkern.training.distributed import World
    from jetkern.training.flat import FlatParameters
    from jetkern.training.optim import Lion
    from jetkern.training.step import Step

    torch.manual_seed(0)
    model = PET(model_preset(size, parse_objective(objective)), precision=precision)
    losses = Objective(model)
    weights = FlatParameters([{"params": list(model.parameters())}])
    optimizer = Lion(weights.groups, lr=LR, weight_decay=DECAY)
    world = World(0, 1, torch.device("cpu"))
    step = Step(losses, weights, optimizer, world, lr=lambda _: LR, clip=CLIP, per_pass=1 << 30)
    return Steps(
        lambda jets: jets,
        lambda jets: step(jets, 0),
        without_gradients(model, losses),
        len(weights.values),
    )


def without_gradients(model: Any, loss: Callable[[Any], Any]) -> Callable[[Any], None]:
    """Inference: the loss of a batch."""
    import torch

    @torch.no_grad()
    def inference(batch: Any) -> None:
        model.eval()
        loss(batch)
        model.train()

    return inference


def peer_steps(size: str, objective: str) -> Steps:
    """The same with omnilearned; raises ImportError without it, KeyError for no such mode."""
    import types

    import torch

    sys.modules.setdefault("requests", types.ModuleType("requests"))  # its downloads need it only
    from omnilearned.network import PET2
    from omnilearned.utils import get_loss

    from jetkern.jets import unpack
    from jetkern.model.presets import SIZES
    from jetkern.training.optim import Lion

    mode = {"classifier": "classifier", "classifier+generator": "pretrain"}[objective]
    shape = SIZES[size]
    torch.manual_seed(0)
    model = PET2(
        4,
        pid=True,
        add_info=True,
        mode=mode,
        num_classes=10,
        base_dim=shape["dim"],
        num_transformers=shape["layers"],
        num_transformers_head=2,
        num_heads=shape["heads"],
        K=shape["neighbours"],
        feature_drop=0.1,
        num_coord=2,
    )
    class_loss = torch.nn.CrossEntropyLoss(reduction="none")
    generator_loss = torch.nn.MSELoss(reduction="none")

    def prepare(jets: Any) -> Any:
        parts = (jets.particles, jets.pid, jets.tracks)
        return *(unpack(t, jets.offsets)[0] for t in parts), jets.label

    def loss(batch: Any) -> Any:
        x, pid, tracks, label = batch
        logs = {k: torch.zeros(1) for k in ("loss", "loss_class", "loss_gen", "loss_class_event")}
        outputs = model(x, label, pid=pid, add_info=tracks)
        return get_loss(outputs, label, mode, class_loss, generator_loss, False, False, None, logs)

    optimiser = Lion(model.parameters(), lr=LR, weight_decay=DECAY)

    def train(batch: Any) -> None:
        optimiser.zero_grad()
        loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimiser.step()

    size_of_model = sum(p.numel() for p in model.parameters())
    return Steps(prepare, train, without_gradients(model, loss), size_of_model)


def resident_mb() -> float:
    """Memory of this process now."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024


def contender(pipe: Connection, name: str, case: tuple[str, str], settings: Any) -> None:
    """A process that runs one contender: sends "ready" or why not, then does what it is told.

    "train" and "inference" are answered with seconds and peak memory in MB, "further" with the MB
    by which the peak rises for each jet of a doubled batch, "profile" with the seconds of each part
    of a train step.
    """
    backend, precision = CONTENDERS[name]
    os.environ["JETKERN_BACKEND"] = "" if backend == "auto" else backend
    os.environ["KINETO_LOG_LEVEL"] = "99"  # the profiler would announce itself
    if settings.peer:
        sys.path.append(settings.peer)
    import torch

    from jetkern.ops import dispatch

    torch.set_num_threads(settings.threads)
    size, objective = case
    jets = load_jets(settings.data, settings.batch or BATCH[size])
    if name.startswith("jetkern cpu") and (reason := dispatch.cpu_library()):
        pipe.send(f"skipped: {reason}")
        return
    try:
        ours = name != "omnilearned"
        steps = our_steps(size, objective, precision) if ours else peer_steps(size, objective)
    except (ImportError, KeyError) as error:
        reason = f"no mode for {error}" if isinstance(error, KeyError) else str(error)
        pipe.send(f"skipped: {reason}")
        return
    clock = time.process_time if settings.cpu_time else time.perf_counter
    before = resident_mb() + 2 * 4 * steps.weights / 2**20

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before

    batch = steps.prepare(jets)
    pipe.send("ready")
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
        run = getattr(steps, task)
        run(batch)
        start = clock()
        run(batch)
        pipe.send((clock() - start, peak()))


def profile(step: Callable[[], None]) -> dict[str, float]:
    """Seconds of a ``step`` in each of our compiled ops, in the optimiser, and in the rest."""
    import torch

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


def model_flops(size: str, objective: str, jets: Any) -> dict[str, float]:
    """Matrix-product FLOPs of one forward pass over packed jets, by op: 2 per multiply and add.

    The heads, small products and class attention, count as "rest"; masked jets keep 60 % of their
    particles. A train step needs three times that, recomputation not counted.
    """
    from jetkern.model.presets import SIZES
    from jetkern.objectives import parse_objective

    parts, shape = parse_objective(objective), SIZES[size]
    dim, k, layers = shape["dim"], shape["neighbours"], shape["layers"]
    flops = dict.fromkeys(("local_block", "pair_bias", "mlp", "attention_block", "rest"), 0.0)
    for part in parts:
        n = jets.counts.double() * (0.6 if part == "mpm" else 1.0)
        edges = n * (n - 1).clamp(min=0, max=k)
        rows = n + 4 + (part == "generator")
        block = 16 * dim**2
        macs = {
            "local_block": edges * (2 * (14 * dim + 2 * dim**2) + 2 * block - 4 * dim**2)
            + 2 * edges * 4 * dim * (n - 1).clamp(min=0, max=k),
            "pair_bias": n * (n - 1) / 2 * 2 * (6 * dim + 2 * dim * shape["heads"]),
            "mlp": n * 2 * 2 * (8 * dim + 2 * dim**2),
            "attention_block": layers * (rows * block + 4 * dim * rows**2),
        }
        if part == "classifier":
            passes = len(parts)  # also on the noised and the masked jets
            macs["rest"] = passes * (2 * (rows * 4 * dim**2 + 48 * dim**2) + 4 * 32 * dim**2)
        else:
            macs["attention_block"] += 2 * ((rows + 1) * block + 4 * dim * (rows + 1) ** 2)
        for name, number in macs.items():
            flops[name] += float(number.sum())
    return flops


def shares(row: dict[str, Any], flops: dict[str, float], rate: float) -> str:
    """Where a train step's time goes: share of each part, and what of ``rate`` it reaches."""
    seconds = row["profile_seconds"]
    total = sum(seconds.values())
    parts = []
    for name, spent in sorted(seconds.items(), key=lambda item: -item[1]):
        reached = 3 * flops.get(name, 0.0) / spent / rate
        parts.append(f"{name} {spent / total:.0%}" + (f" (at {reached:.0%})" if reached else ""))
    return ", ".join(parts)


def table(results: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| size | objective | contender | train jets/s | x peer | inference jets/s | x peer "
        "| peak MB/jet | MB per further jet | of float32 matrix rate |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for result in results:
        rows: list[dict[str, Any]] = result["rows"]
        peer = next((r for r in rows if r["contender"] == "omnilearned"), None)
        for row in rows:
            start = f"| {result['size']} | {result['objective']} | {row['contender']} |"
            if "skipped" in row:
                lines.append(f"{start} {row['skipped']} ||||||| ")
                continue
            cells = []
            for measure in MEASURES:
                seconds = row[f"{measure}_seconds"]
                spread = row[f"{measure}_spread"]
                cells.append(f"{result['jets'] / seconds:.1f} ({spread:.0%})")
                other = peer.get(f"{measure}_seconds") if peer else None
                cells.append(f"{other / seconds:.1f}" if other else "")
            cells.append(f"{row['peak_mb'] / result['jets']:.2f}")
            cells.append(f"{row['further_mb_per_jet']:.2f}")
            cells.append(f"{row['of_matrix_rate']:.0%}")
            lines.append(f"{start} {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=["cpu"], default="cpu")
    parser.add_argument("--sizes", nargs="+", choices=BATCH, default=list(BATCH))
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=OBJECTIVES)
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
    parser.add_argument("--json", type=Path, help="also write the results here")
    settings = parser.parse_args()
    if settings.cpu_time and settings.threads != 1:
        parser.error("--cpu-time needs --threads 1: waiting threads count too")

    import torch

    from bench.machine import command, describe

    torch.set_num_threads(settings.threads)
    clock = time.process_time if settings.cpu_time else time.perf_counter
    machine = describe(settings.threads, clock)
    machine["clock"] = "CPU time" if settings.cpu_time else "wall time"
    print("\n".join(f"{key:14} {value}" for key, value in machine.items()))
    results, rate = [], machine["matrix_gflops"] * 1e9
    for size in settings.sizes:
        jets = load_jets(settings.data, settings.batch or BATCH[size])
        counts = jets.counts.double()
        print(
            f"{size}: {len(jets)} {'simulated' if settings.data else 'drawn'} jets, multiplicity "
            f"{counts.mean():.1f} +- {counts.std():.1f}, up to {int(counts.max())}",
            flush=True,
        )
        for objective in settings.objectives:
            rows = run_case((size, objective), settings)
            flops = model_flops(size, objective, jets)
            for row in rows:
                if "skipped" not in row:
                    row["of_matrix_rate"] = 3 * sum(flops.values()) / row["train_seconds"] / rate
                if "profile_seconds" in row:
                    row["shares"] = shares(row, flops, rate)
            result = {"size": size, "objective": objective, "jets": len(jets), "rows": rows}
            results.append(result)
            print(table([result]))
            for row in rows:
                if "shares" in row:
                    print(f"{row['contender']}: {row['shares']}", flush=True)
    print(f"\n{table(results)}")
    if settings.json:
        settings.json.parent.mkdir(parents=True, exist_ok=True)
        document = {"machine": machine, "command": command(), "results": results}
        settings.json.write_text(json.dumps(document, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
