"""Parquet: ranges of columns for other readers, and the top-tagging set's public mirrors, which
have the columns of the original (E_0, PX_0, PY_0, PZ_0, ..., is_signal_new, ttv)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jetkern.convert.readers import BaseSource, Column, InputError, Options, Raw, first_line
from jetkern.convert.readers.toptagging import TopColumns, top_layout
from jetkern.io import MAX_INFLATION

NAME = "parquet"
SUFFIXES = (".parquet",)
LOOKS_FOR = "columns E_0, PX_0, PY_0, PZ_0 and is_signal_new"
_BATCH = 4096  # jets
_VALUES = 1 << 24  # of a column in a batch, 100,000 particles being the most of a jet
_CHUNK = 256 << 20  # bytes that any chunk of a column may take when inflated


def recognises(path: Path) -> bool:
    """Whether the file has the top-tagging columns."""
    return "E_0" in Parquet(path).columns


def open_source(path: Path, options: Options) -> TopParquet:
    """The opened file."""
    return TopParquet(path, options)


class Parquet:
    """A file, read as a stream: memory is that of a range and of a page (1 MB by default) of each
    column, however large the row groups are.

    Ranges in order are read in one go. Another one starts at the beginning of its row group.

    Raises:
        InputError: if the file is damaged or lacks one of the columns.
    """

    def __init__(self, path: Path, columns: Iterable[str] = ()) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise InputError(
                f"{path}: reading parquet needs pyarrow: pip install jetkern[data]"
            ) from None
        self.path = path
        self._errors = (pyarrow.ArrowException, OSError)
        if not path.exists():
            raise InputError(f"{path}: no such file")
        try:
            # By default, arrow holds all columns of a row group before it decodes the first rows.
            self._file = pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 16)
        except self._errors as error:
            raise InputError(f"{path}: not a complete parquet file ({first_line(error)})") from None
        self.columns = self._file.schema_arrow.names
        self._known = set(self.columns)
        missing = [c for c in columns if self.resolve(c) is None]
        if missing:
            raise InputError(
                f"{path}: there is no column {', '.join(missing[:4])}; the file has "
                f"{', '.join(self.columns[:8])}"
            )
        metadata = self._file.metadata
        groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(groups, dtype=np.int64)])
        self.num_jets = int(self._starts[-1])
        self._stream: Iterator[Any] = iter(())
        self._streamed: list[str] = []
        self._at = 0
        self._rest: Any = None

    def read(
        self, columns: Iterable[str], start: int, stop: int
    ) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
        """(values, counts) of each column: a list column as flat values and counts per jet."""
        found = self.read_columns(columns, start, stop)
        for name, column in found.items():
            if len(column.counts) > 1:
                raise InputError(f"{self.path}: {name} holds lists of lists, expected one list")
        return (
            {name: c.values for name, c in found.items()},
            {name: c.counts[0] for name, c in found.items() if c.counts},
        )

    def resolve(self, name: str) -> tuple[str, list[str]] | None:
        """The column that a name means, and the path to a member of its records; None if there is
        no such column."""
        parts = name.split(".")
        for used in range(len(parts), 0, -1):
            column = ".".join(parts[:used])
            if column in self._known:
                return column, parts[used:]
        return None

    def read_columns(self, names: Iterable[str], start: int, stop: int) -> dict[str, Column]:
        """The columns of the rows ``start`` to ``stop - 1``. An empty value is NaN.

        Raises:
            InputError: for what cannot be read, or does not consist of numbers.
        """
        import pyarrow

        where = {name: self.resolve(name) or (name, []) for name in names}
        columns = list(dict.fromkeys(column for column, _ in where.values()))
        try:
            table = pyarrow.Table.from_batches(self._batches(columns, start, stop)).combine_chunks()
            return {
                name: self._column(name, table.column(column).combine_chunks(), path, start)
                for name, (column, path) in where.items()
            }
        except InputError:
            raise
        except (*self._errors, ValueError, StopIteration, MemoryError) as error:
            raise InputError(
                f"{self.path}: jets {start} to {stop - 1} cannot be read ({first_line(error)})"
            ) from None

    def _column(self, name: str, array: Any, path: list[str], start: int) -> Column:
        import pyarrow.types as types

        kind, path = array.type, list(path)
        counts: list[NDArray[np.int64]] = []
        while (hasattr(array, "flatten") and hasattr(array, "value_lengths")) or path:
            if array.null_count and (not counts or not types.is_struct(array.type)):
                row = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
                where = f"jet {start + row}: " if not counts else ""
                raise InputError(f"{self.path}: {where}{name} has no value")
            if types.is_struct(array.type):
                names = [f.name for f in array.type]
                if not path or path[0] not in names:
                    break
                array = array.flatten()[names.index(path.pop(0))]
            elif hasattr(array, "value_lengths"):
                counts.append(array.value_lengths().to_numpy().astype(np.int64))
                array = array.flatten()
            else:
                break
        if path:
            raise InputError(f"{self.path}: {name}: there is no member {path[0]} in {kind}")
        if types.is_boolean(array.type) or types.is_integer(array.type):
            array = array.cast("float64") if array.null_count else array
        elif not types.is_floating(array.type):
            raise InputError(f"{self.path}: {name} has type {kind}, expected numbers")
        return Column(array.to_numpy(zero_copy_only=False), tuple(counts))

    def _batches(self, columns: list[str], start: int, stop: int) -> list[Any]:
        """Record batches that make up a range, from where the stream is if that helps."""
        group = int(np.searchsorted(self._starts, start, side="right")) - 1
        if columns != self._streamed or not self._starts[group] <= self._at <= start:
            groups = list(range(group, len(self._starts) - 1))
            jets = self._jets_at_once(groups, columns)
            self._stream = self._file.iter_batches(jets, row_groups=groups, columns=columns)
            self._streamed, self._at, self._rest = columns, int(self._starts[group]), None
        found = []
        while self._at < stop:
            batch = next(self._stream) if self._rest is None else self._rest
            first, end = max(start - self._at, 0), min(stop - self._at, len(batch))
            if first < end:
                found.append(batch.slice(first, end - first))
            self._at += end
            self._rest = batch.slice(end) if end < len(batch) else None
        return found

    def _jets_at_once(self, groups: list[int], columns: list[str]) -> int:
        """How many jets to read together, by what the file says of its row groups.

        Raises:
            InputError: for columns that become much larger than they are in the file: their pages
                are inflated as a whole.
        """
        most = 1.0  # values of a column in a row
        for group in groups:
            rows = max(1, int(self._starts[group + 1] - self._starts[group]))
            metadata = self._file.metadata.row_group(group)
            for i in self._leaves(columns):
                chunk = metadata.column(i)
                name, size = chunk.path_in_schema, chunk.total_uncompressed_size
                if size > max(_CHUNK, MAX_INFLATION * chunk.total_compressed_size):
                    raise InputError(
                        f"{self.path}: row group {group} of {name} claims {size:,} bytes, more "
                        f"than the {_CHUNK:,} that are inflated at a time (write smaller ones)"
                    )
                most = max(most, chunk.num_values / rows)
                if most > _VALUES:
                    raise InputError(
                        f"{self.path}: row group {group} of {name} claims {chunk.num_values:,} "
                        f"values in {rows:,} rows; at most {_VALUES:,} a row are read"
                    )
        return max(1, min(_BATCH, int(_VALUES / most)))

    def _leaves(self, columns: list[str]) -> list[int]:
        """The numbers of what columns consist of, in the file's metadata."""
        schema = self._file.schema
        paths = [schema.column(i).path for i in range(len(schema))]
        wanted = tuple(f"{c}." for c in columns)
        return [i for i, path in enumerate(paths) if f"{path}.".startswith(wanted)]

    def close(self) -> None:
        """Closes the file."""
        self._stream, self._rest = iter(()), None
        self._file.close()


class TopParquet(BaseSource):
    """One file of the top-tagging set."""

    def __init__(self, path: Path, options: Options) -> None:
        self.file = Parquet(path)
        self.top = TopColumns(path, self.file.columns)
        super().__init__(path, self.file.num_jets, top_layout(options), splits=self.top.splits)

    def read(self, start: int, stop: int) -> Raw:
        """The jets ``start`` to ``stop - 1``."""
        values, _ = self.file.read(self.top.names, start, stop)
        return self.top.raw(lambda names: np.stack([values[n] for n in names], axis=1), start)

    def close(self) -> None:
        """Closes the file."""
        self.file.close()
