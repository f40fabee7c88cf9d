"""Figures in one style: every curve carries its name, every class and every loss its own panel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from jetkern.io import prepare_folder, printable, replacing
from jetkern.metrics import RocCurve

STYLE: Any = {
    "font.size": 10,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
PANEL = (3.6, 2.7)  # inches
LONGEST = 32  # characters of a name beside a curve
_NOT_LOSSES = {"kind", "step", "seconds", "lr", "grad_norm", "jets_per_s", "data_wait", "best"}


def prepare(path: Path) -> None:
    """Makes sure that a figure can be written, before the work for it begins.

    Raises:
        ValueError: for a suffix that is no picture's, or a folder.
        OSError: naming the folder that cannot be written in.
    """
    known = FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in known:
        choices = ", ".join(f".{suffix}" for suffix in sorted(known))
        raise ValueError(f"{printable(path)}: the name of a figure ends in one of {choices}")
    if path.is_dir():
        raise ValueError(f"{printable(path)} is a folder, not a figure")
    prepare_folder(path.parent)


def save(figure: Figure, path: Path) -> None:
    """Writes a figure, all of it or nothing; the suffix chooses the format.

    Raises:
        OSError: naming it, if it cannot be written.
    """
    with replacing(path) as part:
        figure.savefig(part, format=path.suffix[1:].lower(), dpi=130)


def sheet(panels: int, columns: int = 4, *, title: str = "", height: float = 1.0) -> Figure:
    """A figure with so many axes in rows of ``columns``.

    Args:
        height: of the panels, over the usual one.
    """
    columns = min(columns, panels)
    rows = -(-panels // columns)
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * height * rows), layout="constrained")
    for number in range(panels):
        figure.add_subplot(rows, columns, number + 1)
    if title:
        figure.suptitle(_words(title))
    return figure


def bin_edges(values: ArrayLike, most: int = 60) -> NDArray[Any]:
    """Edges of at most about ``most`` bins up to the 99.5 % quantile.

    Bins of integers are equally many integers wide and lie between them: of other widths, some
    would hold one integer more than their neighbours, and a smooth distribution would look toothed.
    """
    array = np.asarray(values)
    if not len(array):
        return np.array([0.0, 1.0])
    low, high = array.min(), np.quantile(array, 0.995)
    if array.dtype.kind in "iu":
        width = max(1, -(-int(high - low + 1) // most))
        return np.arange(int(low), int(high) + width + 1, width) - 0.5
    return np.linspace(low, high if high > low else low + 1, most + 1)


def ridges(
    axes: Axes, classes: Mapping[str, NDArray[Any]], edges: NDArray[Any], *, names: bool = True
) -> None:
    """One distribution for each class, one above the other, all scaled to the same height.

    Args:
        classes: (N,) values by name; the first is on top.
        edges: of the bins.
        names: whether to write the names beside them.
    """
    for level, values in enumerate(reversed(list(classes.values()))):
        counts, _ = np.histogram(values[np.isfinite(values)], edges)
        density = counts / np.diff(edges) if np.ptp(np.diff(edges)) < 1e-9 else counts
        shape = level + 0.9 * density / max(density.max(), 1e-300)
        color = f"C{(len(classes) - 1 - level) % 10}"
        axes.stairs(shape, edges, baseline=level, fill=True, color=color, alpha=0.35)
        axes.stairs(shape, edges, baseline=level, color=color, lw=1)
    shown = [_words(name) if names else "" for name in reversed(list(classes))]
    axes.set_yticks(range(len(classes)), shown)
    axes.set_ylim(0, len(classes))
    axes.set_xlim(edges[0], edges[-1])
    axes.grid(False, axis="y")


def label_curves(
    axes: Axes,
    points: Iterable[tuple[str, float, float, str]],
    *,
    column: float,
    lowest: float = 0.0,
) -> None:
    """Writes names beside the curves, in their colours, without overlaps.

    Args:
        points: name, x and y of a point of its curve, colour.
        column: where the names begin, in widths of the axes.
        lowest: height of the lowest name, in heights of the axes.
    """
    axes.autoscale_view()
    transform = axes.transScale + axes.transLimits  # to widths and heights of the axes
    placed = sorted(
        (float(transform.transform((x, y))[1]), name, x, y, color) for name, x, y, color in points
    )
    points_high = 72 * axes.bbox.height / axes.figure.dpi
    step = 1.5 * matplotlib.rcParams["font.size"] / points_high
    heights: list[float] = []
    for height, *_ in placed:
        heights.append(max(height, heights[-1] + step if heights else lowest))
    excess = max(0.0, heights[-1] - 0.97) if heights else 0.0
    for height, (_, name, x, y, color) in zip(heights, placed, strict=True):
        axes.annotate(
            _words(_shortened(name)),
            (x, y),
            (column, height - excess),
            textcoords="axes fraction",
            color=color,
            va="center",
            annotation_clip=False,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
            arrowprops={"arrowstyle": "-", "color": color, "lw": 0.5, "alpha": 0.6},
        )


def roc_figure(
    curves: Mapping[str, RocCurve],
    path: Path | str,
    *,
    signal: str = "signal",
    background: str = "background",
) -> None:
    """Background rejection over signal efficiency, one line for each model.

    A curve starts at the first threshold that lets a background jet pass: before it the rejection
    is not finite.

    Args:
        curves: by the name to show.
        path: of the picture; the suffix chooses the format.
        signal, background: for the axes.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6, 4.8), layout="constrained")
        axes = figure.add_subplot()
        points = []
        for number, (name, curve) in enumerate(curves.items()):
            passing = curve.background > 0
            efficiency, rejection = curve.signal[passing], 1 / curve.background[passing]
            axes.plot(efficiency, rejection, color=f"C{number % 10}", lw=1.5)
            if len(efficiency):
                at = min(int(np.searchsorted(efficiency, 0.3)), len(efficiency) - 1)
                points.append((name, efficiency[at], rejection[at], f"C{number % 10}"))
        efficiency = np.linspace(0.01, 1, 100)
        axes.plot(efficiency, 1 / efficiency, color="0.6", ls=":")
        axes.text(0.08, 3, "guessing", color="0.5", rotation=-30)
        axes.set_yscale("log")
        axes.set_xlim(0, 1)
        axes.set_ylim(bottom=1)
        axes.set_xlabel(f"{_words(signal)} efficiency")
        axes.set_ylabel(f"{_words(background)} rejection (1 / efficiency)")
        label_curves(axes, points, column=0.62, lowest=0.62)
        save(figure, Path(path))


