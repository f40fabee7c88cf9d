"""Blocks in memory: read by offset, checked, and gathered into batches."""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jetkern.data.shards import Field, ShardError, Shards
from jetkern.jets import Jets

_OPEN_FILES = 128


class BlockReader:
    """Reads arrays of blocks at the offsets of the index, checking length and CRC-32 every time.

    Nothing but the arrays' bytes is read: no tar or npy header is parsed.
    """

    def __init__(self, shards: Shards) -> None:
        self.shards = shards
        self.index = shards.index
        self._number = {f.name: i for i, f in enumerate(shards.fields)}
        self._files: OrderedDict[int, int] = OrderedDict()

    def _descriptor(self, shard: int) -> int:
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        path = self.shards.paths[shard]
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ShardError(f"{path} cannot be opened: {error.strerror}") from None
        size = os.fstat(descriptor).st_size
        if size != self.shards.bytes[shard]:
            os.close(descriptor)
            raise ShardError(f"{path} has {size} bytes, expected {self.shards.bytes[shard]}")
        self._files[shard] = descriptor
        if len(self._files) > _OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        return descriptor

    def read(self, block: int, field: Field, into: NDArray[Any]) -> None:
        """Fills the contiguous array ``into`` with one array of a block."""
        row, number = self.index[block], self._number[field.name]
        view = into.data.cast("B") if into.size else memoryview(b"")
        got = 0
        descriptor = self._descriptor(int(row["shard"]))
        while got < len(view):
            step = os.preadv(descriptor, [view[got:]], int(row["offset"][number]) + got)
            if not step:
                break
            got += step
        if got < len(view) or zlib.crc32(view) != row["crc"][number]:
            path = self.shards.paths[int(row["shard"])]
            raise ShardError(
                f"{path} is damaged: block {block}, {field.name}: "
                + ("the file ends too early" if got < len(view) else "the checksum is wrong")
            )

    def array(self, block: int, name: str) -> NDArray[Any]:
        """One array of a block, newly allocated."""
        field = self.shards.fields[self._number[name]]
        row = self.index[block]
        array = np.empty(field.shape(int(row["jets"]), int(row["particles"])), field.dtype)
        self.read(block, field, array)
        return array

    def close(self) -> None:
        """Closes all files."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __del__(self) -> None:
        self.close()


class BlockCache:
    """A pool of block-sized slots that batches are gathered from.

    The pool grows when one batch needs more blocks than it has slots; otherwise the block that was
    used longest ago gives way. Memory is slots x the largest block.

    Args:
        fields: which of the shards' fields to read.
        slots: blocks to hold at first.
        rows: the rows of a block in the order in which an epoch uses them, see ``Order.rows``.
    """

    def __init__(
        self,
        shards: Shards,
        fields: Iterable[Field],
        slots: int,
        rows: Callable[[int, int], NDArray[np.int64]],
        threads: int = 1,
    ) -> None:
        self.reader = BlockReader(shards)
        self.fields = tuple(fields)
        self._rows = rows
        self._jets = int(shards.index["jets"].max())
        self._particles = int(shards.index["particles"].max())
        self._sizes = shards.index["jets"].astype(np.int64)
        self._slot_of = np.full(len(shards.index), -1, np.int64)
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self._data: dict[str, NDArray[Any]] = {
            f.name: np.empty((0, len(f.columns)) if f.columns else 0, f.dtype) for f in self.fields
        }
        self._per_jet = {name: np.zeros(0, np.int64) for name in ("start", "count", "row")}
        self._block = np.zeros(0, np.int64)
        self._epoch = np.zeros(0, np.int64)
        self._used = np.zeros(0, np.int64)
        self._clock = 0
        self._grow(max(1, min(slots, len(shards.index))))

    def _grow(self, slots: int) -> None:
        old = len(self._block)

        def larger(array: NDArray[Any], rows: int, fill: int = 0) -> NDArray[Any]:
            new = np.empty((slots * rows, *array.shape[1:]), array.dtype)
            new[: old * rows] = array
            if fill:
                new[old * rows :] = fill
            return new

        for field in self.fields:
            rows = self._particles if field.per_particle else self._jets
            self._data[field.name] = larger(self._data[field.name], rows)
        for name, array in self._per_jet.items():
            self._per_jet[name] = larger(array, self._jets)
        self._block = larger(self._block, 1, fill=-1)
        self._epoch = larger(self._epoch, 1, fill=-1)
        used = larger(self._used, 1)
        used[old:] = 0
        self._used = used

    def start_batch(self) -> None:
        """Marks that blocks used from now on must stay until the next batch starts."""
        self._clock += 1

    def place(
        self, epoch: int, blocks: NDArray[np.int64], ranks: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Where in the pool the jets are, reading the blocks that are not there yet.

        Args:
            blocks, ranks: (B,) the block of each jet and its place in the block's ``rows``.
        """
        slots = self._slot_of[blocks]
        absent = slots < 0
        self._used[slots[~absent]] = self._clock
        if absent.any():
            wanted = np.unique(blocks[absent])
            self._load(wanted)
            slots = self._slot_of[blocks]
            self._used[slots] = self._clock
        stale = self._epoch[slots] != epoch
        if stale.any():
            for slot in np.unique(slots[stale]):
                rows = self._rows(epoch, int(self._block[slot]))
                self._per_jet["row"][slot * self._jets :][: len(rows)] = rows
                self._epoch[slot] = epoch
        first = slots * self._jets
        return first + self._per_jet["row"][first + ranks]

    def _load(self, wanted: NDArray[np.int64]) -> None:
        idle = np.flatnonzero(self._used < self._clock)
        if len(idle) < len(wanted):
            missing = len(wanted) - len(idle)
            slots = len(self._block)
            self._grow(min(max(2 * slots, slots + missing), len(self._slot_of)))
            idle = np.flatnonzero(self._used < self._clock)
        chosen = idle[np.argsort(self._used[idle], kind="stable")[: len(wanted)]]
        evicted = self._block[chosen]
        self._slot_of[evicted[evicted >= 0]] = -1
        self._block[chosen] = -1
        pairs = list(zip(chosen.tolist(), wanted.tolist(), strict=True))
        if self._pool is None:
            for slot, block in pairs:
                self._fill(slot, block)
        else:
            list(self._pool.map(lambda pair: self._fill(*pair), pairs))
        self._block[chosen] = wanted
        self._epoch[chosen] = -1
        self._slot_of[wanted] = chosen

    def _fill(self, slot: int, block: int) -> None:
        row = self.reader.index[block]
        jets, particles = int(row["jets"]), int(row["particles"])
        offsets = self.reader.array(block, "offsets").astype(np.int64)
        counts = np.diff(offsets)
        if offsets[0] != 0 or offsets[-1] != particles or (counts < 0).any():
            path = self.reader.shards.paths[int(row["shard"])]
            raise ShardError(f"{path} is damaged: block {block}: the offsets are not increasing")
        first = slot * self._jets
        self._per_jet["start"][first : first + jets] = slot * self._particles + offsets[:-1]
        self._per_jet["count"][first : first + jets] = counts
        for field in self.fields:
            rows = self._particles if field.per_particle else self._jets
            n = particles if field.per_particle else jets
            self.reader.read(block, field, self._data[field.name][slot * rows :][:n])

    def gather(self, places: NDArray[np.int64], index: NDArray[np.int64]) -> Jets:
        """The jets at the given places of the pool as one packed batch."""
        counts = self._per_jet["count"].take(places)
        offsets = np.zeros(len(places) + 1, np.int64)
        np.cumsum(counts, out=offsets[1:])
        rows = np.repeat(self._per_jet["start"].take(places) - offsets[:-1], counts)
        rows += np.arange(len(rows))
        tensors = {}
        for field in self.fields:
            data = self._data[field.name]
            chosen = rows if field.per_particle else places
            tensors[field.name] = torch.from_numpy(_take(data, chosen))
        for name, kind in (("pid", torch.int64), ("label", torch.int64)):
            if name in tensors:
                tensors[name] = tensors[name].to(kind)
        for name in ("particles", "tracks"):
            if name in tensors:
                tensors[name] = tensors[name].to(torch.float32)
        return Jets(offsets=torch.from_numpy(offsets), index=torch.from_numpy(index), **tensors)

    def close(self) -> None:
        """Closes files and threads."""
        self.reader.close()
        if self._pool is not None:
            self._pool.shutdown()


def _take(data: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
    """``data[rows]``; a row of 16 bytes moves as one number, which is faster."""
    if data.ndim == 2 and data.shape[1] * data.itemsize == 16:
        whole = data.view(np.complex128)[:, 0].take(rows)
        return whole.view(data.dtype).reshape(len(rows), data.shape[1])
    return data.take(rows, axis=0)
