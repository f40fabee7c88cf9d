"""Where tracks come from: their origins, and the vertices that they share (MPMv2, arXiv 2409.12589,
section 5). The jets are those of ``jetkern simulate flavour``, or any with ``vertex`` and
``origin``."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, pad

from jetkern.data import Shards
from jetkern.evaluation.classify import ask, load_part
from jetkern.evaluation.tracks import (
    UNKNOWN,
    OriginReport,
    VertexReport,
    origin_report,
    origin_table,
    vertex_report,
    vertex_table,
)
from jetkern.jets import Jets, particle_pairs
from jetkern.metrics.classification import as_json
from jetkern.model.config import PETConfig
from jetkern.model.pet import PET
from jetkern.objectives import Objective
from jetkern.objectives.losses import Loss
from jetkern.objectives.views import View
from jetkern.packed import constant
from jetkern.tasks.task import Task, register
from jetkern.training.config import EvaluateSettings, FinetuneSettings
from jetkern.training.data import check_same
from jetkern.training.weights import load_weights, model_config

ORIGIN_WEIGHTS = (0.387, 1.434, 3.348, 2.390)  # of primary, charm, bottom, other in MPMv2
SMOOTHING = 0.1
FOCUS, TOGETHER_WEIGHT = 3.0, 0.778  # of the focal loss in MPMv2


class TrackLoss(Loss):
    """A loss of tracks whose truth is known: the head reads each view's rows on its own."""

    fields = ("vertex", "origin")

    def outputs(self, model: PET, seen: Sequence[View]) -> list[Tensor]:
        head = getattr(model, self.part)
        return [head(*view.read(), view.jets) for view in seen]


class OriginLoss(TrackLoss):
    """Weighted cross-entropy of the origin, mean over tracks, with labels smoothed by 0.1."""

    part = "origin"

    def weight(self, jets: Jets) -> Tensor:
        return _known(jets.origin).sum()

    def sum(self, output: Tensor, view: View) -> Tensor:
        known = _known(view.whole.origin)
        assert view.whole.origin is not None
        each = cross_entropy(
            output.to(torch.promote_types(output.dtype, torch.float32)),
            view.whole.origin.where(known, 0),
            constant(ORIGIN_WEIGHTS, torch.float32, output.device),
            reduction="none",
            label_smoothing=SMOOTHING,
        )
        return (each * known).sum()


class VertexLoss(TrackLoss):
    """Focal loss (arXiv 1708.02002) of pairs of tracks being of one vertex, mean over pairs."""

    part = "vertices"

    def weight(self, jets: Jets) -> Tensor:
        before = pad(_known(jets.vertex).cumsum(0), (1, 0))[jets.offsets]
        known = before.diff()
        return (known * (known - 1)).sum() // 2

    def sum(self, output: Tensor, view: View) -> Tensor:
        first, second = particle_pairs(view.whole)
        known, vertex = _known(view.whole.vertex), view.whole.vertex
        assert vertex is not None
        same = (vertex[first] == vertex[second]).to(torch.float32)
        logit = output.to(torch.float32)
        error = binary_cross_entropy_with_logits(logit, same, reduction="none")
        wrong = torch.where(same > 0, -logit, logit).sigmoid()
        weight = torch.where(same > 0, TOGETHER_WEIGHT, 1.0) * (known[first] & known[second])
        return (weight * wrong**FOCUS * error).sum()


def _known(truth: Tensor | None) -> Tensor:
    """(T,) bool.

    Raises:
        ValueError: for jets without that truth.
    """
    if truth is None:
        raise ValueError("the jets do not say where their tracks come from (vertex and origin)")
    return truth != UNKNOWN


class TrackTask(Task):
    """A head on the rows of tracks, and the truth that it needs."""

    loss: ClassVar[type[TrackLoss]]

    def config(self, base: PETConfig, train: Shards, settings: FinetuneSettings) -> PETConfig:
        _need_truth(train)
        return replace(
            base,
            parts=(self.loss.part,),
            use_pid=base.use_pid and train.field("pid") is not None,
            use_tracks=base.use_tracks and train.field("tracks") is not None,
        )

    def objective(self, model: PET, settings: FinetuneSettings) -> Objective:
        return Objective(model, settings.seed, losses=[self.loss()])

    def check(self, run: Path, shards: Shards, settings: EvaluateSettings) -> None:
        load_part(run, self.loss.part)
        weights = load_weights(run)
        check_same(weights.data, shards, model_config(weights).fields, str(weights.path))
        _need_truth(shards)

    @abstractmethod
    def answer(self, logits: Tensor) -> Tensor:
        """What is kept of the head's logits."""

    @abstractmethod
    def report(self, answers: NDArray[Any], jets: Jets, settings: EvaluateSettings) -> Any:
        """The figures of merit of the answers for ``jets``."""

    def judge(
        self,
        run: Path,
        shards: Shards,
        settings: EvaluateSettings,
        device: torch.device,
        label: str,
    ) -> Any:
        model = load_part(run, self.loss.part, device)
        head = getattr(model, self.loss.part)
        answers, batches = ask(
            model,
            shards,
            lambda jets: self.answer(head(*model.body(jets), jets)),
            lambda jets: jets,
            fields=TrackLoss.fields,
            batch_size=settings.batch_size,
            num_jets=settings.num_jets,
            seed=settings.seed,
            label=label,
        )
        return self.report(answers, Jets.concat(batches), settings)

    def record(self, report: Any) -> dict[str, Any]:
        return as_json(report)


@register
class Origin(TrackTask):
    """Tells tracks of the primary vertex, of charm and bottom hadrons and of others apart."""

    name = "origin"
    loss = OriginLoss

    def answer(self, logits: Tensor) -> Tensor:
        return logits.argmax(1)

    def report(self, answers: NDArray[Any], jets: Jets, settings: EvaluateSettings) -> OriginReport:
        assert jets.origin is not None
        return origin_report(
            answers,
            jets.origin.numpy(),
            jets.counts.numpy(),
            bootstrap=settings.bootstrap,
            seed=settings.seed,
        )

    def table(self, reports: Mapping[str, OriginReport]) -> str:
        return origin_table(reports)


@register
class Vertices(TrackTask):
    """Groups tracks into vertices: pairs above one half are together, and chains of pairs."""

    name = "vertices"
    loss = VertexLoss

    def answer(self, logits: Tensor) -> Tensor:
        return logits > 0

    def report(self, answers: NDArray[Any], jets: Jets, settings: EvaluateSettings) -> VertexReport:
        assert jets.vertex is not None
        return vertex_report(answers, jets.vertex.numpy(), jets.counts.numpy())

    def table(self, reports: Mapping[str, VertexReport]) -> str:
        return vertex_table(reports)


def _need_truth(shards: Shards) -> None:
    for name in TrackLoss.fields:
        if shards.field(name) is None:
            raise ValueError(
                f"{shards.folder} has no field {name}: where tracks come from is not known"
            )
