"""Shards behind URLs, through webdataset: for data that cannot be stored here.

``Stream`` reads local folders only, by index, checked, shuffled and resumable. What is here gives
up all of that for reach: the order is that of the files, nothing vouches for their completeness
but the tar format, and a run cannot continue in the middle. Fetch the folder where that matters.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from jetkern.data.shards import ShardError
from jetkern.jets import Jets, offsets_from_counts

_OPTIONAL = ("pid", "tracks", "label", "condition")


def remote_jets(urls: str | Sequence[str], *, batch_size: int) -> Iterator[Jets]:
    """Batches of ``batch_size`` jets, the last one smaller, in the order of the files.

    Args:
        urls: of the ``shard-*.tar`` files; anything that ``webdataset.WebDataset`` opens, braces
            included, such as ``https://host/train/shard-{00000..00009}.tar``.
        batch_size: jets of a batch.

    Raises:
        ImportError: without webdataset (``pip install jetkern[data]``).
        ValueError: for a ``pipe:`` URL, which would run a shell command, or with GOPEN_REWRITE set,
            which could turn any URL into one.
        ShardError: for a member that is not one of ours; pickled members are never decoded.
    """
    import webdataset

    urls = [urls] if isinstance(urls, str) else list(urls)
    if bad := [u for u in urls if u.strip().startswith("pipe:")]:
        raise ValueError(f"{bad[0]!r} would run a shell command: give the URL of a file")
    if "GOPEN_REWRITE" in os.environ:
        raise ValueError("GOPEN_REWRITE is set and would change the URLs: unset it")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    waiting: list[Jets] = []
    count = 0
    for sample in webdataset.WebDataset(urls, shardshuffle=False):
        waiting.append(_block(sample))
        count += len(waiting[-1])
        if count >= batch_size:
            joined = Jets.concat(waiting)
            whole = count - count % batch_size
            for start in range(0, whole, batch_size):
                yield joined.select(slice(start, start + batch_size))
            waiting, count = [joined.select(slice(whole, None))], count - whole
    if count:
        yield Jets.concat(waiting)


def _block(sample: dict[str, Any]) -> Jets:
    where = f"{sample.get('__url__', '?')}, block {sample.get('__key__', '?')}"
    arrays: dict[str, torch.Tensor] = {}
    for name, content in sample.items():
        if name.startswith("__"):
            continue
        field, _, ending = name.partition(".")
        if ending != "npy" or field not in ("offsets", "particles", *_OPTIONAL):
            raise ShardError(f"{where}: {name} is not a member of jetkern's shards")
        try:
            array = np.load(io.BytesIO(content), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ShardError(f"{where}: {name} cannot be read: {error}") from None
        kind = torch.int64 if array.dtype.kind in "iu" else torch.float32
        arrays[field] = torch.from_numpy(array.astype(array.dtype.newbyteorder("="))).to(kind)
    try:
        offsets = offsets_from_counts(arrays.pop("offsets").diff())
        return Jets(offsets=offsets, **arrays)
    except KeyError as error:
        raise ShardError(f"{where}: has no {error.args[0]}") from None
    except (TypeError, ValueError) as error:
        raise ShardError(f"{where}: {error}") from None
