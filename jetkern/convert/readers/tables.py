"""Columns of files of any kind: each table has ``num_rows``, ``step`` (rows that are worth reading
at a time), ``has(name)``, ``read(names, start, stop)`` and ``close()``.

Of HDF5 and npz files, whose arrays are rectangular, a column may be a part of an array:

    tracks.pt       the field pt of a structured array
    cands[3]        the entry 3 of the last axis: of (N, P, F) a column (N, P)
    cands[3,:]      the entry 3 of the axis before it, of (N, F, P)
    cands[0::4]     every fourth entry of the last axis, of (N, 4 P): pt eta phi m pt eta phi m ...
    cands[0:100]    the first hundred of them, of (N, 400): pt pt ... eta eta ...
"""

from __future__ import annotations

import math
import re
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from jetkern.convert.readers import Column, InputError, first_line, hdf5
from jetkern.convert.readers.parquet import Parquet
from jetkern.convert.readers.root import Tree

_STEP_BYTES = 64 << 20
_BLOCK = 1 << 20


class Table(Protocol):
    """Columns of one file; ``rectangular`` if lists of particles have room for a fixed number."""

    num_rows: int
    step: int
    rectangular: bool

    def has(self, name: str) -> bool:
        """Whether there is such a column."""
        ...

    def read(self, names: Iterable[str], start: int, stop: int) -> dict[str, Column]:
        """The columns of the rows ``start`` to ``stop - 1``."""
        ...

    def close(self) -> None:
        """Closes the file."""
        ...


def open_table(path: Path, form: str, tree: str | None, names: list[str]) -> Table:
    """The table in a file of the format hdf5, root, parquet or npz.

    Raises:
        InputError: if the file is damaged or lacks one of the columns.
    """
    if form == "root":
        return _Root(path, str(tree), names)
    if form == "parquet":
        return _Parquet(path, names)
    return (_HDF5 if form == "hdf5" else _Npz)(path, names)


class _Root:
    rectangular = False
    step = 1 << 62

    def __init__(self, path: Path, tree: str, names: list[str]) -> None:
        self.tree = Tree(path, tree, names)
        self.num_rows = self.tree.num_jets

    def has(self, name: str) -> bool:
        return self.tree.resolve(name) is not None

    def read(self, names: Iterable[str], start: int, stop: int) -> dict[str, Column]:
        return self.tree.read_columns(names, start, stop)

    def close(self) -> None:
        self.tree.close()


class _Parquet:
    rectangular = False
    step = 1 << 62

    def __init__(self, path: Path, names: list[str]) -> None:
        self.file = Parquet(path, names)
        self.num_rows = self.file.num_jets

    def has(self, name: str) -> bool:
        return self.file.resolve(name) is not None

    def read(self, names: Iterable[str], start: int, stop: int) -> dict[str, Column]:
        return self.file.read_columns(names, start, stop)

    def close(self) -> None:
        self.file.close()


