"""The study's statistics: spreads over seeds, fits, correlations, paired tests, what is no number.

Numbers that are not finite (the rejection where no background jet is left) and numbers that are not
there are never replaced: they are counted, shown, and left out of what cannot use them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

LEVEL = 0.95  # of all intervals here
OUTLIER = 3.5  # robust standard deviations (Iglewicz and Hoaglin 1993)

NAN = math.nan


@dataclass(frozen=True)
class Spread:
    """Values of some seeds: mean, sample standard deviation (n - 1), number, infinite ones."""

    mean: float
    std: float
    n: int
    infinite: int


@dataclass(frozen=True)
class Line:
    """A straight line: slope and intercept, the slope's interval, points and explained share."""

    slope: float
    low: float
    high: float
    intercept: float
    r2: float
    n: int


@dataclass(frozen=True)
class Correlation:
    """A coefficient with its interval, and the p-value of no correlation."""

    value: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Test:
    """Mean of paired differences, and the p-values of "not above" and "not below" a margin."""

    mean: float
    low: float
    high: float
    p_above: float
    p_below: float
    n: int


@dataclass(frozen=True)
class Ratio:
    """A ratio of means and its standard error from the spreads over seeds."""

    value: float
    error: float


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation of what is there; NaN stands for a run that is not.

    With an infinite value the mean is infinite; one value has no deviation.
    """
    there = np.array([v for v in values if not math.isnan(v)], np.float64)
    infinite = int(np.isinf(there).sum())
    if not len(there):
        return Spread(NAN, NAN, 0, 0)
    if infinite:
        return Spread(math.inf, NAN, len(there), infinite)
    std = float(there.std(ddof=1)) if len(there) > 1 else NAN
    return Spread(float(there.mean()), std, len(there), 0)


def outliers(values: Sequence[float], errors: Sequence[float]) -> list[int]:
    """Positions of values far from the others.

    Farther from the median than ``OUTLIER`` robust standard deviations (1.4826 times the median
    absolute deviation) and than three of their own statistical errors: of three seeds two often
    lie together by chance. Values above 0 are compared by their logarithms. An infinite value among
    finite ones is one. Fewer than three values have none.
    """
    there = [i for i, v in enumerate(values) if not math.isnan(v)]
    if len(there) < 3:
        return []
    value = np.array([values[i] for i in there])
    error = np.nan_to_num([errors[i] for i in there], posinf=0.0)
    if value.min() > 0:
        value, error = np.log(value), error / value
    median = float(np.median(value))
    if math.isinf(median):
        return [i for i, v in zip(there, value, strict=True) if not math.isinf(v)]
    far = abs(value - median)
    least = np.maximum(OUTLIER * 1.4826 * np.median(far), 3 * error)
    return [i for i, is_far in zip(there, far > least, strict=True) if is_far]


def line(x: ArrayLike, y: ArrayLike) -> Line:
    """Least squares through the finite points; the slope's interval is Student's.

    NaN for fewer than two abscissae; the interval needs three points.
    """
    x, y = _finite_pairs(x, y)
    if len(np.unique(x)) < 2:
        return Line(NAN, NAN, NAN, NAN, NAN, len(x))
    fit = stats.linregress(x, y)
    low = high = NAN
    if len(x) > 2:
        half = float(stats.t.ppf((1 + LEVEL) / 2, len(x) - 2)) * float(fit.stderr)
        low, high = fit.slope - half, fit.slope + half
    r2 = float(fit.rvalue) ** 2 if np.ptp(y) > 0 else NAN
    return Line(float(fit.slope), float(low), float(high), float(fit.intercept), r2, len(x))


def pearson(x: ArrayLike, y: ArrayLike) -> Correlation:
    """Pearson's coefficient; the interval is Fisher's and needs four points."""
    x, y = _finite_pairs(x, y)
    if len(x) < 3 or not np.ptp(x) or not np.ptp(y):
        return Correlation(NAN, NAN, NAN, NAN)
    found = stats.pearsonr(x, y)
    low, high = found.confidence_interval(LEVEL) if len(x) > 3 else (NAN, NAN)
    return Correlation(float(found.statistic), float(low), float(high), float(found.pvalue))


def spearman(x: ArrayLike, y: ArrayLike) -> Correlation:
    """Spearman's coefficient; its interval is Fisher's with the variance of Bonett and Wright
    (2000), (1 + r^2 / 2) / (n - 3), and needs four points."""
    x, y = _finite_pairs(x, y)
    if len(x) < 3 or not np.ptp(x) or not np.ptp(y):
        return Correlation(NAN, NAN, NAN, NAN)
    found = stats.spearmanr(x, y)
    r = float(found.statistic)
    low = high = NAN
    if len(x) > 3 and abs(r) < 1:
        half = stats.norm.ppf((1 + LEVEL) / 2) * math.sqrt((1 + r**2 / 2) / (len(x) - 3))
        low, high = math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)
    return Correlation(r, float(low), float(high), float(found.pvalue))


def paired(differences: Sequence[float], margin: float = 0.0) -> Test:
    """Student's test of paired differences against a margin, one-sided both ways.

    What is not finite is left out. Fewer than two, or two that are equal to the last bit, have no
    p-value.
    """
    there = np.array([d for d in differences if math.isfinite(d)], np.float64)
    mean = float(there.mean()) if len(there) else NAN
    if len(there) < 2 or not np.ptp(there):
        return Test(mean, NAN, NAN, NAN, NAN, len(there))
    above = stats.ttest_1samp(there, margin, alternative="greater")
    below = stats.ttest_1samp(there, margin, alternative="less")
    low, high = stats.ttest_1samp(there, margin).confidence_interval(LEVEL)
    return Test(mean, float(low), float(high), float(above.pvalue), float(below.pvalue), len(there))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction (1979) for the number of tests; NaN is no test."""
    there = sorted((p, name) for name, p in p_values.items() if not math.isnan(p))
    corrected = dict.fromkeys(p_values, NAN)
    so_far = 0.0
    for rank, (p, name) in enumerate(there):
        so_far = max(so_far, min(1.0, (len(there) - rank) * p))
        corrected[name] = so_far
    return corrected


def ratio(above: Spread, below: Spread) -> Ratio:
    """The ratio of two means; the error is that of the means, to first order, NaN for one seed."""
    if not above.n or not below.n or below.mean == 0:
        return Ratio(NAN, NAN)
    value = above.mean / below.mean  # inf / inf is NaN: not known
    parts = [s.std / s.mean / math.sqrt(s.n) for s in (above, below)]
    return Ratio(value, value * math.hypot(*parts))


def _finite_pairs(x: ArrayLike, y: ArrayLike) -> tuple[NDArray, NDArray]:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    both = np.isfinite(x) & np.isfinite(y)
    return x[both], y[both]
