"""Files that appear whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from jetkern import hdf5, io
from jetkern.simulate import SimulationError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path that becomes ``path`` on success, synced to disk, and vanishes otherwise.

    Raises:
        SimulationError: naming ``path`` if it cannot be written.
    """
    with _in_its_folder(path), io.replacing(path) as temporary:
        yield temporary


@contextmanager
def writing(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file that is written to ``path`` when it is complete.

    Raises:
        SimulationError: naming ``path`` if it cannot be written.
    """
    with _in_its_folder(path), hdf5.writing(path) as file:
        yield file


@contextmanager
def _in_its_folder(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise SimulationError(io.explain(error)) from error


@contextmanager
def reading(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file, open for reading.

    Raises:
        SimulationError: naming the file if it cannot be read.
    """
    io.regular_file(path, error=SimulationError)
    try:
        with h5py.File(path, locking=False) as file:
            yield file
    except (OSError, KeyError) as error:
        raise SimulationError(f"{path}: {io.explain(error)}") from None
