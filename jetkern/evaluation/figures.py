"""Figures of generated jets beside real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from jetkern.evaluation.generation import AVERAGE, GenerationReport, jets_of_type
from jetkern.jets import Jets
from jetkern.metrics.generation import Sample
from jetkern.metrics.showers import samples
from jetkern.metrics.substructure import JET, PARTICLE, observables
from jetkern.plots import PANEL, STYLE, bin_edges, label_curves, save, sheet
from jetkern.showers import Showers

BINS = 40
OF_GRID = ("mass", "pT", "tau21", "tau32", "D2", "multiplicity", "particle ln pT")
OF_QUALITY = ("W1 mass", "W1 tau21", "W1 particle ln pT", "W1 multiplicity", "W1M", "FPD")
UNITS = {
    "mass": "GeV", "pT": "GeV", "energy": "GeV", "incident_energy": "GeV", "response": "MeV/GeV",
    "depth": "layers", "sigma_z": "layers", "x": "cells", "y": "cells", "sigma_r": "cells",
    "ln_energy": "MeV",
}  # fmt: skip
HALF = 0.5  # of the sides of an image, in eta and phi
PIXELS = 40


def sheet_figure(real: Jets, generated: Mapping[str, Jets], path: Path) -> None:
    """Histograms of the particle features and jet observables, generated over real below each.

    Args:
        real: the reference, shaded.
        generated: by the name to show.
        path: of the picture.
    """
    truth, made = observables(real), {name: observables(jets) for name, jets in generated.items()}
    names = (*PARTICLE, *JET)
    with matplotlib.rc_context(STYLE):
        figure, pairs = _panels(len(names) // 4, 4)
        for name, (top, below) in zip(names, pairs, strict=True):
            _compare(top, below, truth[name], {n: found[name] for n, found in made.items()})
            below.set_xlabel(_axis(name))
        _legend(pairs[0][0])
        save(figure, path)


def showers_figure(real: Showers, generated: Mapping[str, Showers], path: Path) -> None:
    """The same of showers: their observables and the energies of hits.

    Args:
        real, generated, path: as for ``sheet_figure``.
    """
    truth, made = samples(real), {name: samples(showers) for name, showers in generated.items()}
    with matplotlib.rc_context(STYLE):
        figure, pairs = _panels(-(-len(truth) // 3), 3)
        for name, (top, below) in zip(truth, pairs, strict=True):
            _compare(top, below, truth[name], {n: found[name] for n, found in made.items()})
            below.set_xlabel(_axis(name))
        _legend(pairs[0][0])
        save(figure, path)


def grid_figure(
    real: Jets, generated: Mapping[str, Jets], classes: Sequence[str], path: Path
) -> None:
    """The same for some observables, a row for each type.

    Args:
        real, generated: as for ``sheet_figure``, with labels.
        classes: names of the types.
        path: of the picture.
    """
    shown = [k for k in range(len(classes)) if len(jets_of_type(real, k))]
    with matplotlib.rc_context(STYLE):
        figure, pairs = _panels(len(shown), len(OF_GRID))
        panels = iter(pairs)
        for row, kind in enumerate(shown):
            truth = observables(jets_of_type(real, kind))
            made = {n: observables(jets_of_type(jets, kind)) for n, jets in generated.items()}
            for column, name in enumerate(OF_GRID):
                top, below = next(panels)
                _compare(top, below, truth[name], {n: found[name] for n, found in made.items()})
                if not column:
                    top.set_ylabel(classes[kind])
                if row == len(shown) - 1:
                    below.set_xlabel(_axis(name))
        _legend(pairs[0][0])
        save(figure, path)


def image_figure(real: Jets, generated: Jets, classes: Sequence[str], path: Path) -> None:
    """Average jet images: the pT of a jet by eta and phi, real above generated, for each type."""
    kinds = [k for k in range(len(classes)) if len(jets_of_type(real, k))]
    with matplotlib.rc_context(STYLE):
        figure = sheet(2 * len(kinds), len(kinds))
        pictures = [
            [average_image(jets_of_type(jets, kind)) for kind in kinds]
            for jets in (real, generated)
        ]
        highest = max(image.max() for row in pictures for image in row) or 1.0
        norm = matplotlib.colors.LogNorm(1e-5 * highest, highest)
        for number, axes in enumerate(figure.axes):
            row, column = divmod(number, len(kinds))
            shown = axes.imshow(
                pictures[row][column].T,
                origin="lower",
                extent=(-HALF, HALF, -HALF, HALF),
                norm=norm,
                cmap="magma",
            )
            axes.grid(False)
            axes.set(title=f"{classes[kinds[column]]}, {('real', 'generated')[row]}")
            axes.set(
                xlabel=r"$\Delta\eta$" if row else "", ylabel="" if column else r"$\Delta\phi$"
            )
        figure.colorbar(shown, ax=figure.axes, label="share of the pT")
        save(figure, path)


def average_image(jets: Jets) -> NDArray[np.float64]:
    """(PIXELS, PIXELS) share of the pT in each pixel of eta and phi, a mean over the jets."""
    eta, phi, log_pt, _ = jets.particles.double().numpy().T
    owner, pt = jets.jet_of_particle.numpy(), np.exp(log_pt)
    share = pt / np.bincount(owner, pt, minlength=len(jets))[owner]
    edges = np.linspace(-HALF, HALF, PIXELS + 1)
    return np.histogram2d(eta, phi, (edges, edges), weights=share)[0] / max(len(jets), 1)


def quality_figure(reports: Mapping[str, GenerationReport], path: Path) -> None:
    """Distances against the number of evaluations of the network, with that of real jets.

    Args:
        reports: by name; those with ``evaluations`` count.
        path: of the picture.
    """
    known = sorted(
        ((r.evaluations, r.distances[AVERAGE]) for r in reports.values() if r.evaluations),
        key=lambda pair: pair[0],
    )
    with matplotlib.rc_context(STYLE):
        figure = sheet(len(OF_QUALITY), 3)
        for axes, name in zip(figure.axes, OF_QUALITY, strict=True):
            counts = [count for count, _ in known]
            for color, which in (("C0", "value"), ("0.5", "floor")):
                found = [getattr(distances[name], which) for _, distances in known]
                values, errors = [e.value for e in found], [e.error for e in found]
                line = "o-" if which == "value" else ":"
                axes.errorbar(counts, values, errors, fmt=line, color=color, ms=4, capsize=2)
            axes.set(title=name, xscale="log", xlabel="evaluations")
            axes.set_xticks(counts, [str(count) for count in counts])
            axes.minorticks_off()
            label_curves(axes, [("real", counts[-1], values[-1], "0.5")], column=1.02)
            axes.set_ylim(bottom=0)
        save(figure, path)


def _panels(rows: int, columns: int) -> tuple[Figure, list[tuple[Axes, Axes]]]:
    """Pairs of a panel and a lower one for ratios below it, row by row."""
    width, height = PANEL[0] * columns, 1.2 * PANEL[1] * rows
    figure = Figure(figsize=(width, height))  # a constrained layout takes seconds for so many axes
    grid = figure.add_gridspec(
        rows,
        columns,
        left=0.5 / width,
        right=1 - 0.1 / width,
        top=1 - 0.1 / height,
        bottom=0.5 / height,
        wspace=0.2,
        hspace=0.25,
    )
    pairs = []
    for place in (grid[i, j] for i in range(rows) for j in range(columns)):
        parts = place.subgridspec(2, 1, height_ratios=[3, 1], hspace=0.08)
        top = figure.add_subplot(parts[0])
        pairs.append((top, figure.add_subplot(parts[1], sharex=top)))
    return figure, pairs


def _compare(top: Axes, below: Axes, real: Sample, generated: Mapping[str, Sample]) -> None:
    values = real.values[np.isfinite(real.values)]
    shown = values[values >= np.quantile(values, 0.002)] if len(values) else values
    whole = np.array_equal(shown, np.rint(shown))
    edges = bin_edges(shown.astype(np.int64) if whole else shown, BINS)
    expected, spread = _density(values, edges)
    top.stairs(expected, edges, fill=True, color="0.85", label="real")
    with np.errstate(divide="ignore", invalid="ignore"):
        below.stairs(
            1 + spread / expected, edges, baseline=1 - spread / expected, fill=True, color="0.85"
        )
        for number, (name, sample) in enumerate(generated.items()):
            density, _ = _density(sample.values[np.isfinite(sample.values)], edges)
            top.stairs(density, edges, color=f"C{number}", label=name, lw=1.2)
            below.stairs(density / expected, edges, color=f"C{number}", lw=1.2)
    below.axhline(1, color="0.6", lw=0.8)
    below.set_ylim(0.5, 1.5)
    top.tick_params(labelbottom=False)
    top.set_yticks([])


def _density(
    values: NDArray[np.float64], edges: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Density of all values in each bin and its statistical error."""
    counts = np.histogram(values, edges)[0]
    scale = max(len(values), 1) * np.diff(edges)
    return counts / scale, np.sqrt(counts) / scale


def _axis(name: str) -> str:
    return f"{name} ({UNITS[name]})" if name in UNITS else name


def _legend(axes: Axes) -> None:
    axes.legend(frameon=False, fontsize=8, loc="upper right")
