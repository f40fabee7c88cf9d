"""How close generated jets are to real ones, with the definitions of the field.

Distances are 1-Wasserstein (W1) distances of one-dimensional distributions unless said otherwise.
The value is the mean, the error the standard deviation (divisor N) over resamplings with
replacement, as in arXiv 2606.14870 and in JetNet (arXiv 2106.11535); of two finite samples W1 is
above zero even if their distributions are the same, so it means something only beside the W1 of
two real samples of the same size.

Values that are not finite (a ratio whose denominator is zero) are left out. Of a sample without
values every distance is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jetkern.metrics.classification import Estimate

Floats = NDArray[np.float64]

BATCHES, BATCH_SIZE = 5, 10_000  # of arXiv 2606.14870; JetNet takes 5 of 50,000


@dataclass(frozen=True)
class Sample:
    """One number for each jet, or for each particle of each jet.

    Attributes:
        values: (B,) of the jets, or (T,) of their particles.
        offsets: (B + 1,) int64 if they are of particles. Jets are what is resampled.
    """

    values: Floats
    offsets: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        values = np.asarray(self.values, np.float64)
        if values.ndim != 1 or (self.offsets is not None and self.offsets[-1] != len(values)):
            raise ValueError(f"values {values.shape} do not fit the offsets of the jets")
        object.__setattr__(self, "values", values)

    def __len__(self) -> int:
        return len(self.values) if self.offsets is None else len(self.offsets) - 1

    def take(self, jets: NDArray[np.int64]) -> Floats:
        """The finite values of the chosen jets."""
        if self.offsets is None:
            chosen = self.values[jets]
        else:
            counts = np.diff(self.offsets)[jets]
            start = np.repeat(self.offsets[jets] - (np.cumsum(counts) - counts), counts)
            chosen = self.values[start + np.arange(len(start))]
        return chosen[np.isfinite(chosen)]


def wasserstein(real: ArrayLike, generated: ArrayLike) -> float:
    """W1 of two samples of numbers, of any sizes; NaN if one has no finite number."""
    from scipy.stats import wasserstein_distance

    pair = [np.asarray(values, np.float64).ravel() for values in (real, generated)]
    finite = [values[np.isfinite(values)] for values in pair]
    return float(wasserstein_distance(*finite)) if all(map(len, finite)) else math.nan


def resampled(
    distance: Callable[[NDArray[np.int64], NDArray[np.int64]], Floats | float],
    real: int,
    generated: int,
    *,
    batches: int = BATCHES,
    size: int = BATCH_SIZE,
    seed: int = 0,
) -> tuple[Floats, Floats]:
    """Mean and standard deviation of ``distance`` over resamplings of jets.

    Args:
        distance: of the chosen real and generated jets.
        real, generated: numbers of jets.
        batches: resamplings.
        size: jets drawn for each, with replacement.
        seed: of the draws.
    """
    if batches < 1 or size < 1:
        raise ValueError(f"resampling needs batches and size above 0, got {batches} and {size}")
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(batches):
        if not real or not generated:
            return np.array(math.nan), np.array(math.nan)
        values.append(distance(generator.choice(real, size), generator.choice(generated, size)))
    table = np.array(values)
    return table.mean(0), table.std(0)


def bootstrap_wasserstein(
    real: Sample,
    generated: Sample,
    *,
    batches: int = BATCHES,
    size: int = BATCH_SIZE,
    seed: int = 0,
) -> Estimate:
    """W1 and its error; see ``resampled``. W1M of JetNet is this of the jets' masses over pT."""
    mean, error = resampled(
        lambda a, b: wasserstein(real.take(a), generated.take(b)),
        len(real),
        len(generated),
        batches=batches,
        size=size,
        seed=seed,
    )
    return Estimate(float(mean), float(error))


def w1_particles(
    real: Sequence[Sample], generated: Sequence[Sample], **options: int
) -> tuple[Estimate, list[Estimate]]:
    """W1P of JetNet: the mean over the particle features, and each feature's.

    Args:
        real, generated: eta and phi relative to the jet, pT over the jet's pT.
        options: of ``resampled``.
    """
    return _joint_wasserstein(real, generated, **options)


