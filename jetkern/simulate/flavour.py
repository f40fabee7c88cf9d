"""The sanity sheet of flavour jets: tracks, vertices, impact parameters and lifetimes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from jetkern.plots import label_curves, ridges, sheet
from jetkern.simulate.files import reading
from jetkern.simulate.processes import DataSet
from jetkern.simulate.truth import BOTTOM, CHARM, NO_TRUTH, OTHER, PRIMARY
from jetkern.tables import table

LIFETIMES = {  # c tau in mm, PDG 2024
    "B0": (511, 0.455), "B+": (521, 0.491), "Bs": (531, 0.456), "Lambda b": (5122, 0.441),
    "D0": (421, 0.1230), "D+": (411, 0.310), "Ds": (431, 0.151), "Lambda c": (4122, 0.0607),
}  # fmt: skip
LEAST = 30  # decays of a hadron, to be judged


@dataclass(frozen=True)
class Summary:
    """M jets of one flavour.

    Attributes:
        tracks, secondaries: (M,) numbers of tracks and of secondary vertices.
        flight: (M,) distance in mm of the nearest secondary vertex; NaN without one.
        significance: (M,) second-largest abs(d0) / error, 0 for jets of one track.
        origin: (4,) number of tracks by origin.
        hadron, proper: (V,) PDG codes of what decayed in the jets and c times the proper time, mm.
    """

    tracks: NDArray
    secondaries: NDArray
    flight: NDArray
    significance: NDArray
    origin: NDArray
    hadron: NDArray
    proper: NDArray


def summarise(path: Path, jets: int) -> Summary:
    """What the first jets of a file are like."""
    with reading(path) as file:
        data = file["data"][:jets].astype(float)
        vertex, origin = (file[name][:jets] for name in ("vertex", "origin"))
        points, hadron, proper = (
            file[name][:jets] for name in ("vertices", "hadron", "proper_length")
        )
    real = vertex != NO_TRUTH
    d0 = np.arctanh(np.clip(data[..., 5], -1 + 1e-7, 1 - 1e-7))
    significance = np.abs(d0) / np.where(real & (data[..., 6] > 0), data[..., 6], np.inf)
    distance = np.linalg.norm(points, axis=2)
    flight = np.where(distance > 0, distance, np.inf).min(1)
    decayed = hadron != 0
    return Summary(
        real.sum(1),
        decayed.sum(1),
        np.where(np.isfinite(flight), flight, np.nan),
        np.sort(significance, axis=1)[:, -2],
        np.bincount(origin[real], minlength=4)[: OTHER + 1],
        np.abs(hadron[decayed]),
        proper[decayed],
    )


def merge(parts: list[Summary]) -> Summary:
    """One summary of several files."""
    values = {
        name: np.sum([vars(p)[name] for p in parts], axis=0)
        if name == "origin"
        else np.concatenate([vars(p)[name] for p in parts])
        for name in vars(parts[0])
    }
    return Summary(**values)


def summary_table(classes: dict[str, Summary]) -> str:
    """Two Markdown tables: a line for each flavour, and one for each heavy hadron."""
    head = [
        "class", "jets", "tracks", "secondary vertices", "nearest, median mm",
        "second abs(d0)/sigma > 5", "primary", "charm", "bottom", "other",
    ]  # fmt: skip
    rows = [head]
    for name, s in classes.items():
        share = s.origin / max(1, s.origin.sum())
        median = "-" if np.isnan(s.flight).all() else f"{np.nanmedian(s.flight):.2g}"
        rows.append(
            [
                name,
                f"{len(s.tracks)}",
                f"{s.tracks.mean():.1f} +- {s.tracks.std():.1f}",
                f"{s.secondaries.mean():.2f}",
                median,
                f"{(s.significance > 5).mean():.2f}",
                *(f"{share[kind]:.2f}" for kind in (PRIMARY, CHARM, BOTTOM, OTHER)),
            ]
        )
    decays = [["hadron", "decays", "mean c t of those seen, mm", "c tau, mm"]]
    for name, (seen, lifetime) in _decays(classes).items():
        error = seen.std() / np.sqrt(len(seen))
        decays.append([name, f"{len(seen)}", f"{seen.mean():.3f} +- {error:.3f}", f"{lifetime}"])
    return "\n\n".join(table(lines, markdown=True) for lines in (rows, decays) if len(lines) > 1)


def _decays(classes: dict[str, Summary]) -> dict[str, tuple[NDArray, float]]:
    """Proper lengths seen and the mean expected, of hadrons that decayed often enough."""
    codes = np.concatenate([s.hadron for s in classes.values()])
    proper = np.concatenate([s.proper for s in classes.values()])
    found = {name: (proper[codes == code], tau) for name, (code, tau) in LIFETIMES.items()}
    return {name: pair for name, pair in found.items() if len(pair[0]) >= LEAST}


def figure(classes: dict[str, Summary], data_set: DataSet) -> Figure:
    """Distributions with a ridge for each flavour, and how long heavy hadrons live."""
    panels = [
        ("tracks", "tracks", np.arange(data_set.padding + 2) - 0.5),
        ("secondaries", "secondary vertices", np.arange(9) - 0.5),
        ("flight", "nearest secondary vertex [mm]", np.geomspace(0.01, 1000, 41)),
        ("significance", "second-largest abs(d0) / error", np.geomspace(0.1, 300, 41)),
    ]
    drawing = sheet(len(panels) + 2, 3, title=data_set.title, height=1.3)
    for number, (name, label, edges) in enumerate(panels):
        axes = drawing.axes[number]
        values = {kind: getattr(summary, name) for kind, summary in classes.items()}
        ridges(axes, values, edges, names=number % 3 == 0)
        axes.set_xlabel(label)
        if name in ("flight", "significance"):
            axes.set_xscale("log")
    _origins(drawing.axes[-2], classes)
    _lifetimes(drawing.axes[-1], classes)
    return drawing


def _origins(axes: Axes, classes: dict[str, Summary]) -> None:
    """Where the tracks of each flavour come from, as shares."""
    left = np.zeros(len(classes))
    names = list(classes)
    for kind, name in (
        (PRIMARY, "primary"),
        (BOTTOM, "bottom"),
        (CHARM, "charm"),
        (OTHER, "other"),
    ):
        share = np.array([s.origin[kind] / max(1, s.origin.sum()) for s in classes.values()])
        axes.barh(names, share, left=left, color=f"C{kind}", alpha=0.5)
        for row, width in enumerate(share):
            if width > 0.12:
                axes.text(left[row] + width / 2, row, name, ha="center", va="center")
        left += share
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="origin of the tracks (other: K0S, Lambda, tau)")
    axes.grid(False, axis="y")


def _lifetimes(axes: Axes, classes: dict[str, Summary]) -> None:
    """Share of the hadrons that live longer, over the time in lifetimes: exp(-t) for all."""
    ends = []
    for number, (name, (seen, lifetime)) in enumerate(_decays(classes).items()):
        time = np.sort(seen) / lifetime
        share = 1 - np.arange(len(time)) / len(time)
        axes.plot(time, share, color=f"C{number}", lw=1)
        at = min(int(np.searchsorted(-share, -0.05)), len(time) - 1)
        ends.append((name, time[at], share[at], f"C{number}"))
    time = np.linspace(0, 6, 50)
    axes.plot(time, np.exp(-time), color="0.4", ls=":")
    axes.set(
        yscale="log", xlim=(0, 6), ylim=(2e-3, 1.2), xlabel="c t / c tau of hadrons that decayed"
    )
    axes.set_ylabel("share that lives longer (dotted: exp)")
    label_curves(axes, ends, column=1.02)
