"""Jets/s and W1 against the number of network evaluations, beside torchdiffeq on the eager peer.

python -m bench.sampling RUN --data SHARDS [--distilled RUN] [--peer DIR] [--out FILE]

RUN is a run with a generator, SHARDS real jets of its types. All contenders integrate the same
noise. The reference is our midpoint rule on the peer's grid of 128 nodes, 254 evaluations. W1 is
from the real jets, all types together, with the error of five resamplings; "real jets" is that of
as many other real jets. A row has the reference's W1 if no distance of ``OBSERVABLES`` exceeds the
reference's by more than both errors together. "deviation" is the root mean square distance of
the particles from the reference's, in units of the features' widths; a distilled model is free to
deviate.

The peer is omnilearned 0.2.0 with the same weights, by torchdiffeq's midpoint on the same grid. It
makes the first jets only, which shows that it makes the same ones ("peer deviation"). Before and
after each row it does a few of its evaluations, all alike: "ratio" is the row's jets/s over those
of 254 such evaluations. With one thread rates are in CPU seconds, which a busy machine leaves
nearly as they are.

omnilearned is taken from DIR: pip install --no-deps --target DIR omnilearned==0.2.0 einops
torchdiffeq.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from torch import Tensor
from tqdm import tqdm

from bench.machine import command, describe, write_results
from bench.peers import omnilearned
from jetkern import Jets
from jetkern.data import Shards
from jetkern.evaluation.generate import first_jets, load_generator
from jetkern.jets import unpack
from jetkern.metrics.generation import Sample, bootstrap_wasserstein
from jetkern.metrics.substructure import observables
from jetkern.model.pet import PET
from jetkern.plots import STYLE, label_curves, save, sheet
from jetkern.sampling import (
    FLOW_MAP,
    PETVelocity,
    Scheme,
    Trajectory,
    fit,
    noise_jets,
    sample,
    scheme,
    trajectory,
    with_evaluations,
)
from jetkern.sampling.fitting import best_grid
from jetkern.tables import table

NODES = 128
CONTENDERS = ("fitted", "ab2", "ab2, chosen grid", "midpoint", "heun", "rk4", "euler")
EVALUATIONS = (1, 2, 4, 8, 12, 24)
OBSERVABLES = ("particle ln pT", "particle delta eta", "mass", "pT", "tau21", "tau32", "D2")
DRAWN = ("particle ln pT", "mass", "pT", "tau21")
UNITS = {"mass": " (GeV)", "pT": " (GeV)"}
BATCH = 250
PEER_EVALUATIONS = 8  # between rows

Velocities = Callable[[Tensor, Tensor], Tensor]


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run", type=Path, help="run or checkpoint with a generator")
    add("--data", type=Path, required=True, help="shards of real jets")
    add("--distilled", type=Path, help="run of finetune distill from RUN")
    add("--jets", type=int, default=1000, help="jets to make (default %(default)s)")
    add("--fit-jets", type=int, default=150, help="jets that schemes are fitted to")
    add("--peer", default="", help="folder that omnilearned is installed in")
    add("--peer-jets", type=int, default=16, help="jets that the peer makes")
    add("--threads", type=int, default=1, help="CPU threads of torch (default %(default)s)")
    add("--out", type=Path, help="file for the results (JSON)")
    add("--figure", type=Path, help="file for the figure")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = measure(options)
    print(shown(result))
    write_results(options.out, result)
    if options.figure:
        draw(result, options.figure)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one run."""
    model, weights = load_generator(options.run)
    everything = first_jets(Shards(options.data), 2 * options.jets + options.fit_jets)
    number = options.jets
    real = everything.select(slice(0, number))
    other = everything.select(slice(number, 2 * number))
    some = everything.select(slice(2 * number, None))
    start = noise_jets(real.counts, seed=1, label=real.label, condition=real.condition)
    truth = observables(real)
    peer = Peer(model, start, options) if options.peer else None
    sample(PETVelocity(model), start.select(slice(0, 64)), with_evaluations("euler", 1))
    before = clock()
    reference = trajectory(
        PETVelocity(model),
        noise_jets(some.counts, seed=2, label=some.label, condition=some.condition),
    )
    seconds = clock() - before
    made: Jets | None = None
    rows: list[dict[str, Any]] = []
    for velocity, scheme_ in tqdm(list(contenders(model, reference, options.distilled))):
        rates = [] if peer is None else [peer.rate()]
        before = clock()
        now = sample(velocity, start, scheme_, batch_size=BATCH)
        rate = len(start) / (clock() - before)
        if peer is not None:
            rates.append(peer.rate())
        made = now if made is None else made
        width = made.particles.std(0)
        deviation = ((now.particles - made.particles) / width).square().mean().sqrt()
        row = {
            "solver": scheme_.name,
            "evaluations": scheme_.evaluations,
            "jets_per_s": rate,
            "ratio": rate * len(rates) / sum(rates) if rates else None,
            "deviation": float(deviation),
            "w1": w1(truth, observables(now)),
        }
        rows.append({**row, "same_w1": same(row, rows[0] if rows else row)})
    assert made is not None
    return {
        "machine": describe(torch.get_num_threads(), clock),
        "command": command(),
        "weights": weights.sha256,
        "distilled": None
        if options.distilled is None
        else load_generator(options.distilled)[1].sha256,
        "jets": options.jets,
        "floor": w1(truth, observables(other)),
        "seconds of the reference of the fit": seconds,
        "rows": rows,
        "peer": {"skipped": "no --peer"} if peer is None else peer.compare(made),
    }


