"""A conditional normalising flow of one particle at a time (MPMv2, arXiv 2409.12589): couplings of
rational-quadratic splines (Durkan et al., arXiv 1906.04032, section 3.1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from jetkern import ops
from jetkern.model.config import PETConfig
from jetkern.model.layers import MLP
from jetkern.model.targets import gaussian
from jetkern.model.targets.target import BLUR, NOISE, Hidden, Target
from jetkern.packed import constant
from jetkern.tokenizers import TRACKS

CONTEXT, WIDTH, LAYERS, BINS, TAIL = 128, 64, 6, 8, 4.0
TRACK_NOISE = 0.05  # width of what is added to track features, whose values are discrete


class SplineFlow(Target):
    """-ln of a particle's density in its features, in nats, given the decoder's row.

    Six couplings, each of every other feature given the rest. Features that a particle does not
    have are left out: neither moved, nor seen, nor counted. To track features of those that have
    them noise of width 0.05 is added, as in MPMv2: they are discrete.
    """

    def __init__(self, config: PETConfig, width: int) -> None:
        super().__init__()
        self.features = len(config.target_features)
        self.context = nn.Linear(width, CONTEXT)
        size = self.features * (3 * BINS - 1)
        self.couplings = nn.ModuleList(
            MLP(2 * self.features + CONTEXT, WIDTH, size) for _ in range(LAYERS)
        )
        blurred = [TRACK_NOISE * (name in TRACKS) for name in config.target_features]
        self._blur = tuple(blurred)

    def initialise(self) -> None:
        """Each coupling begins as the identity."""
        for coupling in self.couplings:
            assert isinstance(coupling, MLP)
            nn.init.zeros_(coupling.fc2.weight)

    def blurred(self, hidden: Hidden) -> tuple[Tensor, Tensor]:
        """(M, F) features with noise on tracks, and (M, F) bool which there are."""
        values, known = hidden.values
        noise = hidden.normal(BLUR, self.features).to(values.dtype)
        blur = constant(self._blur, values.dtype, values.device)
        return values + noise * blur * known, known

    def to_noise(self, x: Tensor, known: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """(M, F) where the flow takes features to, and (M,) log of its determinant.

        Args:
            x: (M, F); known: (M, F) bool; context: (M, 128).
        """
        x = x * known
        total = x.new_zeros(len(x))
        for number in range(LAYERS):
            x, log_slope = self._coupled(number, x, known, context, inverse=False)
            total = total + log_slope
        return x, total

    def from_noise(self, z: Tensor, known: Tensor, context: Tensor) -> Tensor:
        """(M, F) the way back; arguments as for ``to_noise``."""
        z = z * known
        for number in reversed(range(LAYERS)):
            z, _ = self._coupled(number, z, known, context, inverse=True)
        return z

    def _coupled(
        self, number: int, x: Tensor, known: Tensor, context: Tensor, *, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        moving = slice(number % 2, None, 2)
        still = torch.zeros_like(x)
        others = slice(1 - number % 2, None, 2)
        still[:, others] = x[:, others]
        shown = torch.cat([still, known.to(x.dtype), context], 1)
        raw = self.couplings[number](shown).unflatten(1, (self.features, -1))[:, moving]
        found, log_slope = ops.spline(x[:, moving], raw, tail=TAIL, inverse=inverse)
        there = known[:, moving]
        out = x.clone()
        out[:, moving] = found.where(there, 0.0)
        return out, (log_slope * there).sum(1)

    def losses(self, hidden: Hidden) -> tuple[Tensor]:
        x, known = self.blurred(hidden)
        z, log_slope = self.to_noise(x, known, self.context(hidden.context()))
        base = 0.5 * (z.square() + math.log(2 * math.pi)) * known
        return (base.sum(1) - log_slope,)

    def trivial(self, hidden: Hidden) -> tuple[float]:
        """Of the normal distribution of all particles with the same features."""
        return (gaussian.likelihood(*self.blurred(hidden)),)

    def sample(self, hidden: Hidden) -> Tensor:
        """(M, F) features drawn for the hidden particles."""
        context = self.context(hidden.context())
        noise = hidden.normal(NOISE, self.features).to(context.dtype)
        return self.from_noise(noise, hidden.values[1], context)
