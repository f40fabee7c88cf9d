"""Opening ROOT trees and reading ranges of their branches as flat arrays."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jetkern.convert.readers import InputError


class Tree:
    """One tree of a file, read through uproot.

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
        self._flatten, self._num = awkward.flatten, awkward.num
        self._numpy = awkward.to_numpy
        self.path, self.name = path, name
        self._file: Any = None
        self._tree: Any = None
        if not path.exists():
            raise InputError(f"{path}: no such file")
        try:
            # Ranges are read once, in order: nothing is worth keeping.
            self._file = uproot.open(path, array_cache=None)
            keys = self._file.keys(cycle=False)
            missing_bytes = self._file.file.fEND - path.stat().st_size
            self._tree = self._file[name] if name in keys and missing_bytes <= 0 else None
        except Exception as error:  # uproot raises many kinds for damaged files
            first = (str(error).strip() or repr(error)).splitlines()[0]
            raise InputError(f"{path}: not a complete ROOT file ({first})") from None
        if missing_bytes > 0:
            self.close()
            raise InputError(f"{path}: not a complete ROOT file ({missing_bytes} bytes lack)")
        if name not in keys:
            self.close()
            raise InputError(
                f"{path}: there is no tree {name}; the file has {', '.join(keys) or 'nothing'}"
            )
        missing = [b for b in branches if b not in self._tree]
        if missing:
            have = ", ".join(sorted(self._tree.keys())[:40])
            self.close()
            raise InputError(
                f"{path}: the tree {name} lacks {', '.join(missing)}; it has {have or 'nothing'}"
            )
        self.num_jets = int(self._tree.num_entries)

    def read(
        self, branches: Iterable[str], start: int, stop: int
    ) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
        """(values, counts) of each branch: a ragged one as flat values and counts per jet, any
        other one as an array per jet, with no counts."""
        try:
            arrays = self._tree.arrays(
                list(branches), entry_start=start, entry_stop=stop, library="ak"
            )
        except Exception as error:
            first = (str(error).strip() or repr(error)).splitlines()[0]
            raise InputError(
                f"{self.path}: {self.name}: jets {start} to {stop - 1} cannot be read ({first})"
            ) from None
        values, counts = {}, {}
        for name in branches:
            array = arrays[name]
            if array.ndim == 2:
                counts[name] = np.asarray(self._num(array), np.int64)
                array = self._flatten(array)
            values[name] = np.asarray(self._numpy(array))
            if values[name].dtype.kind not in "fiub" or values[name].ndim != 1:
                raise InputError(f"{self.path}: {name} has type {array.type}, expected numbers")
        return values, counts

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


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
