"""Pair features, written plainly. This file is the specification."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def _log(x: Tensor) -> Tensor:
    """ln x where x > 0, else 0; the gradient is 0 there too."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1.0).log(), 0.0)


def pair_features(
    first: Tensor, second: Tensor, names: Sequence[str] = ("ln_m2", "ln_r", "ln_kt")
) -> Tensor:
    acc = torch.promote_types(first.dtype, torch.float32)
    a, b = first.to(acc), second.to(acc)
    d_eta, d_phi = (a - b)[..., 0], (a - b)[..., 1]
    angle = 2 * (0.5 * d_eta).sinh().square() + 2 * (0.5 * d_phi).sin().square()
    d_r2 = d_eta.square() + d_phi.square()
    ln_r = 0.5 * _log(d_r2)
    ln_m2 = torch.where(angle > 0, math.log(2) + a[..., 2] + b[..., 2] + _log(angle), 0.0)
    ln_kt = torch.where(d_r2 > 0, torch.minimum(a[..., 2], b[..., 2]) + ln_r, 0.0)
    found = {"ln_m2": ln_m2, "ln_r": ln_r, "ln_kt": ln_kt}
    if "ln_z" in names:
        ratio = (a - b)[..., 2].abs()  # of the larger to the smaller pT, its logarithm
        found["ln_z"] = -(ratio + (-ratio).exp().log1p())
    return torch.stack([found[name] for name in names], dim=-1).to(first.dtype)
