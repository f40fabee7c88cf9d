"""Jets/s and W1 against the number of network evaluations, beside torchdiffeq on the eager peer.

python -m bench.sampling RUN --data SHARDS [--peer DIR] [--out FILE]

RUN is a run with a generator, SHARDS real jets of its types. All contenders integrate the same
noise. The fine reference is our midpoint rule on the peer's grid of 128 nodes, 254 evaluations; the
peer, torchdiffeq's midpoint with omnilearned 0.2.0 and the same weights, makes the first jets only,
and "peer deviation" is the largest difference of its jets from ours on that grid. "deviation" is
the root mean square distance of a contender's particles from the reference's, in units of the
features' widths; W1 is from the real jets, with the error of five resamplings.

omnilearned is taken from DIR: pip install --no-deps --target DIR omnilearned==0.2.0 einops
torchdiffeq.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.machine import describe
from jetkern import Jets
from jetkern.data import Shards
from jetkern.evaluation.generate import first_jets, load_generator
from jetkern.interop.omnilearned import rename
from jetkern.io import write_atomically
from jetkern.jets import unpack
from jetkern.metrics.generation import bootstrap_wasserstein
from jetkern.metrics.substructure import observables
from jetkern.model.pet import PET
from jetkern.sampling import (
    PETVelocity,
    Scheme,
    fit,
    noise_jets,
    sample,
    trajectory,
    with_evaluations,
)

NODES = 128
CONTENDERS = ("euler", "midpoint", "heun", "rk4", "ab2", "fitted")
EVALUATIONS = (1, 2, 4, 8, 12, 16, 24)
OBSERVABLES = ("particle ln pT", "particle delta eta", "mass", "tau21")


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run", type=Path, help="run or checkpoint with a generator")
    add("--data", type=Path, required=True, help="shards of real jets")
    add("--jets", type=int, default=500, help="jets to make (default %(default)s)")
    add("--fit-jets", type=int, default=150, help="jets that schemes are fitted to")
    add("--peer", default="", help="folder that omnilearned is installed in")
    add("--peer-jets", type=int, default=32, help="jets that the peer makes")
    add("--threads", type=int, default=None, help="CPU threads of torch")
    add("--out", type=Path, help="file for the results (JSON)")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    result = measure(options)
    print(table(result))
    if options.out:
        write_atomically(options.out, json.dumps(result, indent=1).encode())


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one run."""
    model, weights = load_generator(options.run)
    velocity = PETVelocity(model)
    everything = first_jets(Shards(options.data), options.jets + options.fit_jets)
    real = everything.select(slice(0, options.jets))
    some = everything.select(slice(options.jets, None))
    start = noise_jets(real.counts, seed=1, label=real.label, condition=real.condition)
    begin = time.perf_counter()
    reference = trajectory(
        velocity, noise_jets(some.counts, seed=2, label=some.label, condition=some.condition)
    )
    seconds = {"reference of the fit": time.perf_counter() - begin}
    truth = observables(real)
    fine_rate, fine = timed(velocity, start, with_evaluations("midpoint", 2 * (NODES - 1)))
    width = fine.particles.std(0)
    rows = [row("midpoint", 2 * (NODES - 1), fine_rate, fine, fine, width, truth)]
    for solver in CONTENDERS:
        for evaluations in EVALUATIONS:
            try:
                if solver == "fitted":
                    scheme = fit(velocity, reference, evaluations)
                else:
                    scheme = with_evaluations(solver, evaluations)
            except ValueError:
                continue  # no whole number of steps
            rate, made = timed(velocity, start, scheme)
            rows.append(row(solver, evaluations, rate, made, fine, width, truth))
    peer: dict[str, Any] = {"skipped": "no --peer"}
    if options.peer:
        sys.path.insert(0, options.peer)
        first = slice(0, options.peer_jets)
        peer = run_peer(model, start.select(first), fine.select(first))
    return {
        "machine": describe(torch.get_num_threads()),
        "weights": weights.sha256,
        "threads": torch.get_num_threads(),
        "jets": options.jets,
        "floor": {n: w1(truth, observables(some))[n] for n in OBSERVABLES},
        "seconds": seconds,
        "rows": rows,
        "peer": peer,
    }


