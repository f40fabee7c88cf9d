"""Parquet: ranges of columns for other readers, and the top-tagging set's public mirrors, which
have the columns of the original (E_0, PX_0, PY_0, PZ_0, ..., is_signal_new, ttv)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from readers import BaseSource, InputError, Options, Raw
from readers.toptagging import TopColumns, top_layout

NAME = "parquet"
SUFFIXES = (".parquet",)
LOOKS_FOR = "columns E_0, PX_0, PY_0, PZ_0 and is_signal_new"


def recognises(path: Path) -> bool:
    """Whether the file has the top-tagging columns."""
    return "E_0" in Parquet(path).columns


def open_source(path: Path, options: Options) -> TopParquet:
    """The opened file."""
    return TopParquet(path, options)


class Parquet:
    """A file, read by row groups: memory is that of the groups a range lies in.

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
            self._file = pyarrow.parquet.ParquetFile(path)
        except self._errors as error:
            raise InputError(f"{path}: not a complete parquet file ({error})") from None
        self.columns = self._file.schema_arrow.names
        missing = [c for c in columns if c not in self.columns]
        if missing:
            raise InputError(
                f"{path}: there is no column {', '.join(missing[:4])}; the file has "
                f"{', '.join(self.columns[:8])}"
            )
        metadata = self._file.metadata
        groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(groups, dtype=np.int64)])
        self.num_jets = int(self._starts[-1])

    def read(
        self, columns: Iterable[str], start: int, stop: int
    ) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
        """(values, counts) of each column: a list column as flat values and counts per jet."""
        columns = list(columns)
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        last = int(np.searchsorted(self._starts, stop, side="left"))
        try:
            table = self._file.read_row_groups(list(range(first, last)), columns=columns)
        except self._errors as error:
            raise InputError(
                f"{self.path}: jets {start} to {stop - 1} cannot be read ({error})"
            ) from None
        table = table.slice(start - int(self._starts[first]), stop - start).combine_chunks()
        values, counts = {}, {}
        for name in columns:
            array = table.column(name).combine_chunks()
            if array.null_count:
                row = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
                raise InputError(f"{self.path}: jet {start + row}: {name} has no value")
            if hasattr(array, "flatten") and hasattr(array, "value_lengths"):
                counts[name] = array.value_lengths().to_numpy().astype(np.int64)
                array = array.flatten()
            values[name] = array.to_numpy(zero_copy_only=False)
            if values[name].dtype.kind not in "fiub":
                raise InputError(f"{self.path}: {name} has type {array.type}, expected numbers")
        return values, counts

    def close(self) -> None:
        """Closes the file."""
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
