"""Batches of one size: filler jets behind the real ones make up the numbers of a capacity.

Work that is recorded once, such as a CUDA graph, has fixed sizes: of a batch its jets, its
particles and the sum of n^2 of its jets. Fillers make all three exact, so that no op learns of
padding; what is said of them is dropped, and losses leave them out.

Masked views of a batch have fixed sizes too: particles and pairs of what they show. Some fillers
are shown as they are, and make up both sizes of the views; all others are hidden as a whole, and
make up what the batch itself then lacks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jetkern.clouds import PER_SET
from jetkern.jets import PER_PARTICLE, Jets, Shown
from jetkern.packed import Packed, offsets_from_counts

LONGEST = 200  # particles of a filler
IGNORED = -100  # the label of fillers: ``torch.nn.functional.cross_entropy`` leaves it out
LONG = (180, 150, 120, 90, 60)  # particles of the first fillers, where equal ones are not enough
SHOWN = "shown"  # the name of the offsets of masked views among a batch's tensors
RATIO = 1.25  # of the sizes of a bucket to the next smaller one's


class Capacity(NamedTuple):
    """Sizes of a batch with its fillers: jets, particles, and sum of n^2."""

    jets: int
    particles: int
    pairs: int


def filler_counts(number: int, particles: int, pairs: int) -> NDArray[np.int64] | None:
    """(number,) particles of each filler, ``particles`` in all and ``pairs`` the sum of their
    squares; None if there are no such numbers, or they were not found.

    If need be the first ones are ``LONG``, up to two; the others are ``_nearly_equal``.
    """
    if particles <= 0 or number <= 0 or pairs <= 0:
        return np.zeros(number, np.int64) if particles == pairs == 0 and number >= 0 else None
    for chosen in (c for k in range(3) for c in itertools.combinations_with_replacement(LONG, k)):
        left = (number - len(chosen), particles - sum(chosen), pairs - sum(n * n for n in chosen))
        if min(left) > 0 and (rest := _nearly_equal(*left)) is not None:
            return np.concatenate([np.array(chosen, np.int64), rest])
    return None


def _nearly_equal(number: int, particles: int, pairs: int) -> NDArray[np.int64] | None:
    """As few jets as possible of nearly equal size; then in pairs of equal ones t particles change
    sides, which adds 2 t^2 to the sum of squares.
    """
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


def filled(
    jets: Jets,
    capacity: Capacity,
    visible: NDArray[Any] | None = None,
    seen: Capacity | None = None,
) -> Jets | None:
    """The jets with fillers behind them; None if they do not fit.

    Args:
        jets: on the CPU.
        visible: (B,) particles of each jet that masked views show, and ``seen``, their capacity;
            the result then says what is ``shown``.
    """
    counts = _counts(jets)
    left = _left(capacity, counts)
    shown: NDArray[Any] | None = None
    if visible is None or seen is None:
        extra = filler_counts(*left)
    else:
        also = _both(left, _left(seen, visible))
        extra = None
        if also is not None:
            extra, shown = also[0], np.concatenate([visible, also[1]])
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
    views = None if shown is None else Shown.of(shown)
    return Jets(**values, offsets=packed, fillers=len(extra), shown=views)


def _counts(jets: Jets) -> NDArray[Any]:
    known = jets.packed.known_counts
    return jets.counts.numpy() if known is None else known


def _left(capacity: Capacity, counts: NDArray[Any]) -> Capacity:
    return Capacity(*(c - o for c, o in zip(capacity, sizes_of(counts), strict=True)))


def _both(whole: Capacity, seen: Capacity) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """(number,) particles of each filler, and (number,) those that are shown of it."""
    shown = filler_counts(*seen)
    if shown is None:
        return None
    shown = shown[shown > 0]
    hidden = filler_counts(
        whole.jets - len(shown), whole.particles - seen.particles, whole.pairs - seen.pairs
    )
    if hidden is None:
        return None
    return np.concatenate([shown, hidden]), np.concatenate([shown, np.zeros_like(hidden)])


def sizes_of(counts: NDArray[Any]) -> Capacity:
    """Of jets with so many particles."""
    return Capacity(len(counts), int(counts.sum()), int(np.square(counts).sum()))


def training_capacity(counts: NDArray[Any], jets: int) -> Capacity:
    """What nearly all batches of ``jets`` jets fit into.

    Args:
        counts: particles of some jets, at least two.
    """
    return _capacity(counts, np.square(counts), jets, 80.0)


def masked_capacities(
    counts: NDArray[Any], visible: NDArray[Any], jets: int
) -> tuple[Capacity, Capacity]:
    """The same of batches with masked views, and the capacity of these views.

    Args:
        counts: particles of some jets, at least two; visible: those that are shown of each.
    """
    seen = _capacity(visible, np.square(visible), jets, 80.0)
    # Of so many particles and pairs more, which fillers make up that are hidden.
    pairs = np.square(counts) - np.square(visible)
    rest = _capacity(counts - visible, pairs, jets, 90.0)
    number = seen.jets + rest.jets - jets
    whole = Capacity(number, seen.particles + rest.particles, seen.pairs + rest.pairs)
    return whole, seen._replace(jets=number)


def _capacity(counts: NDArray[Any], squares: NDArray[Any], jets: int, steepest: float) -> Capacity:
    n, pairs_of = counts.astype(np.float64), squares.astype(np.float64)
    spread = float(n.std()) * jets**0.5
    more = round(4 * spread) + 8 * max(jets // 8, 48)
    # Batches with more particles have more pairs, along this line.
    slope = float(np.cov(pairs_of, n)[0, 1] / max(float(n.var(ddof=1)), 1e-9))
    particles = round(jets * float(n.mean())) + more
    pairs = round(jets * float(pairs_of.mean()) + min(max(slope, 24.0), steepest) * more)
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
        self.shown = like.shown
        self.tensors = {n: value.to(device, copy=True) for n, value in _tensors(like).items()}

    def take(self, jets: Jets) -> None:
        """Copies the values of filled jets of the same capacity.

        From page-locked memory: a copy from other memory would wait for the work before it.
        """
        for name, value in _tensors(jets).items():
            place = self.tensors[name]
            place.copy_(value.pin_memory() if place.is_cuda else value, non_blocking=True)

    def jets(self) -> Jets:
        """The jets, with nothing derived from them yet."""
        rest = dict(self.tensors)
        packed: Any = Packed.trusted(rest.pop("offsets"), self.pairs, LONGEST)
        shown = None
        if self.shown is not None:
            seen = Packed.trusted(rest.pop(SHOWN), self.shown.packed.num_pairs, LONGEST)
            shown = Shown(seen, self.shown.particles)
        return Jets(**rest, offsets=packed, fillers=self.fillers, shown=shown)


def _tensors(jets: Jets) -> dict[str, Tensor]:
    """All that a batch consists of, by name."""
    names = ("offsets", *PER_PARTICLE, *PER_SET)
    found = {name: value for name in names if (value := getattr(jets, name)) is not None}
    return found if jets.shown is None else {**found, SHOWN: jets.shown.packed.offsets}
