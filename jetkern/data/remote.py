"""Shards behind URLs, through webdataset: for data that cannot be stored here.

``Stream`` reads local folders only, by index, checked, shuffled and resumable. What is here gives
up all of that for reach: the order is that of the files, nothing vouches for their completeness
but the tar format, and a run cannot continue in the middle. Fetch the folder where that matters.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from numpy.typing import NDArray

from jetkern.data.shards import DTYPES, KINEMATICS, TRACKS, Field, ShardError
from jetkern.jets import Jets

CURL = {
    6: "the host is not known",
    7: "the host cannot be reached",
    18: "the transfer ended before the whole file was here",
    22: "the server answers with an error",
    28: "the host does not answer in time",
    56: "the connection broke",
}
"""What its exit codes mean"""


def remote_jets(urls: str | Sequence[str], *, batch_size: int) -> Iterator[Jets]:
    """Batches of ``batch_size`` jets, the last one smaller, in the order of the files.

    Args:
        urls: of the ``shard-*.tar`` files; anything that ``webdataset.WebDataset`` opens. Braces
            are expanded: ``https://host/train/shard-{00000..00009}.tar`` are ten files.
        batch_size: jets of a batch.

    Raises:
        ImportError: without webdataset (``pip install jetkern[data]``).
        ValueError: for no URL or unbalanced braces, for a ``pipe:`` URL, which would run a shell
            command, or with GOPEN_REWRITE set, which could turn any URL into one.
        OSError: for a file that cannot be fetched.
        ShardError: while iterating, for a file or block that is damaged or not one of ours; it
            names file, block and field. Pickled members are never decoded.
    """
    import webdataset
    from braceexpand import braceexpand  # which webdataset needs, too

    given = [urls] if isinstance(urls, str) else urls
    files = [url for pattern in given for url in braceexpand(pattern)]
    if not files:
        raise ValueError("no URLs to read from")
    if bad := [url for url in files if urlsplit(url.strip()).scheme == "pipe"]:
        raise ValueError(f"{bad[0]!r} would run a shell command: give the URL of a file")
    if "GOPEN_REWRITE" in os.environ:
        raise ValueError("GOPEN_REWRITE is set and would change the URLs: unset it")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    dataset = webdataset.WebDataset(files, shardshuffle=False)
    # Between what opens a file and the last three: reading tar, grouping, refusing no blocks at all
    dataset.pipeline.insert(-3, _awaited)
    return _batches(_blocks(_samples(dataset, files)), batch_size)


def _awaited(sources: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Opened files, the end of which is one only when the program that fetches has ended well."""
    for source in sources:
        if hasattr(source["stream"], "wait_for_child"):
            source["stream"] = _Awaited(source["stream"])
        yield source


class _Awaited:
    """A pipe from a program; webdataset's asks how the program ended only if it has ended already.

    Curl closes the pipe before it exits, so that what it could not fetch would look like a file
    that is empty or cut.
    """

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe

    def read(self, size: int) -> bytes:
        """As many bytes; fewer at the end of the file.

        Raises:
            OSError: where the program fails.
        """
        content: bytes = self.pipe.read(size)
        if len(content) < size:
            self.pipe.wait_for_child()
        return content


def _batches(blocks: Iterator[Jets], batch_size: int) -> Iterator[Jets]:
    waiting: list[Jets] = []
    count = 0
    for jets in blocks:
        waiting.append(jets)
        count += len(jets)
        if count >= batch_size:
            joined = Jets.concat(waiting)
            whole = count - count % batch_size
            for start in range(0, whole, batch_size):
                yield joined.select(slice(start, start + batch_size))
            waiting, count = [joined.select(slice(whole, None))], count - whole
    if count:
        yield Jets.concat(waiting)


def _blocks(samples: Iterator[dict[str, Any]]) -> Iterator[Jets]:
    """The blocks, which must have the same fields and columns."""
    first = ""
    for sample in samples:
        where = f"{sample['__url__']}, block {sample['__key__']}"
        arrays = _arrays(sample, where)
        _check_shapes(arrays, where)
        layout = ", ".join(
            f"{name} ({array.shape[1]} columns)" if array.ndim == 2 else name
            for name, array in sorted(arrays.items())
        )
        first = first or layout
        if layout != first:
            raise ShardError(f"{where}: has {layout}; the blocks before it have {first}")
        fields: dict[str, Any] = {
            name: torch.from_numpy(a.astype(np.int64 if a.dtype.kind in "iu" else np.float32))
            for name, a in arrays.items()
        }
        yield Jets(**fields)


def _samples(dataset: Iterable[dict[str, Any]], files: list[str]) -> Iterator[dict[str, Any]]:
    """The members of each block as bytes, by name."""
    try:
        yield from dataset
    except (tarfile.TarError, ValueError) as error:
        # webdataset appends the URL to the error's arguments where it knows it.
        known = [a for a in error.args[1:] if isinstance(a, str)]
        where = known[-1] if known else " to ".join(sorted({files[0], files[-1]}))
        text = str(error.args[0]).splitlines()[0].split(" @ ")[0]  # without the stream's address
        raise ShardError(f"{where}: {text}") from None
    except OSError as error:  # of the program that webdataset fetches with, as text and the URL
        code = re.search(r"exit (-?\d+) \(read\)", str(error.args[0])) if error.args else None
        if code is None:
            raise
        reason = CURL.get(int(code[1]), f"curl ended with code {code[1]}")
        raise OSError(f"{error.args[-1]}: cannot be fetched: {reason}") from None


def _arrays(sample: dict[str, Any], where: str) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    for member, content in sample.items():
        if member.startswith("__"):
            continue
        field, _, ending = member.partition(".")
        if ending != "npy" or field not in DTYPES:
            raise ShardError(f"{where}: {member} is not a member of jetkern's shards")
        try:
            array = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
        except Exception as error:  # numpy evaluates the header as Python: nearly any kind
            raise ShardError(f"{where}: {member} cannot be read: {error}") from None
        if array.dtype.str not in DTYPES[field]:
            expected = " or ".join(DTYPES[field])
            raise ShardError(f"{where}: {field} is {array.dtype.str}, expected {expected}")
        arrays[field] = array
    if missing := [name for name in ("offsets", "particles") if name not in arrays]:
        raise ShardError(f"{where}: has no {missing[0]}")
    return arrays


def _check_shapes(arrays: dict[str, NDArray[Any]], where: str) -> None:
    offsets = arrays["offsets"]
    if offsets.ndim != 1 or not len(offsets):
        raise ShardError(f"{where}: offsets has shape {offsets.shape}, expected (jets + 1,)")
    if offsets[0] != 0:
        raise ShardError(f"{where}: offsets begin at {offsets[0]}, expected 0")
    if len(falling := np.flatnonzero(offsets[1:] < offsets[:-1])):
        jet = falling[0]
        raise ShardError(
            f"{where}, jet {jet}: offsets fall from {offsets[jet]} to {offsets[jet + 1]}"
        )
    for name, array in arrays.items():
        columns: tuple[str, ...] = {"particles": KINEMATICS, "tracks": TRACKS}.get(name, ())
        if name == "condition":
            columns = ("",) * (array.shape[1] if array.ndim == 2 else 1)
        field = Field(name, array.dtype.str, columns)
        expected = field.shape(len(offsets) - 1, int(offsets[-1]))
        if array.shape != expected:
            raise ShardError(f"{where}: {name} has shape {array.shape}, expected {expected}")
