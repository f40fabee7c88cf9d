"""What a target of masked particle modelling is, and what it is shown."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn

from jetkern.jets import Jets
from jetkern.model.config import PETConfig
from jetkern.model.streams import steady_sigmoid
from jetkern.packed import true_rows
from jetkern.random import normal
from jetkern.tokenizers import Tokenizer

# Streams of random numbers.
TIME, NOISE, BLUR, NEUTRAL = 70, 71, 72, 73


@dataclass(frozen=True)
class Choices:
    """How the losses of targets are computed; nothing of it is kept in a model.

    Attributes:
        smoothing: of the labels of identities and tokens.
        neutral_noise: tracks of particles without one are standard normal numbers, which nothing
            can predict, as in the code of MPMv2; otherwise they have no loss.
    """

    smoothing: float = 0.0
    neutral_noise: bool = False


@dataclass
class Hidden:
    """M hidden particles, and what a model says of each.

    Attributes:
        whole: B jets, all T particles; keep: (T,) bool, false for the M hidden ones.
        index: (B,) keys the random numbers of each jet, with ``seed``.
        tokenizer: of their scale and tokens; None for particles as they are stored.
        choices: of the losses.
        rows: (M, D) of the decoder, if a target reads it.
        body, body_offsets: (T', D) and (B + 1,) of the body, which has seen the other particles.
        found: losses of targets, by name.
    """

    whole: Jets
    keep: Tensor
    index: Tensor
    seed: int
    tokenizer: Tokenizer | None
    choices: Choices = Choices()
    rows: Tensor | None = None
    body: Tensor | None = None
    body_offsets: Tensor | None = None
    found: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)

    @cached_property
    def jets(self) -> Jets:
        """The jets with their hidden particles alone."""
        shown = self.whole.shown
        if shown is None:
            return self.whole.keep_particles(~self.keep)
        return self.whole.show(self.places, shown.rest(self.whole))

    @cached_property
    def places(self) -> Tensor:
        """(M,) int64 where they are among the T particles."""
        shown = self.whole.shown
        return true_rows(~self.keep, None if shown is None else len(self.keep) - shown.particles)

    @cached_property
    def counters(self) -> tuple[Tensor, Tensor]:
        """(M,) index of each particle's jet, and (M,) its place there."""
        return self.index[self.jets.jet_of_particle], self.whole.rank_in_jet[self.places]

    @cached_property
    def values(self) -> tuple[Tensor, Tensor]:
        """(M, F) features to predict, and (M, F) bool which of them there are."""
        if self.tokenizer is None:
            particles = self.jets.particles
            return particles, torch.ones_like(particles, dtype=torch.bool)
        scaled, known = self.tokenizer.scaled(self.jets)
        scaled = scaled.to(self.jets.particles.dtype)
        if self.choices.neutral_noise:
            noise = self.normal(NEUTRAL, scaled.shape[1]).to(scaled.dtype)
            return scaled.where(known, noise), torch.ones_like(known)
        return scaled, known

    def normal(self, stream: int, features: int) -> Tensor:
        """(M, features) float32 standard normal."""
        jet, place = self.counters
        feature = torch.arange(features, device=place.device)
        return normal(self.seed, stream, jet[:, None], place[:, None], feature)

    def times(self) -> Tensor:
        """(M,) flow-matching times of particles: sigmoid of standard normal ones, as in MPMv2."""
        return steady_sigmoid(normal(self.seed, TIME, *self.counters))

    def jet_times(self) -> Tensor:
        """(B,) the same, one of each jet."""
        return steady_sigmoid(normal(self.seed, TIME, self.index))

    def context(self) -> Tensor:
        """(M, D) of the decoder.

        Raises:
            RuntimeError: if no target was said to read it.
        """
        if self.rows is None:
            raise RuntimeError("these particles have no rows of a decoder")
        return self.rows


class Target(nn.Module, ABC):
    """What a model learns to say of hidden particles.

    Attributes:
        decoded: reads the decoder's rows.
    """

    decoded: ClassVar[bool] = True

    @classmethod
    def parts(cls, config: PETConfig) -> dict[str, float]:
        """What is logged apart, by what stands behind the target's name: its share in the loss."""
        return {"": 1.0}

    @abstractmethod
    def losses(self, hidden: Hidden) -> tuple[Tensor, ...]:
        """(M,) loss of each hidden particle, of each part."""

    @abstractmethod
    def trivial(self, hidden: Hidden) -> tuple[float, ...]:
        """The lowest mean losses of what does not look at the jet, each part's: what a model has
        to beat. Of at least one particle."""


def known_mean(errors: Tensor, known: Tensor) -> Tensor:
    """(M,) mean over the features that a particle has.

    Args:
        errors: (M, F); known: (M, F) bool, at least one in each row.
    """
    known = known.to(errors.dtype)
    return (errors * known).sum(1) / known.sum(1).clamp(min=1)
