"""Showers by parallel streams, SPADE's delays, a chain, cells, and tokens, at equal updates.

python studies/showers.py --out runs/showers [--updates 1500] [--seeds 0 1 2] [--kinds delay chain]

Decoders that differ in what a row predicts see the same simulated showers
(jetkern.simulate.showers, small), 24 for each update: width 64, 3 blocks, one head of keys and
values for 4 of queries, rope, heads with a hidden layer of 64, a hazard for the end where hits are
no tokens, energies of hits between the threshold and the highest of 2,000 showers, conditioned on
the photon's energy; AdamW, one cycle to 3e-3. Tokens are the codes of a VQ-VAE, fitted with as many
updates of 64 of the 2,000 showers. Judged are nats a hit on 400 other showers, and W1 of 400
generated ones of their energies beside that of 400 more simulated ones of the same energies. Means
and standard deviations over seeds; time is CPU time of the decoder's updates. It continues where it
was stopped, by whole trainings.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jetkern.clouds import Clouds
from jetkern.io import made_once, write_atomically
from jetkern.metrics.showers import distances, observables, oddities
from jetkern.model.shower_decoder import ShowerDecoder, ShowerDecoderConfig, apart, joined
from jetkern.model.vqvae import Shape, VQTokenizer
from jetkern.sampling import generate
from jetkern.showers import Showers
from jetkern.simulate.showers import CALORIMETERS, simulate_showers
from jetkern.tables import mean_and_spread, table
from jetkern.tokenizers import HITS, QuantileNormal, Tokenizer
from jetkern.training.distributed import join_world
from jetkern.training.vqvae import VQFit

CALORIMETER = CALORIMETERS["small"]
CELLS, ENERGIES = (15, 12, 12), (1.0, 10.0)
TOKENS, CODES, SHAPE = "tokens", 2048, Shape(64, 2, 4, 12)
KINDS: dict[str, dict[str, Any]] = {
    "parallel": {"classes": apart(CELLS), "delays": (0, 0, 0, 0)},
    "delay": {"classes": apart(CELLS), "delays": (0, 1, 2, 3)},
    "chain": {"classes": apart(CELLS), "delays": (0, 0, 0, 0), "joint": "chain"},
    "combined": {"classes": joined(CELLS), "delays": (0, 1)},
    TOKENS: {"classes": (CODES,), "end": "token", "vqvae": tuple(SHAPE)},
}
BATCH, RATE, JUDGED, MOST, POOL, OF_POOL = 24, 3e-3, 400, 200, 2000, 64
FIRST_JUDGED = 10_000_000  # number of the first shower that no model learns from
SHARED: dict[str, Any] = {
    "dim": 64, "layers": 3, "heads": 4, "kv_heads": 1, "positions": "rope", "end": "hazard",
    "condition": 1, "head_hidden": 64, "cells": CELLS, "energies": ENERGIES, "longest": MOST,
}  # fmt: skip
THRESHOLD = 0.047  # of the probability of an end, above which SPADE ends a shower


def clouds(showers: Showers) -> Clouds:
    """The same as models read them."""
    return Clouds(
        points=torch.from_numpy(showers.hits),
        offsets=torch.from_numpy(showers.offsets),
        condition=torch.from_numpy(showers.energies)[:, None],
    )


def config(kind: str) -> ShowerDecoderConfig:
    """Of one of ``KINDS``."""
    told = {**SHARED, **KINDS[kind]}
    if kind != TOKENS:
        highest = float(simulate_showers(CALORIMETER, range(POOL)).hits[:, 3].max())
        cells = (0.0,) * (len(told["classes"]) - 1)
        bounds = (math.log(CALORIMETER.threshold), math.log(highest))
        told |= {"shift": (*cells, -0.3), "scale": (*(1.0 for _ in cells), 1.25)}
        told |= {n: (*cells, b) for n, b in zip(("lowest", "highest"), bounds, strict=True)}
    return ShowerDecoderConfig(**told)


def hit_tokenizer(updates: int, seed: int) -> Tokenizer:
    """A VQ-VAE of hits."""
    pool = clouds(simulate_showers(CALORIMETER, range(POOL)))
    torch.manual_seed(seed)
    found = VQTokenizer.blank(HITS, 0, SHAPE)
    found.scale = QuantileNormal.fit([column.numpy() for column in found.values(pool)[0].T])
    order = torch.Generator().manual_seed(seed)
    with join_world("cpu") as world:
        fit = VQFit(found, pool, CODES, seed, steps=updates, world=world)
        for _ in range(updates):
            fit.update(pool.select(torch.randperm(POOL, generator=order)[:OF_POOL]))
    return found


def trained(kind: str, updates: int, seed: int) -> tuple[ShowerDecoder, float]:
    """A decoder, and the CPU seconds of its updates."""
    torch.manual_seed(seed)
    model = ShowerDecoder(config(kind))
    if kind == TOKENS:
        model.keep_tokenizer(hit_tokenizer(updates, seed))
    optimizer = torch.optim.AdamW(model.body.parameters(), RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, updates)
    seconds = 0.0
    for update in range(updates):
        first = (seed * updates + update) * BATCH
        showers = clouds(simulate_showers(CALORIMETER, range(first, first + BATCH)))
        start = time.process_time()
        loss = model(showers).sum() / showers.total
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.body.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        seconds += time.process_time() - start
        if (update + 1) % 100 == 0:
            print(f"{kind}, seed {seed}: {update + 1} of {updates}, {float(loss):.3f}", flush=True)
    return model, seconds


@torch.no_grad()
def nats(model: ShowerDecoder, showers: Showers) -> dict[str, float]:
    """Per hit: in all, and of each stream."""
    parts = [showers.part(i, min(i + 100, len(showers))) for i in range(0, len(showers), 100)]
    each = [model.row_losses(clouds(part))[0].double().sum(0) for part in parts]
    streams = torch.stack(each).sum(0) / len(showers.hits)
    names = [f"nats of {name}" for name in model.config.streams]
    return {"nats a hit": float(streams.sum()), **dict(zip(names, streams.tolist(), strict=False))}


def drawn(
    model: ShowerDecoder, truth: Showers, seed: int, end_above: float | None = None
) -> Showers:
    """Showers of the same energies."""
    found = generate(
        model.body, torch.arange(len(truth)), seed=seed, max_points=MOST, slots=len(truth),
        condition=model.condition(torch.from_numpy(truth.energies)), end_above=end_above,
    )  # fmt: skip
    hits = model.hits(found.points, found.packed).numpy()
    return Showers(hits, found.packed.offsets.numpy(), truth.energies)


def spread(made: Showers, truth: Showers) -> float:
    """Of the number of hits about its mean at an energy, over that of simulated ones."""
    expected = np.polynomial.Polynomial.fit(truth.energies, truth.counts, 2)(truth.energies)
    return float(np.std(made.counts - expected) / np.std(truth.counts - expected))


def judged(kind: str, updates: int, seed: int) -> dict[str, float]:
    """What there is to know of a kind of decoder and a seed."""
    truth = simulate_showers(CALORIMETER, range(FIRST_JUDGED, FIRST_JUDGED + JUDGED))
    model, seconds = trained(kind, updates, seed)
    own = sum(p.numel() for p in model.body.parameters())
    found = {"parameters": own, "CPU seconds": seconds, **nats(model, truth)}
    made = drawn(model, truth, seed)
    low = truth.energies < np.median(truth.energies)
    response = observables(made)["response"] / observables(truth)["response"].mean()
    found |= {f"W1 of {d.name}": d.distance for d in distances(truth, same_energies(truth), made)}
    found |= {
        "hits in a taken cell, %": 100 * oddities(made)["taken"],
        "response, lower energies": float(np.nanmean(response[low])),
        "response, higher energies": float(np.nanmean(response[~low])),
        "spread of hits, end drawn": spread(made, truth),
    }
    if model.body.end is not None:
        name = f"spread of hits, end at {100 * THRESHOLD:.1f} %"
        found[name] = spread(drawn(model, truth, seed, THRESHOLD), truth)
    return found


def same_energies(truth: Showers) -> Showers:
    """Other simulated showers of the same energies."""
    number = FIRST_JUDGED + JUDGED
    parts = [
        simulate_showers(CALORIMETER, range(number + i, number + i + 1), energy=float(energy))
        for i, energy in enumerate(truth.energies)
    ]
    offsets = np.cumsum([0, *(len(p.hits) for p in parts)], dtype=np.int64)
    return Showers(np.concatenate([p.hits for p in parts]), offsets, truth.energies)


def floor() -> dict[str, float]:
    """Of simulated showers from others."""
    truth = simulate_showers(CALORIMETER, range(FIRST_JUDGED, FIRST_JUDGED + JUDGED))
    other = same_energies(truth)
    found = {f"W1 of {d.name}": d.floor for d in distances(truth, other, other)}
    return found | {"hits in a taken cell, %": 0.0, "spread of hits, end drawn": 1.0}


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, required=True)
    add("--updates", type=int, default=1500)
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    columns: dict[str, list[dict[str, float]]] = {kind: [] for kind in options.kinds}
    for seed in options.seeds:
        for kind in options.kinds:
            file = options.out / f"{kind}-{options.updates}-{seed}.json"
            columns[kind].append(
                made_once(file, lambda kind=kind, seed=seed: judged(kind, options.updates, seed))
            )
    columns["floor"] = [made_once(options.out / "floor.json", floor)]
    names = dict.fromkeys(name for found in columns.values() for name in found[0])
    rows: list[list[object]] = [["", *columns]]
    rows += [
        [name, *(mean_and_spread([f[name] for f in c if name in f]) for c in columns.values())]
        for name in names
    ]
    text = table(rows, "lr", markdown=True)
    write_atomically(options.out / "table.md", f"{text}\n".encode())
    print(text)


if __name__ == "__main__":
    main()
