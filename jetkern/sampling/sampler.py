"""From noise to jets, along any packed velocity field."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from jetkern.jets import Jets, offsets_from_counts
from jetkern.model.columns import joined, parted
from jetkern.objectives import flow
from jetkern.sampling.solvers import Scheme, integrate

MAX_PARTICLES = 150
STREAM = 40  # of random numbers, apart from those of a training step
SHOWN = 5  # jets named in an error

Steps = Callable[[Tensor, int], Tensor]


class SamplingError(ValueError):
    """Jets that cannot be made, and which."""


class Velocity(Protocol):
    """A packed velocity field: dx/dt of all particles, t = 1 noise, t = 0 data.

    A field may also have a method ``prepare(jets, times)``, which does once what is the same at
    every evaluation and returns a function of the (T, 4) particles, with further columns (T, 4 +
    C), and the number of the evaluation, at ``times[k]``. ``jets`` are those to be made, their
    particles and columns the noise.

    A field of mean velocities, for schemes with ``ends``, gets (B, 2) times: where a step begins
    and where it ends.
    """

    def __call__(self, jets: Jets, time: Tensor, /) -> Tensor:
        """(T, 4), or (T, 4 + C), velocity of ``jets`` at ``time`` (B,), or between times (B, 2)."""


def noise_jets(
    counts: Tensor,
    *,
    seed: int = 0,
    index: Tensor | None = None,
    label: Tensor | None = None,
    condition: Tensor | None = None,
    max_particles: int = MAX_PARTICLES,
    dtype: torch.dtype = torch.float32,
    statistics: flow.Statistics | None = None,
) -> Jets:
    """Jets of noise, the start of sampling; a pure function of (seed, index) jet by jet.

    Args:
        counts: (B,) particles of each jet.
        seed: of the noise.
        index: (B,) int64 number of each jet, by default 0 to B - 1. The same (seed, index) has the
            same noise in any batch, order and process.
        label: (B,) int64 types; condition: (B, C); as the velocity needs them.
        max_particles: largest count allowed.
        dtype: of the particles.
        statistics: mean and width of the noise of kinematics and further columns; None for the
            study's, of kinematics alone.

    Raises:
        SamplingError: naming the jet, for a count out of 1 to ``max_particles``, a condition that
            is not finite, a negative type.
    """
    counts = counts.to(torch.int64)
    numbers = torch.arange(len(counts), device=counts.device) if index is None else index
    for name, wrong, what in (
        ("counts", (counts < 1) | (counts > max_particles), f"a count out of 1 to {max_particles}"),
        (
            "condition",
            None if condition is None else ~condition.isfinite().all(1),
            "a condition that is not finite",
        ),
        ("label", None if label is None else label < 0, "a negative type"),
    ):
        if wrong is not None and len(wrong) != len(counts):
            raise SamplingError(f"{name} has {len(wrong)} rows for {len(counts)} jets")
        if wrong is not None and wrong.any():
            raise SamplingError(f"{name}: {_named(numbers[wrong])} with {what}")
    offsets = offsets_from_counts(counts)
    jets = Jets(
        particles=torch.zeros(int(offsets[-1]), 4, dtype=dtype, device=counts.device),
        offsets=offsets,
        label=label,
        condition=condition,
        index=numbers,
    )
    return parted(jets, flow.noise(jets, numbers, seed, STREAM, statistics))


@torch.no_grad()
def sample(
    velocity: Velocity,
    start: Jets,
    scheme: Scheme,
    *,
    batch_size: int | None = None,
    progress: bool = False,
) -> Jets:
    """Integrates noise to jets with as many particles each.

    Args:
        velocity: the field, such as ``PET.velocity``, or better ``PETVelocity(model)``, which does
            what does not change with the step once.
        start: of ``noise_jets``, on the device to use.
        scheme: the solver and its grid; its times are those of the field.
        batch_size: jets per pass; None for all.
        progress: show a bar.

    Raises:
        SamplingError: naming the evaluation and the jets, if the velocity is not finite.
    """
    done = []
    with bar(len(start), progress) as shown:
        for jets in _batches(start, batch_size or max(1, len(start))):
            done.append(_integrate(velocity, jets, scheme))
            shown.update(len(jets))
    return Jets.concat(done) if done else start


def _integrate(velocity: Velocity, jets: Jets, scheme: Scheme) -> Jets:
    steps = steps_of(velocity, jets, scheme)
    # One look at the end, so that a GPU is not waited for at every evaluation.
    failed = torch.full((len(jets.particles),), scheme.evaluations, device=jets.offsets.device)

    def checked(x: Tensor, k: int) -> Tensor:
        v = steps(x, k)
        if v.shape != x.shape:
            raise SamplingError(f"the velocity has shape {tuple(v.shape)}, not {tuple(x.shape)}")
        failed.clamp_(max=torch.where(v.isfinite().all(1), scheme.evaluations, k))
        return v

    end = integrate(checked, joined(jets), scheme)
    if len(end) and (first := int(failed.min())) < scheme.evaluations:
        owners = jets.jet_of_particle[failed == first].unique()
        names = owners if jets.index is None else jets.index[owners]
        raise SamplingError(
            f"the velocity is not finite at evaluation {first + 1} of {scheme.evaluations} "
            f"(t = {scheme.times[first]:.4g}): {_named(names)}"
        )
    return parted(jets, end)


def steps_of(velocity: Velocity, jets: Jets, scheme: Scheme) -> Steps:
    """The velocity of the jets' particles at evaluation k of the scheme."""
    rows = scheme.times if scheme.ends is None else np.stack([scheme.times, scheme.ends], axis=1)
    times = torch.tensor(rows, dtype=jets.particles.dtype, device=jets.offsets.device)
    return _prepared(velocity, jets, times)


