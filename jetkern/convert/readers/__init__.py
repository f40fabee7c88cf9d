"""Readers of the formats that jets are published in, one module each.

A reader module has ``NAME``, ``SUFFIXES``, ``recognises(path)`` and ``open_source(path, options)``,
which returns a ``Source``. A source says how many jets a file has and what is known of them, and
reads any range of them as ``Raw``: real particles only, back to back. It judges the file's layout;
``jetkern.convert.clean`` judges the values.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

MODULES = ("omnilearned", "toptagging", "jetnet", "showers", "jetclass", "parquet", "schema")
SCHEMAS = Path(__file__).with_name("schemas")
SHIPPED = tuple(sorted(path.stem for path in SCHEMAS.glob("*.toml")))
"""Formats that descriptions in ``schemas`` read"""
JETCLASS = ("QCD", "Hbb", "Hcc", "Hgg", "H4q", "Hqql", "Zqq", "Wqq", "Tbqq", "Tbl")
TOP = ("QCD", "top")
JETNET = ("g", "q", "t", "w", "z")


class InputError(ValueError):
    """An input that cannot be converted: the message names the file and the field."""


UNLABELLED = "left out: no label"
"""What jets of none of the classes are counted as; on request, so they are no fault of the input"""
TRACK_SCALES = ("tanh", "asinh", "raw")
"""What shards hold of d0 and dz (mm). tanh is what the study uses, and is 1 beyond 9 mm in float32;
asinh and the values themselves can be inverted anywhere."""


@dataclass(frozen=True)
class Options:
    """What the user says about the input, over what the files say themselves; ``schema`` is a
    description that ``readers.schema.load`` has checked; ``tracks`` one of ``TRACK_SCALES``;
    ``name`` a file's path from the last folder on that the user wrote: those around that decide
    nothing."""

    label_shift: int | None = None
    classes: tuple[str, ...] = ()
    schema: dict[str, Any] | None = None
    tracks: str = "tanh"
    name: str = ""


@dataclass(frozen=True)
class Layout:
    """What a file's jets consist of; all files of a conversion must agree. ``points``: columns of
    each point of sets that are no jets."""

    classes: tuple[str, ...]
    points: tuple[str, ...] = ()
    pid: bool = False
    tracks: bool = False
    vertices: bool = False
    condition: tuple[str, ...] = ()


@dataclass
class Fault:
    """Jets that cannot be used as they are, which a reader has found.

    Attributes:
        reason: what they are counted as.
        jets: (B,) true for them.
        message: what is wrong with jet b, one of them.
        policy: the option (an attribute of ``clean.Policy``) that says what to do.
    """

    reason: str
    jets: NDArray[np.bool_]
    message: Callable[[int], str]
    policy: str = "bad_jets"


@dataclass
class Raw:
    """B jets with T particles as read.

    Attributes:
        counts: (B,) particles of each jet.
        particles: (T, 4) delta eta, delta phi, ln pT, ln E (GeV); of sets that are no jets, the
            columns of ``Layout.points``.
        label: (B,) class; one that is out of range is no label.
        pid: (T,) identity, 0 to 8; tracks: (T, 4); condition: (B, C); all optional.
        vertex, origin: (T,) uint8 as in ``Jets``, both or none.
        split: (B,) number in the source's ``splits``, if the rows decide it.
        skip: (T,) true for particles without momentum, which have no direction: they are left out.
        faults: jets that cannot be used.
        tally: what the reader has counted.
    """

    counts: NDArray[Any]
    particles: NDArray[Any]
    label: NDArray[Any]
    pid: NDArray[Any] | None = None
    tracks: NDArray[Any] | None = None
    vertex: NDArray[Any] | None = None
    origin: NDArray[Any] | None = None
    condition: NDArray[Any] | None = None
    split: NDArray[Any] | None = None
    skip: NDArray[np.bool_] | None = None
    faults: list[Fault] = field(default_factory=list)
    tally: dict[str, int] = field(default_factory=dict)


@dataclass
class Column:
    """A column of a range of rows, of any depth.

    Attributes:
        values: all numbers, back to back.
        counts: lengths of the lists: of each row, then of each of the rows' entries, and so on;
            empty for a column with one number a row.
    """

    values: NDArray[Any]
    counts: tuple[NDArray[np.int64], ...] = ()


class Source(Protocol):
    """An opened file."""

    num_jets: int
    layout: Layout
    splits: dict[str, float]
    """Names of the file's own splits and the fraction of jets expected in each; may be empty."""
    notes: dict[str, Any]
    """What the report should say of the file, such as the label shift that was used."""

    def read(self, start: int, stop: int) -> Raw:
        """The jets ``start`` to ``stop - 1``."""
        ...

    def close(self) -> None:
        """Closes the file."""
        ...


