"""What is known of features without a jet: a normal distribution, whose losses are closed forms."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

LEAST = 1e-6  # variance, of features that are the same everywhere


def groups(values: Tensor, known: Tensor) -> Iterator[tuple[float, Tensor]]:
    """Particles that have the same features: their share, and (M', F') these features.

    Args:
        values: (M, F); known: (M, F) bool.
    """
    kinds, which = known.unique(dim=0, return_inverse=True)
    for number, kind in enumerate(kinds):
        own = which == number
        yield float(own.double().mean()), values[own][:, kind].double()


def variances(values: Tensor) -> Tensor:
    """(F,) along the main axes of (M, F) values."""
    centred = values - values.mean(0)
    return torch.linalg.eigvalsh(centred.T @ centred / len(values)).clamp(min=LEAST)


def likelihood(values: Tensor, known: Tensor) -> float:
    """Nats a particle of the normal distribution fitted to those with the same features.

    Args:
        values: (M, F); known: (M, F) bool.
    """
    total = 0.0
    for share, own in groups(values, known):
        nats = 0.5 * (math.log(2 * math.pi) + 1 + variances(own).log())
        total += share * float(nats.sum())
    return total


def velocity(values: Tensor, known: Tensor) -> float:
    """Squared error of the best velocity for that distribution, mean over a particle's features.

    With x_t = (1 - t) x + t noise and variance v along an axis, the velocity noise - x has the
    variance v / ((1 - t)^2 v + t^2) once x_t is known; t is the sigmoid of a standard normal.

    Args:
        values: (M, F); known: (M, F) bool.
    """
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    weight = (-0.5 * grid.square()).exp()
    t = grid.sigmoid()
    total = 0.0
    for share, own in groups(values, known):
        v = variances(own).cpu()[:, None]
        error = v / ((1 - t).square() * v + t.square())
        total += share * float(((error * weight).sum(1) / weight.sum()).mean())
    return total