def w1_efp(real: Floats, generated: Floats, **options: int) -> tuple[Estimate, list[Estimate]]:
    """W1EFP of JetNet: the mean over energy flow polynomials, and each one's.

    Args:
        real, generated: (B, 5) polynomials of ``prime_multigraphs(4, 4)``.
        options: of ``resampled``.
    """
    return _joint_wasserstein(
        [Sample(column) for column in real.T], [Sample(column) for column in generated.T], **options
    )


def _joint_wasserstein(
    real: Sequence[Sample], generated: Sequence[Sample], **options: int
) -> tuple[Estimate, list[Estimate]]:
    def distances(a: NDArray[np.int64], b: NDArray[np.int64]) -> Floats:
        pairs = zip(real, generated, strict=True)
        each = [wasserstein(one.take(a), other.take(b)) for one, other in pairs]
        return np.array([*each, np.mean(each)])

    mean, error = resampled(distances, len(real[0]), len(generated[0]), **options)
    size = len(real) + 1
    pairs = zip(np.broadcast_to(mean, size), np.broadcast_to(error, size), strict=True)
    *each, total = [Estimate(float(m), float(e)) for m, e in pairs]
    return total, each


def frechet_physics_distance(
    real: Floats,
    generated: Floats,
    *,
    least: int = 20_000,
    most: int = 50_000,
    batches: int = 20,
    points: int = 10,
    seed: int = 42,
) -> Estimate:
    """FPD (arXiv 2211.10295), extrapolated to samples without end.

    Frechet distance of Gaussians with the samples' means and covariances; its bias falls as 1 / N,
    so a line through its means at several N is read off at 1 / N = 0. The error is that of the fit.

    Args:
        real, generated: (B, F) features, for jets the polynomials of ``multigraphs(4)``; scaled by
            the largest real value of each.
        least, most: smallest and largest resampling; ``points`` sizes, equal steps in 1 / N.
        batches: resamplings of each size.
        seed: of the draws.
    """
    from scipy.optimize import nnls

    x, y = _scaled(real, generated)
    if min(len(x), len(y)) < 2:
        return Estimate(math.nan, math.nan)
    sizes = (1 / np.linspace(1 / least, 1 / most, points)).astype(np.int32)
    generator = np.random.default_rng(seed)
    values = []
    for size in sizes:
        draws = []
        for _ in range(batches):
            a, b = x[generator.choice(len(x), size)], y[generator.choice(len(y), size)]
            draws.append(frechet_distance(a, b))
        values.append(np.mean(draws))
    # Neither the distance nor its bias is negative, in the published fit either.
    line = np.stack([np.ones(points), 1 / sizes], axis=1)
    (at_zero, _), residual = nnls(line, np.array(values))
    variance = residual**2 / max(points - 2, 1)
    return Estimate(float(at_zero), float(np.sqrt(variance * np.linalg.inv(line.T @ line)[0, 0])))


def frechet_distance(x: Floats, y: Floats) -> float:
    """|mean difference|^2 + tr(A + B - 2 (A B)^(1/2)) of the samples' covariances A and B."""
    difference = x.mean(0) - y.mean(0)
    a, b = np.atleast_2d(np.cov(x, rowvar=False)), np.atleast_2d(np.cov(y, rowvar=False))
    # The roots of the eigenvalues of A B are those of the symmetric A^(1/2) B A^(1/2).
    values, vectors = np.linalg.eigh(a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ b @ root).clip(min=0)).sum()
    return float(difference @ difference + np.trace(a) + np.trace(b) - 2 * cross)


