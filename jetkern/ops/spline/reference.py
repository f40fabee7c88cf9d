"""Rational-quadratic splines, written plainly. This file is the specification."""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad, softmax, softplus


def spline(
    x: Tensor, raw: Tensor, tail: float = 4.0, least: float = 1e-3, inverse: bool = False
) -> Tensor:
    """(N, 2) the function and the log of its slope; x (N,) and raw (N, 3 K - 1)."""
    bins = (raw.shape[1] + 1) // 3
    sizes, slopes = raw.split([2 * bins, bins - 1], 1)
    wide = least + (1 - least * bins) * softmax(sizes.unflatten(1, (2, bins)), 2)
    inside_ends = 2 * tail * wide[..., :-1].cumsum(2) - tail
    # The last knot is the end itself, not a rounded sum.
    places = pad(pad(inside_ends, (1, 0), value=-tail), (0, 1), value=tail)
    slope_1 = math.log(math.expm1(1 - least))  # where softplus gives a slope of 1
    slopes = pad(least + softplus(slopes + slope_1), (1, 1), value=1.0)
    knots = torch.cat([places, slopes[:, None]], 1)

    # Beyond the ends the value is put inside first, so that no branch has a bad gradient.
    inside = (x > -tail) & (x < tail)
    at = x.where(inside, 0.0)
    chosen = (at[:, None] >= inside_ends[:, int(inverse)]).sum(1)
    ends = torch.stack([chosen, chosen + 1], 1)[:, None]
    found = knots.gather(2, ends.expand(*knots.shape[:2], 2))
    x0, x1, y0, y1, d0, d1 = found.flatten(1).unbind(1)
    width, height = x1 - x0, y1 - y0
    s = height / width
    bend = d1 + d0 - 2 * s
    if inverse:
        # Equations 6 to 8.
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
    return torch.stack([moved.where(inside, x), log_slope.where(inside, 0.0)], 1)
