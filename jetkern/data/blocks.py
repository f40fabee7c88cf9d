"""Blocks in memory: read by offset, checked, and gathered into batches."""

from __future__ import annotations

import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jetkern.clouds import Clouds
from jetkern.data.order import Order
from jetkern.data.shards import POINTS, Field, ShardError, Shards
from jetkern.jets import Jets

_OPEN_FILES = 128


class _Descriptor:
    """An open file that closes with its last user, be it the cache or a reading thread."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class BlockReader:
    """Reads arrays of blocks at the offsets of the index, checking length and CRC-32 every time.

    Nothing but the arrays' bytes is read: no tar or npy header is parsed.
    """

    def __init__(self, shards: Shards) -> None:
        self.shards = shards
        self.index = shards.index
        self._number = {f.name: i for i, f in enumerate(shards.fields)}
        self._files: OrderedDict[int, _Descriptor] = OrderedDict()
        self._lock = threading.Lock()

    def _file(self, shard: int) -> _Descriptor:
        """The opened shard."""
        with self._lock:
            if shard in self._files:
                self._files.move_to_end(shard)
                return self._files[shard]
            path = self.shards.paths[shard]
            try:
                file = _Descriptor(path)
            except OSError as error:
                raise ShardError(f"{path} cannot be opened: {error.strerror}") from None
            size = os.fstat(file.number).st_size
            if size != self.shards.bytes[shard]:
                raise ShardError(f"{path} has {size} bytes, expected {self.shards.bytes[shard]}")
            self._files[shard] = file
            if len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)
            return file

    def read(self, block: int, field: Field, into: NDArray[Any]) -> None:
        """Fills the contiguous array ``into`` with one array of a block."""
        row, number = self.index[block], self._number[field.name]
        view = into.data.cast("B") if into.size else memoryview(b"")
        got = 0
        file = self._file(int(row["shard"]))
        while got < len(view):
            step = os.preadv(file.number, [view[got:]], int(row["offset"][number]) + got)
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

    def offsets(self, block: int) -> NDArray[np.int64]:
        """The offsets of a block, checked against the index."""
        offsets = self.array(block, "offsets").astype(np.int64)
        row = self.index[block]
        if offsets[0] != 0 or offsets[-1] != row["particles"] or (np.diff(offsets) < 0).any():
            path = self.shards.paths[int(row["shard"])]
            raise ShardError(f"{path} is damaged: block {block}: the offsets are not increasing")
        return offsets

    def close(self) -> None:
        """Closes all files."""
        self._files.clear()


class Slots:
    """Which key (a block) is in which slot of a pool; the slots longest unused are given anew."""

    def __init__(self, keys: int, slots: int) -> None:
        self.of = np.full(keys, -1, np.int64)
        self._key = np.full(max(1, min(slots, keys)), -1, np.int64)
        self._used = np.zeros(len(self._key), np.int64)
        self._clock = 0

    def __len__(self) -> int:
        return len(self._key)

    def tick(self) -> None:
        """From now on, slots that are used again stay until the next tick."""
        self._clock += 1

    def find(self, keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Marks the slots of the keys as used and gives new ones to those that have none.

        Returns:
            the keys that had no slot, and their slots. The pool may have grown.
        """
        slots = self.of[keys]
        absent = slots < 0
        self._used[slots[~absent]] = self._clock
        new = np.unique(keys[absent])
        if not len(new):
            return new, new
        idle = np.flatnonzero(self._used < self._clock)
        if len(idle) < len(new):
            old = len(self)
            size = min(max(2 * old, old + len(new) - len(idle)), len(self.of))
            self._key = np.append(self._key, np.full(size - old, -1))
            self._used = np.append(self._used, np.zeros(size - old, np.int64))
            idle = np.flatnonzero(self._used < self._clock)
        chosen = idle[np.argsort(self._used[idle], kind="stable")[: len(new)]]
        self.forget(chosen)
        self._key[chosen], self._used[chosen] = new, self._clock
        self.of[new] = chosen
        return new, chosen

    def forget(self, slots: NDArray[np.int64]) -> None:
        """Empties slots."""
        keys = self._key[slots]
        self.of[keys[keys >= 0]] = -1
        self._key[slots] = -1


