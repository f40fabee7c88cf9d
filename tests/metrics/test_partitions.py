"""Partitions against hand-worked cases and brute force; scikit-learn's where it is installed."""

import itertools

import numpy as np
import pytest

from jetkern.metrics.partitions import groups, pairs, partition_scores


def edges_of(labels):
    """(P,) whether the tracks of each pair i < j of one jet have the same label."""
    return [a == b for a, b in itertools.combinations(labels, 2)]


def scores(truth, predicted):
    return partition_scores(list(truth), edges_of(predicted), [len(truth)])


@pytest.mark.parametrize(
    ("truth", "predicted", "one_sided", "adjusted"),
    [
        ("00011", "00000", -0.311, 0.0),
        ("00011", "01234", 0.126, 0.0),
        ("00011", "00111", 0.126, 0.167),
        ("001122", "001123", 0.811, 0.762),
        ("001122", "001122", 1.0, 1.0),
    ],
)
def test_published_and_usual_correction(truth, predicted, one_sided, adjusted):
    found = scores(truth, predicted)
    assert found.one_sided[0] == pytest.approx(one_sided, abs=6e-4)
    assert found.adjusted[0] == pytest.approx(adjusted, abs=6e-4)
    assert found.perfect[0] == (truth == predicted)


def test_pairs_that_are_not_transitive_are_judged_as_they_are_and_closed():
    found = partition_scores([0, 0, 0], [True, False, True], [3])  # 0-1 and 1-2, not 0-2
    assert found.one_sided[0] == pytest.approx(0.444, abs=6e-4)
    assert found.rand[0] == pytest.approx(2 / 3)
    assert found.adjusted[0] == 1
    assert found.perfect[0]


def test_jets_of_no_and_one_track_and_of_one_vertex():
    found = partition_scores([4, 7, 7], [True], [0, 1, 2])
    assert np.isnan(found.rand).tolist() == [True, True, False]
    assert np.isnan(found.one_sided).tolist() == [True, True, False]
    assert found.adjusted.tolist() == [1, 1, 1]
    assert found.perfect.all()
    wrong = partition_scores([7, 7], [False], [2])
    assert (wrong.adjusted[0], wrong.perfect[0]) == (0, False)
    assert partition_scores([], [], []).rand.size == 0


def test_pairs_and_groups_stay_within_their_jets():
    counts = [3, 0, 1, 2]
    first, second, jet = pairs(counts)
    assert list(zip(first, second, jet, strict=True)) == [
        (0, 1, 0), (0, 2, 0), (1, 2, 0), (4, 5, 3)
    ]  # fmt: skip
    group = groups([True, False, False, True], counts)
    assert group[0] == group[1] != group[2]
    assert group[4] == group[5] != group[0]
    with pytest.raises(ValueError, match="6 tracks have 4 pairs; got 6 tracks and 3 pairs"):
        partition_scores(np.zeros(6), [True] * 3, counts)


def test_many_jets_at_once_are_those_one_by_one_whatever_the_names():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 9, 60)
    truth = rng.integers(0, 4, counts.sum())
    chosen = rng.random(len(pairs(counts)[0])) < 0.3
    whole = partition_scores(truth, chosen, counts)
    renamed = partition_scores(np.array([9, 2, 5, 0])[truth], chosen, counts)
    at, edge = 0, 0
    for jet, n in enumerate(counts):
        number = n * (n - 1) // 2
        alone = partition_scores(truth[at : at + n], chosen[edge : edge + number], [n])
        for name in ("rand", "adjusted", "one_sided", "perfect"):
            value = getattr(whole, name)[jet]
            np.testing.assert_equal(value, getattr(alone, name)[0])
            np.testing.assert_equal(value, getattr(renamed, name)[jet])
        at, edge = at + n, edge + number


def test_adjusted_is_that_of_scikit_learn():
    cluster = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    rng = np.random.default_rng(1)
    for n in (2, 3, 7, 15):
        truth, predicted = rng.integers(0, 3, n), rng.integers(0, 4, n)
        expected = cluster.adjusted_rand_score(truth, predicted)
        assert scores(truth, predicted).adjusted[0] == pytest.approx(expected)
