"""Showers from the public layouts of HDF5 files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from jetkern.convert.readers import BaseSource, InputError, Layout, Options, Raw, hdf5
from jetkern.showers import COLUMNS, CONDITION, Showers

NAME = "showers"
SUFFIXES = (".h5", ".hdf5")
LOOKS_FOR = "HDF5 datasets showers, events, or x, y, z and energy, and energies of particles"
SIZES = (64, 8192, 1024)  # showers of a block, of a shard, and that are read at a time: long ones
CLASSES = ("shower",)
INCIDENT = ("incident_energies", "incident_energy", "genE", "energies")
MEV = 1000  # in a GeV

_PHOTONS = ((1, 8), (10, 16), (10, 19), (1, 5), (1, 5))
_PIONS = ((1, 8), (10, 10), (10, 10), (1, 5), (10, 15), (10, 16), (1, 10))
CALOCHALLENGE = {
    sum(angles * radii for angles, radii in layers): layers
    for layers in (_PHOTONS, _PIONS, ((16, 9),) * 45, ((50, 18),) * 45)
}
"""Angular and radial bins of each layer by the number of voxels: of photons and pions (data set 1,
whose layers 0, 1, 2, 3, 12 and 13, 14 are numbered through), and of data sets 2 and 3"""


class Hits(NamedTuple):
    """Hits of some showers back to back, (T, 4) x, y, layer, MeV, and (B,) how many of each."""

    rows: NDArray[np.float32]
    counts: NDArray[np.int64]


class _Stored(NamedTuple):
    """How a file says what it holds: a name, the dataset of showers and that of the particles'
    energies, a GeV in the latter's unit, and what reads hits ``start`` to ``stop``."""

    name: str
    showers: Any
    energies: Any
    gev: int
    read: Callable[[int, int], Hits]


def recognises(path: Path) -> bool:
    """Whether the file has the datasets of one of the layouts."""
    with hdf5.open_file(path) as file:
        return _layout_of(file) is not None


def open_source(path: Path, options: Options) -> ShowerFile:
    """The opened file."""
    return ShowerFile(path)


class ShowerFile(BaseSource):
    """One file, of a layout that is judged by the content; hits in the file's order.

    - ShowerData: ``showers`` with a row of numbers for each shower, ``shape``, ``energies``.
    - padded: ``showers`` (N, P, 4) of x, y, z, energy; a hit has an energy above 0.
    - apart: ``x``, ``y``, ``z``, ``energy`` (N, P), likewise.
    - CaloChallenge: ``showers`` (N, V), the radial bin fastest, then the angular one, then the
      layer; x and y are these bins. All energies are MeV, those of particles become GeV.
    - CaloClouds: ``events`` (N, 4 or 5, P) of x, layer, y, energy in GeV, which becomes MeV, with
      the padding in front; x and y are millimetres. ``energy`` (N,) are those of the particles.

    Energies of particles are ``incident_energies``, ``incident_energy``, ``genE`` or ``energies``,
    (N,) or (N, 1), but of CaloClouds.

    Raises:
        InputError: naming the file and what is wrong with it.
    """

    def __init__(self, path: Path) -> None:
        self.file = hdf5.open_file(path)
        find = _layout_of(self.file)
        if find is None:
            energies = any(name in self.file for name in INCIDENT)
            lacks = "no layout of showers that is known" if energies else NO_ENERGIES
            have = ", ".join(sorted(self.file)) or "nothing"
            raise InputError(f"{path}: {lacks}; the file has {have}")
        self.stored = find(self.file)
        number = len(self.stored.energies)
        if len(self.stored.showers) != number:
            raise InputError(
                f"{path}: {len(self.stored.showers)} showers, but {number} energies of particles"
            )
        layout = Layout(CLASSES, points=COLUMNS, condition=CONDITION)
        super().__init__(path, number, layout, notes={"layout": self.stored.name})

    def read(self, start: int, stop: int) -> Raw:
        """The showers ``start`` to ``stop - 1``."""
        hits = self.stored.read(start, stop)
        energies = hdf5.read_per_jet(self.stored.energies, start, stop) / self.stored.gev
        return Raw(
            counts=hits.counts,
            particles=hits.rows,
            label=np.zeros(stop - start, np.int64),
            condition=energies.astype(np.float32)[:, None],
        )

    def close(self) -> None:
        """Closes the file."""
        self.file.close()


NO_ENERGIES = f"no energies of the particles: {', '.join(INCIDENT)}"


def read_showers(path: Path, start: int = 0, stop: int | None = None) -> Showers:
    """Showers of one of the layouts that ``ShowerFile`` reads.

    Args:
        path: an HDF5 file; start, stop: which of its showers.

    Raises:
        InputError: naming the file and what is wrong with it.
    """
    source = ShowerFile(path)
    try:
        stop = source.num_jets if stop is None else min(stop, source.num_jets)
        raw = source.read(min(start, stop), stop)
    finally:
        source.close()
    assert raw.condition is not None
    return Showers(raw.particles, _offsets(raw.counts), raw.condition[:, 0])


