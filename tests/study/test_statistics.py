"""Statistics of made-up runs against scipy, and what is no number."""

import math

import numpy as np
import pytest
from scipy import stats

from jetkern.study.statistics import (
    Spread,
    holm,
    line,
    outliers,
    paired,
    pearson,
    ratio,
    spearman,
    spread,
)

NAN, INF = math.nan, math.inf


def test_spreads_of_none_one_and_infinite_values():
    assert spread([]).n == 0
    one = spread([NAN, 3.0])
    assert (one.mean, one.n, math.isnan(one.std)) == (3.0, 1, True)
    some = spread([1.0, INF, 2.0])
    assert (some.mean, some.n, some.infinite, math.isnan(some.std)) == (INF, 3, 1, True)
    values = [3.0, 5.0, 10.0]
    assert spread(values).std == pytest.approx(np.std(values, ddof=1))


def test_outliers_of_the_published_runs():
    errors = [5.0, 5.0, 5.0]
    assert outliers([762, 109, 121], errors) == [0]  # micro classifier, 10k labels
    assert outliers([1541, 269, 1852], errors) == [1]
    assert outliers([100, 101, 110], errors) == []  # within three errors of the sample
    assert outliers([1.0, 100.0], errors) == []
    assert outliers([1.0, INF, 1.1], [1.0, INF, 1.0]) == [1]
    assert outliers([NAN, 1.0, 1.0], errors) == []


def test_lines_are_those_of_scipy():
    draw = np.random.default_rng(0)
    x = draw.normal(size=9)
    y = 2 * x + draw.normal(size=9)
    found, theirs = line(x, y), stats.linregress(x, y)
    half = stats.t.ppf(0.975, 7) * theirs.stderr
    expected = (theirs.slope, theirs.slope - half, theirs.slope + half)
    assert (found.slope, found.low, found.high) == pytest.approx(expected)
    assert found.r2 == pytest.approx(theirs.rvalue**2)
    # The interval holds the truth in 95 % of the cases.
    hits = 0
    for _ in range(400):
        y = 2 * x + draw.normal(size=9)
        fit = line(x, y)
        hits += fit.low < 2 < fit.high
    assert 0.92 < hits / 400 < 0.98


def test_lines_through_what_is_there():
    found = line([1, 2, 3, 4], [1.0, INF, 3.0, NAN])
    assert (found.slope, found.n, math.isnan(found.low)) == (1.0, 2, True)
    assert math.isnan(line([1, 1], [1.0, 2.0]).slope)
    assert math.isnan(line([], []).slope)


def test_published_slopes_are_found_again():
    x = [5, 6, 7, 8]
    assert line(x, [1457, 1894, 2396, 2731]).slope == pytest.approx(432.5, abs=0.2)
    assert line(x, [1365, 1761, 1963, 2006]).slope == pytest.approx(212.7, abs=0.5)


def test_correlations_are_those_of_scipy():
    draw = np.random.default_rng(1)
    x = draw.normal(size=12)
    y = x + draw.normal(size=12)
    found, theirs = pearson(x, y), stats.pearsonr(x, y)
    assert found.value == pytest.approx(theirs.statistic)
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)))
    assert spearman(x, y).value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert spearman(x, y).low < spearman(x, y).value < spearman(x, y).high
    assert math.isnan(pearson([1, 2, 3], [1.0, 2.0, 4.0]).low)
    assert math.isnan(pearson([1, 1, 1], [1.0, 2.0, 4.0]).value)
    assert math.isnan(spearman([1, 2], [1.0, 2.0]).value)


def test_spearmans_interval_covers():
    """Ranks of a bivariate normal with known Spearman's coefficient."""
    draw = np.random.default_rng(2)
    rho, hits = 0.6, 0
    truth = 6 / math.pi * math.asin(rho / 2)
    for _ in range(400):
        x, z = draw.normal(size=(2, 25))
        found = spearman(x, rho * x + math.sqrt(1 - rho**2) * z)
        hits += found.low < truth < found.high
    assert 0.91 < hits / 400 < 0.985


def test_paired_tests_are_those_of_scipy():
    draw = np.random.default_rng(3)
    a, b = draw.normal(0.3, 1, (2, 8))
    found = paired(a - b)
    assert found.p_above == pytest.approx(stats.ttest_rel(a, b, alternative="greater").pvalue)
    assert found.p_below == pytest.approx(1 - found.p_above)
    shifted = paired(a - b, margin=0.5)
    theirs = stats.ttest_1samp(a - b, 0.5, alternative="less").pvalue
    assert shifted.p_below == pytest.approx(theirs)
    for few in ([], [1.0], [INF, 1.0], [0.5, 0.5]):
        assert math.isnan(paired(few).p_above)


def test_holm_as_worked_by_hand():
    """Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, and never falling."""
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "none": NAN})
    expected = {"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06}
    assert {k: pytest.approx(v) for k, v in expected.items()} == {
        k: v for k, v in found.items() if k != "none"
    }
    assert math.isnan(found["none"])


def test_holm_keeps_the_rate_of_false_alarms():
    draw = np.random.default_rng(4)
    p = draw.uniform(size=(2000, 10))
    alarms = sum(min(holm(dict(enumerate(row))).values()) < 0.05 for row in p)  # type: ignore[arg-type]
    assert alarms / 2000 < 0.065


def test_ratios_have_the_error_of_their_means():
    draw = np.random.default_rng(5)
    a, b = draw.normal(100, 5, (4000, 3)), draw.normal(50, 5, (4000, 3))
    found = ratio(Spread(100, 5, 3, 0), Spread(50, 5, 3, 0))
    simulated = np.std(a.mean(1) / b.mean(1))
    assert found.value == 2
    assert found.error == pytest.approx(simulated, rel=0.06)
    none = Spread(NAN, NAN, 0, 0)
    assert math.isnan(ratio(none, Spread(1, 1, 3, 0)).value)
    infinite = Spread(INF, NAN, 3, 1)
    assert ratio(infinite, Spread(1, 1, 3, 0)).value == INF
    assert math.isnan(ratio(infinite, infinite).value)
    assert math.isnan(ratio(Spread(2, NAN, 1, 0), Spread(1, 1, 3, 0)).error)
