"""Time of Particle Transformer on our packed ops, beside weaver's own code on padded jets.

    python -m bench.particle_transformer --peer DIR [--threads 1 2] [--versions 1 3]

The model is examples/particle_transformer.py and weaver-core's ``ParticleTransformer`` in its usual
size (8 layers and 2 class layers of width 128, pairs through 64-64-64-8), with the same weights, in
float32 without dropout. weaver gets its jets trimmed to the longest and padded to 128. Before the
clock starts the outputs are compared. "inference" is a forward pass, "train" forward and backward
with batch norms in training, "frozen norms" with their running statistics, as in fine-tuning; "pair
embedding" is that part alone, in inference. The contenders take turns; times are medians, behind
each (slowest - fastest) / median. On one thread CPU seconds count.

weaver is taken from DIR: pip install --no-deps --target DIR weaver-core==0.5.3
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.jets import described, load_jets
from bench.machine import command, describe, write_results
from examples.particle_transformer import ParticleTransformer
from jetkern.jets import Jets, unpack
from jetkern.tables import table

LENGTH, INPUTS, CLASSES, PION = 128, 17, 10, 0.13957
MEASURES = ("inference", "train", "frozen norms", "pair embedding")
OFF = {"dropout": 0, "attn_dropout": 0, "activation_dropout": 0, "drop_path_rate": 0.0}


def inputs(jets: Jets) -> tuple[Tensor, Tensor]:
    """Features (T, 17), noise, and four-momenta (T, 4) of pions, in GeV."""
    eta, phi, ln_pt, _ = jets.particles.double().unbind(1)
    pt = ln_pt.exp()
    energy = (pt**2 * eta.cosh() ** 2 + PION**2).sqrt()
    v = torch.stack([pt * phi.cos(), pt * phi.sin(), pt * eta.sinh(), energy], 1).float()
    x = torch.randn(len(v), INPUTS, generator=torch.Generator().manual_seed(0))
    return x, v


def padded(jets: Jets, x: Tensor, v: Tensor, length: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """As weaver takes them: particles last; x (B, 17, N), v (B, 4, N), mask (B, 1, N)."""
    rows, mask = unpack(x, jets.offsets, length)
    momenta, _ = unpack(v, jets.offsets, length)
    return rows.mT.contiguous(), momenta.mT.contiguous(), mask[:, None]


def runs(model: Any, arguments: Any, pair: Callable[[], Any]) -> dict[str, Callable[[], Any]]:
    """What is timed of a contender; each sets the mode that it needs."""
    weights = list(model.parameters())

    def step(training: bool) -> None:
        model.train(training)
        loss = model(*arguments).square().sum()
        torch.autograd.grad(loss, weights)

    @torch.no_grad()
    def forward() -> Tensor:
        return model.eval()(*arguments)

    @torch.no_grad()
    def pairs() -> Any:
        model.eval()
        return pair()

    return {
        "inference": forward,
        "train": lambda: step(True),
        "frozen norms": lambda: step(False),
        "pair embedding": pairs,
    }


def contenders(version: float, jets: Jets) -> dict[str, dict[str, Callable[[], Any]]]:
    """Ours first. Raises ImportError without weaver."""
    from weaver.nn.model.ParticleTransformer import ParticleTransformer as Weaver

    torch.manual_seed(0)
    ours = ParticleTransformer(INPUTS, CLASSES, version)
    weaver = Weaver(
        INPUTS,
        CLASSES,
        version=version,
        trim=False,
        block_params=OFF,
        cls_block_params=OFF,
    )
    weaver.load_state_dict(ours.state_dict())
    x, v = inputs(jets)
    made = {"jetkern": runs(ours, (x, v, jets.packed), lambda: ours.pair_bias(v, jets.packed))}
    for name, length in (("weaver, trimmed", None), (f"weaver, padded to {LENGTH}", LENGTH)):
        arguments = padded(jets, x, v, length)
        _, momenta, mask = arguments
        embed = partial(weaver.pair_embed, momenta, mask=mask)
        made[name] = runs(weaver, arguments, embed)
    outputs = [run["inference"]() for run in made.values()]
    for other in outputs[1:]:
        error = (other - outputs[0]).abs().max() / outputs[0].abs().max()
        if not error < 1e-3:
            raise SystemExit(f"bench.particle_transformer: outputs differ by {error:.2g}")
    return made


def measure(
    made: dict[str, dict[str, Callable[[], Any]]], repeats: int, clock: Callable[[], float]
) -> dict[str, dict[str, list[float]]]:
    """Median seconds and spread, by contender and measure."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in made}
    for kind in MEASURES:
        samples: dict[str, list[float]] = {name: [] for name in made}
        for repeat in range(repeats + 1):
            for name, run in made.items():
                start = clock()
                run[kind]()
                if repeat:  # the first warms up
                    samples[name].append(clock() - start)
        for name, times in samples.items():
            middle = statistics.median(times)
            found[name][kind] = [middle, (max(times) - min(times)) / middle]
    return found


def rows_of(result: dict[str, Any]) -> list[list[str]]:
    """One line for each contender: milliseconds, and how many times longer than ours."""
    ours = result["seconds"]["jetkern"]
    lines = []
    for name, own in result["seconds"].items():
        cells = [str(result["version"]), str(result["threads"]), name]
        for kind in MEASURES:
            middle, spread = own[kind]
            ratio = f", {middle / ours[kind][0]:.1f}x" if name != "jetkern" else ""
            cells.append(f"{middle * 1e3:.3g} ms ({spread:.0%}){ratio}")
        lines.append(cells)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.particle_transformer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--peer", required=True, help="folder that weaver-core is installed in")
    parser.add_argument("--versions", nargs="+", type=float, default=[1, 3])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--batch", type=int, default=64, help="jets")
    parser.add_argument("--data", default="", help="folder of HDF5 files; without it, drawn jets")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the results here")
    settings = parser.parse_args()
    sys.path.append(settings.peer)
    jets = load_jets(settings.data, settings.batch)
    machine = describe(max(settings.threads))
    found = metadata.distributions(name="weaver-core", path=[settings.peer])
    machine["weaver-core"] = next((d.version for d in found), "unknown")
    machine["jets"] = described(jets, settings.data)
    print("\n".join(f"{key:14} {value}" for key, value in machine.items()), flush=True)
    results = []
    for version in settings.versions:
        try:
            made = contenders(version, jets)
        except ImportError as error:
            sys.exit(f"bench.particle_transformer: {error}: see --help for --peer")
        for threads in settings.threads:
            torch.set_num_threads(threads)
            clock = time.process_time if threads == 1 else time.perf_counter
            seconds = measure(made, settings.repeats, clock)
            results.append({"version": version, "threads": threads, "seconds": seconds})
            heading = ["version", "threads", "", *MEASURES]
            print(table([heading, *rows_of(results[-1])], "rrlr", markdown=True), flush=True)
    write_results(settings.json, {"machine": machine, "command": command(), "results": results})


if __name__ == "__main__":
    main()
