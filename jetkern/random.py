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

from jetkern.kept import kept
from jetkern.kernels import kernel

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


def _mixed(x: int) -> int:
    """``_mix`` of a number: Python's shifts are those of unsigned ones."""
    x &= (1 << 64) - 1
    x = (x ^ (x >> 30)) * _FIRST & (1 << 64) - 1
    x = (x ^ (x >> 27)) * _SECOND & (1 << 64) - 1
    return x ^ (x >> 31)


def _start(seed: int, stream: int) -> int:
    """The state before the counters."""
    return _signed(_mixed((_mixed(seed + _STEP) ^ stream) + _STEP))


@kept
def starts(seed: int, streams: tuple[int, ...], device: torch.device) -> Tensor:
    """(S,) int64 states before the counters, for kernels that draw by themselves; kept, so that a
    GPU is not waited for in every step."""
    return torch.tensor([_start(seed, stream) for stream in streams], device=device)


def _launched(
    seed: int | Tensor, stream: int | tuple[int, ...], counters: tuple[Tensor, ...], kind: str
) -> Tensor | None:
    """The numbers from a kernel, where there is one for these counters, else None."""
    numbers = kernel("random_numbers", counters[0])
    if numbers is None or isinstance(seed, Tensor) or len(counters) > 3:
        return None
    if any(c.dtype != torch.int64 or c.ndim > 2 for c in counters):
        return None
    streams = (stream,) if isinstance(stream, int) else stream
    made: Tensor = numbers(starts(seed, streams, counters[0].device), counters, kind)
    return made[0] if isinstance(stream, int) else made


def random_bits(seed: int | Tensor, stream: int | tuple[int, ...], *counters: Tensor) -> Tensor:
    """int64 tensor of 64 random bits each, in the broadcast shape of the int64 ``counters``.

    Of several streams at once, along a first axis in front of that shape. A seed that changes
    inside a compiled or captured graph is given as an int64 tensor of one number.
    """
    made = _launched(seed, stream, counters, "bits")
    if made is not None:
        return made
    state: int | Tensor
    if isinstance(seed, Tensor):
        assert isinstance(stream, int)
        state = _mix(seed + _signed(_STEP))
        state = more_bits(state, torch.full_like(state, stream))
    elif isinstance(stream, int):
        state = _start(seed, stream)
    else:
        shape = torch.broadcast_shapes(*(counter.shape for counter in counters))
        state = starts(seed, stream, counters[0].device).reshape(-1, *[1] * len(shape))
    first, *others = counters
    return more_bits(_mix((first ^ state) + _signed(_STEP)), *others)


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


def uniform(seed: int, stream: int | tuple[int, ...], *counters: Tensor) -> Tensor:
    """float32 uniform in (0, 1), both ends excluded; streams as for ``random_bits``."""
    made = _launched(seed, stream, counters, "uniform")
    if made is not None:
        return made
    return ((_shift(random_bits(seed, stream, *counters), 41)) + 0.5) * 2.0**-23


def normal(seed: int, stream: int, *counters: Tensor) -> Tensor:
    """float32 standard normal (Box-Muller)."""
    made = _launched(seed, stream, counters, "normal")
    if made is not None:
        return made
    bits = random_bits(seed, stream, *counters)
    radius = (((_shift(bits, 32) + 0.5) * 2.0**-32).log() * -2).sqrt()
    return radius * ((bits & 0xFFFFFFFF) * (2 * math.pi * 2.0**-32)).cos()