def kernel_physics_distance(
    real: Floats, generated: Floats, *, batches: int = 10, size: int = 5000, seed: int = 42
) -> Estimate:
    """KPD (arXiv 2211.10295): median unbiased squared MMD with the kernel (x y / F + 1)^4.

    The error is half the distance between the 16.275 % and 83.725 % quantiles of the resamplings.

    Args:
        real, generated: (B, F) features as for ``frechet_physics_distance``.
        batches, size: resamplings, and jets drawn for each.
        seed: of the draws; resampling i has a generator of its own, of seed + 1000 i.
    """
    x, y = _scaled(real, generated)
    if not len(x) or not len(y) or size < 2:
        return Estimate(math.nan, math.nan)
    values = []
    for i in range(batches):
        generator = np.random.default_rng(seed + 1000 * i)
        a, b = x[generator.choice(len(x), size)], y[generator.choice(len(y), size)]
        values.append(_squared_mmd(a, b))
    low, high = np.percentile(values, [16.275, 83.725])
    return Estimate(float(np.median(values)), float(high - low) / 2)


def coverage_and_mmd(
    real: Sequence[Floats],
    generated: Sequence[Floats],
    *,
    batches: int = 10,
    size: int = 100,
    seed: int = 0,
) -> tuple[Estimate, Estimate]:
    """Coverage and minimum matching distance by the energy mover's distance (arXiv 2106.11535).

    Coverage is the share of drawn real jets that are the nearest one of some generated jet; the
    minimum matching distance is the mean distance of a real jet to the nearest generated one. With
    resampling, the coverage of real by real jets is far below 1.

    Args:
        real, generated: (n, 3) eta, phi and pT of the particles of each jet; for JetNet relative
            to the jet.
        batches, size: resamplings, and jets drawn for each.
        seed: of the draws.
    """

    def distances(a: NDArray[np.int64], b: NDArray[np.int64]) -> Floats:
        table = np.array([[energy_movers_distance(generated[j], real[i]) for i in a] for j in b])
        nearest_real = np.unique(table.argmin(1))
        return np.array([len(nearest_real) / len(a), table.min(0).mean()])

    mean, error = resampled(
        distances, len(real), len(generated), batches=batches, size=size, seed=seed
    )
    pairs = zip(np.broadcast_to(mean, 2), np.broadcast_to(error, 2), strict=True)
    coverage, matching = [Estimate(float(m), float(e)) for m, e in pairs]
    return coverage, matching


def energy_movers_distance(one: Floats, other: Floats) -> float:
    """EMD (arXiv 1902.02346) of two jets, R = 1: least pT times distance moved, plus the excess.

    Args:
        one, other: (n, 3) eta, phi and pT of the particles; particles without pT do not count.
    """
    from ot import emd2

    one, other = one[one[:, 2] > 0], other[other[:, 2] > 0]
    totals = one[:, 2].sum(), other[:, 2].sum()
    if not len(one) or not len(other):
        return float(sum(totals))
    cost = np.hypot(*(one[:, None, k] - other[None, :, k] for k in (0, 1)))
    # The lighter jet gets a particle at distance R = 1 from all others, which takes the excess.
    weights = [one[:, 2], other[:, 2]]
    lighter = int(totals[0] > totals[1])
    if totals[0] != totals[1]:
        weights[lighter] = np.append(weights[lighter], abs(totals[0] - totals[1]))
        shape = (len(one), 1) if lighter else (1, len(other))
        cost = np.concatenate([cost, np.ones(shape)], axis=lighter)
    largest = max(totals)
    return float(largest * emd2(weights[0] / largest, weights[1] / largest, cost))


def _squared_mmd(x: Floats, y: Floats) -> float:
    def kernel(a: Floats, b: Floats) -> Floats:
        return (a @ b.T / a.shape[1] + 1) ** 4

    def mean_of_others(k: Floats) -> float:
        return float((k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)))

    return mean_of_others(kernel(x, x)) + mean_of_others(kernel(y, y)) - 2 * kernel(x, y).mean()


def _scaled(real: Floats, generated: Floats) -> tuple[Floats, Floats]:
    x, y = (a[np.isfinite(a).all(1)] for a in (real, generated))
    largest = np.abs(x).max(0, initial=0.0)
    largest[largest == 0] = 1
    return x / largest, y / largest
