"""How well tracks are grouped into vertices: agreement of partitions of each jet's tracks.

Two corrections of the Rand index (the share of track pairs that are rightly together or apart) for
chance are in use, and are not comparable:

- Hubert and Arabie's (J. Classif. 2 (1985) 193), scikit-learn's ``adjusted_rand_score``: chance is
  all partitions with the same sizes of groups as truth and prediction.
- the one-sided one of MPMv2's code (arXiv 2409.12589): chance is all partitions of n tracks, in
  which a pair is together with the probability Bell(n - 1) / Bell(n) (Gates and Ahn, JMLR 18 (2017)
  1). There, putting every track on its own scores above 0 for most truths.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class PartitionScores:
    """Agreement of J jets.

    Attributes:
        rand: (J,) share of the pairs that are right; NaN for jets of fewer than two tracks.
        adjusted: (J,) Hubert and Arabie's, of groups; 1 where both partitions are the trivial one.
        one_sided: (J,) MPMv2's, of pairs as predicted, whether or not they are transitive; NaN for
            fewer than two tracks.
        perfect: (J,) bool, groups exactly right.
    """

    rand: Floats
    adjusted: Floats
    one_sided: Floats
    perfect: NDArray[np.bool_]


def pairs(counts: ArrayLike) -> tuple[Integers, Integers, Integers]:
    """All pairs i < j of tracks of the same jet: rows i, rows j and the jet, (P,) each.

    Args:
        counts: (J,) tracks of each jet.
    """
    sizes = np.asarray(counts, np.int64)
    start = np.repeat(np.cumsum(sizes) - sizes, sizes)
    rows = np.arange(len(start))
    behind = np.repeat(np.cumsum(sizes), sizes) - rows - 1  # tracks of the jet after this one
    first = np.repeat(rows, behind)
    second = first + 1 + np.arange(len(first)) - np.repeat(np.cumsum(behind) - behind, behind)
    return first, second, np.repeat(np.arange(len(sizes)), sizes)[first]


def groups(together: ArrayLike, counts: ArrayLike) -> Integers:
    """(T,) group of each track: those that a chain of predicted pairs connects.

    Args:
        together: (P,) bool for ``pairs(counts)``; counts: (J,) tracks of each jet.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first, second, _ = pairs(counts)
    chosen = np.asarray(together, bool)
    tracks = int(np.sum(counts))
    graph = coo_array(
        (np.ones(chosen.sum(), bool), (first[chosen], second[chosen])), shape=(tracks, tracks)
    )
    return connected_components(graph, directed=False)[1].astype(np.int64)


def partition_scores(truth: ArrayLike, together: ArrayLike, counts: ArrayLike) -> PartitionScores:
    """Scores of each jet.

    Args:
        truth: (T,) integers, equal for tracks of one vertex within a jet.
        together: (P,) bool for ``pairs(counts)``, pairs predicted to be of one vertex.
        counts: (J,) tracks of each jet.

    Raises:
        ValueError: for arrays of other lengths.
    """
    sizes = np.asarray(counts, np.int64)
    vertex, chosen = np.asarray(truth, np.int64), np.asarray(together, bool)
    first, second, jet = pairs(sizes)
    if len(vertex) != sizes.sum() or len(chosen) != len(first):
        raise ValueError(
            f"{len(sizes)} jets of {sizes.sum()} tracks have {len(first)} pairs; got "
            f"{len(vertex)} tracks and {len(chosen)} pairs"
        )
    same = vertex[first] == vertex[second]
    group = groups(chosen, sizes)
    closed = group[first] == group[second]

    def total(values: NDArray[np.bool_]) -> Floats:
        return np.bincount(jet, values, len(sizes)).astype(float)

    number = total(np.ones(len(jet), bool))
    with np.errstate(invalid="ignore", divide="ignore"):
        rand = total(same == chosen) / number
        linked = total(same) / number
        bell = np.array([_together_by_chance(int(n)) for n in sizes])
        expected = bell * linked + (1 - bell) * (1 - linked)
        one_sided = (rand - expected) / (1 - expected)
        both, a, b = total(same & closed), total(same), total(closed)
        chance = a * b / number
        adjusted = (both - chance) / ((a + b) / 2 - chance)
    perfect = total(same != closed) == 0
    # 0 / 0: all together or all apart in both, or nothing to group.
    adjusted[np.isnan(adjusted)] = np.where(perfect, 1.0, 0.0)[np.isnan(adjusted)]
    return PartitionScores(rand, adjusted, one_sided, perfect)


@cache
def _together_by_chance(n: int) -> float:
    """Bell(n - 1) / Bell(n): probability that two of n tracks are together in a partition."""
    if n < 1:
        return float("nan")
    row = [1]
    for _ in range(n - 1):  # the Bell triangle, in whole numbers
        below = [row[-1]]
        for value in row:
            below.append(below[-1] + value)
        row = below
    return row[0] / row[-1]
