"""The top-tagging reference set as published (Zenodo 2603256): 200 four-vectors per jet.

The files are pandas' HDF5: ``table`` is either a PyTables table (format "table") or a group of
blocks ("fixed"), with columns E_0, PX_0, PY_0, PZ_0 ... of the particles, ``is_signal_new`` for the
label and ``ttv`` for the split (0 train, 1 test, 2 validation). They are read without pandas.
Names of columns, which PyTables keeps as pickles in text, are matched as text and never unpickled.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from jetkern.convert.readers import (
    TOP,
    BaseSource,
    InputError,
    Layout,
    Options,
    Raw,
    hdf5,
    relative_kinematics,
    take_real,
    without_momentum,
)

NAME = "toptagging"
SUFFIXES = (".h5", ".hdf5")
LOOKS_FOR = "pandas' HDF5 with the key table"
CONDITION = ("jet_pt", "jet_eta", "jet_phi", "jet_mass", "multiplicity/100")
SPLITS = {"train": 0.6, "test": 0.2, "val": 0.2}  # in the order of the column ttv
_PARTS = ("E", "PX", "PY", "PZ")
_LABEL, _SPLIT = "is_signal_new", "ttv"


def recognises(path: Path) -> bool:
    """Whether the file has pandas' key ``table``."""
    with hdf5.open_file(path) as file:
        return isinstance(file.get("table"), h5py.Group)


def open_source(path: Path, options: Options) -> TopTagging:
    """The opened file."""
    return TopTagging(path, options)


class TopTagging(BaseSource):
    """One file in either of pandas' layouts."""

    def __init__(self, path: Path, options: Options) -> None:
        self.file = hdf5.open_file(path)
        self.blocks = blocks(self.file)
        num_jets = hdf5.same_length(path, **{b.name: b.length for b in self.blocks})
        self.columns = TopColumns(path, [name for b in self.blocks for name in b.columns])
        super().__init__(path, num_jets, top_layout(options), splits=self.columns.splits)

    def read(self, start: int, stop: int) -> Raw:
        """The jets ``start`` to ``stop - 1``."""
        read = {b.name: b.read(start, stop) for b in self.blocks}
        where = {c: (b.name, i) for b in self.blocks for i, c in enumerate(b.columns)}

        def get(names: list[str]) -> NDArray[Any]:
            homes = {where[n][0] for n in names}
            if len(homes) == 1:
                return read[homes.pop()][:, [where[n][1] for n in names]]
            return np.stack([read[where[n][0]][:, where[n][1]] for n in names], axis=1)

        return self.columns.raw(get, start)

    def close(self) -> None:
        """Closes the file."""
        self.file.close()


class Block:
    """Some columns of one type: an array of a fixed-format file, or a field of a table."""

    def __init__(self, data: Any, columns: tuple[str, ...], member: str | None) -> None:
        self.data, self.columns, self.member = data, columns, member
        self.name: str = member or str(data.name)
        # Of an array without rows pandas writes one number, and the true shape as an attribute.
        self.length = 0 if member is None and "shape" in data.attrs else len(data)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """(jets, columns)."""
        rows = hdf5.read(self.data, start, stop)
        if self.member is not None:
            rows = rows[self.member]
            rows = rows.astype(rows.dtype.newbyteorder("="), copy=False)
        return rows.reshape(len(rows), -1)


def blocks(file: h5py.File) -> list[Block]:
    """The blocks of numbers under the key ``table`` with the names of their columns."""
    path, group = file.filename, file.get("table")
    if not isinstance(group, h5py.Group):
        have = ", ".join(sorted(file)) or "nothing"
        raise InputError(f"{path}: there is no key table of pandas' in the file, which has {have}")
    found = []
    if "table" in group:
        data = hdf5.dataset(file, "table/table", ndim=1, kind="V")
        for member in data.dtype.names:
            kind = data.dtype[member].base.kind
            if member == "index" or kind not in "fiub":
                continue
            names = data.attrs.get(f"{member}_kind")
            columns = strings_of_list(names) if names is not None else (member,)
            width = int(np.prod(data.dtype[member].shape, dtype=int))
            if len(columns) != width:
                raise InputError(
                    f"{path}: table: {member} has {width} columns, but {len(columns)} names"
                )
            found.append(Block(data, columns, member))
        return found
    for name in sorted(k for k in group if re.fullmatch(r"block\d+_values", k)):
        data = hdf5.dataset(file, f"table/{name}", ndim=2, kind="fiub")
        items = hdf5.dataset(file, f"table/{name.replace('values', 'items')}", kind="S")
        columns = hdf5.attribute_names(items[()])
        if len(columns) != data.shape[1] and "shape" not in data.attrs:
            raise InputError(
                f"{path}: table: {name} has {data.shape[1]} columns, but {len(columns)} names"
            )
        found.append(Block(data, columns, None))
    if not found:
        raise InputError(f"{path}: the key table is in neither of pandas' two formats")
    return found


