"""What the rows of a study are asked: scores, slopes, trajectories, outliers, published numbers."""

from __future__ import annotations

import csv
import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from jetkern.model.pet import PET
from jetkern.model.presets import model_preset
from jetkern.study.collect import CLASSIFIER, GENERATOR, NAN, Row, cells
from jetkern.study.statistics import (
    Correlation,
    Line,
    Ratio,
    Spread,
    line,
    outliers,
    pearson,
    ratio,
    spearman,
    spread,
)
from jetkern.study.verdicts import CG, CGM, CM, GM, SCRATCH, C, G, M

ORDER = (C, G, M, CG, CM, GM, CGM, SCRATCH, "trees")
SHORT = dict(
    zip(ORDER, ("C", "G", "M", "C+G", "C+M", "G+M", "C+G+M", SCRATCH, "trees"), strict=True)
)
PUBLISHED = Path(__file__).with_name("published.csv")
NEAR = 0.15  # relative difference of numbers of jets up to which published ones are ours, too


@dataclass(frozen=True)
class Score:
    """Data efficiency, Eq. 5 of arXiv 2606.14870, whose text is not available, as it can be read.

    With R(N) the mean rejection at 30 % after N labelled jets, and all the most of them:

    Attributes:
        same: R_pretrained(N) / R_scratch(N).
        all: R_pretrained(N) / R_scratch(all).
        relative: (R_pretrained(N) / R_pretrained(all)) / (R_scratch(N) / R_scratch(all)).
    """

    size: str
    objective: str
    pretrain_jets: int
    jets: int
    same: Ratio
    all: Ratio
    relative: Ratio


@dataclass(frozen=True)
class Slope:
    """A line through a figure of merit of all seeds; ``r2`` of the means as the paper has it, NaN
    for fewer than three."""

    metric: str
    against: str
    model: str
    line: Line
    r2: float


@dataclass(frozen=True)
class Trajectory:
    """Pre-training loss and figure of merit of the fine-tunings from a run's checkpoints."""

    metric: str
    model: str
    jets: int
    points: tuple[tuple[float, float], ...]
    pearson: Correlation
    spearman: Correlation


def short(objective: str) -> str:
    """C, G, M for classifier, generator, mpm, as in the paper's tables."""
    return SHORT.get(objective, objective)


def objectives_of(names: Sequence[str]) -> list[int]:
    """The places of objectives in the paper's order, others at the end."""
    return [ORDER.index(n) if n in ORDER else len(ORDER) for n in names]


def figures_of(task: str) -> list[str]:
    """The figures of merit of a task."""
    return list(GENERATOR if task == "jetnet" else CLASSIFIER)


@functools.cache
def parameters(size: str) -> int:
    """Parameters of the classifier that is fine-tuned to top tagging."""
    config = model_preset(size, [C], num_classes=2, use_pid=False, use_tracks=False)
    with torch.device("meta"):
        return sum(p.numel() for p in PET(config).parameters())


def scores(rows: Sequence[Row]) -> list[Score]:
    """Of each fine-tuned cell of top tagging with R30 from scratch beside it."""
    r30: dict[tuple, Spread] = {
        key: spread([row.values["r30"] for row in group])
        for key, group in cells(rows).items()
        if key[0] == "top" and key[1] in ("finetuned", SCRATCH)
    }
    most = max((key[5] for key in r30), default=0)
    nothing = Spread(NAN, NAN, 0, 0)
    found = []
    for key, here in r30.items():
        _, way, size, objective, pretrain_jets, jets = key
        if way == SCRATCH:
            continue
        below, all_below = (
            r30.get(("top", SCRATCH, size, SCRATCH, 0, n), nothing) for n in (jets, most)
        )
        all_here = r30.get((*key[:5], most), nothing)
        one, other = ratio(here, all_here), ratio(below, all_below)
        relative = Ratio(NAN, NAN)
        if jets != most and other.value:
            value = one.value / other.value
            error = value * math.hypot(one.error / one.value, other.error / other.value)
            relative = Ratio(value, error)
        same, to_all = ratio(here, below), ratio(here, all_below)
        found.append(Score(size, objective, pretrain_jets, jets, same, to_all, relative))
    return found


