"""Figures of merit of jet classifiers, with the conventions of the field stated.

Background rejection at a signal efficiency: 1 / (background efficiency) at the highest threshold
that keeps at least that share of the signal; jets at the threshold count as kept. It is a ratio of
counts, so it comes with the number of background jets kept, and where that is zero it is infinite
with a finite lower limit.

Uncertainties are statistical, of the finite test sample only: ``low`` and ``high`` of a rejection
are the Clopper-Pearson interval (68.27 %) of the background count at fixed threshold; ``error`` of
an estimate is half the distance between the 15.87 % and 84.13 % quantiles of a Poisson bootstrap
over signal and background jets, which also lets the threshold move. The spread between training
seeds is a different thing, and is usually larger.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

ONE_SIGMA = (0.15865525393145707, 0.8413447460685429)


@dataclass(frozen=True)
class RocCurve:
    """Efficiencies at each distinct threshold, from the highest down.

    Attributes:
        thresholds: (M,) scores; a jet is kept if its score is at least the threshold. The first
            is infinity.
        signal: (M,) share of the signal that is kept.
        background: (M,) share of the background that is kept.
    """

    thresholds: Floats
    signal: Floats
    background: Floats


@dataclass(frozen=True)
class Rejection:
    """Background rejection at a signal efficiency; ``kept`` of ``total`` background jets remain."""

    value: float
    low: float
    high: float
    kept: int
    total: int
    threshold: float


@dataclass(frozen=True)
class Estimate:
    """A figure and its statistical uncertainty; NaN is what is not defined."""

    value: float
    error: float

    def __format__(self, spec: str) -> str:
        if not math.isfinite(self.value):
            return "not defined" if math.isnan(self.value) else "infinite"
        if not math.isfinite(self.error):
            unknown = "not known" if math.isnan(self.error) else "unbounded"
            return f"{self.value:{spec}} (uncertainty {unknown})"
        return f"{self.value:{spec}} ± {self.error:{spec}}"


@dataclass(frozen=True)
class BinaryReport:
    """Figures of merit of a signal against a background; ``jets`` is their number in all."""

    jets: int
    accuracy: Estimate
    auc: Estimate
    r50: Estimate
    r30: Estimate
    cross_entropy: Estimate
    rejection_50: Rejection
    rejection_30: Rejection
    curve: RocCurve


@dataclass(frozen=True)
class MulticlassReport:
    """Accuracy, cross-entropy and macro one-vs-rest AUC; and each class against class 0."""

    jets: int
    accuracy: Estimate
    cross_entropy: Estimate
    auc: float
    against_background: dict[str, BinaryReport]


def roc_curve(scores: ArrayLike, labels: ArrayLike) -> RocCurve:
    """The ROC curve, one point for each distinct score.

    Args:
        scores: (N,) finite or infinite numbers, higher for signal.
        labels: (N,) 1 for signal, 0 for background.

    Raises:
        ValueError: for NaN scores, other labels, differing lengths, or a class without jets.
    """
    ranked = _Ranked(scores, labels)
    _need_both_classes(ranked)
    signal, background = ranked.cumulative(np.ones(ranked.jets))
    thresholds = ranked.thresholds
    return RocCurve(
        thresholds=np.concatenate([[np.inf], thresholds]),
        signal=np.concatenate([[0.0], signal / signal[-1]]),
        background=np.concatenate([[0.0], background / background[-1]]),
    )


def area_under_roc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Probability that a signal jet scores above a background jet, ties counted half.

    NaN if one of the classes has no jets: the area is not defined then.
    """
    ranked = _Ranked(scores, labels)
    return _auc(*ranked.cumulative(np.ones(ranked.jets)))


def rejection(scores: ArrayLike, labels: ArrayLike, *, signal_efficiency: float) -> Rejection:
    """Background rejection at the given signal efficiency, in (0, 1].

    Raises:
        ValueError: as ``roc_curve``, and for an efficiency outside (0, 1].
    """
    if not 0 < signal_efficiency <= 1:
        raise ValueError(f"signal efficiency must lie in (0, 1], got {signal_efficiency}")
    ranked = _Ranked(scores, labels)
    _need_both_classes(ranked)
    signal, background = ranked.cumulative(np.ones(ranked.jets))
    point = _working_point(signal, signal_efficiency)
    kept, total = round(background[point]), round(background[-1])
    least, most = _clopper_pearson(kept, total)
    return Rejection(
        value=total / kept if kept else math.inf,
        low=1 / most,
        high=1 / least if least else math.inf,
        kept=kept,
        total=total,
        threshold=float(ranked.thresholds[point]),
    )


