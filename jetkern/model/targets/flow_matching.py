"""Conditional flow matching of one particle at a time (MPMv2, arXiv 2409.12589)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from jetkern.model.config import PETConfig
from jetkern.model.layers import MLP
from jetkern.model.targets import gaussian
from jetkern.model.targets.target import NOISE, Hidden, Target, known_mean

CONTEXT, WIDTH, BLOCKS, TIMES = 128, 128, 3, 16
POINTS = 50  # of the midpoint rule, when sampling


class FlowMatchingTarget(Target):
    """Squared error of the velocity from a particle to noise, mean over its features.

    x_t = (1 - t) x + t noise with standard normal noise and one time for each particle; a
    perceptron predicts noise - x from x_t, t and the decoder's row. Features that a particle does
    not have are 0 throughout.
    """

    def __init__(self, config: PETConfig, width: int) -> None:
        super().__init__()
        self.features = len(config.target_features)
        self.context = nn.Linear(width, CONTEXT)
        self.embed = nn.Linear(2 * self.features + TIMES + CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(MLP(WIDTH, 2 * WIDTH, WIDTH) for _ in range(BLOCKS))
        self.out = nn.Linear(WIDTH, self.features)

    def velocity(self, x: Tensor, time: Tensor, known: Tensor, context: Tensor) -> Tensor:
        """(M, F) from (M, F) at times (M,); known: (M, F) bool; context: (M, 128)."""
        parts = [x, known.to(x.dtype), time_features(time, x.dtype), context]
        hidden = self.embed(torch.cat(parts, 1))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.out(hidden)

    def losses(self, hidden: Hidden) -> tuple[Tensor]:
        values, known = hidden.values
        noise = hidden.normal(NOISE, self.features).to(values.dtype)
        time = hidden.times().to(values.dtype)
        x = ((1 - time[:, None]) * values + time[:, None] * noise) * known
        found = self.velocity(x, time, known, self.context(hidden.context()))
        return (known_mean((found - (noise - values)).square(), known),)

    def trivial(self, hidden: Hidden) -> tuple[float]:
        """Of the normal distribution of all particles."""
        return (gaussian.velocity(*hidden.values),)

    def sample(self, hidden: Hidden) -> Tensor:
        """(M, F) features drawn for the hidden particles, by the midpoint rule with 50 points."""
        _, known = hidden.values
        context = self.context(hidden.context())
        x = hidden.normal(NOISE, self.features).to(context.dtype) * known
        step = 1 / POINTS
        for number in range(POINTS):
            time = torch.full((len(x),), 1 - number * step, dtype=x.dtype, device=x.device)
            half = x - step / 2 * self.velocity(x, time, known, context) * known
            x = x - step * self.velocity(half, time - step / 2, known, context) * known
        return x


def time_features(time: Tensor, dtype: torch.dtype) -> Tensor:
    """(M, 16) cosines of (M,) times."""
    frequencies = torch.arange(TIMES, device=time.device, dtype=torch.float32)
    return (math.pi * time[:, None].to(torch.float32) * frequencies).cos().to(dtype)