class Rows:
    """Finds the block and the row of training positions, remembering each block's permutation.

    Args:
        order: over the rows that count.
        slots: blocks to remember at first.
        chosen: rows of each block that count; None for all.
    """

    def __init__(
        self, order: Order, slots: int, chosen: Sequence[NDArray[np.int32]] | None = None
    ) -> None:
        self.order, self.chosen = order, chosen
        self._slots = Slots(len(order.block_jets), slots)
        self._width = int(order.block_jets.max())
        self._table = np.empty((len(self._slots), self._width), np.int32)
        self._epoch: int | None = None

    def locate(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(B,) blocks and rows in them of positions that increase through the epochs."""
        epochs, within = np.divmod(positions, self.order.num_jets)
        blocks, rows = np.empty_like(positions), np.empty_like(positions)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1) if len(positions) else ():
            part = slice(*np.searchsorted(epochs, [epoch, epoch + 1]))
            blocks[part], ranks = self.order.locate(epoch, within[part])
            rows[part] = self._rows(epoch, blocks[part], ranks)
        return blocks, rows

    def _rows(
        self, epoch: int, blocks: NDArray[np.int64], ranks: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        if epoch != self._epoch:
            self._slots.forget(np.arange(len(self._slots)))
            self._epoch = epoch
        self._slots.tick()
        for block, slot in zip(*self._slots.find(blocks), strict=True):
            if slot >= len(self._table):
                more = len(self._slots) - len(self._table)
                self._table = np.concatenate([self._table, np.empty((more, self._width), np.int32)])
            rows = self.order.rows(epoch, int(block))
            if self.chosen is not None:
                rows = self.chosen[int(block)][rows].astype(np.int64)
            self._table[slot, : len(rows)] = rows
        return self._table[self._slots.of[blocks], ranks].astype(np.int64)


class BlockCache:
    """A pool of block-sized slots that batches are gathered from.

    The pool grows when one batch needs more blocks than it has slots; otherwise the block that was
    used longest ago gives way. Memory is slots x the largest block.

    Args:
        fields: which of the shards' fields to read.
        slots: blocks to hold at first.
        threads: that read blocks at the same time.
    """

    def __init__(
        self, shards: Shards, fields: Iterable[Field], slots: int, threads: int = 1
    ) -> None:
        self.reader = BlockReader(shards)
        self.fields = tuple(fields)
        self._jets = int(shards.index["jets"].max())
        self._particles = int(shards.index["particles"].max())
        self._slots = Slots(len(shards.index), slots)
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self._data: dict[str, NDArray[Any]] = {
            f.name: np.empty((0, len(f.columns)) if f.columns else 0, f.dtype) for f in self.fields
        }
        self._per_jet = {name: np.empty(0, np.int64) for name in ("start", "count")}
        self._size = 0
        self._grow()

    def _grow(self) -> None:
        old, self._size = self._size, len(self._slots)

        def larger(array: NDArray[Any], rows: int) -> NDArray[Any]:
            new = np.empty((self._size * rows, *array.shape[1:]), array.dtype)
            new[: old * rows] = array
            return new

        for field in self.fields:
            rows = self._particles if field.per_particle else self._jets
            self._data[field.name] = larger(self._data[field.name], rows)
        for name, array in self._per_jet.items():
            self._per_jet[name] = larger(array, self._jets)

    def batch(
        self, blocks: NDArray[np.int64], rows: NDArray[np.int64], index: NDArray[np.int64]
    ) -> Any:
        """The jets in the given rows (B,) of the given blocks (B,) as one packed batch."""
        self._slots.tick()
        wanted, slots = self._slots.find(blocks)
        if self._size < len(self._slots):
            self._grow()
        try:
            if self._pool is None:
                for slot, block in zip(slots.tolist(), wanted.tolist(), strict=True):
                    self._fill(slot, block)
            else:
                list(self._pool.map(self._fill, slots.tolist(), wanted.tolist()))
        except ShardError:
            self._slots.forget(slots)
            raise
        return self._gather(self._slots.of[blocks] * self._jets + rows, index)

    def _fill(self, slot: int, block: int) -> None:
        row = self.reader.index[block]
        jets, particles = int(row["jets"]), int(row["particles"])
        offsets = self.reader.offsets(block)
        first = slot * self._jets
        self._per_jet["start"][first : first + jets] = slot * self._particles + offsets[:-1]
        self._per_jet["count"][first : first + jets] = np.diff(offsets)
        for field in self.fields:
            size, n = (self._particles, particles) if field.per_particle else (self._jets, jets)
            self.reader.read(block, field, self._data[field.name][slot * size :][:n])

    def _gather(self, places: NDArray[np.int64], index: NDArray[np.int64]) -> Any:
        counts = self._per_jet["count"].take(places)
        offsets = np.zeros(len(places) + 1, np.int64)
        np.cumsum(counts, out=offsets[1:])
        rows = np.repeat(self._per_jet["start"].take(places) - offsets[:-1], counts)
        rows += np.arange(len(rows))
        tensors = {
            f.name: torch.from_numpy(_take(self._data[f.name], rows if f.per_particle else places))
            for f in self.fields
        }
        return as_batch(tensors, torch.from_numpy(offsets), torch.from_numpy(index))

    def close(self) -> None:
        """Closes files and threads."""
        if self._pool is not None:
            self._pool.shutdown()
        self.reader.close()


class Resident:
    """All blocks that an order uses, in the memory of a device, and batches gathered there."""

    def __init__(
        self,
        shards: Shards,
        fields: Iterable[Field],
        used: NDArray[np.int64],
        device: torch.device | str,
    ) -> None:
        reader = BlockReader(shards)
        self.fields, self.device = tuple(fields), torch.device(device)
        index = shards.index[used]
        jets, particles = int(index["jets"].sum()), int(index["particles"].sum())
        data = {
            f.name: torch.from_numpy(np.empty(f.shape(jets, particles), f.dtype))
            for f in self.fields
        }
        self._counts = np.empty(jets, np.int64)
        self._first = np.full(len(shards.index), -1, np.int64)
        jet = particle = 0
        try:
            for block, row in zip(used.tolist(), index, strict=True):
                end, last = jet + int(row["jets"]), particle + int(row["particles"])
                self._first[block] = jet
                self._counts[jet:end] = np.diff(reader.offsets(block))
                for field in self.fields:
                    rows = slice(particle, last) if field.per_particle else slice(jet, end)
                    reader.read(block, field, data[field.name].numpy()[rows])
                jet, particle = end, last
        finally:
            reader.close()
        self._data = {name: tensor.to(self.device) for name, tensor in data.items()}
        self._starts = torch.from_numpy(np.cumsum(self._counts) - self._counts).to(self.device)

    def batch(
        self, blocks: NDArray[np.int64], rows: NDArray[np.int64], index: NDArray[np.int64]
    ) -> Any:
        """The jets in the given rows (B,) of the given blocks (B,) as one packed batch."""
        chosen = self._first[blocks] + rows
        offsets = np.zeros(len(chosen) + 1, np.int64)
        np.cumsum(self._counts[chosen], out=offsets[1:])
        where = torch.from_numpy(np.concatenate([chosen, index, offsets])).to(self.device)
        jets, at, ends = where.split([len(chosen), len(index), len(offsets)])
        shift = self._starts.index_select(0, jets) - ends[:-1]
        # The size comes from the host's offsets: no wait for the device.
        rows_of = shift.repeat_interleave(ends.diff(), output_size=int(offsets[-1]))
        rows_of += torch.arange(len(rows_of), device=self.device)
        tensors = {
            f.name: self._data[f.name].index_select(0, rows_of if f.per_particle else jets)
            for f in self.fields
        }
        return as_batch(tensors, ends, at)

    def close(self) -> None:
        """Lets go of the memory."""
        self._data.clear()


def as_batch(
    tensors: dict[str, torch.Tensor], offsets: torch.Tensor, index: torch.Tensor
) -> Jets | Clouds:
    """The packed batch of stored fields, in the types that ``Jets`` and ``Clouds`` promise."""
    kinds = dict.fromkeys(("pid", "vertex", "origin", "label"), torch.int64)
    fields: dict[str, Any] = {
        name: t.to(kinds.get(name, torch.float32)) for name, t in tensors.items()
    }
    kind: type[Jets | Clouds] = Clouds if POINTS in tensors else Jets
    return kind(offsets=offsets, index=index, **fields)


def _take(data: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
    """``data[rows]``; a row of 16 bytes moves as one number, which is faster."""
    if data.ndim == 2 and data.shape[1] * data.itemsize == 16:
        whole = data.view(np.complex128)[:, 0].take(rows)
        return whole.view(data.dtype).reshape(len(rows), data.shape[1])
    return data.take(rows, axis=0)