def strings_of_list(value: Any) -> tuple[str, ...]:
    """The strings of a list as PyTables keeps it: lines of text, V and one or S and one in quotes.

    None, where it is kept otherwise.
    """
    data = value.tobytes() if isinstance(value, np.ndarray | np.void) else bytes(value)
    lines = re.findall(rb"^a?(?:V(.+)|S'(.+)')$", data, re.MULTILINE)
    return tuple((new or old).decode("ascii", "replace") for new, old in lines)


def top_layout(options: Options) -> Layout:
    """What the set's jets consist of."""
    return Layout(classes=options.classes or TOP, condition=CONDITION)


class TopColumns:
    """The set's columns, whatever kind of file they are in."""

    def __init__(self, path: Path, columns: list[str]) -> None:
        self.path = path
        have = set(columns)
        self.slots = sum(1 for c in have if re.fullmatch(r"E_\d+", c))
        wanted = [f"{part}_{i}" for i in range(self.slots) for part in _PARTS]
        missing = [c for c in [*(wanted or ["E_0"]), _LABEL] if c not in have]
        if missing:
            raise InputError(
                f"{path}: there is no column {', '.join(missing[:4])}; the file has "
                f"{', '.join(columns[:8])}, ..."
            )
        self.splits = dict(SPLITS) if _SPLIT in have else {}

    @property
    def names(self) -> list[str]:
        """All columns that are read."""
        return [
            *(f"{part}_{i}" for i in range(self.slots) for part in _PARTS),
            _LABEL,
            *([_SPLIT] if self.splits else []),
        ]

    def raw(self, get: Callable[[list[str]], NDArray[Any]], start: int) -> Raw:
        """The jets, of a function that gives some columns as an array (jets, columns)."""
        padded = [get([f"{p}_{i}" for i in range(self.slots)]) for p in _PARTS]
        mask = np.any([p != 0 for p in padded], axis=0)
        counts, vectors = take_real(mask, *padded)
        energy, px, py, pz = (v.astype(np.float64) for v in vectors)
        label = hdf5.integers(get([_LABEL])[:, 0], _LABEL, self.path, start)
        split = None
        if self.splits:
            split = hdf5.integers(get([_SPLIT])[:, 0], _SPLIT, self.path, start)
            wrong = (split < 0) | (split > 2)
            if wrong.any():
                jet = int(np.argmax(wrong))
                raise InputError(
                    f"{self.path}: jet {start + jet}: {_SPLIT} is {split[jet]}, expected 0 to 2"
                )
        axis, condition = jet_quantities(px, py, pz, energy, counts)
        owner = np.repeat(np.arange(len(counts)), counts)
        return Raw(
            counts=counts,
            particles=relative_kinematics(px, py, pz, energy, axis[0][owner], axis[1][owner]),
            label=label,
            skip=without_momentum(px, py),
            condition=condition,
            split=split,
        )


def jet_quantities(
    px: NDArray[Any], py: NDArray[Any], pz: NDArray[Any], energy: NDArray[Any], counts: NDArray[Any]
) -> tuple[tuple[NDArray[Any], NDArray[Any]], NDArray[Any]]:
    """The axis (eta, phi) of the sum of each jet's particles, and the columns ``CONDITION``.

    A jet without particles, or whose sum has no direction, gets zeros.
    """
    owner = np.repeat(np.arange(len(counts)), counts)
    x, y, z, e = (np.bincount(owner, v, minlength=len(counts)) for v in (px, py, pz, energy))
    pt = np.hypot(x, y)
    eta = np.arcsinh(np.divide(z, pt, out=np.zeros_like(z), where=pt > 0))
    phi = np.arctan2(y, x)
    mass = np.sqrt(np.maximum(e**2 - x**2 - y**2 - z**2, 0))
    return (eta, phi), np.stack([pt, eta, phi, mass, counts / 100], axis=1)
