"""Figures of a training and of its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from jetkern.metrics import RocCurve

STYLE: Any = {
    "font.size": 11,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "xtick.direction": "in",
    "ytick.direction": "in",
    "xtick.top": True,
    "ytick.right": True,
    "legend.frameon": False,
}


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
        figure = Figure(figsize=(6, 5), layout="constrained")
        axes = figure.add_subplot()
        for name, curve in curves.items():
            passing = curve.background > 0
            rejection = 1 / curve.background[passing]
            axes.plot(curve.signal[passing], rejection, label=name, lw=1.5)
        efficiency = np.linspace(0.01, 1, 100)
        axes.plot(efficiency, 1 / efficiency, color="0.6", ls=":", label="guessing")
        axes.set_yscale("log")
        axes.set_xlim(0, 1)
        axes.set_ylim(bottom=1)
        axes.set_xlabel(f"{signal} efficiency")
        axes.set_ylabel(f"{background} rejection (1 / efficiency)")
        axes.legend()
        figure.savefig(path, dpi=150)


def training_figure(records: Mapping[str, Sequence[Mapping[str, Any]]], path: Path | str) -> None:
    """Training and validation loss over the updates, one colour for each run.

    Args:
        records: those of ``jetkern.training.log.read_metrics``, by the name of the run.
        path: of the picture.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot()
        for number, (name, run) in enumerate(records.items()):
            for kind, line in (("train", "-"), ("validation", "o--")):
                points = [(r["step"], r["loss"]) for r in run if r["kind"] == kind]
                if points:
                    label = name if kind == "train" else f"{name}, validation"
                    steps, losses = zip(*points, strict=True)
                    values = [np.nan if v is None else v for v in losses]
                    axes.plot(steps, values, line, color=f"C{number}", ms=3, lw=1, label=label)
        axes.set_xlabel("update")
        axes.set_ylabel("loss")
        axes.legend()
        figure.savefig(path, dpi=150)
