"""Opening HDF5 files and their datasets with every check that can be made before reading."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from jetkern.convert.readers import InputError, first_line

with suppress(ImportError):  # registers blosc and other filters of published files
    import hdf5plugin  # noqa: F401

MAX_CHUNK = 256 << 20  # bytes of a chunk, which HDF5 inflates as a whole
MAX_JET = 4 << 20  # bytes of a jet in one dataset: room for 100,000 particles
_PART_BYTES = 2 << 20


def open_file(path: Path) -> h5py.File:
    """The file, or an ``InputError`` that says what is wrong with it."""
    if not path.exists():
        raise InputError(f"{path}: no such file")
    try:
        return h5py.File(path, "r", locking=False)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path}: not a complete HDF5 file ({first_line(error)})") from None


def dataset(file: h5py.File, name: str, *, ndim: int | None = None, kind: str = "fiu") -> Any:
    """The dataset of that name, stored in the file itself, with numbers of the given kinds.

    Args:
        ndim: its number of dimensions, if it matters.
        kind: the numpy kinds that are allowed, of f (float), i and u (integers), b and V.

    Raises:
        InputError: naming what was found and what was expected.
    """
    path = file.filename
    try:
        link = file.get(name, getlink=True)
        found = file.get(name)
    except (KeyError, OSError, RuntimeError) as error:
        raise InputError(f"{path}: {name}: broken link ({error})") from None
    if isinstance(link, h5py.ExternalLink) or (found is not None and found.file.filename != path):
        raise InputError(f"{path}: {name} is a link to another file, which is not followed")
    if found is None and link is not None:
        raise InputError(f"{path}: {name}: broken link (to {link.path})")
    if not isinstance(found, h5py.Dataset):
        have = ", ".join(sorted(file)) or "nothing"
        raise InputError(f"{path}: there is no dataset {name}; the file has {have}")
    if _elsewhere(file, found):
        raise InputError(f"{path}: {name} is stored in another file, which is not followed")
    if found.dtype.kind not in kind or found.dtype.hasobject:
        raise InputError(f"{path}: {name} has type {found.dtype}, expected numbers")
    if ndim is not None and found.ndim != ndim:
        raise InputError(f"{path}: {name} has shape {found.shape}, expected {ndim} dimensions")
    size = found.dtype.itemsize
    for what, shape, limit in (
        ("a jet of", found.shape[1:], MAX_JET),
        ("a chunk of", found.chunks or (), MAX_CHUNK),
    ):
        if math.prod(shape) * size > limit:
            raise InputError(
                f"{path}: {what} {name} takes {math.prod(shape) * size:,} bytes, more than the "
                f"{limit:,} that are read at a time (h5repack can change chunks)"
            )
    return found


def _elsewhere(file: h5py.File, data: Any, depth: int = 0) -> bool:
    """Whether any of the data is in other files, perhaps by way of virtual datasets of this one."""
    if data.external or depth > 9 or data.file.filename != file.filename:
        return True
    return data.is_virtual and any(
        source.file_name != "."
        or (source.dset_name in file and _elsewhere(file, file[source.dset_name], depth + 1))
        for source in data.virtual_sources()
    )


def per_jet(file: h5py.File, name: str) -> Any:
    """A dataset (N,) or (N, 1) with a number for each jet, which ``read_per_jet`` reads."""
    found = dataset(file, name, kind="fiub")
    if found.ndim != 1 and found.shape[1:] != (1,):
        raise InputError(f"{file.filename}: {name} has shape {found.shape}, expected one dimension")
    return found


def read_per_jet(data: Any, start: int, stop: int) -> NDArray[Any]:
    """(B,) rows of ``per_jet``'s dataset."""
    return read(data, start, stop).reshape(-1)


def read(data: Any, start: int, stop: int) -> NDArray[Any]:
    """Rows of a dataset in native byte order."""
    with _named(data, start, stop):
        rows = data[start:stop]
    return rows.astype(rows.dtype.newbyteorder("="), copy=False)


def parts(data: Any, start: int, stop: int) -> Iterator[NDArray[Any]]:
    """Rows of a dataset in native byte order, part by part.

    All parts use the same small piece of memory, which stays in the processor's cache: reading a
    padded dataset so is several times faster than ``read``, where most of the time goes into new
    memory. They end where the dataset's chunks end, so that each chunk is decompressed once.
    """
    chunk = data.chunks[0] if data.chunks else 1
    row = max(1, data.dtype.itemsize * int(np.prod(data.shape[1:])))
    step = chunk * max(1, _PART_BYTES // (row * chunk))
    memory = np.empty((min(step, stop - start), *data.shape[1:]), data.dtype.newbyteorder("="))
    while start < stop:
        end = min(stop, start - start % step + step)
        with _named(data, start, end):
            data.read_direct(memory, np.s_[start:end], np.s_[: end - start])
        yield memory[: end - start]
        start = end


@contextmanager
def _named(data: Any, start: int, stop: int) -> Iterator[None]:
    """Errors of HDF5 as an ``InputError`` that says what could not be read."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, ValueError, MemoryError) as error:
        reason, hint = first_line(error), "; the file is damaged there"
        if "plugin" in reason or "not registered" in reason or "not available" in reason:
            hint = "; it is compressed with a filter that needs hdf5plugin: pip install hdf5plugin"
        raise InputError(
            f"{data.file.filename}: {data.name.lstrip('/')}: jets {start} to {stop - 1} cannot be "
            f"read ({reason}){hint}"
        ) from None


def integers(values: NDArray[Any], what: str, path: Path, start: int) -> NDArray[np.int64]:
    """Whole numbers, which some files store as floats.

    Raises:
        InputError: naming the first jet where the value is not a whole number.
    """
    if values.dtype.kind in "iub":
        return values.astype(np.int64)
    wrong = ~np.isfinite(values) | (values != np.floor(values))
    if wrong.any():
        row = int(np.argwhere(wrong)[0][0])
        value = values[wrong].flat[0]
        raise InputError(f"{path}: jet {start + row}: {what} is {value}, not a whole number")
    return values.astype(np.int64)


def attribute_names(value: Any) -> tuple[str, ...]:
    """Strings of an attribute that may be bytes, an array, or one comma-separated string."""
    if isinstance(value, bytes):
        value = value.decode()
    if isinstance(value, str):
        return tuple(v.strip() for v in value.split(",") if v.strip())
    return tuple(v.decode() if isinstance(v, bytes) else str(v) for v in np.asarray(value).flat)


def same_length(path: Path, **lengths: int) -> int:
    """The common length of datasets, or an error that lists them."""
    if len(set(lengths.values())) != 1:
        raise InputError(
            f"{path}: the datasets have different numbers of jets: "
            + ", ".join(f"{k} {v}" for k, v in lengths.items())
        )
    return next(iter(lengths.values()))
