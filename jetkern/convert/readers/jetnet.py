"""JetNet HDF5 files (arXiv 2106.11535, Zenodo 6975118 and 6975117), 30 or 150 particles.

``particle_features`` (N, P, 4) is eta and phi relative to the jet, pT over the jet's pT, and a
mask; ``jet_features`` (N, 4) is pT, eta, mass and the number of particles. The file's name says the
type of its jets: g, q, t, w or z.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from jetkern.convert.readers import (
    JETNET,
    BaseSource,
    InputError,
    Layout,
    Options,
    Raw,
    hdf5,
    take_real,
    without_momentum,
)

NAME = "jetnet"
SUFFIXES = (".h5", ".hdf5")
LOOKS_FOR = "HDF5 datasets particle_features (N, P, 4) and jet_features (N, 4)"
CONDITION = ("jet_pt", "jet_mass", "multiplicity/100")
# OmniLearn's split of each file, which the published results use: its first 63 %, 7 %, 30 %.
SPLITS = {"train": 0.63, "val": 0.07, "test": 0.30}


def recognises(path: Path) -> bool:
    """Whether the file has this layout's datasets."""
    with hdf5.open_file(path) as file:
        return "particle_features" in file or "jet_features" in file


def open_source(path: Path, options: Options) -> JetNet:
    """The opened file."""
    return JetNet(path, options)


class JetNet(BaseSource):
    """One file. Energies are those of massless particles, E = pT cosh(eta)."""

    def __init__(self, path: Path, options: Options) -> None:
        kind = re.fullmatch(r"([gqtwz])(30|150)?(_.*)?", path.stem)
        if not kind:
            raise InputError(
                f"{path}: the name must begin with the type of the jets: one of "
                f"{', '.join(JETNET)}, as in t150.hdf5"
            )
        self.label = JETNET.index(kind.group(1))
        self.file = hdf5.open_file(path)
        self.particles = hdf5.dataset(self.file, "particle_features", ndim=3, kind="f")
        self.jets = hdf5.dataset(self.file, "jet_features", ndim=2, kind="f")
        for data, shape in ((self.particles, "(N, P, 4)"), (self.jets, "(N, 4)")):
            if data.shape[-1] != 4:
                name = data.name.lstrip("/")
                raise InputError(f"{path}: {name} has shape {data.shape}, expected {shape}")
        num_jets = hdf5.same_length(
            path, particle_features=len(self.particles), jet_features=len(self.jets)
        )
        classes = options.classes or JETNET
        super().__init__(path, num_jets, Layout(classes, condition=CONDITION), splits=dict(SPLITS))

    def read(self, start: int, stop: int) -> Raw:
        """The jets ``start`` to ``stop - 1``."""
        padded = hdf5.read(self.particles, start, stop)
        jets = hdf5.read(self.jets, start, stop).astype(np.float64)
        counts, (rows,) = take_real(padded[..., 3] > 0, padded)
        eta, phi, pt = rows[:, :3].astype(np.float64).T
        pt = pt * np.repeat(jets[:, 0], counts)
        energy = pt * np.cosh(eta + np.repeat(jets[:, 1], counts))
        with np.errstate(divide="ignore", invalid="ignore"):
            particles = np.stack([eta, phi, np.log(pt), np.log(energy)], axis=1)
        edges = [int(0.63 * self.num_jets), int(0.7 * self.num_jets)]
        return Raw(
            counts=counts,
            particles=particles,
            label=np.full(len(counts), self.label),
            skip=without_momentum(pt, pt),
            condition=np.stack([jets[:, 0], jets[:, 2], counts / 100], axis=1),
            split=np.searchsorted(edges, np.arange(start, stop), side="right"),
        )

    def close(self) -> None:
        """Closes the file."""
        self.file.close()
