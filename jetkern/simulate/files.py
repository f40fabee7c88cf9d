"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from jetkern.simulate import SimulationError

TEMPORARY = ".*.tmp"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path that becomes ``path`` on success, synced to disk, and vanishes otherwise.

    Raises:
        SimulationError: naming ``path`` if it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise SimulationError(f"{path}: {reason}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def reading(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file, open for reading.

    Raises:
        SimulationError: naming the file if it cannot be read.
    """
    try:
        with h5py.File(path) as file:
            yield file
    except (OSError, KeyError) as error:
        raise SimulationError(f"{path}: {error}") from None