def guided(
    velocity: Velocity, scale: float, without: Callable[[Jets], Jets] | None = None
) -> Velocity:
    """Classifier-free guidance (arXiv 2207.12598): v(without) + scale (v(with) - v(without)).

    Args:
        velocity: of a model that was trained with some of its labels dropped.
        scale: 1 for none, more for jets that are more typical of their type.
        without: removes what conditions the jets; by default their label becomes -1.
    """
    return _Guided(velocity, scale, without or _unlabelled)


class _Guided:
    """Both velocities come from one packed batch."""

    def __init__(self, velocity: Velocity, scale: float, without: Callable[[Jets], Jets]) -> None:
        self.velocity, self.scale, self.without = velocity, scale, without

    def __call__(self, jets: Jets, time: Tensor) -> Tensor:
        both = Jets.concat([jets, self.without(jets)])
        return self._combine(self.velocity(both, torch.cat([time, time])))

    def prepare(self, jets: Jets, times: Tensor) -> Steps:
        """As ``Velocity`` says."""
        both = Jets.concat([jets, self.without(jets)])
        steps = _prepared(self.velocity, both, times)
        return lambda x, k: self._combine(steps(torch.cat([x, x]), k))

    def _combine(self, both: Tensor) -> Tensor:
        conditional, unconditional = both.chunk(2)
        return torch.lerp(unconditional, conditional, self.scale)


def _unlabelled(jets: Jets) -> Jets:
    if jets.label is None:
        raise SamplingError("guidance needs the type of each jet as its label")
    return jets.replace(label=torch.full_like(jets.label, -1))


def _prepared(velocity: Velocity, jets: Jets, times: Tensor) -> Steps:
    prepare = getattr(velocity, "prepare", None)
    if prepare is not None:
        return prepare(jets, times)
    size = (len(jets), *times.shape[1:])
    return lambda x, k: velocity(parted(jets, x), times[k].expand(size))


def _batches(jets: Jets, size: int) -> Iterator[Jets]:
    for first in range(0, len(jets), size):
        yield jets if size >= len(jets) else jets.select(slice(first, first + size))


def bar(total: int, show: bool, unit: str = " jets") -> Any:
    """A bar of what is made, to be updated, which may be off."""
    from tqdm import tqdm

    return tqdm(total=total, unit=unit, desc="sampling", disable=not show)


def _named(jets: Tensor) -> str:
    names = ", ".join(map(str, jets[:SHOWN].tolist()))
    more = f" and {len(jets) - SHOWN} more" if len(jets) > SHOWN else ""
    return f"{'jet' if len(jets) == 1 else 'jets'} {names}{more}"
