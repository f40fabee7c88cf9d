"""Views of a batch: what a pass through the body sees of the jets, and what was hidden from it.

A view is a function of the jets, their index and the seed. Further ones are written the same way;
``Objective`` runs all views of a step through the body as one packed batch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from jetkern.jets import Jets
from jetkern.model.columns import with_columns
from jetkern.objectives import flow
from jetkern.objectives.masking import MASK_FRACTION, drawn_counts, masked_counts, random_keep
from jetkern.packed import offsets_from_counts, true_rows
from jetkern.random import uniform

# Streams of random numbers: two uses never share one. Losses from elsewhere take 100 and above.
TIME, NOISE, MASK, FRACTION, DROP_PID, DROP_TRACKS, DROP_LABEL = 1, 2, 3, 4, 10, 20, 30
TURN, MIRROR = 40, 41


class Place(NamedTuple):
    """Of a view in the pass over all of them: rows (R, D) and offsets of the pass, and its own
    first and last of both."""

    rows: Tensor
    offsets: Tensor
    first_row: int
    end_row: int
    first_jet: int
    end_jet: int


@dataclass
class View:
    """One packed pass.

    Attributes:
        jets: B jets as the body sees them.
        whole: the same jets as they are, T particles.
        time: (B,) flow-matching time, or None; a view with one has a time token.
        target: (T, ...) what was hidden, for views whose loss needs it.
        keep: (T,) bool, the particles of ``whole`` that are in ``jets``, or None for all.
        told: the jets as the generator knows them, some without their type (label -1); None for
            ``whole``.
        rows, offsets: (T', D) and (B + 1,) of the body, once it has run.
        place: where these are among those of other views.
    """

    jets: Jets
    whole: Jets
    time: Tensor | None = None
    target: Tensor | None = None
    keep: Tensor | None = None
    told: Jets | None = None
    rows: Tensor | None = None
    offsets: Tensor | None = None
    place: Place | None = None

    def read(self) -> tuple[Tensor, Tensor]:
        """Rows and offsets of the body.

        Raises:
            RuntimeError: before the body has run.
        """
        if self.rows is None or self.offsets is None:
            raise RuntimeError("the body has not seen this view yet")
        return self.rows, self.offsets


def together(views: Sequence[View]) -> tuple[Tensor, Tensor]:
    """Rows and offsets of the body of several views, one after the other."""
    places = [view.place for view in views]
    first, last = places[0], places[-1]
    follow = all(
        a is not None and b is not None and a.rows is b.rows and a.end_jet == b.first_jet
        for a, b in itertools.pairwise(places)
    )
    if first is not None and last is not None and follow and not first.first_jet:
        whole = last.end_row == first.rows.shape[0]
        rows = first.rows if whole else first.rows[: last.end_row]
        return rows, first.offsets[: last.end_jet + 1]
    seen = [view.read() for view in views]
    counts = torch.cat([offsets.diff() for _, offsets in seen])
    return torch.cat([rows for rows, _ in seen]), offsets_from_counts(counts)


MakeView = Callable[[Jets, Tensor, int], View]


def clean(jets: Jets, index: Tensor, seed: int) -> View:
    """The jets as they are."""
    return View(jets, jets)


def turned(jets: Jets, index: Tensor, seed: int) -> Jets:
    """The jets, each turned by a random angle about its axis in (eta, phi), half of them mirrored.

    Momenta stay, as if a jet at the same eta had been turned: ln E with its change of eta would
    differ by less than R tanh(eta).
    """
    draws = uniform(seed, (TURN, MIRROR), index).to(jets.particles.dtype).view(2, -1)
    angle, side = draws[:, jets.jet_of_particle]
    eta, phi, *others = jets.particles.unbind(1)
    cosine, sine = (2 * math.pi * angle).cos(), (2 * math.pi * angle).sin()
    sign = torch.where(side < 0.5, 1, -1)
    turned = cosine * eta - sine * phi, sign * (sine * eta + cosine * phi)
    particles = torch.stack([*turned, *others], 1)
    return jets.replace(particles=particles)


def noised(jets: Jets, index: Tensor, seed: int) -> View:
    """The jets somewhere on the path to noise; ``target`` is the velocity (T, 4)."""
    time = uniform(seed, TIME, index).to(jets.particles.dtype)
    moved, velocity = flow.on_path(jets, index, seed, NOISE, time)
    return View(moved, jets, time=time, target=velocity)


@dataclass(frozen=True)
class Noised:
    """The same with identities and tracks as columns, and noise of a model's own.

    Attributes:
        columns: their names, see ``jetkern.model.columns``.
        statistics: mean and width of the noise, kinematics first.
    """

    columns: tuple[str, ...]
    statistics: flow.Statistics
    __name__: ClassVar[str] = "noised"

    def __call__(self, jets: Jets, index: Tensor, seed: int) -> View:
        whole = with_columns(jets, self.columns)
        time = uniform(seed, TIME, index).to(whole.particles.dtype)
        moved, velocity = flow.on_path(whole, index, seed, NOISE, time, self.statistics)
        return View(moved, whole, time=time, target=velocity)


@dataclass(frozen=True)
class Masked:
    """The jets without some of their particles, chosen uniformly: by default two fifths.

    Attributes:
        low, high: the fraction of a jet's particles, rounded down, is drawn between them.

    Raises:
        ValueError: for fractions that do not rise within 0 to 1.
    """

    low: float = MASK_FRACTION
    high: float = MASK_FRACTION
    __name__: ClassVar[str] = "masked"

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high <= 1:
            raise ValueError(
                f"the fraction of hidden particles must lie in (0, 1], the first not above the "
                f"second; got {self.low:g} to {self.high:g}"
            )

    @property
    def mean(self) -> float:
        """The mean fraction."""
        return (self.low + self.high) / 2

    def counts(self, jets: Jets, index: Tensor, seed: int) -> Tensor:
        """(B,) int64 hidden particles of each jet."""
        if jets.shown is not None:
            return jets.counts - jets.shown.packed.counts
        if self.low == self.high:
            return masked_counts(jets.counts, self.low)
        return drawn_counts(jets.counts, index, seed, FRACTION, (self.low, self.high))

    def __call__(self, jets: Jets, index: Tensor, seed: int) -> View:
        keep = random_keep(jets, index, seed, MASK, self.counts(jets, index, seed))
        if jets.shown is not None:
            rows = true_rows(keep, jets.shown.particles)
            return View(jets.show(rows, jets.shown), jets, keep=keep)
        known = jets.packed.known_counts
        if known is not None:  # of a fraction that is drawn, the host does not know the result
            known = known - masked_counts(known, self.low) if self.low == self.high else None
        return View(jets.keep_particles(keep, known), jets, keep=keep)


masked = Masked()


def index_of(jets: Jets) -> Tensor:
    """(B,) what keys the random numbers of each jet: its index, or its place in the batch."""
    if jets.index is not None:
        return jets.index
    return torch.arange(len(jets), device=jets.offsets.device)
