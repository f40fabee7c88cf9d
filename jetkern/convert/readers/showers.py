"""Showers from the public layouts of HDF5 files; there are no shards of them yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from jetkern.convert.readers import InputError, hdf5
from jetkern.showers import Showers

CALOCHALLENGE = {45 * 16 * 9: (45, 16, 9), 45 * 50 * 18: (45, 50, 18)}
"""Layers, angular and radial bins of data sets 2 and 3; in data set 1 layers differ."""


INCIDENT = ("incident_energies", "incident_energy", "genE", "energies")


def read_showers(path: Path, start: int = 0, stop: int | None = None) -> Showers:
    """Showers of one of the public layouts, judged by the content; hits in the file's order.

    - ShowerData: ``showers`` with a row of numbers for each shower, ``shape``, ``energies``.
    - padded: ``showers`` (N, P, 4) of x, y, z, energy; a hit has an energy above 0.
    - apart: ``x``, ``y``, ``z``, ``energy`` (N, P), likewise.
    - CaloChallenge data sets 2 and 3: ``showers`` (N, V), the radial bin fastest, then the angular
      one, then the layer; x and y are these bins. All energies are MeV, those of particles become
      GeV.

    Energies of particles are ``incident_energies``, ``incident_energy``, ``genE`` or ``energies``,
    (N,) or (N, 1).

    Args:
        path: an HDF5 file; start, stop: which of its showers.

    Raises:
        InputError: naming the file and what is wrong with it.
    """
    with hdf5.open_file(path) as file:
        name = next((n for n in INCIDENT if n in file), None)
        if name is None:
            raise InputError(f"{path}: no energies of the particles: {', '.join(INCIDENT)}")
        number = hdf5.per_jet(file, name)
        stop = len(number) if stop is None else min(stop, len(number))
        start = min(start, stop)
        energies = hdf5.read_per_jet(number, start, stop).astype(np.float32)
        for wanted, read in (("shape", _showerdata), ("showers", _dense), ("energy", _apart)):
            if wanted in file:
                return read(file, start, stop, energies)
        raise InputError(f"{path}: no layout of showers that is known: {', '.join(sorted(file))}")


def _showerdata(file: Any, start: int, stop: int, energies: NDArray[np.float32]) -> Showers:
    found, shape = file.get("showers"), file["shape"][()]
    if not isinstance(found, h5py.Dataset) or h5py.check_vlen_dtype(found.dtype) != np.float32:
        raise InputError(f"{file.filename}: showers are no rows of float32 of any length")
    if np.shape(shape) != (3,) or shape[2] not in (4, 5) or len(found) < stop:
        raise InputError(f"{file.filename}: shape {shape} is not that of its showers")
    rows = [np.asarray(row) for row in found[start:stop]]
    for number, row in enumerate(rows, start):
        if len(row) % shape[2]:
            raise InputError(
                f"{file.filename}: shower {number} has {len(row)} numbers, not {shape[2]} a hit"
            )
    flat = [row.reshape(-1, shape[2])[:, :4] for row in rows]
    offsets = np.cumsum([0, *map(len, flat)], dtype=np.int64)
    return Showers(np.concatenate([np.empty((0, 4), np.float32), *flat]), offsets, energies)


def _dense(file: Any, start: int, stop: int, energies: NDArray[np.float32]) -> Showers:
    data = hdf5.dataset(file, "showers")
    if len(data) < stop:
        raise InputError(f"{file.filename}: {len(data)} showers, but more energies of particles")
    if data.ndim == 3 and data.shape[2] == 4:
        return _without_padding(hdf5.read(data, start, stop), energies)
    if data.ndim != 2 or data.shape[1] not in CALOCHALLENGE:
        raise InputError(
            f"{file.filename}: showers has shape {data.shape}, expected (N, P, 4), or (N, V) with "
            f"V of {' or '.join(map(str, CALOCHALLENGE))}, CaloChallenge's data sets 2 and 3"
        )
    voxels = hdf5.read(data, start, stop).reshape(stop - start, *CALOCHALLENGE[data.shape[1]])
    owner, layer, angle, radius = voxels.nonzero()
    hits = np.stack([radius, angle, layer, voxels[voxels != 0]], 1).astype(np.float32)
    counts = np.bincount(owner, minlength=stop - start)
    return Showers(hits, np.cumsum([0, *counts], dtype=np.int64), energies / np.float32(1000))


def _apart(file: Any, start: int, stop: int, energies: NDArray[np.float32]) -> Showers:
    columns = [hdf5.dataset(file, name, ndim=2) for name in ("x", "y", "z", "energy")]
    if len({c.shape for c in columns}) > 1 or len(columns[0]) < stop:
        raise InputError(f"{file.filename}: x, y, z and energy differ in shape or lack showers")
    return _without_padding(np.stack([hdf5.read(c, start, stop) for c in columns], 2), energies)


def _without_padding(hits: NDArray[Any], energies: NDArray[np.float32]) -> Showers:
    there = hits[:, :, 3] > 0  # wherever the padding is
    offsets = np.cumsum([0, *there.sum(1)], dtype=np.int64)
    return Showers(hits[there].astype(np.float32), offsets, energies)