def timed(velocity: PETVelocity, start: Jets, scheme: Scheme) -> tuple[float, Jets]:
    """Jets/s, of a second sampling for short ones, and the jets."""
    sample(velocity, start.select(slice(0, 64)), with_evaluations("euler", 1))
    begin = time.perf_counter()
    made = sample(velocity, start, scheme, batch_size=256)
    return len(start) / (time.perf_counter() - begin), made


def row(
    solver: str, evaluations: int, rate: float, made: Jets, fine: Jets, width: Tensor, truth: Any
) -> dict[str, Any]:
    """One line of the table."""
    deviation = ((made.particles - fine.particles) / width).square().mean().sqrt()
    return {
        "solver": solver,
        "evaluations": evaluations,
        "jets_per_s": rate,
        "deviation": float(deviation),
        "w1": w1(truth, observables(made)),
    }


def w1(truth: Any, made: Any) -> dict[str, list[float]]:
    """W1 and its error for each of ``OBSERVABLES``."""
    found = {}
    for name in OBSERVABLES:
        size = min(len(truth[name]), len(made[name]))
        estimate = bootstrap_wasserstein(truth[name], made[name], size=size)
        found[name] = [estimate.value, estimate.error]
    return found


def run_peer(model: PET, start: Jets, fine: Jets) -> dict[str, Any]:
    """torchdiffeq's midpoint on omnilearned's network with our weights, padded jets."""
    sys.modules.setdefault("requests", types.ModuleType("requests"))  # its downloads need it only
    from omnilearned.diffusion import network_wrapper
    from omnilearned.network import PET2
    from torchdiffeq import odeint

    config = model.config
    network = PET2(
        4,
        pid=False,
        add_info=False,
        mode="generator",
        conditional=config.condition_dim > 0,
        cond_dim=config.condition_dim or 3,
        num_classes=config.num_classes,
        base_dim=config.dim,
        num_transformers=config.layers,
        num_transformers_head=config.head_layers,
        num_heads=config.heads,
        K=config.neighbours,
        num_coord=2,
    ).eval()
    ours = model.state_dict()
    theirs = network.state_dict()
    network.load_state_dict({n: ours[rename(n)].view_as(t) for n, t in theirs.items()})
    noise, mask = unpack(start.particles, start.offsets)
    present = mask[..., None].float()
    condition = start.condition
    if condition is not None and config.condition_scale is not None:
        condition = condition / torch.tensor(config.condition_scale)
    if not config.condition_dim:
        condition = None

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        times = t * torch.ones(len(x))
        return network_wrapper(network, x * present, condition, None, None, start.label, times)

    begin = time.perf_counter()
    with torch.no_grad():
        made = odeint(velocity, noise, torch.linspace(1, 0, NODES), method="midpoint")[-1]
    seconds = time.perf_counter() - begin
    difference = (made[mask] - fine.particles).abs()
    return {
        "jets": len(start),
        "jets_per_s": len(start) / seconds,
        "deviation": float(difference.max()),
        "typical deviation": float(difference.median()),
    }


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    head = ["solver", "evaluations", "jets/s", "ratio", "deviation", *OBSERVABLES]
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    peer = result["peer"]
    rate = peer.get("jets_per_s")
    for entry in result["rows"]:
        ratio = f"{entry['jets_per_s'] / rate:.0f}x" if rate else "-"
        w1s = [f"{v:.4f} ± {e:.4f}" for v, e in entry["w1"].values()]
        cells = [f"{entry['jets_per_s']:.1f}", ratio, f"{entry['deviation']:.5f}", *w1s]
        lines.append(f"| {entry['solver']} | {entry['evaluations']} | {' | '.join(cells)} |")
    floor = [f"{v:.4f} ± {e:.4f}" for v, e in result["floor"].values()]
    lines += [f"| real jets | | | | | {' | '.join(floor)} |", ""]
    if rate:
        lines.append(
            f"omnilearned 0.2.0, torchdiffeq midpoint, {NODES} nodes: {rate:.3f} jets/s; its "
            f"{peer['jets']} jets differ from ours by at most {peer['deviation']:.2g}, typically "
            f"{peer['typical deviation']:.2g}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
