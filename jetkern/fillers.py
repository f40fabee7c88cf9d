"""Batches of one size: filler jets behind the real ones make up the numbers of a capacity.

Work that is recorded once, such as a CUDA graph, has fixed sizes: of a batch its jets, its
particles and the sum of n^2 of its jets. Fillers make all three exact, so that no op learns of
padding; what is said of them is dropped, and losses leave them out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jetkern.clouds import PER_SET
from jetkern.jets import PER_PARTICLE, Jets
from jetkern.packed import Packed, offsets_from_counts

LONGEST = 200  # particles of a filler
IGNORED = -100  # the label of fillers: ``torch.nn.functional.cross_entropy`` leaves it out
RATIO = 1.25  # of the sizes of a bucket to the next smaller one's


class Capacity(NamedTuple):
    """Sizes of a batch with its fillers: jets, particles, and sum of n^2."""

    jets: int
    particles: int
    pairs: int


def filler_counts(number: int, particles: int, pairs: int) -> NDArray[np.int64] | None:
    """(number,) particles of each filler, ``particles`` in all and ``pairs`` the sum of their
    squares; None if there are no such numbers, or they were not found.

    As few jets as possible of nearly equal size; then in pairs of equal ones t particles change
    sides, which adds 2 t^2 to the sum of squares.
    """
    if particles <= 0 or number <= 0 or pairs <= 0:
        return np.zeros(number, np.int64) if particles == pairs == 0 and number >= 0 else None
    least = -(-(particles**2) // pairs)
    for used in range(max(least, 1), min(number, least + 8) + 1):
        counts = np.zeros(number, np.int64)
        counts[:used] = particles // used
        larger = particles % used
        counts[:larger] += 1
        left, odd = divmod(pairs - int(np.square(counts).sum()), 2)
        if left < 0 or odd:
            continue
        equal = [*range(0, larger - 1, 2), *range(larger, used - 1, 2)]
        for i in equal:
            n = int(counts[i])
            moved = max(min(math.isqrt(left), n, LONGEST - n), 0)
            counts[i] += moved
            counts[i + 1] -= moved
            left -= moved**2
        if not left and counts.max() <= LONGEST:
            return counts
    return None


def filled(jets: Jets, capacity: Capacity) -> Jets | None:
    """The jets with fillers behind them; None if they do not fit.

    Args:
        jets: on the CPU.
    """
    counts = jets.packed.known_counts
    if counts is None:
        counts = jets.counts.numpy()
    own = sizes_of(counts)
    extra = filler_counts(*(c - o for c, o in zip(capacity, own, strict=True)))
    if extra is None:
        return None
    added = {"particles": int(extra.sum()), "jets": len(extra)}
    values: dict[str, Any] = {}
    for name in PER_PARTICLE + PER_SET:
        value: Tensor | None = getattr(jets, name)
        if value is not None:
            rows = added["particles" if name in PER_PARTICLE else "jets"]
            fill = {"label": IGNORED, "condition": 1}.get(name, 0)
            value = torch.cat([value, value.new_full((rows, *value.shape[1:]), fill)])
        values[name] = value
    both = np.concatenate([counts, extra])
    packed: Any = Packed.trusted(offsets_from_counts(torch.from_numpy(both)), counts=both)
    return Jets(**values, offsets=packed, fillers=len(extra))


def sizes_of(counts: NDArray[Any]) -> Capacity:
    """Of jets with so many particles."""
    return Capacity(len(counts), int(counts.sum()), int(np.square(counts).sum()))


def training_capacity(counts: NDArray[Any], jets: int) -> Capacity:
    """What nearly all batches of ``jets`` jets fit into.

    Args:
        counts: particles of some jets, at least two.
    """
    n = counts.astype(np.float64)
    spread = float(n.std()) * jets**0.5
    more = round(4 * spread) + 8 * max(jets // 8, 48)
    # Batches with more particles have more pairs, along this line.
    slope = float(np.cov(np.square(n), n)[0, 1] / max(float(n.var(ddof=1)), 1e-9))
    particles = round(jets * float(n.mean())) + more
    pairs = round(jets * float(np.square(n).mean()) + min(max(slope, 24.0), 80.0) * more)
    return Capacity(jets + more // 16, particles, pairs + (pairs - particles) % 2)


def buckets(own: Capacity) -> Iterator[Capacity]:
    """Capacities that a batch may fit into, the likeliest first: few for all batches."""
    jets = 1 << max(own.jets - 1, 0).bit_length()
    jets += max(jets // 4, 32)
    for more in range(4):
        pairs = _rung(own.pairs + 8192, more)
        for least in (80, 40, 20):
            particles = _rung(own.particles + max((pairs - own.pairs) // least, 256), 0)
            yield Capacity(jets, particles, pairs + (pairs - particles) % 2)


def _rung(least: int, more: int) -> int:
    """The first of a ladder of even numbers that is not below ``least``, or one further up."""
    step = math.ceil(math.log(max(least, 64) / 64, RATIO) - 1e-9) + more
    return 2 * math.ceil(32 * RATIO**step)


class Buffers:
    """Jets of one capacity at fixed places on a device.

    Args:
        like: filled jets on the CPU; their fields are those of all that follow.
    """

    def __init__(self, like: Jets, device: torch.device) -> None:
        self.fillers = like.fillers
        self.pairs = like.num_pairs
        self.tensors = {
            name: value.to(device, copy=True)
            for name in ("offsets", *PER_PARTICLE, *PER_SET)
            if (value := getattr(like, name)) is not None
        }

    def take(self, jets: Jets) -> None:
        """Copies the values of filled jets of the same capacity.

        From page-locked memory: a copy from other memory would wait for the work before it.
        """
        for name, place in self.tensors.items():
            value: Tensor = getattr(jets, name)
            place.copy_(value.pin_memory() if place.is_cuda else value, non_blocking=True)

    def jets(self) -> Jets:
        """The jets, with nothing derived from them yet."""
        packed: Any = Packed.trusted(self.tensors["offsets"], self.pairs, LONGEST)
        rest = {name: value for name, value in self.tensors.items() if name != "offsets"}
        return Jets(**rest, offsets=packed, fillers=self.fillers)