def slopes(rows: Sequence[Row], metrics: Sequence[str] = ("r30", "auc")) -> list[Slope]:
    """Against the decimal logarithms of labels, of pre-training jets and of parameters."""
    ours = {
        key: group
        for key, group in cells(rows).items()
        if key[0] == "top" and key[1] in ("finetuned", SCRATCH)
    }
    found = []
    for against, free in (("labels", 5), ("pre-training jets", 4), ("parameters", 2)):
        series: dict[tuple, list[tuple[float, list[Row]]]] = {}
        for key, group in ours.items():
            x = parameters(key[2]) if against == "parameters" else key[free]
            if x:
                rest = (*key[:free], None, *key[free + 1 :])
                series.setdefault(rest, []).append((math.log10(x), group))
        for rest, points in series.items():
            if len(points) < 2:
                continue
            _, _, size, objective, pretrain_jets, jets = rest
            words = [size or "", short(objective)]
            words += [f"{pretrain_jets:,} pre-training jets"] if pretrain_jets else []
            words += [f"{jets:,} labels"] if jets else []
            for metric in metrics:
                every = [(x, row.values[metric]) for x, group in points for row in group]
                means = [spread([row.values[metric] for row in g]).mean for _, g in points]
                through = line(*zip(*every, strict=True))
                # Of two points a line explains everything.
                r2 = line([x for x, _ in points], means).r2 if len(points) > 2 else NAN
                model = ", ".join(w for w in (" ".join(words[:2]).strip(), *words[2:]) if w)
                found.append(Slope(metric, against, model, through, r2))
    return found


def trajectories(
    rows: Sequence[Row], metrics: Sequence[str] = ("r30", "auc", "cross_entropy")
) -> list[Trajectory]:
    """Of each pre-training that was fine-tuned from its intermediate checkpoints."""
    series: dict[tuple, list[Row]] = {}
    for row in rows:
        r = row.run
        if r.checkpoint and r.task == "top" and row.there:
            key = (r.size, r.objective, r.pretrain_jets, r.pretrain_seed, r.jets)
            series.setdefault(key, []).append(row)
    found = []
    for (size, objective, pretrain_jets, _, jets), group in series.items():
        for metric in metrics:
            points = tuple((row.pretrain_loss, row.values[metric]) for row in group)
            x, y = zip(*points, strict=True)
            model = f"{size} {short(objective)}, {pretrain_jets:,} pre-training jets"
            found.append(Trajectory(metric, model, jets, points, pearson(x, y), spearman(x, y)))
    return found


def far_off(rows: Sequence[Row]) -> Iterator[tuple[Row, str, float]]:
    """Runs far from the others of their cell, the figure, and the median of the cell."""
    for key, group in cells(rows).items():
        for name in figures_of(key[0]):
            values = [row.values[name] for row in group]
            errors = [row.errors.get(name, NAN) for row in group]
            there = sorted(v for v in values if not math.isnan(v))
            for i in outliers(values, errors):
                yield group[i], name, there[len(there) // 2]


@functools.cache
def published_rows() -> tuple[dict[str, str], ...]:
    """The published results, see ``published.csv``."""
    lines = PUBLISHED.read_text().splitlines()
    return tuple(csv.DictReader(line for line in lines if not line.startswith("#")))


def published(task: str, size: str, objective: str, pretrain_jets: int, jets: int) -> str:
    """The published R30 for the same work: numbers of jets within 15 %; "-" if there is none."""
    for row in published_rows():
        same = (row["task"], row["size"], row["objective"]) == (task, size, objective)
        pairs = ((int(row["pretrain_jets"]), pretrain_jets), (int(row["labels"]), jets))
        if same and row["r30"] and all(abs(a - b) <= NEAR * a for a, b in pairs):
            return f"{float(row['r30']):.0f} ± {float(row['r30_std']):.0f}"
    return "-"
