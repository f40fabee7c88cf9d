"""A conditional normalising flow of one particle at a time (MPMv2, arXiv 2409.12589): couplings of
rational-quadratic splines (Durkan et al., arXiv 1906.04032, section 3.1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, softmax, softplus

from jetkern.model.config import PETConfig
from jetkern.model.layers import MLP
from jetkern.model.targets import gaussian
from jetkern.model.targets.target import BLUR, NOISE, Hidden, Target
from jetkern.packed import constant
from jetkern.tokenizers import TRACKS

CONTEXT, WIDTH, LAYERS, BINS, TAIL = 128, 64, 6, 8, 4.0
LEAST = 1e-3  # share of a bin, and slope at a knot
TRACK_NOISE = 0.05  # width of what is added to track features, whose values are discrete
_SLOPE_1 = math.log(math.expm1(1 - LEAST))  # where softplus gives a slope of 1


def spline(x: Tensor, raw: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """A rising function of each entry, the identity beyond +-4, and the log of its slope.

    Args:
        x: (...) values; raw: (..., 3 K - 1) widths and heights of K bins and the slopes at the
            knots between them, before they are made positive. Zeros give the identity.
        inverse: the inverse function, and the log of its slope.

    Returns:
        (...) and (...).
    """
    bins = (raw.shape[-1] + 1) // 3
    sizes, slopes = raw.split([2 * bins, bins - 1], -1)
    wide = LEAST + (1 - LEAST * bins) * softmax(sizes.unflatten(-1, (2, bins)), -1)
    inside_ends = 2 * TAIL * wide[..., :-1].cumsum(-1) - TAIL
    # The last knot is the end itself, not a rounded sum.
    places = pad(pad(inside_ends, (1, 0), value=-TAIL), (0, 1), value=TAIL)
    slopes = pad(LEAST + softplus(slopes + _SLOPE_1), (1, 1), value=1.0)
    knots = torch.cat([places, slopes[..., None, :]], -2)

    # Beyond the ends the value is put inside first, so that no branch has a bad gradient.
    inside = (x > -TAIL) & (x < TAIL)
    at = x.where(inside, 0.0)
    chosen = (at[..., None] >= inside_ends[..., int(inverse), :]).sum(-1)
    ends = torch.stack([chosen, chosen + 1], -1)[..., None, :]
    found = knots.gather(-1, ends.expand(*knots.shape[:-1], 2))
    x0, x1, y0, y1, d0, d1 = found.flatten(-2).unbind(-1)
    width, height = x1 - x0, y1 - y0
    s = height / width
    bend = d1 + d0 - 2 * s
    if inverse:
        # Equations 6 to 8 of that paper.
        rise = at - y0
        mixed = rise * bend
        a = height * (s - d0) + mixed
        b = height * d0 - mixed
        c = -s * rise
        root = (b.square() - 4 * a * c).clamp(min=0).sqrt()
        share = 2 * c / (-b - root)
    else:
        share = (at - x0) / width
    left = 1 - share
    squared, rest = share.square(), share * left
    bottom = s + bend * rest
    # Equation 4.
    moved = share * width + x0 if inverse else y0 + height * (s * squared + d0 * rest) / bottom
    # Equation 5.
    top = s.square() * (d1 * squared + 2 * s * rest + d0 * left.square())
    log_slope = top.log() - 2 * bottom.log()
    log_slope = -log_slope if inverse else log_slope
    return moved.where(inside, x), log_slope.where(inside, 0.0)


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
        found, log_slope = spline(x[:, moving], raw, inverse)
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
