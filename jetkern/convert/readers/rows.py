"""What a schema finds in a range of rows: jets, and collections of particles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jetkern.convert.readers import Column, InputError
from jetkern.convert.readers.description import (
    IDENTITY,
    MOMENTA,
    ORIGIN,
    TRACKS,
    VERTEX,
    Array,
    Value,
    is_any,
    sentinels,
)
from jetkern.convert.readers.expressions import Lists


class Jets:
    """The jets of a range of rows, J of them.

    Attributes:
        counts: jets of each row; row: (J,) the row of each jet; keep: (J,) whether it is selected.
        columns: (J,) each; those with one value a row are repeated for the row's jets.
        lists: of the rows, for ``take``.
    """

    def __init__(
        self,
        path: Path,
        start: int,
        counts: NDArray[np.int64],
        columns: dict[str, Column],
        events: bool,
        lists: dict[str, Column],
    ) -> None:
        self.counts = counts
        self.row = np.repeat(np.arange(len(counts)), counts)
        self.keep = np.ones(len(self.row), bool)
        self.lists = Lists(lists, self.row, start)
        self.columns: dict[str, Array] = {}
        for name, column in columns.items():
            if not column.counts:
                self.columns[name] = column.values[self.row] if events else column.values
                continue
            if len(column.counts) > 1 or (not events and (column.counts[0] != 1).any()):
                raise InputError(
                    f"{path}: {name} holds lists, expected the opposite, a value for each jet (are "
                    "the rows events? see [constituents])"
                )
            if (column.counts[0] != counts).any():
                row = int(np.argmax(column.counts[0] != counts))
                raise InputError(
                    f"{path}: event {start + row}: {name} has {column.counts[0][row]} jets, others "
                    f"have {counts[row]}"
                )
            self.columns[name] = column.values


class Collection:
    """One table [particles] of a schema: its columns, and which of its rows are particles."""

    def __init__(self, table: dict[str, Any]) -> None:
        keys = (*MOMENTA, *TRACKS, *IDENTITY, VERTEX, ORIGIN)
        self.values = {key: Value(table[key]) for key in keys if key in table}
        self.pdg, self.pid = "pdg" in table, "pid" in table
        self.count = Value(table["count"]) if "count" in table else None
        self.mask = Value(table["mask"]) if "mask" in table else None
        self.id = Value(table["id"]) if "id" in table else None
        self.number: int | None = table.get("number")
        self.sentinels = {
            key: sentinels(values, key) for key, values in table.get("missing", {}).items()
        }
        self.padding = sentinels(table["padding"], "padding") if "padding" in table else None
        used = [*self.values.values(), *(v for v in (self.mask, self.id) if v is not None)]
        self.names = tuple(dict.fromkeys(name for value in used for name in value.names))
        self.lists = tuple(dict.fromkeys(name for value in used for name in value.lists))
        self.momenta = tuple(
            dict.fromkeys(n for key in MOMENTA if key in table for n in self.values[key].names)
        )

    def numbers(self, columns: dict[str, Column], counts: NDArray[np.int64]) -> Array | None:
        """The unique numbers of all that it has in each row, for links by them."""
        if self.id is None:
            return None
        row = np.repeat(np.arange(len(counts)), counts)
        lists = Lists({n: columns[n] for n in self.id.lists}, row, 0)
        return self.id.of({n: columns[n].values for n in self.id.names}, len(row), lists)

    def real(
        self, flat: dict[str, Array], size: int, rectangular: bool, lists: Lists
    ) -> NDArray[np.bool_]:
        """(T,) false for what fills up lists."""
        real = np.ones(size, bool)
        if self.mask is not None:
            real = np.asarray(self.mask.of(flat, size, lists)) > 0
        elif self.count is None:
            if all(flat[n].dtype.kind == "f" for n in self.momenta):
                real &= ~np.logical_and.reduce([np.isnan(flat[n]) for n in self.momenta])
            if rectangular and self.padding is None:
                real &= np.logical_or.reduce([flat[n] != 0 for n in self.names])
        if self.padding is not None:
            fill = [is_any(flat[n], self.padding) for n in self.momenta]
            real &= ~np.logical_and.reduce(fill)
        return real

    def missing(self, key: str, p: dict[str, Array]) -> NDArray[np.bool_]:
        """(T,) true where a value stands for none."""
        if key not in self.sentinels:
            return np.zeros(len(p[key]), bool)
        return is_any(p[key], self.sentinels[key])