def clock() -> float:
    """CPU seconds of one thread, or the wall's of several."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def contenders(
    model: PET, reference: Trajectory, distilled: Path | None
) -> Iterator[tuple[PETVelocity, Scheme]]:
    """Velocities and schemes; the reference first."""
    velocity = PETVelocity(model)
    yield velocity, with_evaluations("midpoint", 2 * (NODES - 1))
    if distilled is not None:
        few, _ = load_generator(distilled)
        for evaluations in few.config.few_steps:
            yield PETVelocity(few), with_evaluations(FLOW_MAP, evaluations)
    for solver in CONTENDERS:
        for evaluations in EVALUATIONS:
            try:
                if solver == "fitted":
                    made = fit(velocity, reference, evaluations)
                elif solver.startswith("ab2,"):
                    made = scheme("ab2", best_grid(reference, evaluations))
                else:
                    made = with_evaluations(solver, evaluations)
            except ValueError:
                continue  # no whole number of steps
            yield velocity, replace(made, name=solver)


def same(row: dict[str, Any], reference: dict[str, Any]) -> bool:
    """Whether no distance is larger than the reference's by more than both errors."""
    pairs = zip(row["w1"].values(), reference["w1"].values(), strict=True)
    return all(v - r <= math.hypot(e, f) for (v, e), (r, f) in pairs)


def w1(truth: dict[str, Sample], made: dict[str, Sample]) -> dict[str, list[float]]:
    """W1 and its error for each of ``OBSERVABLES``."""
    found = {}
    for name in OBSERVABLES:
        size = min(len(truth[name]), len(made[name]))
        estimate = bootstrap_wasserstein(truth[name], made[name], size=size)
        found[name] = [estimate.value, estimate.error]
    return found


class Peer:
    """torchdiffeq's midpoint on omnilearned's network with our weights, padded jets."""

    def __init__(self, model: PET, start: Jets, options: argparse.Namespace) -> None:
        sys.path.insert(0, options.peer)
        self.start = start.select(slice(0, options.peer_jets))
        self.noise, self.mask = unpack(self.start.particles, self.start.offsets)
        self.velocity = peer_velocity(model, self.start, self.mask)
        self.velocity(torch.ones(()), self.noise)

    def rate(self) -> float:
        """Jets/s that some evaluations on its jets let expect of all of them."""
        before = clock()
        for _ in range(PEER_EVALUATIONS):
            self.velocity(torch.ones(()), self.noise)
        seconds = (clock() - before) * 2 * (NODES - 1) / PEER_EVALUATIONS
        return len(self.start) / seconds

    def compare(self, ours: Jets) -> dict[str, Any]:
        """Its jets, made as it does, beside ours."""
        from torchdiffeq import odeint

        grid = torch.linspace(1, 0, NODES)
        before = clock()
        with torch.no_grad():
            made = odeint(self.velocity, self.noise, grid, method="midpoint")[-1]
        seconds = clock() - before
        first = ours.select(slice(0, len(self.start)))
        difference = (made[self.mask] - first.particles).abs()
        return {
            "jets": len(first),
            "jets_per_s": len(first) / seconds,
            "deviation": float(difference.max()),
            "typical deviation": float(difference.median()),
        }


