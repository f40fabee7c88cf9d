"""Significance improvement: both definitions on scores whose efficiencies are known."""

import numpy as np
import pytest

from jetkern.metrics.weak import significance_at_cut, significance_at_efficiency


def test_at_a_cut_it_is_the_signal_efficiency_over_the_root_of_the_background_s():
    scores = [0.9, 0.8, 0.6, 0.1] + [0.7] * 4 + [0.2] * 96
    labels = [1] * 4 + [0] * 100
    found = significance_at_cut(scores, labels)
    assert (found.signal, found.background) == (0.75, 0.04)
    assert found.value == pytest.approx(3.75)
    relative = 0.25 / (0.75 * 4) + 0.96 / (4 * 0.04 * 100)
    assert found.error == pytest.approx(3.75 * np.sqrt(relative))


def test_at_an_efficiency_it_is_at_most_ten_and_a_tenth_for_guessing():
    labels = np.repeat([1, 0], [1000, 10_000])
    perfect = significance_at_efficiency(np.arange(11_000)[::-1], labels)
    assert perfect.value == pytest.approx(10)
    rng = np.random.default_rng(0)
    guess = significance_at_efficiency(rng.random(1_100_000), np.repeat([1, 0], [1e5, 1e6]))
    assert guess.value == pytest.approx(0.1, abs=0.02)
    assert guess.background == pytest.approx(0.01, abs=1e-6)


def test_the_lower_of_two_efficiencies_that_are_as_near():
    labels = [1, 0, 1, 0]
    found = significance_at_efficiency([4, 3, 2, 1], labels, background=0.25)
    assert (found.threshold, found.background) == (4, 0.0)
    assert found.value == np.inf
    assert np.isnan(found.error)


def test_the_error_is_that_of_counting():
    rng = np.random.default_rng(1)
    values = []
    for _ in range(300):
        labels = np.repeat([1, 0], [500, 5000])
        scores = rng.normal(labels * 2.0)
        values.append(significance_at_cut(scores, labels, 2.0))
    spread = np.std([v.value for v in values])
    assert spread == pytest.approx(np.mean([v.error for v in values]), rel=0.15)


def test_no_signal_or_no_background_kept():
    labels = [1, 1, 0, 0]
    none = significance_at_cut([0, 0, 0, 0], labels)
    assert (none.value, none.background) == (0, 0)
    noise = significance_at_cut([0, 0, 1, 0], labels)
    assert noise.value == 0
    assert noise.error > 0
    with pytest.raises(ValueError, match="background"):
        significance_at_cut([0.1, 0.2], [1, 1])