def binary_report(
    scores: ArrayLike, labels: ArrayLike, *, bootstrap: int = 200, seed: int = 0
) -> BinaryReport:
    """All figures of merit of a binary classifier.

    Args:
        scores: (N,) log-odds of signal over background. A jet is called signal above 0. Log-odds
            rather than probabilities, because those round to 1 and so create ties.
        labels: (N,) 1 for signal, 0 for background.
        bootstrap: number of resamplings.
        seed: of the resamplings; the same seed gives the same uncertainties.

    Raises:
        ValueError: as ``roc_curve``.
    """
    ranked = _Ranked(scores, labels)
    _need_both_classes(ranked)
    entropy = np.logaddexp(0.0, np.where(ranked.is_signal, -ranked.scores, ranked.scores))
    correct = (ranked.scores > 0) == ranked.is_signal

    def figures(weight: Floats) -> list[float]:
        signal, background = ranked.cumulative(weight)
        kept = [background[_working_point(signal, efficiency)] for efficiency in (0.5, 0.3)]
        return [
            float(weight @ correct / weight.sum()),
            _auc(signal, background),
            *(float(background[-1] / k) if k else math.inf for k in kept),
            float(weight @ entropy / weight.sum()),
        ]

    names = ("accuracy", "auc", "r50", "r30", "cross_entropy")
    estimates = _bootstrap(figures, ranked, bootstrap, seed)
    return BinaryReport(
        jets=ranked.jets,
        **dict(zip(names, estimates, strict=True)),
        rejection_50=rejection(scores, labels, signal_efficiency=0.5),
        rejection_30=rejection(scores, labels, signal_efficiency=0.3),
        curve=roc_curve(scores, labels),
    )


def multiclass_report(
    logits: ArrayLike,
    labels: ArrayLike,
    classes: Sequence[str],
    *,
    bootstrap: int = 200,
    seed: int = 0,
) -> MulticlassReport:
    """Figures of merit of a classifier of C classes, class 0 being the background.

    Class c against the background uses the log-odds ``logits[c] - logits[0]`` on the jets of the
    two classes, which is the score p_c / (p_c + p_0) of the JetClass papers. Classes without jets
    are left out.

    Args:
        logits: (N, C).
        labels: (N,) in 0..C-1.
        classes: names of the C classes.

    Raises:
        ValueError: for NaN, labels out of range or shapes that do not fit.
    """
    table, label = np.asarray(logits, np.float64), np.asarray(labels)
    if table.ndim != 2 or table.shape != (len(label), len(classes)) or not len(label):
        raise ValueError(
            f"logits {table.shape} do not fit {len(label)} labels of {len(classes)} classes"
        )
    if np.isnan(table).any():
        raise ValueError(f"{int(np.isnan(table).any(1).sum())} jets have NaN logits")
    if label.min() < 0 or label.max() >= len(classes):
        raise ValueError(f"labels must lie in 0..{len(classes) - 1}, found {label.max()}")
    shifted = table - table.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    entropy = -log_p[np.arange(len(label)), label]
    correct = table.argmax(1) == label
    one_vs_rest = []
    reports = {}
    for c, name in enumerate(classes):
        here = label == c
        if not here.any() or here.all():
            continue
        others = np.delete(log_p, c, axis=1)
        top = others.max(1)
        rest = top + np.log(np.exp(others - top[:, None]).sum(1))
        one_vs_rest.append(area_under_roc(log_p[:, c] - rest, here))
        if c and (label == 0).any():
            pair = here | (label == 0)
            odds = table[pair, c] - table[pair, 0]
            reports[name] = binary_report(odds, here[pair], bootstrap=bootstrap, seed=seed)
    return MulticlassReport(
        jets=len(label),
        accuracy=_mean(correct),
        cross_entropy=_mean(entropy),
        auc=float(np.mean(one_vs_rest)) if one_vs_rest else math.nan,
        against_background=reports,
    )


