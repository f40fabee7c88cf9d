"""Showers in a calorimeter: hits back to back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from jetkern.clouds import Clouds

COLUMNS = ("x", "y", "layer", "energy")
CONDITION = ("incident_energy",)  # of shards: that of the particle in GeV


@dataclass(frozen=True)
class Showers:
    """N showers with T hits in all.

    Attributes:
        hits: (T, 4) float32 x, y (cells from 0), layer (from 0) and energy of the hit in MeV.
        offsets: (N + 1,) int64; shower i has the hits ``offsets[i]:offsets[i + 1]``. It may have
            none.
        energies: (N,) float32 energy of the particle in GeV.

    Raises:
        ValueError: for wrong shapes and offsets that do not rise from 0 to T.
    """

    hits: NDArray[np.float32]
    offsets: NDArray[np.int64]
    energies: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.hits.ndim != 2 or self.hits.shape[1] != len(COLUMNS):
            raise ValueError(f"hits must be (T, 4): x, y, layer, energy; got {self.hits.shape}")
        if self.energies.ndim != 1 or self.offsets.shape != (len(self.energies) + 1,):
            raise ValueError(
                f"{len(self.energies)} energies need one offset more, got {self.offsets.shape}"
            )
        rises = (np.diff(self.offsets) >= 0).all()
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.hits) or not rises:
            raise ValueError(f"offsets must rise from 0 to the number of hits, {len(self.hits)}")

    def __len__(self) -> int:
        return len(self.energies)

    @property
    def counts(self) -> NDArray[np.int64]:
        """(N,) hits of each shower."""
        return np.diff(self.offsets)

    @property
    def owner(self) -> NDArray[np.int64]:
        """(T,) shower of each hit."""
        return np.repeat(np.arange(len(self)), self.counts)

    def part(self, start: int, stop: int) -> Showers:
        """The showers from ``start`` to before ``stop``."""
        offsets = self.offsets[start : stop + 1]
        hits = self.hits[offsets[0] : offsets[-1]]
        return Showers(hits, offsets - offsets[0], self.energies[start:stop])

    def select(self, chosen: NDArray[np.int64]) -> Showers:
        """Those of the chosen numbers, in that order."""
        counts = self.counts[chosen]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        rows = np.repeat(self.offsets[chosen] - offsets[:-1], counts) + np.arange(offsets[-1])
        return Showers(self.hits[rows], offsets, self.energies[chosen])

    def ordered(self) -> Showers:
        """The same with the hits of each shower by layer, in a layer the most energetic first;
        equally energetic ones stay as they are."""
        energy, layer = self.hits[:, 3], self.hits[:, 2]
        return Showers(
            self.hits[np.lexsort((-energy, layer, self.owner))], self.offsets, self.energies
        )

    def points(self) -> NDArray[np.float32]:
        """(T, 4) layer, x, y, ln of the energy / MeV: what a decoder learns, in SPADE's order."""
        x, y, layer, energy = self.hits.T
        return np.stack([layer, x, y, np.log(energy)], 1)

    @classmethod
    def of_clouds(cls, clouds: Clouds) -> Showers:
        """Those of shards, on the CPU: points are hits, the condition is the particle's energy.

        Raises:
            ValueError: for clouds without a condition.
        """
        if clouds.condition is None:
            raise ValueError("showers need the energies of their particles")
        offsets, energies = clouds.offsets.numpy(), clouds.condition[:, 0].numpy()
        return cls(clouds.points.numpy(), offsets, energies)

    @classmethod
    def of_points(cls, points: ArrayLike, offsets: ArrayLike, energies: ArrayLike) -> Showers:
        """The showers of what ``points`` returned."""
        layer, x, y, ln_energy = np.asarray(points, np.float32).T
        return cls(
            np.stack([x, y, layer, np.exp(ln_energy)], 1),
            np.asarray(offsets, np.int64),
            np.asarray(energies, np.float32),
        )
