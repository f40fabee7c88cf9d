"""What generated jets are made of: shares of particle kinds and widths of d0, beside real jets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from jetkern.evaluation.generation import jets_of_type
from jetkern.jets import Jets
from jetkern.model.columns import CHARGED, KIND, KINDS, millimetres
from jetkern.tables import table

CENTRAL = (0.16, 0.84)  # quantiles, half of whose distance is a width


@dataclass(frozen=True)
class Pair:
    """A number of real and of generated jets, and the difference of it between two halves of the
    real ones, each of half the jets."""

    real: float
    made: float
    floor: float


@dataclass(frozen=True)
class Species:
    """Of the particles of one kind in the jets of one type.

    Attributes:
        share: of all particles.
        width: half of the central 68 % of d0, in mm; None for neutral kinds and without tracks.
    """

    share: Pair
    width: Pair | None


Report = dict[str, dict[str, Species]]


def species_report(
    real: Jets, made: Jets, classes: Sequence[str], columns: Sequence[str] = (), *, seed: int = 0
) -> Report:
    """Species by type and kind, of types with jets in both.

    Args:
        real, made: with labels and pid; with tracks for the widths of d0.
        classes: names of the types.
        columns: those of the tracks, which say the scale of d0.
        seed: of the halves.
    """
    found: Report = {}
    for number, name in enumerate(classes):
        one, other = jets_of_type(real, number), jets_of_type(made, number)
        if len(one) < 2 or not len(other):
            continue
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(one)))
        halves = [one.select(half) for half in order.tensor_split(2)]
        kinds = [_kinds(jets, columns) for jets in (one, other, *halves)]
        found[name] = {
            kind: _species([k[place] for k in kinds], CHARGED[place] and bool(columns))
            for place, kind in enumerate(KINDS)
        }
    return found


def species_table(report: Report) -> str:
    """Markdown: a row for each type and kind."""
    header = (
        "type",
        "kind",
        "share",
        "generated",
        "± real",
        "d0 width (mm)",
        "generated",
        "± real",
    )
    rows: list[tuple[object, ...]] = [header]
    for name, kinds in report.items():
        for kind, found in kinds.items():
            share, width = found.share, found.width
            cells = ["", "", ""]
            if width is not None:
                cells = [f"{value:.3g}" for value in (width.real, width.made, width.floor)]
            shares = [f"{value:.4f}" for value in (share.real, share.made, share.floor)]
            rows.append((name, kind.replace("_", " "), *shares, *cells))
    return table(rows, "llrrrrrr", markdown=True)


def _kinds(jets: Jets, columns: Sequence[str]) -> list[tuple[float, float]]:
    """Share and width of d0 of each kind; NaN where there is none."""
    assert jets.pid is not None
    kind = torch.tensor(KIND)[jets.pid].numpy()
    d0: NDArray[np.float64] | None = None
    if columns and jets.tracks is not None:
        d0 = millimetres(jets.tracks, columns)[:, 0].numpy()
    result = []
    for place in range(len(KINDS)):
        chosen = kind == place
        width = np.nan
        if d0 is not None and chosen.any():
            low, high = np.quantile(d0[chosen], CENTRAL)
            width = (high - low) / 2
        result.append((float(chosen.mean()) if len(kind) else np.nan, float(width)))
    return result


def _species(found: Sequence[tuple[float, float]], tracks: bool) -> Species:
    """Of real and generated jets and the halves of the real ones."""

    def pair(place: int) -> Pair:
        real, made, first, second = (values[place] for values in found)
        return Pair(real, made, abs(first - second))

    return Species(pair(0), pair(1) if tracks else None)