def peer_velocity(model: PET, start: Jets, mask: Tensor) -> Velocities:
    """The velocity of omnilearned's network for padded jets at a time."""
    config = model.config
    network = omnilearned(model).eval()
    from omnilearned.diffusion import network_wrapper

    present = mask[..., None].float()
    condition = start.condition
    if condition is not None and config.condition_scale is not None:
        condition = condition / torch.tensor(config.condition_scale)
    if not config.condition_dim:
        condition = None

    @torch.no_grad()
    def velocity(t: Tensor, x: Tensor) -> Tensor:
        times = t * torch.ones(len(x))
        return network_wrapper(network, x * present, condition, None, None, start.label, times)

    return velocity


def shown(result: dict[str, Any]) -> str:
    """The table, to paste, and what the peer did."""
    head = ["solver", "evaluations", "jets/s", "ratio", "same W1", "deviation", *OBSERVABLES]
    rows = [head]
    for row in result["rows"]:
        ratio = f"{row['ratio']:.0f}x" if row["ratio"] else "-"
        cells = [row["solver"], str(row["evaluations"]), f"{row['jets_per_s']:.1f}", ratio]
        cells += ["yes" if row["same_w1"] else "no", f"{row['deviation']:.5f}"]
        rows.append([*cells, *(f"{v:.4f} ± {e:.4f}" for v, e in row["w1"].values())])
    floor = [f"{v:.4f} ± {e:.4f}" for v, e in result["floor"].values()]
    rows.append(["real jets", *[""] * 5, *floor])
    lines, peer = [table(rows, markdown=True)], result["peer"]
    if "jets_per_s" in peer:
        lines.append(
            f"omnilearned 0.2.0, torchdiffeq midpoint, {NODES} nodes: {peer['jets_per_s']:.3f} "
            f"jets/s; its {peer['jets']} jets differ from ours by at most "
            f"{peer['deviation']:.2g}, typically {peer['typical deviation']:.2g}"
        )
    return "\n\n".join(lines)


def draw(result: dict[str, Any], path: Path) -> None:
    """W1 over the number of evaluations: a panel for each observable, a line for each solver."""
    with matplotlib.rc_context(STYLE):
        reference = result["rows"][0]
        title = f"grey: {reference['evaluations']} evaluations of {reference['solver']}"
        figure = sheet(len(DRAWN), 2, title=title, height=1.25)
        for axes, name in zip(figure.axes, DRAWN, strict=True):
            _panel(axes, result, name)
        save(figure, path)


def _panel(axes: Axes, result: dict[str, Any], name: str) -> None:
    reference, *rows = result["rows"]
    solvers = dict.fromkeys(row["solver"] for row in rows)
    ends = []
    for number, solver in enumerate(solvers):
        points = [(r["evaluations"], *r["w1"][name]) for r in rows if r["solver"] == solver]
        x, y, error = zip(*points, strict=True)
        axes.errorbar(x, y, error, color=f"C{number}", marker="o", ms=3, lw=1.2)
        ends.append((solver, x[-1], y[-1], f"C{number}"))
    value, error = reference["w1"][name]
    axes.axhspan(value - error, value + error, color="0.5", alpha=0.25, lw=0)
    floor = result["floor"][name][0]
    axes.axhline(floor, color="0.4", ls=":", lw=1)
    axes.text(1, floor, " real jets", color="0.4", va="bottom", fontsize=8)
    axes.set(xscale="log", yscale="log", title=f"W1 of {name}{UNITS.get(name, '')}")
    axes.set_xticks(EVALUATIONS, map(str, EVALUATIONS))
    axes.minorticks_off()
    axes.set_xlabel("evaluations of the network")
    label_curves(axes, ends, column=1.02)


if __name__ == "__main__":
    main()