def training_figure(records: Mapping[str, Sequence[Mapping[str, Any]]], path: Path | str) -> None:
    """Losses over the updates: a panel for each, a colour for each run, points where it validated.

    Args:
        records: those of ``jetkern.training.log.read_metrics``, by the name of the run.
        path: of the picture.
    """
    losses = _losses(records)
    with matplotlib.rc_context(STYLE):
        figure = sheet(len(losses), 2)
        for axes, loss in zip(figure.axes, losses, strict=True):
            ends = []
            for number, (name, run) in enumerate(records.items()):
                for kind, line in (("train", "-"), ("validation", "o--")):
                    points = [
                        (r["step"], np.nan if r[loss] is None else r[loss])
                        for r in run
                        if r.get("kind") == kind and _is_loss(r, loss)
                    ]
                    if not points:
                        continue
                    steps, values = zip(*points, strict=True)
                    axes.plot(steps, values, line, color=f"C{number % 10}", ms=3, lw=1)
                    if kind == "train" and np.isfinite(values).any():
                        last = int(np.flatnonzero(np.isfinite(values))[-1])
                        ends.append((name, steps[last], values[last], f"C{number % 10}"))
            axes.set(xlabel="update", title=_words(loss))
            seen = np.concatenate([line.get_ydata() for line in axes.lines] or [[np.nan]])
            low, high = np.nanmin(seen, initial=np.inf), np.nanmax(seen, initial=-np.inf)
            if 0 < 5 * low < high < np.inf:  # or the first losses would flatten all later ones
                axes.set_yscale("log")
            label_curves(axes, ends, column=1.02)
        save(figure, Path(path))


def _losses(records: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Names of the losses in records, their sum first; their sum alone if it is of one."""
    names = dict.fromkeys(
        name for run in records.values() for r in run for name in r if _is_loss(r, name)
    )
    parts = [name for name in names if name != "loss"]
    return ["loss", *parts] if len(parts) > 1 else ["loss"]


def _is_loss(record: Mapping[str, Any], name: str) -> bool:
    value = record.get(name, "")
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return name not in _NOT_LOSSES and (value is None or number)


def _shortened(name: str) -> str:
    """A name as long as fits beside a panel; names of runs differ at their ends."""
    return name if len(name) <= LONGEST else f"{name[:8]}…{name[9 - LONGEST :]}"


def _words(text: object) -> str:
    """Names of others for a figure, where dollars would begin a formula."""
    return printable(text).replace("$", r"\$")
