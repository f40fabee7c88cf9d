"""The figures of a study: scaling curves, score bars, trajectories, learning curves, ROC."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatter, NullLocator, StrMethodFormatter

from jetkern.metrics import RocCurve
from jetkern.plots import STYLE, label_curves, roc_figure, save, sheet
from jetkern.study.analysis import (
    figures_of,
    objectives_of,
    published_rows,
    scores,
    short,
    trajectories,
)
from jetkern.study.collect import CLASSIFIER, NAMES, Row, cells
from jetkern.study.statistics import spread

LOGARITHMIC = ("r30", "r50", "tau21", "tau32", "mass", "energy")


def draw(rows: Sequence[Row], out: Path) -> list[str]:
    """Draws what there are results for, and returns the names of the files in ``out``."""
    drawn = []
    for task in dict.fromkeys(row.run.task for row in rows if row.run.report and row.there):
        for against, place in (("jets", 5), ("pretraining", 4)):
            name = f"{task}-{against}.png"
            if _scaling(rows, task, place, out / name):
                drawn.append(name)
    for name, figure in (
        ("score.png", _scores),
        ("trajectories.png", _trajectories),
        ("learning.png", _learning),
        ("roc.png", _roc),
    ):
        if figure(rows, out / name):
            drawn.append(name)
    return drawn


def _count(jets: int) -> str:
    """1000000 as 1M."""
    for size, letter in ((10**6, "M"), (10**3, "k")):
        if jets >= size:
            return f"{jets / size:.3g}{letter}"
    return str(jets)


def _color(objective: str) -> str:
    return f"C{objectives_of([objective])[0] % 10}"


def _scaling(rows: Sequence[Row], task: str, place: int, path: Path) -> bool:
    """Figures of merit against a number of jets: a panel for each, mean and spread over seeds.

    Fine-tuned and from scratch; the published ones of the same size as dotted lines where the
    numbers of jets are those of the paper.
    """
    series: dict[tuple, list[tuple[int, list[Row]]]] = {}
    for key, group in cells(rows).items():
        if key[0] == task and key[1] in ("finetuned", "scratch", "trees") and key[place]:
            rest = (*key[:place], None, *key[place + 1 :])
            series.setdefault(rest, []).append((key[place], group))
    series = {key: points for key, points in series.items() if len(points) > 1}
    fixed = 5 if place == 4 else 4
    # One line for each objective: with the most of the other number of jets, of the largest model.
    chosen: dict[str, tuple] = {}
    sizes = ["", "micro", "small", "medium", "large"]
    for key in series:
        best = chosen.get(key[3])
        rank = (sizes.index(key[2]), key[fixed])
        if best is None or rank > (sizes.index(best[2]), best[fixed]):
            chosen[key[3]] = key
    if not chosen:
        return False
    names = figures_of(task)
    with matplotlib.rc_context(STYLE):
        figure = sheet(len(names), 3, height=1.15)
        for axes, name in zip(figure.axes, names, strict=True):
            ends = []
            for objective, key in sorted(chosen.items(), key=lambda c: objectives_of([c[0]])):
                points = sorted(series[key], key=lambda p: p[0])
                x = [n for n, _ in points]
                found = [spread([row.values[name] for row in group]) for _, group in points]
                mean = np.array([s.mean if math.isfinite(s.mean) else np.nan for s in found])
                std = np.array([s.std for s in found])
                axes.plot(x, mean, "o-", color=_color(objective), ms=3, lw=1)
                axes.fill_between(x, mean - std, mean + std, color=_color(objective), alpha=0.15)
                if np.isfinite(mean).any():
                    last = int(np.flatnonzero(np.isfinite(mean))[-1])
                    ends.append((short(objective), x[last], mean[last], _color(objective)))
                _theirs(axes, task, key, place, name, max(x), min(x))
            axes.set_xscale("log")
            ticks = sorted({n for key in chosen.values() for n, _ in series[key]})
            axes.set_xticks(ticks, [_count(n) for n in ticks])
            axes.xaxis.set_minor_locator(NullLocator())
            if name in LOGARITHMIC and all(end[2] > 0 for end in ends):
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
                axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.6)))
            what = "training jets" if place == 5 else "pre-training jets"
            axes.set(xlabel=what, title=NAMES[name])
            label_curves(axes, ends, column=1.02)
        save(figure, path)
    return True


def _theirs(
    axes: Axes, task: str, key: tuple, place: int, name: str, most: int, least: int
) -> None:
    """The published values for a line of ours, as far as they are of the same numbers of jets."""
    column = {5: "labels", 4: "pretrain_jets"}[place]
    other, fixed = ("pretrain_jets", key[4]) if place == 5 else ("labels", key[5])
    points = sorted(
        (int(row[column]), float(row[name]))
        for row in published_rows()
        if (row["task"], row["size"], row["objective"]) == (task, key[2], key[3])
        and row.get(name)
        and abs(int(row[other]) - fixed) <= 0.15 * int(row[other])
        and 0.8 * least <= int(row[column]) <= 1.25 * most
    )
    if points:
        x, y = zip(*points, strict=True)
        axes.plot(x, y, "x:", color=_color(key[3]), ms=4, lw=1, alpha=0.7)
        axes.annotate(
            f"published {short(key[3])}",
            (x[-1], y[-1]),
            (4, 4),
            textcoords="offset points",
            fontsize=8,
            color=_color(key[3]),
        )


def _scores(rows: Sequence[Row], path: Path) -> bool:
    """The data-efficiency score with the same labels: bars of each objective, panels by labels."""
    found = [s for s in scores(rows) if math.isfinite(s.same.value)]
    if not found:
        return False
    most = max(s.pretrain_jets for s in found)
    size = max((s.size for s in found), key=["micro", "small", "medium", "large"].index)
    found = [s for s in found if s.pretrain_jets == most and s.size == size]
    labels = sorted({s.jets for s in found})
    with matplotlib.rc_context(STYLE):
        figure = sheet(len(labels), 3, title=f"{size}, {most:,} pre-training jets")
        for axes, jets in zip(figure.axes, labels, strict=True):
            here = sorted(
                (s for s in found if s.jets == jets),
                key=lambda s: objectives_of([s.objective]),
                reverse=True,
            )
            errors = [0 if math.isnan(s.same.error) else s.same.error for s in here]
            axes.barh(
                [short(s.objective) for s in here],
                [s.same.value for s in here],
                xerr=errors,
                color=[_color(s.objective) for s in here],
                alpha=0.7,
            )
            axes.axvline(1, color="0.5", lw=1, ls=":")
            axes.grid(False, axis="y")
            axes.set(title=f"{jets:,} labels", xlabel="R30 over R30 from scratch")
        save(figure, path)
    return True


def _trajectories(rows: Sequence[Row], path: Path) -> bool:
    """Figures of merit of fine-tunings over the pre-training loss that they started from."""
    found = trajectories(rows, list(CLASSIFIER))
    models = list(dict.fromkeys((t.model, t.jets) for t in found))
    if not models:
        return False
    names = ("r30", "auc")
    with matplotlib.rc_context(STYLE):
        figure = sheet(len(names) * len(models), len(names))
        panels = iter(figure.axes)
        for model, jets in models:
            for name in names:
                axes = next(panels)
                line = next(t for t in found if (t.model, t.jets, t.metric) == (model, jets, name))
                x, y = zip(*line.points, strict=True)
                axes.plot(x, y, "o-", ms=4, lw=1)
                for number, point in enumerate(line.points, 1):
                    if all(map(math.isfinite, point)):
                        axes.annotate(f" {number}", point)
                axes.set(xlabel="pre-training loss", ylabel=NAMES[name])
                r = line.pearson.value
                title = f"{model}\n{jets:,} labels" + ("" if math.isnan(r) else f", r = {r:.2f}")
                axes.set_title(title, fontsize=9)
        save(figure, path)
    return True


def _first(rows: Sequence[Row]) -> dict[int, dict[str, Row]]:
    """By number of jets of top tagging and objective, the first seed's run that counts most: of the
    largest model, from the most pre-training jets."""
    sizes = ["", "micro", "small", "medium", "large"]
    found: dict[int, dict[str, Row]] = {}
    for key, group in cells(rows).items():
        if key[0] != "top" or key[1] not in ("finetuned", "scratch", "trees"):
            continue
        here = found.setdefault(key[5], {})
        other = here.get(key[3])
        rank = (sizes.index(key[2]), key[4])
        there = [row for row in group if row.there]
        if there and (
            other is None or rank > (sizes.index(other.run.size), other.run.pretrain_jets)
        ):
            here[key[3]] = there[0]
    return dict(sorted(found.items()))


def _learning(rows: Sequence[Row], path: Path) -> bool:
    """Validation loss over the updates of the first seed, a panel for each number of jets."""
    found = {
        jets: runs for jets, runs in _first(rows).items() if any(r.curve for r in runs.values())
    }
    if not found:
        return False
    with matplotlib.rc_context(STYLE):
        figure = sheet(len(found), 3, height=1.15)
        for axes, (jets, runs) in zip(figure.axes, found.items(), strict=True):
            ends = []
            for objective, row in runs.items():
                if row.curve:
                    x, y = zip(*row.curve, strict=True)
                    axes.plot(x, y, "o-", color=_color(objective), ms=2, lw=1)
                    ends.append((short(objective), x[-1], y[-1], _color(objective)))
            axes.set(title=f"{jets:,} jets", xlabel="update", ylabel="validation loss")
            label_curves(axes, ends, column=1.02)
        save(figure, path)
    return True


def _roc(rows: Sequence[Row], path: Path) -> bool:
    """ROC curves of the first seed with the most jets."""
    found = _first(rows)
    if not found:
        return False
    curves = {}
    for objective, row in sorted(found[max(found)].items(), key=lambda c: objectives_of([c[0]])):
        background = np.array(row.roc)
        signal = np.arange(1, len(background) + 1) / max(1, len(background))
        if len(background):
            curves[short(objective)] = RocCurve(np.full(len(signal), np.nan), signal, background)
    if curves:
        roc_figure(curves, path, signal="top", background="QCD")
    return bool(curves)
