"""Views of a batch: what a pass through the body sees of the jets, and what was hidden from it.

A view is a function of the jets, their index and the seed. Further ones are written the same way;
``Objective`` runs all views of a step through the body as one packed batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from jetkern.jets import Jets
from jetkern.objectives import flow
from jetkern.objectives.masking import random_keep
from jetkern.random import uniform

# Streams of random numbers: two uses never share one. Losses from elsewhere take 100 and above.
TIME, NOISE, MASK, DROP_PID, DROP_TRACKS, DROP_LABEL = 1, 2, 3, 10, 20, 30


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
    """

    jets: Jets
    whole: Jets
    time: Tensor | None = None
    target: Tensor | None = None
    keep: Tensor | None = None
    told: Jets | None = None
    rows: Tensor | None = None
    offsets: Tensor | None = None

    def read(self) -> tuple[Tensor, Tensor]:
        """Rows and offsets of the body.

        Raises:
            RuntimeError: before the body has run.
        """
        if self.rows is None or self.offsets is None:
            raise RuntimeError("the body has not seen this view yet")
        return self.rows, self.offsets


MakeView = Callable[[Jets, Tensor, int], View]


def clean(jets: Jets, index: Tensor, seed: int) -> View:
    """The jets as they are."""
    return View(jets, jets)


def noised(jets: Jets, index: Tensor, seed: int) -> View:
    """The jets somewhere on the path to noise; ``target`` is the velocity (T, 4)."""
    time = uniform(seed, TIME, index).to(jets.particles.dtype)
    moved, velocity = flow.noised(jets, flow.noise(jets, index, seed, NOISE), time)
    return View(moved, jets, time=time, target=velocity)


def masked(jets: Jets, index: Tensor, seed: int) -> View:
    """The jets without two fifths of their particles."""
    keep = random_keep(jets, index, seed, MASK)
    return View(jets.keep_particles(keep), jets, keep=keep)


def index_of(jets: Jets) -> Tensor:
    """(B,) what keys the random numbers of each jet: its index, or its place in the batch."""
    if jets.index is not None:
        return jets.index
    return torch.arange(len(jets), device=jets.offsets.device)
