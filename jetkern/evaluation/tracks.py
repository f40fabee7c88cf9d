"""Judges what models say of tracks: their origins, and which of them share a vertex."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jetkern.jets import ORIGINS
from jetkern.metrics import Estimate
from jetkern.metrics.partitions import pairs, partition_scores
from jetkern.tables import table

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

    def figures(weights: NDArray[Any]) -> Floats:
        """Accuracy, balanced accuracy, and the recall of each origin."""
        with np.errstate(invalid="ignore"):
            recall = (weights @ right) / (weights @ total)
            accuracy = (weights @ right).sum() / (weights @ total).sum()
        present = recall[~np.isnan(recall)]
        balanced = present.mean() if len(present) else np.nan
        return np.array([accuracy, balanced, *recall])

    values = figures(np.ones(len(counts)))
    rng = np.random.default_rng(seed)
    drawn = [figures(rng.poisson(1.0, len(counts)))[:2] for _ in range(bootstrap)]
    accuracy, balanced = map(Estimate, values[:2].tolist(), np.nanstd(drawn, axis=0).tolist())
    return OriginReport(int(known.sum()), accuracy, balanced, tuple(values[2:].tolist()))


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
