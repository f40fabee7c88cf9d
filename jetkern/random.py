"""Random numbers as a pure function of a key and counters.

The noise of a training step must not depend on how its jets are split over processes, nor on
whether the run was resumed. So every number is a hash of (seed, stream, jet, particle, ...): there
is no generator and no state to save. The hash is the finaliser of splitmix64 (Steele, Lea and
Flood, OOPSLA 2014), applied once for each counter.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_STEP = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB


def _signed(value: int) -> int:
    """The int64 with the same 64 bits, since torch has no full unsigned arithmetic."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _signed(_FIRST)
    x = (x ^ _shift(x, 27)) * _signed(_SECOND)
    return x ^ _shift(x, 31)


def random_bits(seed: int, stream: int, *counters: Tensor) -> Tensor:
    """int64 tensor of 64 random bits each, in the broadcast shape of the int64 ``counters``."""
    state = _mix(torch.full((), _signed(seed), device=counters[0].device) + _signed(_STEP))
    for counter in (torch.full_like(state, stream), *counters):
        state = _mix((state ^ counter) + _signed(_STEP))
    return state


def uniform(seed: int, stream: int, *counters: Tensor) -> Tensor:
    """float32 uniform in (0, 1), both ends excluded."""
    return ((_shift(random_bits(seed, stream, *counters), 41)) + 0.5) * 2.0**-23


def normal(seed: int, stream: int, *counters: Tensor) -> Tensor:
    """float32 standard normal (Box-Muller)."""
    bits = random_bits(seed, stream, *counters)
    radius = (((_shift(bits, 32) + 0.5) * 2.0**-32).log() * -2).sqrt()
    return radius * ((bits & 0xFFFFFFFF) * (2 * math.pi * 2.0**-32)).cos()
