"""Showers by parallel streams, by SPADE's delays and by a chain, at equal updates.

python -m bench.showers [--updates 400] [--seed 0] [--out FILE]

The three models see the same simulated showers (jetkern.simulate.showers, small) in turn, an update
each: width 64, 3 blocks, one head of keys and values for 4 of queries, rope, a hazard for the end,
heads with a hidden layer of 64, energies of hits between the threshold and the highest of 2,000
showers, conditioned on the photon's energy; AdamW, one cycle to 3e-3.
Judged are nats a hit on 400 others, and W1 of 400 generated showers of their energies beside that
of 400 more simulated ones of the same. Time is CPU time of the updates.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.machine import command, describe, write_results
from jetkern.metrics.showers import distances, observables, oddities
from jetkern.model.decoder import Decoder, DecoderConfig
from jetkern.sampling import generate
from jetkern.showers import Showers
from jetkern.simulate.showers import CALORIMETERS, simulate_showers
from jetkern.tables import table

KINDS: dict[str, dict[str, Any]] = {
    "parallel": {"delays": (0, 0, 0, 0)},
    "delay": {"delays": (0, 1, 2, 3)},
    "chain": {"delays": (0, 0, 0, 0), "joint": "chain"},
}
BATCH, RATE, JUDGED, MOST = 24, 3e-3, 400, 200
FIRST_JUDGED = 10_000_000  # number of the first shower that no model learns from
SHARED: dict[str, Any] = {
    "classes": (15, 12, 12, 0), "shift": (0, 0, 0, -0.3), "scale": (1, 1, 1, 1.25), "dim": 64,
    "layers": 3, "heads": 4, "kv_heads": 1, "positions": "rope", "end": "hazard", "condition": 1,
    "head_hidden": 64,
}  # fmt: skip


def batch(showers: Showers) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Points, offsets and condition of showers."""
    energy = torch.from_numpy(showers.energies).log()[:, None] - 1.5
    return torch.from_numpy(showers.points()), torch.from_numpy(showers.offsets), energy


class Training:
    """A model and its updates."""

    def __init__(self, kind: str, updates: int, seed: int, bounds: tuple[float, float]) -> None:
        torch.manual_seed(seed)
        lowest, highest = ((0.0, 0.0, 0.0, bound) for bound in bounds)
        own = {"lowest": lowest, "highest": highest} | KINDS[kind]
        self.model = Decoder(DecoderConfig(**{**SHARED, **own}))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), RATE, weight_decay=0.01)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, RATE, updates)
        self.seconds = 0.0

    def update(self, showers: Showers) -> None:
        start = time.process_time()
        loss = self.model.loss(*batch(showers))
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.seconds += time.process_time() - start


@torch.no_grad()
def nats(model: Decoder, showers: Showers) -> dict[str, Any]:
    """Per hit: of each stream, of the ends and in all, and its error over 20 blocks of showers."""
    per_stream, per_shower = [], []
    for first in range(0, len(showers), 100):
        losses, packed = model.row_losses(
            *batch(showers.part(first, min(first + 100, len(showers))))
        )
        per_stream.append(losses.double().sum(0))
        per_shower.append(
            torch.segment_reduce(losses.double().sum(1), "sum", offsets=packed.offsets)
        )
    streams = (torch.stack(per_stream).sum(0) / len(showers.hits)).tolist()
    blocks = torch.cat(per_shower).view(20, -1).sum(1).numpy()
    hits = showers.counts.reshape(20, -1).sum(1)
    error = np.std(blocks / hits, ddof=1) / 20**0.5
    names = ("z", "x", "y", "ln E", "end")
    return {**dict(zip(names, streams, strict=True)), "sum": sum(streams), "error": float(error)}


def judge(model: Decoder, truth: Showers, other: Showers, seed: int) -> dict[str, Any]:
    """Distances, linearity, and the spread of the number of hits with and without a draw."""
    condition = batch(truth)[2]
    found: dict[str, Any] = {}
    for name, above in (("draw", None), ("threshold", 0.047)):
        drawn = generate(
            model, torch.arange(len(truth)), condition=condition, seed=seed, max_points=MOST,
            slots=len(truth), end_above=above,
        )  # fmt: skip
        made = Showers.of_points(drawn.points, drawn.packed.offsets, truth.energies)
        expected = np.polynomial.Polynomial.fit(truth.energies, truth.counts, 2)(truth.energies)
        found[name] = {
            "w1": {d.name: (d.distance, d.floor) for d in distances(truth, other, made)},
            "width": float(np.std(made.counts - expected) / np.std(truth.counts - expected)),
            "cut": int(drawn.cut.sum()),
            **oddities(made),
        }
        low = truth.energies < np.median(truth.energies)
        response = observables(made)["response"] / observables(truth)["response"].mean()
        found[name]["response"] = [float(np.nanmean(response[part])) for part in (low, ~low)]
    return found


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--updates", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON of the results")
    options = parser.parse_args()
    calorimeter, seed = CALORIMETERS["small"], options.seed
    highest = simulate_showers(calorimeter, range(2000)).points()[:, 3].max()
    bounds = math.log(calorimeter.threshold), float(highest)
    runs = {kind: Training(kind, options.updates, seed, bounds) for kind in KINDS}
    for update in range(options.updates):
        first = (seed * options.updates + update) * BATCH
        showers = simulate_showers(calorimeter, range(first, first + BATCH))
        for run in runs.values():
            run.update(showers)
    truth = simulate_showers(calorimeter, range(FIRST_JUDGED, FIRST_JUDGED + JUDGED))
    other = same_energies(truth)
    results: dict[str, Any] = {}
    for kind, run in runs.items():
        number = sum(p.numel() for p in run.model.parameters())
        results[kind] = {"parameters": number, "seconds": run.seconds}
        results[kind]["nats"] = found = nats(run.model, truth)
        print(f"{kind}: {number:,} parameters, {run.seconds:.1f} CPU-s, nats a hit: ", end="")
        print(", ".join(f"{k} {v:.3f}" for k, v in found.items()), flush=True)
    for kind, run in runs.items():
        results[kind] |= judge(run.model, truth, other, seed)
        show(kind, results[kind])
    machine = describe(torch.get_num_threads(), time.process_time)
    write_results(options.out, {"command": command(), "machine": machine, **results})


def same_energies(truth: Showers) -> Showers:
    """Other showers of the same energies."""
    number = FIRST_JUDGED + JUDGED
    parts = [
        simulate_showers(CALORIMETERS["small"], range(number + i, number + i + 1), energy=float(e))
        for i, e in enumerate(truth.energies)
    ]
    offsets = np.cumsum([0, *(len(p.hits) for p in parts)], dtype=np.int64)
    return Showers(np.concatenate([p.hits for p in parts]), offsets, truth.energies)


def show(kind: str, found: dict[str, Any]) -> None:
    """Prints a model's results."""
    print(f"{kind}:")
    rows = [
        [name, f"{d:.4f}", f"{found['threshold']['w1'][name][0]:.4f}", f"{floor:.4f}"]
        for name, (d, floor) in found["draw"]["w1"].items()
    ]
    print(table([["W1", "drawn end", "threshold", "simulated"], *rows]))
    for name in ("draw", "threshold"):
        rest = {k: v for k, v in found[name].items() if k != "w1"}
        print(f"{name}: {rest}", flush=True)


if __name__ == "__main__":
    main()
