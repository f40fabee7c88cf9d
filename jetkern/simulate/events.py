"""Events as flat numpy arrays, and directions of momenta."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NEUTRINOS = (12, 14, 16)


@dataclass(frozen=True)
class Events:
    """Particles of N events, back to back.

    Attributes:
        offsets: (N + 1,) int64; event i owns rows ``offsets[i]:offsets[i + 1]``.
        id, status: (T,) PDG code and Pythia status, positive in the final state.
        daughter1, daughter2: (T,) rows of the first and last daughter, counted over all events;
            the row of the event's first entry where there is none.
        mother: (T,) row of the first mother, likewise.
        p: (T, 4) px, py, pz, E in GeV.
        mass: (T,) GeV.
        vertex: (T, 3) x, y, z of production in mm.
        charge: (T,) in units of the proton's.
    """

    offsets: NDArray[np.int64]
    id: NDArray[np.int64]
    status: NDArray[np.int64]
    daughter1: NDArray[np.int64]
    daughter2: NDArray[np.int64]
    mother: NDArray[np.int64]
    p: NDArray[np.floating]
    mass: NDArray[np.floating]
    vertex: NDArray[np.floating]
    charge: NDArray[np.floating]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def event(self) -> NDArray[np.int64]:
        """(T,) event of each particle."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))


def direction(p: NDArray[np.floating]) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Pseudorapidity and azimuth of (T, 3 or more) momenta."""
    return np.arcsinh(p[:, 2] / np.hypot(p[:, 0], p[:, 1])), np.arctan2(p[:, 1], p[:, 0])


def delta_phi(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.floating]:
    """a - b, from -pi to pi."""
    return (a - b + np.pi) % (2 * np.pi) - np.pi
