"""Training order as a pure function of (seed, epoch, position).

An epoch lays its blocks out in a permuted sequence and each block's jets in a permuted sequence,
cuts the resulting line of N jets into ``lanes`` spans of equal length, and deals the positions of
the epoch to the lanes in turn: position p is jet number ``p // lanes`` of span ``p % lanes``. A
batch so mixes jets of ``lanes`` blocks while only about ``lanes`` blocks need to be in memory.

Rank r of W takes the positions p with ``p % W == r``. The global batch is therefore the same for
every W. With g = gcd(W, lanes), a rank reads the blocks of ``lanes / g`` lanes, and all ranks
together read the data ``W / g`` times: once where W divides ``lanes`` (but for the blocks at the
ends of a lane, which two ranks read).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LANES = 64

MAX_SEED = 2**64 - 1  # beyond it, two seeds would be one

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SHIFTS = tuple(np.uint64(s) for s in (30, 27, 31))
_FACTORS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection of 64-bit integers."""
    x = (x ^ (x >> _SHIFTS[0])) * _FACTORS[0]
    x = (x ^ (x >> _SHIFTS[1])) * _FACTORS[1]
    return x ^ (x >> _SHIFTS[2])


def hashes(n: int, *keys: int) -> NDArray[np.uint64]:
    """n distinct 64-bit numbers that depend on nothing but n's range and the integer ``keys``."""
    state = np.zeros(1, np.uint64)
    for key in keys:
        state = mix(state + _GOLDEN + np.uint64(key & 0xFFFFFFFFFFFFFFFF))
    return mix(state + _GOLDEN * np.arange(1, n + 1, dtype=np.uint64))


def permutation(n: int, *keys: int) -> NDArray[np.int64]:
    """A permutation of range(n): the same on every machine and with every version of numpy."""
    return np.argsort(hashes(n, *keys), kind="stable")


# First key of every use, so that equal seeds never give two uses the same numbers.
_BLOCKS, _ROWS, _SUBSET_BLOCKS, _SUBSET_ROWS = range(4)


class Order:
    """Where each position of the training order is found.

    Args:
        block_jets: (M,) number of jets of each block.
        seed: of the shuffle.
        shuffle: false gives the order of the files, with one lane.
        num_jets: use only this many jets: whole blocks of a permutation seeded by ``subset_seed``,
            and a random part of the last one, so that small subsets read few blocks. Subsets of one
            ``subset_seed`` are nested. Shards are shuffled when written, so blocks are random
            samples.
        lanes: how many blocks are interleaved.

    Raises:
        ValueError: if there are no jets, or ``num_jets`` is not in 1..available.
    """

    def __init__(
        self,
        block_jets: NDArray[np.integer],
        *,
        seed: int = 0,
        shuffle: bool = True,
        num_jets: int | None = None,
        subset_seed: int = 0,
        lanes: int = LANES,
    ) -> None:
        if lanes < 1:
            raise ValueError(f"lanes must be at least 1, got {lanes}")
        self.block_jets = np.asarray(block_jets, dtype=np.int64)
        available = int(self.block_jets.sum())
        if not available:
            raise ValueError("there are no jets to order")
        if num_jets is not None and not 1 <= num_jets <= available:
            raise ValueError(f"num_jets is {num_jets}, but must be from 1 to {available}")
        self.seed, self.shuffle, self.subset_seed = seed, shuffle, subset_seed
        self.num_jets = available if num_jets is None else num_jets
        self.lanes = lanes if shuffle else 1
        self._partial: tuple[int, NDArray[np.int64]] | None = None
        self._blocks = np.arange(len(self.block_jets))
        if self.num_jets < available:
            self._restrict()
        used = self.block_jets[self._blocks].copy()
        if self._partial is not None:
            used[np.searchsorted(self._blocks, self._partial[0])] = len(self._partial[1])
        self._used = used
        spans, longer = divmod(self.num_jets, self.lanes)
        self._span_starts = np.arange(self.lanes) * spans + np.minimum(
            np.arange(self.lanes), longer
        )
        self._epochs: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def _restrict(self) -> None:
        chosen = permutation(len(self.block_jets), _SUBSET_BLOCKS, self.subset_seed)
        last = int(np.searchsorted(self.block_jets[chosen].cumsum(), self.num_jets))
        before = int(self.block_jets[chosen[:last]].sum())
        block = int(chosen[last])
        rows = permutation(int(self.block_jets[block]), _SUBSET_ROWS, self.subset_seed, block)
        # Sorted: without a shuffle, a subset too is read in the order of the files.
        self._partial = (block, np.sort(rows[: self.num_jets - before]))
        self._blocks = np.sort(chosen[: last + 1])

    @property
    def used_blocks(self) -> NDArray[np.int64]:
        """The blocks that have jets in the order, in the order of the files."""
        return self._blocks

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The epoch's sequence of blocks and the place on the line where each one starts."""
        if epoch not in self._epochs:
            sequence = (
                permutation(len(self._blocks), _BLOCKS, self.seed, epoch)
                if self.shuffle
                else np.arange(len(self._blocks))
            )
            starts = np.zeros(len(sequence) + 1, np.int64)
            np.cumsum(self._used[sequence], out=starts[1:])
            if len(self._epochs) == 2:  # a batch can lie in two epochs
                del self._epochs[min(self._epochs)]
            self._epochs[epoch] = self._blocks[sequence], starts
        return self._epochs[epoch]

    def locate(
        self, epoch: int, positions: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The block of each position (0..num_jets - 1) of an epoch, and the place in ``rows``."""
        sequence, starts = self._epoch(epoch)
        steps, lane = np.divmod(positions, self.lanes)
        line = self._span_starts[lane] + steps
        at = np.searchsorted(starts, line, side="right") - 1
        return sequence[at], line - starts[at]

    def rows(self, epoch: int, block: int) -> NDArray[np.int64]:
        """The rows of a block in the order in which the epoch uses them."""
        if self._partial is not None and self._partial[0] == block:
            rows = self._partial[1]
        else:
            rows = np.arange(self.block_jets[block])
        if not self.shuffle:
            return rows
        return rows[permutation(len(rows), _ROWS, self.seed, epoch, block)]
