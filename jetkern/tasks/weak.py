"""Finding a signal without labels: CWoLa (arXiv 1708.02949), as MPM and MPMv2 judge it.

Shards of two classes, background and signal, become two samples: each background jet is in one or
the other, about ``--signal-jets`` of the signal are in the first and the rest is left out. A
classifier learns to tell the samples apart, and is judged by true labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from jetkern.data import Shards
from jetkern.jets import Jets
from jetkern.metrics import BinaryReport, binary_report
from jetkern.metrics.classification import as_json
from jetkern.metrics.weak import Significance, significance_at_cut, significance_at_efficiency
from jetkern.objectives import Objective, objective_of
from jetkern.objectives.losses import Classification
from jetkern.objectives.views import View
from jetkern.random import random_bits, uniform
from jetkern.tables import table
from jetkern.tasks.classification import Classify
from jetkern.tasks.task import register
from jetkern.training.config import EvaluateSettings, FinetuneSettings

CONTENT, SIDE, KEEP = 80, 81, 82  # streams of random numbers


def jet_numbers(jets: Jets) -> Tensor:
    """(B,) int64 number of each jet that depends on its particles alone, not on where it comes."""
    bits = jets.particles.float().view(torch.int32).long()
    each = random_bits(0, CONTENT, *bits.unbind(1))
    before = torch.nn.functional.pad(each.cumsum(0), (1, 0))  # wraps, and so do the differences
    return before[jets.offsets].diff()


def mixed(jets: Jets, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """(B,) int64 sample of each jet, 1 for the one with signal, and (B,) bool whether it is in one.

    Args:
        jets: with label 0 for background and 1 for signal.
        share: of the signal that is in the first sample.
        seed: of the choice, which is the same whenever a jet comes.

    Raises:
        ValueError: for jets without labels.
    """
    if jets.label is None:
        raise ValueError("weak supervision mixes jets of two classes, but these have no label")
    number, signal = jet_numbers(jets), jets.label == 1
    side = signal | (uniform(seed, SIDE, number) < 0.5)
    return side.long(), ~signal | (uniform(seed, KEEP, number) < share)


class WeakLoss(Classification):
    """Cross-entropy of the sample that a jet is in, mean over the jets that are in one."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def weight(self, jets: Jets) -> Tensor:
        return mixed(jets, self.share, self.seed)[1].sum()

    def sum(self, output: Tensor, view: View) -> Tensor:
        sample, used = mixed(view.whole, self.share, self.seed)
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        return (cross_entropy(output, sample, reduction="none") * used).sum()


@dataclass(frozen=True)
class WeakReport:
    """How much a cut on the score improves S / sqrt(B), by both definitions, and the classifier."""

    at_efficiency: Significance
    at_cut: Significance
    tagger: BinaryReport


@register
class Weak(Classify):
    """Tells two samples apart that differ in how much signal they have."""

    name = "weak"
    augments: ClassVar[bool] = False  # which sample a jet is in follows from its particles
    share = 0.0

    def config(self, base: Any, train: Shards, settings: FinetuneSettings) -> Any:
        if len(train.classes) != 2:
            raise ValueError(
                f"{train.folder} has {len(train.classes)} classes; weak supervision needs two, "
                "background and signal"
            )
        used = 1.0 if settings.num_jets is None else settings.num_jets / train.num_jets
        signal = int(train.counts[1]) * used
        wanted = settings.signal_jets
        if wanted is None:
            raise ValueError("say how many signal jets are hidden in the background: --signal-jets")
        if wanted > signal:
            raise ValueError(
                f"--signal-jets {wanted}: there are {signal:,.0f} of {train.classes[1]}"
            )
        self.share = wanted / max(signal, 1)
        return super().config(base, train, settings)

    def objective(self, model: Any, settings: FinetuneSettings) -> Objective:
        return objective_of(model, settings.seed, losses=[WeakLoss(self.share)])

    def identity(self, settings: FinetuneSettings) -> dict[str, Any]:
        return {"signal_jets": settings.signal_jets}

    def check(self, run: Path, shards: Shards, settings: EvaluateSettings) -> None:
        if len(shards.classes) != 2:
            raise ValueError(f"{shards.folder} has {len(shards.classes)} classes, not two")
        super().check(run, shards, settings)

    def report(
        self, logits: NDArray[Any], labels: NDArray[Any], shards: Shards, settings: EvaluateSettings
    ) -> WeakReport:
        from scipy.special import expit

        each = logits.astype("f8")
        odds = each[:, 1] - each[:, 0]
        return WeakReport(
            significance_at_efficiency(odds, labels),
            significance_at_cut(expit(odds), labels),
            binary_report(odds, labels, bootstrap=settings.bootstrap, seed=settings.seed),
        )

    def table(self, reports: Mapping[str, Any]) -> str:
        rows: list[list[object]] = [
            ["model", "SIC at 1 % background", "SIC at score 0.5", "AUC of true labels"]
        ]
        for name, r in reports.items():
            sics = (f"{s.value:.2f} ± {s.error:.2f}" for s in (r.at_efficiency, r.at_cut))
            rows.append([name, *sics, f"{r.tagger.auc.value:.4f} ± {r.tagger.auc.error:.4f}"])
        return table(rows, "lrrr", markdown=True)

    def record(self, report: Any) -> dict[str, Any]:
        return as_json(report)

    def draw(self, reports: Mapping[str, Any], shards: Shards, out: Path) -> None:
        super().draw({name: r.tagger for name, r in reports.items()}, shards, out)
