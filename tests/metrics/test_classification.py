"""Classification metrics against scikit-learn and against counts done by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from jetkern.metrics import (
    area_under_roc,
    binary_report,
    multiclass_report,
    rejection,
    roc_curve,
)
from jetkern.metrics.classification import Estimate, as_json


def sample(jets=4000, seed=0, separation=1.5):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, jets)
    return generator.normal(separation * (labels - 0.5), 1.0), labels


# Few distinct values, so that ties within and across classes are the rule.
tied_samples = st.lists(
    st.tuples(st.sampled_from([-3.0, -0.5, 0.0, 0.5, 7.0]), st.integers(0, 1)),
    min_size=2,
    max_size=60,
).filter(lambda rows: len({label for _, label in rows}) == 2)


@settings(max_examples=200, deadline=None)
@given(tied_samples)
def test_area_and_curve_equal_scikit_learn_with_ties(rows):
    scores, labels = map(np.array, zip(*rows, strict=True))
    assert area_under_roc(scores, labels) == pytest.approx(oracle.roc_auc_score(labels, scores))
    curve = roc_curve(scores, labels)
    fpr, tpr, thresholds = oracle.roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(curve.background, fpr)
    np.testing.assert_allclose(curve.signal, tpr)
    np.testing.assert_array_equal(curve.thresholds, thresholds)


@settings(max_examples=100, deadline=None)
@given(tied_samples)
def test_rejection_is_the_first_point_of_the_curve_that_keeps_enough_signal(rows):
    scores, labels = map(np.array, zip(*rows, strict=True))
    fpr, tpr, _ = oracle.roc_curve(labels, scores, drop_intermediate=False)
    for efficiency in (0.3, 0.5, 1.0):
        found = rejection(scores, labels, signal_efficiency=efficiency)
        passing = fpr[np.flatnonzero(tpr >= efficiency - 1e-12)[0]]
        assert found.value == (pytest.approx(1 / passing) if passing else math.inf)
        assert found.low <= found.value <= found.high


def test_the_threshold_keeps_the_jets_that_lie_on_it():
    scores = np.array([9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 6.5, 5.5, 0.5, 0.5])
    labels = np.array([1] * 10 + [0] * 4)
    # 0.3 * 10 is 3.0000000000000004 in floating point; three signal jets are enough.
    found = rejection(scores, labels, signal_efficiency=0.3)
    assert (found.threshold, found.kept, found.value) == (7.0, 0, math.inf)
    found = rejection(scores, labels, signal_efficiency=0.5)
    assert (found.threshold, found.kept, found.total, found.value) == (5.0, 2, 4, 2.0)


def test_no_background_left_gives_a_finite_lower_limit():
    scores = np.concatenate([np.linspace(1, 2, 50), np.linspace(-2, -1, 1000)])
    labels = np.repeat([1, 0], [50, 1000])
    found = rejection(scores, labels, signal_efficiency=0.5)
    assert found.value == found.high == math.inf
    # The efficiency e at which no jet of 1000 passes with probability 0.1587: (1 - e)^1000.
    assert found.low == pytest.approx(1 / (1 - 0.15865525 ** (1 / 1000)))
    report = binary_report(scores, labels, bootstrap=20)
    assert report.r50.value == report.r50.error == math.inf
    assert as_json(report)["r50"]["value"] == "inf"


def test_interval_covers_the_truth_as_often_as_it_says():
    # Background scores uniform, threshold fixed by one signal jet at 0.9: the true rejection is 10.
    generator = np.random.default_rng(1)
    inside = 0
    for _ in range(500):
        scores = np.append(generator.uniform(size=200), 0.9)
        found = rejection(scores, np.arange(201) == 200, signal_efficiency=1.0)
        inside += found.low <= 10 <= found.high
    assert 0.65 < inside / 500 < 0.82  # Clopper-Pearson covers at least its 0.683


def test_report_equals_scikit_learn():
    scores, labels = sample()
    report = binary_report(scores, labels, bootstrap=50)
    p = 1 / (1 + np.exp(-scores))
    assert report.auc.value == pytest.approx(oracle.roc_auc_score(labels, scores))
    assert report.accuracy.value == oracle.accuracy_score(labels, p > 0.5)
    assert report.cross_entropy.value == pytest.approx(oracle.log_loss(labels, p))
    assert report.r30.value == report.rejection_30.value
    assert report.r50.value == report.rejection_50.value
    again = binary_report(scores, labels, bootstrap=50)
    assert as_json(again) == as_json(report)


def test_bootstrap_matches_the_spread_between_samples():
    spread = {"auc": [], "accuracy": [], "r50": [], "cross_entropy": []}
    for seed in range(60):
        report = binary_report(*sample(2000, seed), bootstrap=0)
        for name, values in spread.items():
            values.append(getattr(report, name).value)
    report = binary_report(*sample(2000, 99), bootstrap=300)
    for name, values in spread.items():
        assert getattr(report, name).error == pytest.approx(np.std(values), rel=0.4), name


@given(st.integers(0, 50))
@settings(max_examples=20, deadline=None)
def test_rank_metrics_ignore_monotone_maps(seed):
    scores, labels = sample(300, seed)
    mapped = np.exp(scores) * 3 - 7
    assert area_under_roc(mapped, labels) == area_under_roc(scores, labels)
    for efficiency in (0.3, 0.5):
        a = rejection(scores, labels, signal_efficiency=efficiency)
        b = rejection(mapped, labels, signal_efficiency=efficiency)
        assert a.kept == b.kept
    low, high = (rejection(scores, labels, signal_efficiency=e).value for e in (0.3, 0.5))
    assert low >= high


def test_constant_scores_and_infinite_scores():
    labels = np.array([0, 1, 0, 1])
    assert area_under_roc(np.zeros(4), labels) == 0.5
    assert rejection(np.zeros(4), labels, signal_efficiency=0.3).value == 1.0
    assert area_under_roc(np.array([-np.inf, np.inf, 0.0, 1.0]), labels) == 1.0


def test_area_of_one_class_is_not_a_number():
    assert math.isnan(area_under_roc([0.1, 0.2], [1, 1]))


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.1, np.nan], [0, 1], "1 jets have a NaN score"),
        ([0.1, 0.2], [0, 2], "labels must be 1"),
        ([0.1, 0.2], [0], "must be"),
        ([], [], "N > 0"),
        ([0.1, 0.2], [1, 1], "no background jets"),
        ([0.1, 0.2], [0, 0], "no signal jets"),
    ],
)
def test_bad_input_is_refused(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        binary_report(scores, labels)
    with pytest.raises(ValueError, match=message):
        rejection(scores, labels, signal_efficiency=0.5)


@pytest.mark.parametrize("efficiency", [0.0, -0.1, 1.1])
def test_impossible_efficiency_is_refused(efficiency):
    with pytest.raises(ValueError, match="signal efficiency"):
        rejection([0.1, 0.2], [0, 1], signal_efficiency=efficiency)


def test_multiclass_report_equals_scikit_learn():
    generator = np.random.default_rng(3)
    labels = generator.integers(0, 4, 3000)
    logits = generator.normal(size=(3000, 4)) + 1.5 * np.eye(4)[labels]
    report = multiclass_report(logits, labels, ["QCD", "Hbb", "Zqq", "Tbqq"], bootstrap=10)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert report.accuracy.value == oracle.accuracy_score(labels, logits.argmax(1))
    assert report.cross_entropy.value == pytest.approx(oracle.log_loss(labels, p))
    assert report.auc == pytest.approx(oracle.roc_auc_score(labels, p, multi_class="ovr"))
    assert list(report.against_background) == ["Hbb", "Zqq", "Tbqq"]
    pair = (labels == 0) | (labels == 2)
    expected = oracle.roc_auc_score(labels[pair] == 2, p[pair, 2] / (p[pair, 2] + p[pair, 0]))
    assert report.against_background["Zqq"].auc.value == pytest.approx(expected)
    assert as_json(report)["against_background"]["Zqq"]["auc"]["value"] == pytest.approx(expected)


def test_multiclass_report_leaves_out_absent_classes_and_refuses_bad_labels():
    logits = np.zeros((4, 3))
    report = multiclass_report(logits, [0, 0, 1, 1], ["a", "b", "c"], bootstrap=2)
    assert list(report.against_background) == ["b"]
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.2"):
        multiclass_report(logits, [0, 0, 1, 3], ["a", "b", "c"])
    with pytest.raises(ValueError, match="do not fit"):
        multiclass_report(logits, [0, 0, 1], ["a", "b", "c"])
    with pytest.raises(ValueError, match="NaN"):
        multiclass_report(np.full((2, 2), np.nan), [0, 1], ["a", "b"])


def test_background_efficiencies_are_those_of_the_rejections():
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, 3000)
    report = binary_report(draw.normal(size=3000) + labels, labels, bootstrap=2)
    found = as_json(report)["background_efficiency"]
    assert len(found) == 100
    assert found[49] == pytest.approx(1 / report.rejection_50.value)
    assert found[29] == pytest.approx(1 / report.rejection_30.value)
    assert found[99] <= 1
    assert found == sorted(found)


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(199.5, 2.25), "199.5 ± 2.2"),
        (Estimate(199.5, math.inf), "199.5 (uncertainty unbounded)"),
        (Estimate(0.5, math.nan), "0.5 (uncertainty not known)"),
        (Estimate(math.inf, math.nan), "infinite"),
        (Estimate(math.nan, 1.0), "not defined"),
    ],
)
def test_an_estimate_in_words(estimate, text):
    assert f"{estimate:.1f}" == text