@dataclass
class BaseSource:
    """The attributes that every source has."""

    path: Path
    num_jets: int
    layout: Layout
    splits: dict[str, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Judges what the file claims, before any memory is taken for it.

        Raises:
            InputError: for class names that cannot be told apart, and for more jets than a file of
                its size can hold.
        """
        check_classes(self.layout.classes, str(self.path))
        size = self.path.stat().st_size
        if self.num_jets > max(FEW_JETS, size):
            self.close()
            raise InputError(
                f"{self.path}: the file claims {self.num_jets:,} jets in {size:,} bytes, less than "
                "a byte for each: it is damaged, or was not filled"
            )

    def close(self) -> None:
        """Closes the file."""


FEW_JETS = 1_000_000  # that a file may claim whatever its size


def check_classes(classes: tuple[str, ...], where: str) -> None:
    """Refuses class names that cannot be told apart or printed.

    Raises:
        InputError: beginning with ``where``.
    """
    for name in classes:
        if not name or name != name.strip() or not name.isprintable():
            raise InputError(
                f"{where}: the class name {name!r} is empty, or has blanks around it or characters "
                "that cannot be printed"
            )
    like: dict[str, str] = {}
    for name in classes:
        other = like.setdefault("".join(normalize("NFKC", name).casefold().split()), name)
        if classes.count(name) > 1:
            raise InputError(f"{where}: two classes have the name {name}")
        if other != name:
            raise InputError(
                f"{where}: the class names {other} and {name} differ in capitals or blanks only"
            )


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind if it has none."""
    return (str(error).strip() or repr(error)).splitlines()[0]


def module(name: str) -> ModuleType:
    """The reader module of that name."""
    return importlib.import_module(f"jetkern.convert.readers.{name}")


@contextmanager
def judging(path: Path) -> Iterator[None]:
    """What a library raises on a damaged file as an ``InputError``: they have errors of many kinds,
    which the readers expect where they read."""
    try:
        yield
    except InputError as error:
        hint = _packed(path)
        if hint and hint not in str(error):
            raise InputError(f"{error}{hint}") from None
        raise
    except (OSError, RuntimeError, ValueError, LookupError, MemoryError, OverflowError) as error:
        raise InputError(f"{path}: damaged, cannot be opened ({first_line(error)})") from None


_PACKED = {
    b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd", b"7z\xbc\xaf": "7z",
}  # fmt: skip


def _packed(path: Path) -> str:
    """What to say of a file that could not be read, if it has to be unpacked first."""
    with suppress(OSError), open(path, "rb") as file:
        start = file.read(6)
        for magic, name in _PACKED.items():
            if start.startswith(magic) and not (name == "zip" and path.suffix.lower() == ".npz"):
                return f"; it is packed with {name}: unpack it first"
    return ""


def open_source(reader: str, path: Path, options: Options) -> Source:
    """The file, opened by the reader of that name.

    Raises:
        InputError: if it is damaged, or not what the reader reads.
    """
    with judging(path):
        return module(reader).open_source(path, options)


def detect(path: Path) -> str:
    """The name of the reader for a file, judged by its content.

    Raises:
        InputError: if no reader recognises it, saying what each one looks for.
    """
    candidates = [m for m in map(module, MODULES) if path.suffix.lower() in m.SUFFIXES]
    for reader in candidates:
        with judging(path):
            if reader.recognises(path):
                return reader.NAME
    looks_for = "; ".join(f"{m.NAME}: {m.LOOKS_FOR}" for m in candidates or map(module, MODULES))
    fits = [f"--from {name}" for name in SHIPPED if _described(path, name)]
    hint = f"; it can be read by {', '.join(fits)}" if fits else _packed(path)
    raise InputError(f"{path}: not a format that is known here ({looks_for}){hint}")


def _described(path: Path, name: str) -> bool:
    """Whether the description of that name fits a file."""
    description = importlib.import_module("jetkern.convert.readers.description")
    schema = description.load(None, name)
    ending = path.suffix.lower()[1:]
    if schema["format"] != {"h5": "hdf5"}.get(ending, ending):
        return False
    try:
        open_source("schema", path, Options(schema=schema)).close()
    except InputError:
        return False
    return True


def suffixes() -> set[str]:
    """File name endings that some reader reads."""
    return {s for m in map(module, MODULES) for s in m.SUFFIXES}


def take_real(
    mask: NDArray[np.bool_], *padded: NDArray[Any] | None
) -> tuple[NDArray[np.int64], list[Any]]:
    """Counts (B,) and the real rows of padded (B, P, ...) arrays, by a (B, P) mask."""
    counts = np.count_nonzero(mask, axis=1)
    rows = np.flatnonzero(mask)
    return counts, [
        None if a is None else a.reshape(-1, *a.shape[2:]).take(rows, axis=0) for a in padded
    ]


def without_momentum(px: NDArray[Any], py: NDArray[Any]) -> NDArray[np.bool_] | None:
    """(T,) true for particles of no transverse momentum; None if there are none."""
    skip = np.asarray(px) == 0
    if not skip.any():
        return None
    skip &= np.asarray(py) == 0
    return skip if skip.any() else None


def track_columns(
    values: Sequence[NDArray[Any]], scale: str
) -> tuple[NDArray[np.float32], dict[str, int]]:
    """(T, 4) tracks of d0, its error, dz, its error in mm, with d0 and dz on one of
    ``TRACK_SCALES``, and a tally of what cannot be inverted."""
    d0, d0_error, dz, dz_error = values
    scales: dict[str, Callable[[Any], Any]] = {
        "tanh": np.tanh, "asinh": np.arcsinh, "raw": np.asarray
    }  # fmt: skip
    apply = scales[scale]
    columns = [apply(d0), d0_error, apply(dz), dz_error]
    tracks = np.stack(columns, axis=1).astype(np.float32, copy=False)
    tally = {}
    if scale == "tanh":
        ones = int(np.count_nonzero(np.abs(tracks[:, ::2]) == 1))
        if ones:
            tally["d0 or dz beyond 9 mm, where tanh is 1"] = ones
    return tracks, tally


def relative_kinematics(
    px: NDArray[Any],
    py: NDArray[Any],
    pz: NDArray[Any],
    energy: NDArray[Any],
    axis_eta: NDArray[Any],
    axis_phi: NDArray[Any],
) -> NDArray[np.float32]:
    """(T, 4) delta eta, delta phi, ln pT, ln E of four-vectors (T,) in GeV and their jets' axes.

    What has no logarithm or no rapidity becomes infinite or NaN, for the value checks to find.
    """
    px, py, pz, energy = (np.asarray(a, np.float64) for a in (px, py, pz, energy))
    with np.errstate(divide="ignore", invalid="ignore"):
        pt = np.hypot(px, py)
        delta_phi = np.arctan2(py, px) - axis_phi
        return np.stack(
            [
                np.arcsinh(pz / pt) - axis_eta,
                np.remainder(delta_phi + np.pi, 2 * np.pi) - np.pi,
                np.log(pt),
                np.log(energy),
            ],
            axis=1,
        ).astype(np.float32)
