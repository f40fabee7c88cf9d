"""Opening ROOT trees and reading ranges of their branches as flat arrays."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jetkern.convert.readers import Column, InputError, first_line

MAX_BASKET = 256 << 20  # bytes of a basket, which is inflated as a whole


class Lacking(InputError):
    """A file that is whole, but lacks a tree or a branch."""


class Tree:
    """One TTree or RNTuple of a file, read through uproot.

    Raises:
        InputError: if the file is damaged, or lacks the tree or one of the branches.
    """

    def __init__(self, path: Path, name: str, branches: Iterable[str]) -> None:
        try:
            import awkward
            import uproot
        except ImportError:
            raise InputError(
                f"{path}: reading ROOT files needs uproot: pip install jetkern[data]"
            ) from None
        self._awkward = awkward
        self.path, self.name = path, name
        self._file: Any = None
        if not path.exists():
            raise InputError(f"{path}: no such file")
        try:
            # Ranges are read once, in order: nothing is worth keeping.
            self._file = uproot.open(path, array_cache=None)
            keys = self._file.keys(cycle=False)
            missing_bytes = self._file.file.fEND - path.stat().st_size
            there = name in keys or name in self._file.keys()  # noqa: SIM118, without or with cycles
            self._tree: Any = self._file[name] if there and missing_bytes <= 0 else None
            self.branches = list(self._tree.keys()) if self._tree is not None else []
            self._known = set(self.branches)
            # Arrays of a fixed length in objects, as a branch of the name "covMatrix[21]".
            self._arrays_of = {
                re.sub(r"(\[\d+\])+$", "", key.rsplit("/", 1)[-1]): key.rsplit("/", 1)[-1]
                for key in self.branches
                if key.endswith("]")
            }
            self.num_jets = int(self._tree.num_entries) if self._tree is not None else 0
            self._ntuple = "RNTuple" in type(self._tree).__name__
        except Exception as error:  # uproot raises many kinds for damaged files
            self.close()
            raise InputError(f"{path}: {_not_root(path)} ({first_line(error)})") from None
        try:
            if missing_bytes > 0:
                raise InputError(f"{path}: not a complete ROOT file ({missing_bytes} bytes lack)")
            if not there:
                have = ", ".join(keys) or "nothing"
                raise Lacking(f"{path}: there is no tree {name}; the file has {have}")
            if self.num_jets < 0:
                raise InputError(f"{path}: {name} claims {self.num_jets} entries")
            if missing := [b for b in branches if self.resolve(b) is None]:
                have = ", ".join(sorted(self.branches)[:40]) or "nothing"
                raise Lacking(f"{path}: the tree {name} lacks {', '.join(missing)}; it has {have}")
        except InputError:
            self.close()
            raise

    def resolve(self, name: str) -> tuple[str, list[str]] | None:
        """The branch that a name means, without the length of a fixed array if that is in it, and
        the path to a member of its records; None if there is no such branch."""
        parts = name.split(".")
        for used in range(len(parts), 0, -1):
            branch = ".".join(parts[:used])
            if branch in self._known or (not self._ntuple and branch in self._tree):
                return branch, parts[used:]
            if branch in self._arrays_of:
                return self._arrays_of[branch], parts[used:]
        return None

    def read_columns(self, names: Iterable[str], start: int, stop: int) -> dict[str, Column]:
        """The branches of the entries ``start`` to ``stop - 1``.

        Raises:
            InputError: for what cannot be read, or does not consist of numbers.
        """
        where = {name: self.resolve(name) or (name, []) for name in names}
        branches = list(dict.fromkeys(branch for branch, _ in where.values()))
        try:
            arrays = self._arrays(branches, start, stop)
            return {
                name: self._column(name, arrays[branch], path)
                for name, (branch, path) in where.items()
            }
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"{self.path}: {self.name}: entries {start} to {stop - 1} cannot be read "
                f"({first_line(error)})"
            ) from None

    def _arrays(self, branches: list[str], start: int, stop: int) -> dict[str, Any]:
        if self._ntuple:  # by a filter: as an expression, a name may mean something else
            wanted = set(branches)
            read = self._tree.arrays(
                filter_name=lambda name: name in wanted,
                entry_start=start,
                entry_stop=stop,
                library="ak",
            )
            found = {}
            for branch in branches:
                array = read
                rest = branch.split(".")
                while rest:  # names of fields may have dots, and so may paths to their members
                    used = next(
                        n for n in range(len(rest), 0, -1) if ".".join(rest[:n]) in array.fields
                    )
                    array, rest = array[".".join(rest[:used])], rest[used:]
                found[branch] = array
            return found
        for branch in branches:
            one = self._tree[branch]
            size = one.uncompressed_bytes / max(1, one.num_baskets)
            if size > MAX_BASKET:
                raise InputError(
                    f"{self.path}: {self.name}: a basket of {branch} takes {size:,.0f} bytes, more "
                    f"than the {MAX_BASKET:,} that are inflated at a time"
                )
        arrays = self._tree.arrays(branches, entry_start=start, entry_stop=stop, library="ak")
        return {branch: arrays[branch] for branch in branches}

    def _column(self, name: str, array: Any, path: list[str]) -> Column:
        ak = self._awkward
        whole = array
        for member in path:
            if member not in array.fields:
                have = ", ".join(array.fields) or "no members"
                raise InputError(f"{self.path}: {name}: there is no member {member}, but {have}")
            array = array[member]
        counts = []
        values = np.empty(0, object)
        if array.ndim <= 3 and not array.fields:
            while array.ndim > 1:
                counts.append(np.asarray(ak.num(array), np.int64))
                array = ak.flatten(array)
            if array.layout.is_option and ak.any(ak.is_none(array)):
                raise InputError(f"{self.path}: {name} has empty values")
            with suppress(ValueError, TypeError):  # texts and other objects
                values = np.asarray(ak.to_numpy(array))
        if values.dtype.kind not in "fiub" or values.ndim != 1:
            kind = str(whole.type)[:200]
            raise InputError(f"{self.path}: {name} has type {kind}, expected numbers")
        return Column(values, tuple(counts))

    def read(
        self, branches: Iterable[str], start: int, stop: int
    ) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
        """(values, counts) of each branch: a ragged one as flat values and counts per jet, any
        other one as an array per jet, with no counts."""
        columns = self.read_columns(branches, start, stop)
        for name, column in columns.items():
            if len(column.counts) > 1:
                raise InputError(f"{self.path}: {name} holds lists of lists, expected one list")
        return (
            {name: c.values for name, c in columns.items()},
            {name: c.counts[0] for name, c in columns.items() if c.counts},
        )

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


def has_branches(path: Path, name: str, branches: Iterable[str]) -> bool:
    """Whether a file has a tree of that name with these branches.

    Raises:
        InputError: if the file cannot be opened at all.
    """
    try:
        Tree(path, name, branches).close()
    except Lacking:
        return False
    return True


def _not_root(path: Path) -> str:
    """What is wrong with a file that uproot cannot open."""
    with open(path, "rb") as file:
        begin = file.read(512)
    if begin.startswith(b"root"):
        return "a damaged ROOT file"
    if not begin:
        return "an empty file, not a complete ROOT file"
    if begin.lstrip()[:1] == b"<":
        return "a web page, not a ROOT file: the download failed"
    return "not a complete ROOT file"


def common_counts(path: Path, counts: dict[str, NDArray[Any]], start: int) -> NDArray[np.int64]:
    """The particles of each jet, which all branches must agree on."""
    names = list(counts)
    for name in names[1:]:
        differ = counts[name] != counts[names[0]]
        if differ.any():
            jet = int(np.argmax(differ))
            raise InputError(
                f"{path}: jet {start + jet}: {name} has {counts[name][jet]} particles, "
                f"{names[0]} has {counts[names[0]][jet]}"
            )
    return counts[names[0]]
