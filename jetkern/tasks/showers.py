"""Showers of a decoder: how close those that it drew are to others, how well it knows these."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jetkern.clouds import Clouds
from jetkern.data import Shards
from jetkern.evaluation.classify import ask, load_part
from jetkern.evaluation.generate import first_jets, is_generated, read_generated
from jetkern.evaluation.generation import Distance
from jetkern.metrics.classification import Estimate, as_json
from jetkern.metrics.generation import BATCH_SIZE, bootstrap_wasserstein
from jetkern.metrics.showers import oddities, samples
from jetkern.model.jet_decoder import NEXT_TOKEN
from jetkern.model.shower_decoder import ShowerDecoder, ShowerDecoderConfig
from jetkern.showers import COLUMNS, CONDITION, Showers
from jetkern.tables import table
from jetkern.tasks.task import Task, register
from jetkern.training.config import EvaluateSettings, FinetuneSettings
from jetkern.training.data import check_same
from jetkern.training.weights import load_weights


@dataclass(frozen=True)
class ShowerReport:
    """Of a folder of ``generate`` distances and oddities, of a run likelihoods.

    Attributes:
        showers, hits: of the real ones.
        distances: W1 in each observable of drawn and real showers, and between real ones.
        drawn: of a resampling for these.
        oddities: fractions of the hits, of drawn and of real showers, by name.
        nats: -ln p per hit of the real showers by stream, and the sum with its error.
    """

    showers: int
    hits: int
    distances: dict[str, Distance] = field(default_factory=dict)
    drawn: int = 0
    oddities: dict[str, tuple[float, float]] = field(default_factory=dict)
    nats: dict[str, Estimate] = field(default_factory=dict)


@register
class OfShowers(Task):
    """The showers of shards judge what ``generate`` drew, and runs by their likelihood."""

    name = "showers"
    configs = (ShowerDecoderConfig,)

    def config(self, base: Any, train: Shards, settings: FinetuneSettings) -> Any:
        raise ValueError("showers are learned by jetkern pretrain --objective next-token")

    def check(self, run: Path, shards: Shards, settings: EvaluateSettings) -> None:
        if shards.points != COLUMNS or shards.condition != CONDITION:
            raise ValueError(f"{shards.folder} has no showers to judge by")
        if is_generated(run):
            source, _ = read_generated(run)
            if source.points != shards.points:
                raise ValueError(f"{source.folder} has {source.words[0]}, not showers")
            return
        weights = load_weights(run)
        if weights.kind != "showers":
            raise ValueError(f"{weights.path} is no decoder of showers")
        check_same(weights.data, shards, (), str(weights.path))

    def judge(
        self,
        run: Path,
        shards: Shards,
        settings: EvaluateSettings,
        device: torch.device,
        label: str,
    ) -> ShowerReport:
        if not is_generated(run):
            return _likelihood(run, shards, settings, device, label)
        from jetkern.evaluation.figures import showers_figure

        real = Showers.of_clouds(first_jets(shards, settings.num_jets))
        made = Showers.of_clouds(first_jets(read_generated(run)[0]))
        showers_figure(real, {label: made}, settings.out / f"{label.replace('/', '-')}.png")
        return compare(real, made, seed=settings.seed)

    def table(self, reports: Mapping[str, ShowerReport]) -> str:
        parts = []
        for name, report in reports.items():
            rows: list[list[object]]
            if report.nats:
                nats = [f"{value:.4f}" for value in report.nats.values()]
                rows = [["nats per hit", *report.nats], [name, *nats]]
                parts.append(table(rows, "l" + "r" * len(report.nats), markdown=True))
                continue
            rows = [[f"W1 of {name}", "drawn", "real"]]
            rows += [[n, _shown(d.value), _shown(d.floor)] for n, d in report.distances.items()]
            rows += [[f"hits {n}", f"{a:.2%}", f"{b:.2%}"] for n, (a, b) in report.oddities.items()]
            parts += [
                table(rows, "lrr", markdown=True), f"Showers of a resampling: {report.drawn:,}."
            ]  # fmt: skip
        return "\n\n".join(parts)

    def record(self, report: ShowerReport) -> dict[str, Any]:
        return as_json(report)


def compare(real: Showers, made: Showers, *, seed: int = 0) -> ShowerReport:
    """W1 of drawn from real showers beside that of one half of the real ones from the other.

    Energies of the particles are an observable, too: showers of others are others.

    Args:
        real, made: showers; seed: of halves and resamplings.

    Raises:
        ValueError: for fewer than two real showers, or no drawn one.
    """
    if len(real) < 2 or not len(made):
        raise ValueError(f"{len(real)} real and {len(made)} drawn showers: too few to compare")
    order = np.random.default_rng(seed).permutation(len(real))
    first, second = (samples(real.select(half)) for half in np.array_split(order, 2))
    size = min(BATCH_SIZE, len(real) // 2, len(made))
    found = {}
    drawn = samples(made)
    for name, sample in samples(real).items():
        value, floor = (
            bootstrap_wasserstein(one, other, size=size, seed=seed)
            for one, other in ((sample, drawn[name]), (first[name], second[name]))
        )
        found[name] = Distance(value, floor)
    pairs = zip(oddities(made).items(), oddities(real).values(), strict=True)
    odd = {name: (value, other) for (name, value), other in pairs}
    return ShowerReport(len(real), len(real.hits), found, size, odd)


def _likelihood(
    run: Path, shards: Shards, settings: EvaluateSettings, device: torch.device, label: str
) -> ShowerReport:
    model: Any = load_part(run, NEXT_TOKEN, device)
    found, _ = ask(
        model,
        shards,
        lambda showers: _per_shower(model, showers),
        lambda showers: None,
        batch_size=min(settings.batch_size, 64),  # they are long
        num_jets=settings.num_jets,
        seed=settings.seed,
        label=label,
    )
    hits, each = found[:, 0], found[:, 1:]
    number = max(float(hits.sum()), 1.0)
    streams = model.config.streams  # none of tokens: the sum is all that there is
    columns = dict(zip(streams, each.T, strict=True)) if streams else {}
    columns["sum"] = each.sum(1)
    nats = {}
    for name, values in columns.items():
        mean = float(values.sum()) / number
        spread = values - mean * hits  # of a ratio of sums, to first order
        nats[name] = Estimate(mean, math.sqrt(np.square(spread).sum()) / number)
    return ShowerReport(len(found), int(hits.sum()), nats=nats)


def _per_shower(model: ShowerDecoder, showers: Clouds) -> Tensor:
    """(B, 1 + S) hits of each shower, and the nats of its streams."""
    losses, offsets = model.row_losses(showers)
    nats = torch.segment_reduce(losses.double(), "sum", offsets=offsets, initial=0.0)
    return torch.cat([showers.counts[:, None].double(), nats], 1)


def _shown(estimate: Estimate) -> str:
    return f"{estimate.value:.3g} ± {estimate.error:.1g}"
