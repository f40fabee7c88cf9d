"""Observables of showers, and how far generated ones are from others (SPADE, arXiv:2606.11304)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jetkern.metrics.generation import Sample, wasserstein
from jetkern.showers import Showers

Floats = NDArray[np.float64]


def observables(showers: Showers) -> dict[str, Floats]:
    """(N,) each of hits, their energy by that of the particle (MeV/GeV), and, weighted with the
    energy: depth (layers), x and y (cells), and the widths of depth and radius.

    Showers without hits have 0 hits and 0 energy, and NaN for the others.
    """
    x, y, layer, energy = showers.hits.T.astype(np.float64)
    owner, number = showers.owner, len(showers)
    total = np.bincount(owner, energy, number)

    def mean(values: Floats) -> Floats:
        with np.errstate(invalid="ignore"):
            return np.bincount(owner, energy * values, number) / total

    depth, x_mean, y_mean = mean(layer), mean(x), mean(y)
    off_axis = (x - x_mean[owner]) ** 2 + (y - y_mean[owner]) ** 2
    return {
        "hits": showers.counts.astype(np.float64),
        "response": total / showers.energies,
        "depth": depth,
        "x": x_mean,
        "y": y_mean,
        "sigma_z": np.sqrt(mean((layer - depth[owner]) ** 2)),
        "sigma_r": np.sqrt(mean(off_axis)),
    }


def samples(showers: Showers) -> dict[str, Sample]:
    """``observables``, ln of the energies / MeV of the hits, and the particles' energies in GeV."""
    found = {name: Sample(values) for name, values in observables(showers).items()}
    found["ln_energy"] = Sample(np.log(showers.hits[:, 3].astype(np.float64)), showers.offsets)
    found["incident_energy"] = Sample(showers.energies.astype(np.float64))
    return found


class Distance(NamedTuple):
    """How far generated showers are from simulated ones in one observable."""

    name: str
    distance: float
    """W1 to the generated ones"""
    floor: float
    """W1 between simulated ones"""


def distances(truth: Showers, other: Showers, generated: Showers) -> list[Distance]:
    """W1 in each observable and in ln of the hits' energies, of the generated and of other showers.

    The floor is a distance between samples of the same law, so it depends on their sizes: as many
    other as generated showers, of the same energies, make it comparable.
    """
    found = []
    named = [observables(showers) for showers in (truth, other, generated)]
    for values, showers in zip(named, (truth, other, generated), strict=True):
        values["ln_energy"] = np.log(showers.hits[:, 3].astype(np.float64))
    for name in named[0]:
        real, again, made = (values[name][np.isfinite(values[name])] for values in named)
        found.append(Distance(name, wasserstein(real, made), wasserstein(real, again)))
    return found


def oddities(showers: Showers) -> dict[str, float]:
    """What no calorimeter has, as fractions of the hits: of a layer before the last hit's
    (``backward``), and in a cell that has one already (``taken``)."""
    x, y, layer, _ = showers.hits.astype(np.int64).T
    owner = showers.owner
    same = np.diff(owner) == 0
    backward = ((np.diff(layer) < 0) & same).sum()
    places = np.unique(np.stack([owner, layer, y, x], 1), axis=0)
    number = max(len(owner), 1)
    return {"backward": backward / number, "taken": (len(owner) - len(places)) / number}
