"""Significance improvement of searches by weak supervision (CWoLa, arXiv 1708.02949).

Two definitions are in use, and are not comparable: at a fixed cut on the score (MPM, arXiv
2401.13537), and at a background efficiency of 0.01 (MPMv2, arXiv 2409.12589), which is at most 10.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from jetkern.metrics.classification import roc_curve


@dataclass(frozen=True)
class Significance:
    """Improvement of S / sqrt(B): signal efficiency over the root of the background's.

    Attributes:
        value: infinite where no background is left but signal is; 0 without signal.
        error: of counting the test jets that are left.
        signal, background: efficiencies. threshold: of the score.
    """

    value: float
    error: float
    signal: float
    background: float
    threshold: float


def significance_at_cut(scores: ArrayLike, labels: ArrayLike, cut: float = 0.5) -> Significance:
    """MPM's: jets that score above ``cut``.

    Args:
        scores: (N,) higher for signal; labels: (N,) 1 for true signal, 0 for background.

    Raises:
        ValueError: for a class without jets, NaN scores, other labels.
    """
    roc_curve(scores, labels)  # checks both
    score, label = np.asarray(scores, float), np.asarray(labels)
    kept = score > cut
    signal, background = float(kept[label == 1].mean()), float(kept[label == 0].mean())
    return _significance(signal, background, cut, np.asarray(label))


def significance_at_efficiency(
    scores: ArrayLike, labels: ArrayLike, background: float = 0.01
) -> Significance:
    """MPMv2's: the threshold whose background efficiency is nearest to ``background``, the lower
    efficiency of two, and the most signal for it. Guessing gives its root, 0.1.

    Args:
        scores: (N,) higher for signal; labels: (N,) 1 for true signal, 0 for background.

    Raises:
        ValueError: for a class without jets, NaN scores, other labels.
    """
    curve = roc_curve(scores, labels)
    nearest = curve.background[np.abs(curve.background - background).argmin()]
    at = int(np.flatnonzero(curve.background == nearest)[-1])
    found = float(curve.signal[at]), float(curve.background[at]), float(curve.thresholds[at])
    return _significance(*found, np.asarray(labels))


def _significance(
    signal: float, background: float, threshold: float, labels: np.ndarray
) -> Significance:
    signals, backgrounds = int((labels == 1).sum()), int((labels == 0).sum())
    if background == 0:
        value = np.inf if signal > 0 else 0.0
        return Significance(value, np.nan, signal, background, threshold)
    value = signal / np.sqrt(background)
    relative = (1 - background) / (4 * background * backgrounds)
    # Of no signal kept: as if one were.
    seen = max(signal, 1 / signals)
    relative += (1 - seen) / (seen * signals)
    error = seen / np.sqrt(background) * np.sqrt(relative)
    return Significance(float(value), float(error), signal, background, threshold)
