"""Streams of numbers of a decoder, and its end: what reads them and what predicts them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from jetkern import ops
from jetkern.model.layers import Layer

HIDDEN = 64
ROOT2 = math.sqrt(2)
NARROWEST = 1e-4  # standard deviation: a repeated number would else have any density


def steady_silu(x: Tensor) -> Tensor:
    """SiLU with the same bits wherever a number lies in the tensor. PyTorch's own on a CPU, and
    its sigmoid and softplus, differ at the ends of vectors in the last bit: sets that are drawn
    would depend on how many are drawn at a time."""
    return x * steady_sigmoid(x)


def steady_sigmoid(x: Tensor) -> Tensor:
    """The same of the logistic function."""
    return ((x / 2).tanh() + 1) / 2


class ValueEmbedding(Layer):
    """Numbers as vectors: fc1, SiLU, fc2; what is not there is a vector of its own.

    Args:
        dim: length D of the vectors.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(1, HIDDEN)
        self.fc2 = nn.Linear(HIDDEN, dim)
        self.missing = nn.Parameter(torch.randn(dim))

    def forward(self, values: Tensor) -> Tensor:
        """(R, D) of (R,) numbers, NaN for what is not there."""
        absent = values.isnan()
        filled = values.masked_fill(absent, 0)[:, None]  # a NaN would spoil the gradients
        hidden = steady_silu(ops.linear(filled, self.fc1.weight, self.fc1.bias))
        x = ops.linear(hidden, self.fc2.weight, self.fc2.bias, precision=self.precision)
        return torch.where(absent[:, None], self.missing, x)


def _chosen(shares: Tensor, uniform: Tensor) -> Tensor:
    """(R, 1) the component that (R,) uniform numbers choose, of (R, K) shares."""
    sums = shares.cumsum(1)
    reached = sums < uniform[:, None] * sums[:, -1:]
    return reached.sum(1, keepdim=True).clamp(max=shares.shape[1] - 1)


class MixtureHead(Layer):
    """A mixture of Gaussians, as of SPADE: widths are softplus(raw within ±4) + 1e-4.

    Args:
        width: numbers that it reads; components: Gaussians K.
        bounds: lowest and highest number; the mixture's density between them, over its integral,
            is that of the head. None for no bounds.
    """

    def __init__(
        self, width: int, components: int, bounds: tuple[float, float] | None = None
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 3 * components)
        self.bounds = bounds

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(R, K) ln weights, means and widths, of (R, width); float32 at least."""
        raw = ops.linear(x, self.linear.weight, self.linear.bias)
        raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
        logits, means, widths = raw.chunk(3, 1)
        return logits.log_softmax(1), means, widths.clamp(-4, 4).exp().log1p() + NARROWEST

    def losses(self, x: Tensor, target: Tensor) -> Tensor:
        """(R,) -ln of the density at (R,) numbers, 0 where they are NaN. A number beyond the bounds
        counts as if it were at the bound."""
        absent = target.isnan()
        weights, means, widths = self(x)
        if self.bounds is not None:
            target = target.clamp(*self.bounds)
        z = (target.masked_fill(absent, 0)[:, None] - means) / widths
        each = weights - z.square() / 2 - widths.log() - math.log(2 * math.pi) / 2
        losses = -each.logsumexp(1)
        if self.bounds is not None:
            below, up_to = self.edges(self.bounds, means, widths)
            within = (weights.exp() * (up_to - below)).sum(1)
            losses = losses + within.clamp(min=torch.finfo(within.dtype).tiny).log()
        return losses.masked_fill(absent, 0)

    @staticmethod
    def edges(bounds: tuple[float, float], means: Tensor, widths: Tensor) -> tuple[Tensor, Tensor]:
        """(R, K) the probabilities that each Gaussian has below the lowest and below the highest
        number."""
        below, up_to = (0.5 + 0.5 * ((b - means) / (ROOT2 * widths)).erf() for b in bounds)
        return below, up_to

    def draw(self, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """(R,) numbers from (R,) uniform and normal ones: the component, and the place in it."""
        weights, means, widths = self(x)
        if self.bounds is None:
            chosen = _chosen(weights.exp(), first)
            return (means.gather(1, chosen) + widths.gather(1, chosen) * second[:, None])[:, 0]
        # In float64: where a Gaussian has its tail within the bounds, 1 - p is small.
        means, widths = means.double(), widths.double()
        below, up_to = self.edges(self.bounds, means, widths)
        chosen = _chosen(weights.double().exp() * (up_to - below), first)
        below, up_to, means, widths = (
            t.gather(1, chosen)[:, 0] for t in (below, up_to, means, widths)
        )
        place = 0.5 + 0.5 * (second.double() / ROOT2).erf()
        z = ROOT2 * (2 * (below + (up_to - below) * place) - 1).erfinv()
        return (means + widths * z).clamp(*self.bounds).to(x.dtype)


class EndHead(Layer):
    """Whether a set ends before the next point: a logit of each row.

    Args:
        dim: numbers that it reads.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(R,) logits, of (R, D); float32 at least."""
        logit = ops.linear(x, self.linear.weight, self.linear.bias)[:, 0]
        return logit.to(torch.promote_types(logit.dtype, torch.float32))

    def losses(self, x: Tensor, target: Tensor) -> Tensor:
        """(R,) -ln p of (R,) 1 for the end, 0 for another point, and 0 where it is -1."""
        logit = self(x)
        return softplus(torch.where(target > 0, -logit, logit)).masked_fill(target < 0, 0)