def read_energies(path: Path) -> NDArray[np.float32]:
    """(N,) energies in GeV of the particles of a file's showers; errors as for ``read_showers``."""
    source = ShowerFile(path)
    try:
        energies = hdf5.read_per_jet(source.stored.energies, 0, source.num_jets)
    finally:
        source.close()
    return (energies / source.stored.gev).astype(np.float32)


def _layout_of(file: Any) -> Callable[[Any], _Stored] | None:
    """What opens the datasets of the file, by those that are there; None for no showers."""
    if "events" in file and "energy" in file:
        return _caloclouds
    if not any(name in file for name in INCIDENT):
        return None
    found = (("shape", _showerdata), ("showers", _dense), ("energy", _apart))
    return next((find for name, find in found if name in file), None)


def _energies(file: Any) -> Any:
    return hdf5.per_jet(file, next(name for name in INCIDENT if name in file))


def _showerdata(file: Any) -> _Stored:
    found, shape = file.get("showers"), hdf5.dataset(file, "shape")[()]
    if not isinstance(found, h5py.Dataset) or h5py.check_vlen_dtype(found.dtype) != np.float32:
        raise InputError(f"{file.filename}: showers are no rows of float32 of any length")
    if np.shape(shape) != (3,) or shape[2] not in (4, 5):
        raise InputError(f"{file.filename}: shape {shape} is not that of its showers")
    width = int(shape[2])

    def read(start: int, stop: int) -> Hits:
        rows = hdf5.read(found, start, stop)
        counts, over = np.divmod(np.array([len(row) for row in rows], np.int64), width)
        if over.any():
            number = int(over.nonzero()[0][0])
            raise InputError(
                f"{file.filename}: shower {start + number} has {len(rows[number])} numbers, not "
                f"{width} a hit"
            )
        flat = np.concatenate([np.empty(0, np.float32), *rows]).reshape(-1, width)
        return Hits(flat[:, :4], counts)

    return _Stored("ShowerData", found, _energies(file), 1, read)


def _dense(file: Any) -> _Stored:
    data = hdf5.dataset(file, "showers")
    if data.ndim == 3 and data.shape[2] == 4:
        return _Stored("padded", data, _energies(file), 1, _parts(_without_padding, data))
    if data.ndim != 2 or data.shape[1] not in CALOCHALLENGE:
        raise InputError(
            f"{file.filename}: showers has shape {data.shape}, expected (N, P, 4), or (N, V) with "
            f"V of {', '.join(map(str, CALOCHALLENGE))}, CaloChallenge's data sets 1 (photons, "
            "pions), 2 and 3"
        )
    layers = CALOCHALLENGE[data.shape[1]]
    cells = np.concatenate(
        [
            np.stack([np.tile(np.arange(r), a), np.repeat(np.arange(a), r), np.full(a * r, n)], 1)
            for n, (a, r) in enumerate(layers)
        ]
    )

    def read(voxels: NDArray[Any]) -> Hits:
        owner, voxel = voxels.nonzero()
        hits = np.concatenate([cells[voxel], voxels[owner, voxel, None]], 1)
        return Hits(hits.astype(np.float32), np.bincount(owner, minlength=len(voxels)))

    return _Stored("CaloChallenge", data, _energies(file), MEV, _parts(read, data))


def _apart(file: Any) -> _Stored:
    columns = [hdf5.dataset(file, name, ndim=2) for name in ("x", "y", "z", "energy")]
    if len({c.shape for c in columns}) > 1:
        raise InputError(f"{file.filename}: x, y, z and energy differ in shape")
    energies = _energies(file)

    def read(start: int, stop: int) -> Hits:
        return _without_padding(np.stack([hdf5.read(c, start, stop) for c in columns], 2))

    return _Stored("x, y, z, energy", columns[0], energies, 1, read)


def _caloclouds(file: Any) -> _Stored:
    data = hdf5.dataset(file, "events", ndim=3)
    if data.shape[1] not in (4, 5):
        raise InputError(f"{file.filename}: events has shape {data.shape}, expected (N, 4, P)")

    def read(events: NDArray[Any]) -> Hits:
        hits = np.moveaxis(events, 1, 2)[:, :, [0, 2, 1, 3]].copy()
        hits[:, :, 3] *= MEV
        return _without_padding(hits)

    return _Stored("CaloClouds", data, hdf5.per_jet(file, "energy"), 1, _parts(read, data))


def _parts(read: Callable[[NDArray[Any]], Hits], data: Any) -> Callable[[int, int], Hits]:
    """Reads showers of a dataset part by part: with their padding they are large."""

    def whole(start: int, stop: int) -> Hits:
        found = [read(part) for part in hdf5.parts(data, start, stop)]
        rows = np.concatenate([np.empty((0, 4), np.float32), *(f.rows for f in found)])
        return Hits(rows, np.concatenate([np.empty(0, np.int64), *(f.counts for f in found)]))

    return whole


def _without_padding(hits: NDArray[Any]) -> Hits:
    # Wherever the padding is. What is no number is no padding either.
    there = ~(hits[:, :, 3] <= 0)
    return Hits(hits[there].astype(np.float32), there.sum(1))


def _offsets(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts)])
