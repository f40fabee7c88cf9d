"""HDF5 files that appear whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from jetkern.io import replacing


@contextmanager
def writing(path: Path) -> Iterator[h5py.File]:
    """A file in memory that is written to ``path`` when the context is left without an error.

    The library itself would lock the file, which not every file system can, and prints several
    tracebacks when a disk is full, from which a process does not recover.

    Raises:
        OSError: naming ``path``, if it cannot be written; what was there before is untouched.
    """
    with h5py.File(path.name, "w", driver="core", backing_store=False) as file:
        yield file
        file.flush()
        content = file.id.get_file_image()
    with replacing(path) as part:
        part.write_bytes(content)
