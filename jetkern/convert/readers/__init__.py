"""Readers of the formats that jets are published in, one module each.

A reader module has ``NAME``, ``SUFFIXES``, ``recognises(path)`` and ``open_source(path, options)``,
which returns a ``Source``. A source says how many jets a file has and what is known of them, and
reads any range of them as ``Raw``: real particles only, back to back. It judges the file's layout;
``jetkern.convert.clean`` judges the values.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

MODULES = ("omnilearned", "toptagging", "jetnet", "jetclass", "parquet", "schema")
JETCLASS = ("QCD", "Hbb", "Hcc", "Hgg", "H4q", "Hqql", "Zqq", "Wqq", "Tbqq", "Tbl")
TOP = ("QCD", "top")
JETNET = ("g", "q", "t", "w", "z")


class InputError(ValueError):
    """An input that cannot be converted: the message names the file and the field."""


@dataclass(frozen=True)
class Options:
    """What the user says about the input, over what the files say themselves; ``schema`` is a
    description that ``readers.schema.load`` has checked."""

    label_shift: int | None = None
    classes: tuple[str, ...] = ()
    schema: dict[str, Any] | None = None


@dataclass(frozen=True)
class Layout:
    """What a file's jets consist of; all files of a conversion must agree."""

    classes: tuple[str, ...]
    pid: bool = False
    tracks: bool = False
    condition: tuple[str, ...] = ()


@dataclass
class Raw:
    """B jets with T particles as read.

    Attributes:
        counts: (B,) particles of each jet.
        particles: (T, 4) delta eta, delta phi, ln pT, ln E (GeV).
        label: (B,) class.
        pid: (T,) identity, 0 to 8; tracks: (T, 4); condition: (B, C); all optional.
        split: (B,) number in the source's ``splits``, if the rows decide it.
    """

    counts: NDArray[Any]
    particles: NDArray[Any]
    label: NDArray[Any]
    pid: NDArray[Any] | None = None
    tracks: NDArray[Any] | None = None
    condition: NDArray[Any] | None = None
    split: NDArray[Any] | None = None


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

    def close(self) -> None:
        """Closes the file."""


def module(name: str) -> ModuleType:
    """The reader module of that name."""
    return importlib.import_module(f"jetkern.convert.readers.{name}")


def detect(path: Path) -> str:
    """The name of the reader for a file, judged by its content.

    Raises:
        InputError: if no reader recognises it, saying what each one looks for.
    """
    candidates = [m for m in map(module, MODULES) if path.suffix.lower() in m.SUFFIXES]
    for reader in candidates:
        if reader.recognises(path):
            return reader.NAME
    looks_for = "; ".join(f"{m.NAME}: {m.LOOKS_FOR}" for m in candidates or map(module, MODULES))
    raise InputError(f"{path}: not a format that is known here ({looks_for})")


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
