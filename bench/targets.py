"""What each target of masked particle modelling costs: training steps beside those of regression.

python -m bench.targets [--size micro] [--batch 64] [--repeats 7] [--data DIR] [--json FILE]

Losses and gradients of one batch, all targets in turn in one process and on one thread, in CPU
seconds, which a busy machine leaves nearly as they are: medians, and behind each (slowest -
fastest) / median. "ops" are the compiled ones, "eager" those of plain PyTorch. The scale is fitted
to the batch and codes are particles of it: costs do not depend on what codes are good for.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor

from bench.jets import described, load_jets
from bench.machine import command, describe, write_results
from jetkern import PET, Jets
from jetkern.machine import repeating
from jetkern.model.presets import SIZES, model_preset
from jetkern.objectives import Objective
from jetkern.objectives.targets import parse_targets, target_losses
from jetkern.tables import table
from jetkern.tokenizers import KINEMATICS, TRACKS, QuantileNormal, Tokenizer

CASES = {  # targets and codes
    "regression": ("regression", 0),
    "regression+identity": ("regression+identity:0.3", 0),
    "tokens, 512": ("tokens", 512),
    "tokens, 16384": ("tokens", 16384),
    "cfm": ("cfm", 0),
    "cnf": ("cnf", 0),
    "ssfm": ("ssfm", 0),
}
BACKENDS = {"ops": "auto", "eager": "reference"}
FEATURES = (*KINEMATICS[:3], *TRACKS)


def tokenizer_of(jets: Jets, codes: int) -> Tokenizer:
    """A scale of these jets, and codes near their particles."""
    blank = Tokenizer.blank(FEATURES, 0)
    values, known = blank.values(jets)
    columns = [v[k].numpy() for v, k in zip(values.T, known.T, strict=True)]
    scale = QuantileNormal.fit(columns)
    points = Tokenizer(FEATURES, scale, torch.zeros(0, len(FEATURES))).scaled(jets)[0]
    rows = torch.arange(codes) % len(points)
    noise = torch.randn(codes, len(FEATURES), generator=torch.Generator().manual_seed(0))
    return Tokenizer(FEATURES, scale, points[rows] + 0.1 * noise)


def learner(size: str, case: str, jets: Jets) -> Objective:
    """The objective of one case, in training mode."""
    text, codes = CASES[case]
    weights = parse_targets(text)
    torch.manual_seed(0)
    tokenizer = tokenizer_of(jets, codes)
    more = {"targets": tuple(weights), "target_features": FEATURES, "codes": codes}
    model = PET(model_preset(size, ["mpm"], **more))
    assert model.mpm is not None and model.mpm.tokenizer is not None  # noqa: PT018
    model.mpm.tokenizer.load_state_dict(tokenizer.state_dict())
    return Objective(model, losses=target_losses(model.config, weights)).train()


def step(objective: Objective, jets: Jets) -> tuple[Tensor, ...]:
    """Losses and gradients."""
    loss = objective(jets)["loss"]
    return torch.autograd.grad(loss, list(objective.parameters()), allow_unused=True)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--size", default="micro", choices=SIZES, help="of the body")
    add("--batch", type=int, default=64, help="jets of a step")
    add("--repeats", type=int, default=7)
    add("--data", default="", help="folder of HDF5 files; without it, drawn jets")
    add("--json", type=Path, help="also write the results here")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    jets = load_jets(settings.data, settings.batch)
    objectives = {case: learner(settings.size, case, jets) for case in CASES}
    samples: dict[tuple[str, str], list[float]] = {}
    with repeating():
        for repeat in range(settings.repeats + 1):
            for case, objective in objectives.items():
                for name, backend in BACKENDS.items():
                    os.environ["JETKERN_BACKEND"] = backend
                    start = time.process_time()
                    step(objective, jets)
                    if repeat:  # the first warms up
                        spent = time.process_time() - start
                        samples.setdefault((case, name), []).append(spent)
    median = {key: statistics.median(times) for key, times in samples.items()}
    rows: list[list[object]] = [["target", *(f"{n}, ms" for n in BACKENDS), "x regression"]]
    for case in CASES:
        cells = []
        for name in BACKENDS:
            times, middle = samples[case, name], median[case, name]
            cells.append(f"{1e3 * middle:.0f} ({(max(times) - min(times)) / middle:.0%})")
        rows.append([case, *cells, f"{median[case, 'ops'] / median['regression', 'ops']:.2f}"])
    print(f"{settings.size}, {described(jets, settings.data)}, CPU time of one thread\n")
    print(table(rows, "lrrr", markdown=True))
    document = {"command": command(), "machine": describe(1, time.process_time)}
    document["seconds"] = {f"{case}, {name}": times for (case, name), times in samples.items()}
    write_results(settings.json, document)


if __name__ == "__main__":
    main()
