"""Packed batches from shards, in a reproducible order that can start anywhere."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from math import gcd
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from jetkern.data.blocks import BlockCache, Resident, Rows
from jetkern.data.order import LANES, Order
from jetkern.data.shards import ShardError, Shards

_SPARE_BLOCKS = 8
_OPTIONAL = ("pid", "tracks", "vertex", "origin")


class Stream(IterableDataset):
    """Iterates over batches of ``Jets``, of ``Clouds`` where the shards have points of other sets;
    ``jetkern.data.order`` defines the order.

    Every rank gets the same number of batches. ``Jets.index`` is the position in the training
    order, epoch x jets used + position in the epoch; a batch may reach into the next epoch, so no
    jet is left out.

    Args:
        shards: an opened folder.
        batch_size: jets of a global batch, over all ranks.
        seed: of the shuffle.
        rank, world_size: this process gets the positions p with ``p % world_size == rank``.
        shuffle: false reads in the order of the files.
        num_jets: use only so many jets, a random subset given by ``subset_seed``.
        fields: the optional particle fields to read, of "pid", "tracks", "vertex" and "origin";
            None for those that the shards have. Labels and conditions always come where there are.
        epochs: stop after so many; None never stops. The last batch may then be smaller, on some
            ranks down to no jet.
        particles_per_batch: instead of ``batch_size`` jets, a global batch holds as many jets as
            have at most so many particles in all, rounded down to a multiple of ``lanes``.
        lanes: how many blocks are interleaved, see ``jetkern.data.order``; part of the order.
        resident: keep all jets on this device ("cpu", "cuda") instead of reading them every epoch.
        prefetch: batches prepared ahead by a thread; 0 does without the thread.
        threads: that read blocks at the same time, for storage with a long latency.
        pin_memory: return tensors in page-locked memory.

    Raises:
        ValueError: for arguments out of range, also a world size that does not divide the batch.
        ShardError: while iterating, if a block is damaged.
    """

    def __init__(
        self,
        shards: Shards,
        *,
        batch_size: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        num_jets: int | None = None,
        subset_seed: int = 0,
        fields: tuple[str, ...] | None = None,
        epochs: int | None = None,
        particles_per_batch: int | None = None,
        lanes: int = LANES,
        resident: torch.device | str | None = None,
        prefetch: int = 2,
        threads: int = 1,
        pin_memory: bool = False,
    ) -> None:
        if (batch_size is None) == (particles_per_batch is None):
            raise ValueError("give either batch_size or particles_per_batch")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}, but must be from 0 to {world_size - 1}")
        if epochs is not None and epochs < 1:
            raise ValueError(f"epochs is {epochs}, but must be at least 1")
        if batch_size is not None and (batch_size < 1 or batch_size % world_size):
            raise ValueError(
                f"batch_size {batch_size} must be a positive multiple of world_size {world_size}"
            )
        if pin_memory and not torch.cuda.is_available():
            raise ValueError("pin_memory needs a CUDA GPU")
        if particles_per_batch is not None:
            longest = shards.longest()
            _check_budget(particles_per_batch, lanes if shuffle else 1, world_size, longest)
        available = tuple(n for n in _OPTIONAL if shards.field(n) is not None)
        fields = available if fields is None else fields
        lacking = [n for n in fields if n not in available]
        if lacking:
            raise ShardError(
                f"{shards.folder} has no field {', '.join(lacking)}; it has "
                f"{', '.join(f.name for f in shards.fields[1:])}"
            )
        self.shards, self.batch_size = shards, batch_size
        self.rank, self.world_size = rank, world_size
        self.epochs, self.prefetch, self.threads = epochs, prefetch, threads
        self.pin_memory, self.resident = pin_memory, resident
        self.particles_per_batch = particles_per_batch
        self.order = Order(
            shards.index["jets"] if shards.rows is None else np.array([*map(len, shards.rows)]),
            seed=seed,
            shuffle=shuffle,
            num_jets=num_jets,
            subset_seed=subset_seed,
            lanes=lanes,
        )
        self.num_jets = self.order.num_jets
        self.fields = tuple(
            f for f in shards.fields[1:] if f.name not in _OPTIONAL or f.name in fields
        )
        self._position = 0

    @property
    def _end(self) -> int | None:
        return None if self.epochs is None else self.epochs * self.num_jets

    def __len__(self) -> int:
        """Batches that are left, the same on every rank.

        Raises:
            TypeError: if the stream is endless, or its batches are counted by particles.
        """
        if self._end is None or self.batch_size is None:
            raise TypeError("the number of batches is not known")
        return -(-(self._end - self._position) // self.batch_size)

    def state(self) -> dict[str, Any]:
        """Where the next batch starts, and what defines the order, as plain JSON values."""
        return {
            "position": self._position,
            "seed": self.order.seed,
            "shuffle": self.order.shuffle,
            "lanes": self.order.lanes,
            "num_jets": self.num_jets,
            "subset_seed": self.order.subset_seed,
            "fingerprint": self.shards.fingerprint,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continues where ``state`` was taken, possibly with another world size or batch size.

        Raises:
            ValueError: if it belongs to another order or other shards, naming the difference.
        """
        mine = self.state()
        if set(state) != set(mine):
            raise ValueError(f"the state has keys {sorted(state)}, expected {sorted(mine)}")
        differing = [k for k in mine if k != "position" and state[k] != mine[k]]
        if differing:
            raise ValueError(
                "the state belongs to another training order: "
                + ", ".join(f"{k} is {mine[k]!r}, was {state[k]!r}" for k in differing)
            )
        self.seek(state["position"])

    def seek(self, position: int) -> None:
        """Continues at a position of the training order (in jets) without reading up to it.

        Raises:
            ValueError: if it is no integer from 0.
        """
        if not isinstance(position, int) or isinstance(position, bool) or position < 0:
            raise ValueError(f"position is {position!r}, but must be an integer from 0")
        self._position = position

    def __iter__(self) -> Iterator[Any]:
        if get_worker_info() is not None:
            raise ValueError(
                "Stream reads ahead by itself, and each worker of a DataLoader would give the same "
                "jets: iterate over it, or use DataLoader(stream, batch_size=None, num_workers=0)"
            )
        source = self._produce(self._position)
        for jets, position in _ahead(source, self.prefetch) if self.prefetch else source:
            self._position = position
            yield jets

    def _produce(self, position: int) -> Iterator[tuple[Any, int]]:
        lanes = self.order.lanes // gcd(self.order.lanes, self.world_size)
        slots = lanes + _SPARE_BLOCKS
        finder = Rows(self.order, slots, self.shards.rows)
        measure = self._measure()
        store = (
            BlockCache(self.shards, self.fields, slots, self.threads)
            if self.resident is None
            else Resident(self.shards, self.fields, self.order.used_blocks, self.resident)
        )
        numbers = None
        if self.shards.numbers is not None:
            numbers = torch.from_numpy(self.shards.numbers).to(self.resident or "cpu")
        try:
            while self._end is None or position < self._end:
                end = position + measure(position)
                first = position + (self.rank - position) % self.world_size
                positions = np.arange(first, end, self.world_size)
                jets = store.batch(*finder.locate(positions), positions)
                if numbers is not None and jets.label is not None:
                    jets = jets.replace(label=numbers[jets.label])
                position = end
                yield jets.pin_memory() if self.pin_memory else jets, position
        finally:
            store.close()

    def _measure(self) -> Callable[[int], int]:
        """A function that says how many jets the global batch has that starts at a position."""

        def left(position: int) -> int:
            return sys.maxsize if self._end is None else self._end - position

        if self.batch_size is not None:
            size = self.batch_size
            return lambda position: min(size, left(position))

        budget = self.particles_per_batch
        assert budget is not None
        multiplicity = self.shards.multiplicity()
        stored = self.shards.index["jets"].astype(np.int64)
        first = np.cumsum(stored) - stored
        finder = Rows(self.order, self.order.lanes + _SPARE_BLOCKS, self.shards.rows)
        mean = max(1.0, self.shards.num_particles / self.shards.num_jets)

        def fitting(position: int) -> int:
            size = int(budget / mean * 1.1) + self.order.lanes
            while True:
                size = min(size, left(position))
                blocks, rows = finder.locate(np.arange(position, position + size))
                particles = np.cumsum(multiplicity[first[blocks] + rows], dtype=np.int64)
                jets = int(np.searchsorted(particles, budget, side="right"))
                if jets < size:
                    return jets - jets % self.order.lanes
                if size == left(position):
                    return size
                size *= 2

        return fitting


def _check_budget(particles: int, lanes: int, world_size: int, longest: int) -> None:
    if lanes % world_size:
        raise ValueError(
            f"with particles_per_batch, world_size {world_size} must divide lanes {lanes}, so that "
            "all ranks get equally many jets"
        )
    if particles < lanes * longest:
        raise ValueError(
            f"particles_per_batch is {particles}, but must be at least lanes x {longest} = "
            f"{lanes * longest}"
        )


def _ahead(source: Iterator[Any], depth: int) -> Iterator[Any]:
    """The items of ``source``, made by a thread up to ``depth`` ahead; errors come through."""
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: tuple[str, Any]) -> bool:
        while not stop.is_set():
            with suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return True
        return False

    def work() -> None:
        try:
            for item in source:
                if not put(("item", item)):
                    return
            put(("end", None))
        except BaseException as error:
            put(("error", error))
        finally:
            source.close()  # type: ignore[attr-defined]

    thread = threading.Thread(target=work, name="jetkern-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            kind, item = ready.get()
            if kind == "item":
                yield item
            elif kind == "end":
                return
            else:
                raise item
    finally:
        stop.set()
        thread.join()