def as_json(report: Any) -> dict[str, Any]:
    """A report (a dataclass) as plain numbers; what is not finite becomes a string.

    Of a curve, ``background_efficiency`` at 1 %, 2 %, ... 100 % of the signal.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, tuple):
            return [plain(v) for v in value]
        if is_dataclass(value):
            values = {k: plain(v) for k, v in vars(value).items() if k != "curve"}
            if isinstance(value, BinaryReport):
                values["background_efficiency"] = background_efficiencies(value.curve)
            return values
        return value if math.isfinite(value) else str(value)

    found: dict[str, Any] = plain(report)
    return found


def background_efficiencies(curve: RocCurve, points: int = 100) -> list[float]:
    """At the highest threshold that keeps at least 1 / points, 2 / points, ... of the signal."""
    wanted = np.arange(1, points + 1) / points * (1 - 1e-12)
    return curve.background[np.searchsorted(curve.signal, wanted)].tolist()


class _Ranked:
    """Scores sorted once, so that many weightings of the jets are cheap to evaluate."""

    def __init__(self, scores: ArrayLike, labels: ArrayLike) -> None:
        self.scores = np.asarray(scores, np.float64)
        label = np.asarray(labels)
        if self.scores.ndim != 1 or self.scores.shape != label.shape or not len(label):
            raise ValueError(
                f"scores {self.scores.shape} and labels {label.shape} must be (N,) with N > 0"
            )
        if np.isnan(self.scores).any():
            raise ValueError(f"{int(np.isnan(self.scores).sum())} jets have a NaN score")
        if not np.isin(label, (0, 1)).all():
            raise ValueError("labels must be 1 (signal) or 0 (background)")
        self.is_signal = label.astype(bool)
        self.jets = len(label)
        self._order = np.argsort(-self.scores, kind="stable")
        ranked = self.scores[self._order]
        self._last_of_tie = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
        self.thresholds = ranked[self._last_of_tie]

    def cumulative(self, weight: NDArray) -> tuple[Floats, Floats]:
        """Weight of signal and of background at or above each distinct score."""
        total = np.cumsum(weight[self._order])[self._last_of_tie]
        signal = np.cumsum((weight * self.is_signal)[self._order])[self._last_of_tie]
        return signal, total - signal


def _need_both_classes(ranked: _Ranked) -> None:
    for name, present in (("signal", ranked.is_signal), ("background", ~ranked.is_signal)):
        if not present.any():
            raise ValueError(f"no {name} jets: efficiencies and rejections are not defined")


def _auc(signal: Floats, background: Floats) -> float:
    if not signal[-1] or not background[-1]:
        return math.nan
    at_tie = np.diff(signal, prepend=0.0)
    below = background[-1] - background
    tied = np.diff(background, prepend=0.0)
    return float(at_tie @ (below + 0.5 * tied) / (signal[-1] * background[-1]))


def _working_point(signal: Floats, efficiency: float) -> int:
    # Counts are whole numbers: the slack keeps 0.3 * 10 = 3.0000000000000004 from asking for 4.
    wanted = efficiency * signal[-1] * (1 - 1e-12)
    return int(np.searchsorted(signal, wanted, side="left"))


def _clopper_pearson(kept: int, total: int) -> tuple[float, float]:
    from scipy.stats import beta

    low, high = ONE_SIGMA
    least = beta.ppf(low, kept, total - kept + 1) if kept else 0.0
    most = beta.ppf(high, kept + 1, total - kept) if kept < total else 1.0
    return float(least), float(most)


def _bootstrap(figures: Any, ranked: _Ranked, samples: int, seed: int) -> list[Estimate]:
    values = figures(np.ones(ranked.jets))
    if samples < 2:
        return [Estimate(value, math.nan) for value in values]
    generator = np.random.default_rng(seed)
    draws: list[list[float]] = []
    while len(draws) < samples:
        weight = generator.poisson(1.0, ranked.jets).astype(np.float64)
        # A resampling of a handful of jets may lose a class; it has no ROC curve.
        if weight @ ranked.is_signal and weight @ ~ranked.is_signal:
            draws.append(figures(weight))
    low, high = np.quantile(np.array(draws), ONE_SIGMA, axis=0, method="nearest")
    return [
        Estimate(value, (b - a) / 2 if math.isfinite(b) else math.inf)
        for value, a, b in zip(values, low.tolist(), high.tolist(), strict=True)
    ]


def _mean(values: NDArray) -> Estimate:
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return Estimate(float(np.mean(values)), spread / math.sqrt(len(values)))
