"""Judges what models say of tracks: their origins, and which of them share a vertex."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from jetkern.data import Shards, Stream
from jetkern.jets import ORIGINS, Jets
from jetkern.metrics import Estimate
from jetkern.metrics.partitions import pairs, partition_scores
from jetkern.model.pet import PET
from jetkern.tables import table
from jetkern.training.checkpoints import RunError
from jetkern.training.config import EvaluateSettings
from jetkern.training.weights import load_matching, load_weights, model_config

UNKNOWN = 255  # tracks without truth
MOST = 3  # secondary vertices: jets with more are counted with these

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class OriginReport:
    """Of tracks whose origin is known: ``recall`` is the share of each of ``ORIGINS`` that is
    found (NaN for one without tracks), ``balanced`` the mean of those, ``accuracy`` of all tracks.
    """

    tracks: int
    accuracy: Estimate
    balanced: Estimate
    recall: tuple[float, ...]


@dataclass(frozen=True)
class Grouping:
    """Mean scores of jets of at least two tracks, see ``metrics.partitions``."""

    adjusted: Estimate
    one_sided: Estimate
    perfect: Estimate


@dataclass(frozen=True)
class VertexReport:
    """Of ``jets`` in all and by number of secondary vertices, and what all tracks together or each
    on its own would score."""

    jets: int
    all: Grouping
    by_secondaries: dict[str, Grouping]
    trivial: dict[str, Grouping]


def load_part(source: Path | str, part: str, device: torch.device | str = "cpu") -> PET:
    """The model of a run or checkpoint that has a part, in evaluation mode.

    Raises:
        RunError: if there is no such checkpoint, or no such part in it.
    """
    weights = load_weights(source)
    config = model_config(weights)
    if part not in config.parts:
        raise RunError(f"{weights.path} has no part {part}, only {', '.join(config.parts)}")
    model = PET(config)
    load_matching(model, weights.state)
    return model.to(device).eval()


def outputs_of(
    model: PET,
    part: str,
    shards: Shards,
    settings: EvaluateSettings,
    take: Callable[[NDArray[Any]], NDArray[Any]],
    label: str = "",
) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """What a head says of the jets, and their truth.

    Args:
        model: on the device to use; part: its head.
        take: what to keep of a batch's output.
        label: shown beside the progress bar.

    Returns:
        the outputs, back to back; (J,) tracks of each jet; (T,) vertex and origin of each.
    """
    device = next(model.parameters()).device
    head = getattr(model, part)
    stream = Stream(
        shards,
        batch_size=settings.batch_size,
        shuffle=False,
        epochs=1,
        num_jets=settings.num_jets,
        subset_seed=settings.seed,
        fields=(*model.config.fields, "vertex", "origin"),
    )
    found, batches = [], []
    with (
        torch.inference_mode(),
        tqdm(total=stream.num_jets, unit="jets", unit_scale=True, desc=label, disable=None) as bar,
    ):
        for jets in stream:
            moved = jets.to(device)
            found.append(take(head(*model.body(moved), moved).float().cpu().numpy()))
            batches.append(jets)
            bar.update(len(jets))
    whole = Jets.concat(batches)
    assert whole.vertex is not None
    assert whole.origin is not None
    truth = whole.counts.numpy(), whole.vertex.numpy(), whole.origin.numpy()
    return np.concatenate(found), *truth


def origin_report(
    predicted: NDArray[np.int64],
    origin: NDArray[np.int64],
    counts: NDArray[np.int64],
    *,
    bootstrap: int = 200,
    seed: int = 0,
) -> OriginReport:
    """The report; uncertainties by a Poisson bootstrap over jets.

    Args:
        predicted, origin: (T,) numbers in ``ORIGINS``, 255 for tracks without truth.
        counts: (J,) tracks of each jet.

    Raises:
        ValueError: if no track has a truth.
    """
    known = origin != UNKNOWN
    if not known.any():
        raise ValueError("no track's origin is known")
    jet = np.repeat(np.arange(len(counts)), counts)[known]
    shape = (len(counts), len(ORIGINS))
    place = jet * shape[1] + origin[known]
    total = np.bincount(place, minlength=shape[0] * shape[1]).reshape(shape)
    right = np.bincount(place, predicted[known] == origin[known], shape[0] * shape[1])
    right = right.reshape(shape)

    def figures(weights: Floats) -> tuple[Floats, Floats, Floats]:
        with np.errstate(invalid="ignore"):
            recall = (weights @ right) / (weights @ total)
            accuracy = (weights @ right).sum(1) / (weights @ total).sum(1)
        present = ~np.isnan(recall)
        balanced = np.where(present, recall, 0).sum(1) / np.maximum(present.sum(1), 1)
        return accuracy, balanced, recall

    accuracy, balanced, recall = figures(np.ones((1, len(counts))))
    rng = np.random.default_rng(seed)
    drawn = figures(rng.poisson(1.0, (bootstrap, len(counts))).astype(float))
    return OriginReport(
        tracks=int(known.sum()),
        accuracy=Estimate(float(accuracy[0]), float(np.nanstd(drawn[0]))),
        balanced=Estimate(float(balanced[0]), float(np.nanstd(drawn[1]))),
        recall=tuple(map(float, recall[0])),
    )


def vertex_report(
    together: NDArray[np.bool_], vertex: NDArray[np.int64], counts: NDArray[np.int64]
) -> VertexReport:
    """The report, of jets with at least two tracks, all of which have a truth.

    Args:
        together: (P,) whether each pair of ``metrics.partitions.pairs(counts)`` is predicted to be
            of one vertex.
        vertex: (T,) numbers of the vertices, 255 for tracks without truth.
        counts: (J,) tracks of each jet.

    Raises:
        ValueError: if there is no such jet.
    """
    jet = np.repeat(np.arange(len(counts)), counts)
    unknown = np.bincount(jet, vertex == UNKNOWN, len(counts)) > 0
    judged = (counts >= 2) & ~unknown
    if not judged.any():
        raise ValueError("no jet has two tracks whose vertices are known")
    secondaries = np.zeros(len(counts), np.int64)
    np.maximum.at(secondaries, jet, np.where(vertex == UNKNOWN, 0, vertex))
    number = len(pairs(counts)[0])

    def grouping(chosen: NDArray[np.bool_], jets: NDArray[np.bool_]) -> Grouping:
        found = partition_scores(vertex, chosen, counts)
        names = ("adjusted", "one_sided", "perfect")
        return Grouping(**{name: _mean(getattr(found, name)[jets]) for name in names})

    by = {}
    for n in range(MOST + 1):
        jets = judged & (secondaries == n if n < MOST else secondaries >= n)
        if jets.any():
            by[f"{n}" if n < MOST else f"{n} or more"] = grouping(together, jets)
    trivial = {
        "all together": grouping(np.ones(number, bool), judged),
        "each on its own": grouping(np.zeros(number, bool), judged),
    }
    return VertexReport(int(judged.sum()), grouping(together, judged), by, trivial)


def _mean(values: NDArray[Any]) -> Estimate:
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return Estimate(float(values.mean()), float(error))


def origin_table(reports: Mapping[str, OriginReport]) -> str:
    """A Markdown table, one line for each model."""
    rows = [["model", "balanced accuracy", "accuracy", *(f"{name} found" for name in ORIGINS)]]
    for name, r in reports.items():
        recall = ("-" if np.isnan(value) else f"{value:.3f}" for value in r.recall)
        rows.append([name, f"{r.balanced:.4f}", f"{r.accuracy:.4f}", *recall])
    return table(rows, "l", markdown=True)


def vertex_table(reports: Mapping[str, VertexReport]) -> str:
    """A Markdown table: each model in all and by number of secondary vertices, and the trivial
    answers."""
    head = ["model", "secondary vertices", "ARI", "ARI of MPMv2", "perfect jets"]
    rows = [head]
    for name, report in reports.items():
        for number, g in {"any": report.all, **report.by_secondaries}.items():
            rows.append([name, number, *_cells(g)])
    for name, g in next(iter(reports.values())).trivial.items():
        rows.append([name, "any", *_cells(g)])
    return table(rows, "ll", markdown=True)


def _cells(g: Grouping) -> list[str]:
    return [f"{value:.4f}" for value in (g.adjusted, g.one_sided, g.perfect)]
