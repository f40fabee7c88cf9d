"""What is in a simulation's folder, in files that appear whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from jetkern import hdf5, io
from jetkern.io import read_json
from jetkern.simulate import SimulationError

CONFIGURATION = "simulation.json"


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


def check_splits(splits: Mapping[str, float]) -> None:
    """Raises SimulationError unless these fractions are of all."""
    if not (min(splits.values()) >= 0 and abs(sum(splits.values()) - 1) < 1e-6):
        raise SimulationError(f"the fractions of the splits must sum to 1: {dict(splits)}")


def parts_of(splits: Mapping[str, float], number: int) -> Iterator[tuple[str, range]]:
    """Each split that gets some of ``number`` jets, and which."""
    start, total = 0, 0.0
    for name, fraction in splits.items():
        total += fraction
        end = round(total * number)
        if end > start:
            yield name, range(start, end)
        start = end


def check_configuration(out: Path, asked: Mapping[str, Any]) -> None:
    """Keeps what determines the output beside it, and raises SimulationError if it is another."""
    path = out / CONFIGURATION
    if not path.exists():
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(asked, indent=1) + "\n")
        return
    found = read_json(path, error=SimulationError).content
    for name in asked:
        if found.get(name) != asked[name]:
            raise SimulationError(
                f"{out} holds jets or showers with {name} = {found.get(name)}, not {asked[name]}; "
                "choose another --out"
            )