class _Rectangular(ABC):
    """Tables of arrays: subclasses find arrays and read rows of them."""

    rectangular = True

    def __init__(self, path: Path, names: list[str]) -> None:
        self.path = path
        self._parts = {name: self._part(name) for name in dict.fromkeys(names)}
        used = {base: self._array(base) for base, _, _ in self._parts.values()}
        self.num_rows = hdf5.same_length(path, **{k: a.shape[0] for k, a in used.items()})
        row = sum(math.prod(a.shape[1:]) * a.dtype.itemsize for a in used.values())
        self.step = max(64, _STEP_BYTES // max(row, 1))
        for name, (base, field, index) in self._parts.items():
            self._check(name, used[base], field, index)

    @abstractmethod
    def _array(self, base: str) -> Any: ...

    @abstractmethod
    def _rows(self, base: str, start: int, stop: int) -> NDArray[Any]: ...

    @abstractmethod
    def _has_array(self, name: str) -> bool: ...

    def has(self, name: str) -> bool:
        try:
            self._part(name)
        except InputError:
            return False
        return True

    def _part(self, name: str) -> tuple[str, str | None, tuple[Any, ...]]:
        """The array, the field and the index that a name means."""
        base, index = name, ""
        if not self._has_array(name) and (match := re.fullmatch(r"(.+?)\[([^\]]*)\]", name)):
            base, index = match.groups()
        field = None
        if not self._has_array(base) and "." in base:
            prefix, _, last = base.rpartition(".")
            if self._has_array(prefix):
                base, field = prefix, last
        self._array(base)  # an error that lists what there is
        return base, field, self._index(name, index)

    def _index(self, name: str, text: str) -> tuple[Any, ...]:
        items: list[Any] = []
        for item in filter(None, (part.strip() for part in text.split(","))):
            numbers = item.split(":")
            if len(numbers) > 3 or not all(n.strip().isdigit() or not n.strip() for n in numbers):
                raise InputError(f"{self.path}: {name}: {item!r} is no index like 3 or 0:100:4")
            values = [int(n) if n.strip() else None for n in numbers]
            if len(values) == 3 and values[2] == 0:
                raise InputError(f"{self.path}: {name}: a step of 0")
            items.append(values[0] if len(values) == 1 else slice(*values))
        return tuple(items)

    def _check(self, name: str, array: Any, field: str | None, index: tuple[Any, ...]) -> None:
        dtype = array.dtype
        if (dtype.names is None) != (field is None) or (field and field not in dtype.names):
            have = ", ".join(dtype.names or ()) or "no fields"
            raise InputError(f"{self.path}: {name}: the array has {have}")
        kind = dtype[field] if field else dtype
        if kind.kind not in "fiub" or kind.shape:
            raise InputError(f"{self.path}: {name} has type {kind}, expected numbers")
        axes = array.shape[1:][len(array.shape) - 1 - len(index) :] if index else ()
        if len(index) > len(array.shape) - 1:
            raise InputError(f"{self.path}: {name}: the array has shape {array.shape}")
        for item, size in zip(index, axes, strict=True):
            outside = item >= size if isinstance(item, int) else not len(range(size)[item])
            if outside:
                raise InputError(
                    f"{self.path}: {name}: outside the array, which has shape {array.shape}"
                )

    def read(self, names: Iterable[str], start: int, stop: int) -> dict[str, Column]:
        names = list(names)
        parts = {n: self._parts.get(n) or self._part(n) for n in names}
        rows = {base: self._rows(base, start, stop) for base in {b for b, _, _ in parts.values()}}
        found = {}
        for name, (base, field, index) in parts.items():
            array = rows[base] if field is None else rows[base][field]
            if index:
                array = array[(..., *index)]
            if array.ndim > 3:
                raise InputError(f"{self.path}: {name} has {array.ndim} dimensions, at most 3")
            lists, counts = array.shape[0], []
            for size in array.shape[1:]:
                counts.append(np.full(lists, size))
                lists *= size
            values = array.reshape(-1)
            found[name] = Column(
                values.astype(values.dtype.newbyteorder("="), copy=False), tuple(counts)
            )
        return found


class _HDF5(_Rectangular):
    def __init__(self, path: Path, names: list[str]) -> None:
        self.file = hdf5.open_file(path)
        super().__init__(path, names)

    def _has_array(self, name: str) -> bool:
        try:
            return name in self.file
        except (ValueError, RuntimeError):
            return False

    def _array(self, base: str) -> Any:
        found = hdf5.dataset(self.file, base, kind="fiubV")
        if not found.ndim:
            raise InputError(f"{self.path}: {base} is a single value, expected one for each jet")
        return found

    def _rows(self, base: str, start: int, stop: int) -> NDArray[Any]:
        return hdf5.read(self._array(base), start, stop)

    def close(self) -> None:
        self.file.close()


class _Npz(_Rectangular):
    """Arrays of an npz file, read as streams: memory is that of a range of rows."""

    def __init__(self, path: Path, names: list[str]) -> None:
        if not path.exists():
            raise InputError(f"{path}: no such file")
        self.path = path
        self._streams: dict[str, tuple[Any, int]] = {}
        self._headers: dict[str, Any] = {}
        try:
            self._zip = zipfile.ZipFile(path)
            self._members = {
                i.filename.removesuffix(".npy"): i
                for i in self._zip.infolist()
                if i.filename.endswith(".npy")
            }
        except (zipfile.BadZipFile, OSError, ValueError, RuntimeError) as error:
            raise InputError(f"{path}: not a complete npz file ({first_line(error)})") from None
        super().__init__(path, names)

    def _has_array(self, name: str) -> bool:
        return name in self._members

    def _fail(self, name: str, error: BaseException) -> InputError:
        return InputError(f"{self.path}: {name} cannot be read ({first_line(error)})")

    def _open(self, base: str) -> Any:
        """A stream at the first row of an array, whose header is kept."""
        stream = self._zip.open(self._members[base])
        version = np.lib.format.read_magic(stream)
        header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version](stream)
        self._headers[base] = header
        return stream

    def _array(self, base: str) -> Any:
        if base not in self._members:
            have = ", ".join(sorted(self._members)) or "nothing"
            raise InputError(f"{self.path}: there is no array {base}; the file has {have}")
        if base not in self._headers:
            try:
                stream = self._open(base)
                begin = stream.tell()
            except _NPZ_ERRORS as error:
                raise self._fail(base, error) from None
            stream.close()
            shape, fortran, dtype = self._headers[base]
            size = math.prod(shape) * dtype.itemsize
            if (fortran and len(shape) > 1) or dtype.hasobject or not shape:
                raise InputError(
                    f"{self.path}: {base} has type {dtype}, shape {shape}"
                    f"{' in Fortran order' if fortran else ''}, expected rows of numbers"
                )
            if begin + size != self._members[base].file_size:
                raise InputError(f"{self.path}: {base} is not complete")
            row = math.prod(shape[1:]) * dtype.itemsize
            if row > hdf5.MAX_JET:
                raise InputError(f"{self.path}: a jet of {base} takes {row:,} bytes")
        shape, _, dtype = self._headers[base]
        return _Header(shape, dtype)

    def _rows(self, base: str, start: int, stop: int) -> NDArray[Any]:
        header = self._array(base)
        row = math.prod(header.shape[1:]) * header.dtype.itemsize
        try:
            stream, at = self._streams.get(base, (None, 0))
            if stream is None or at > start:
                stream, at = self._open(base), 0
            skip = (start - at) * row
            while skip:
                skip -= len(_full(stream, min(skip, _BLOCK)))
            data = _full(stream, (stop - start) * row)
        except _NPZ_ERRORS as error:
            raise self._fail(f"{base}: rows {start} to {stop - 1}", error) from None
        self._streams[base] = stream, stop
        return np.frombuffer(data, header.dtype).reshape(stop - start, *header.shape[1:])

    def close(self) -> None:
        self._zip.close()


class _Header:
    def __init__(self, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.shape, self.dtype = shape, dtype


_NPZ_ERRORS = (
    zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, KeyError, RuntimeError,
    MemoryError,
)  # fmt: skip


def _full(stream: Any, size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise EOFError("it ends too early")
    return data
