"""Draws from the classes of a linear layer, written plainly. This file is the specification."""

import torch
from torch import Tensor
from torch.nn import functional

from jetkern.random import more_bits


@torch.no_grad()
def sample_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    keys: Tensor,
    forbidden: Tensor | None,
    temperature: float,
    top_k: int,
    top_p: float,
) -> Tensor:
    logits = functional.linear(x, weight, bias)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if forbidden is not None:
        logits = logits.masked_fill(forbidden, -torch.inf)
    drawable = (logits < torch.inf).all(1) & logits.isfinite().any(1)
    if top_k or top_p < 1:
        logits = logits.masked_fill(~kept(logits, temperature, top_k, top_p), -torch.inf)
    classes = torch.arange(len(weight), device=x.device)
    score = logits - temperature * exponential(keys[:, None], classes, logits.dtype).log()
    return torch.where(drawable, score.argmax(1), -1)


def exponential(keys: Tensor, classes: Tensor, dtype: torch.dtype) -> Tensor:
    """Exponential random numbers of keys and classes, in their broadcast shape: -ln(1 - r), r of 31
    bits, so that small ones, which win, are fine-grained."""
    bits = (more_bits(keys, classes) >> 33) & (2**31 - 1)
    r = (bits.to(dtype) + 0.5) * 2.0**-31
    return -torch.log1p(-r.clamp(max=1 - 2.0**-24))


def kept(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """(T, V) whether a class is among those that ``top_k`` and ``top_p`` leave."""
    ordered, order = logits.sort(dim=1, descending=True, stable=True)
    ahead = ordered.double() - ordered[:, :1].double()
    if top_k:
        ahead[:, top_k:] = -torch.inf
    if temperature:
        p = (ahead / temperature).softmax(1)
    else:
        p = (ahead == 0).double()
        p = p / p.sum(1, keepdim=True)
    keep = p.cumsum(1) - p < top_p if top_p < 1 else torch.ones_like(p, dtype=torch.bool)
    keep[:, 0] = True
    if top_k:
        keep[:, top_k:] = False
    return torch.zeros_like(keep).scatter(1, order, keep)
