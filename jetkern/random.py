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


def random_bits(seed: int | Tensor, stream: int, *counters: Tensor) -> Tensor:
    """int64 tensor of 64 random bits each, in the broadcast shape of the int64 ``counters``.

    A seed that changes inside a compiled or captured graph is given as an int64 tensor of one
    number.
    """
    start = seed
    if not isinstance(start, Tensor):
        start = torch.full((), _signed(start), device=counters[0].device)
    state = _mix(start + _signed(_STEP))
    return more_bits(state, torch.full_like(state, stream), *counters)


def more_bits(bits: Tensor, *counters: Tensor) -> Tensor:
    """The random bits of further ``counters`` behind those that ``bits`` came from."""
    for counter in counters:
        bits = _mix((bits ^ counter) + _signed(_STEP))
    return bits


def one_in(p: float) -> int:
    """The number of 2^23 equally likely ones that stands for the probability ``p``."""
    return math.floor(p * 2**23 + 0.5)


def happens(bits: Tensor, p: float) -> Tensor:
    """bool, true with probability ``p`` to within 2^-24, from 64 random bits each."""
    return _shift(bits, 41) < one_in(p)


def uniform(seed: int, stream: int, *counters: Tensor) -> Tensor:
    """float32 uniform in (0, 1), both ends excluded."""
    return ((_shift(random_bits(seed, stream, *counters), 41)) + 0.5) * 2.0**-23


def normal(seed: int, stream: int, *counters: Tensor) -> Tensor:
    """float32 standard normal (Box-Muller)."""
    bits = random_bits(seed, stream, *counters)
    radius = (((_shift(bits, 32) + 0.5) * 2.0**-32).log() * -2).sqrt()
    return radius * ((bits & 0xFFFFFFFF) * (2 * math.pi * 2.0**-32)).cos()
