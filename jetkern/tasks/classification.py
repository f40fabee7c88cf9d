"""Telling classes of jets apart: top tagging, and any labelled shards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray

from jetkern.data import Shards
from jetkern.evaluation import (
    Report,
    class_outputs,
    classification_report,
    joined,
    load_classifier,
    predict,
    report_table,
)
from jetkern.metrics import BinaryReport
from jetkern.metrics.classification import as_json
from jetkern.model.config import PETConfig
from jetkern.model.jet_decoder import JetDecoderConfig
from jetkern.objectives import Objective, objective_of
from jetkern.tasks.task import Task, register
from jetkern.training.config import EvaluateSettings, FinetuneSettings
from jetkern.training.weights import load_weights


@register
class Classify(Task):
    """Any labelled jets, with as many outputs as they have classes."""

    name = "classify"
    reset = ("classifier.out",)
    augments: ClassVar[bool] = True
    configs = (PETConfig, JetDecoderConfig)

    def outputs(self, train: Shards, settings: FinetuneSettings) -> int:
        """How many outputs the classifier gets."""
        return len(train.classes)

    def config(self, base: Any, train: Shards, settings: FinetuneSettings) -> Any:
        outputs = self.outputs(train, settings)
        if not 2 <= len(train.classes) <= outputs:
            raise ValueError(
                f"{train.folder} has {len(train.classes)} classes, --num-classes is {outputs}"
            )
        if isinstance(base, JetDecoderConfig):
            return replace(base, parts=("classifier",), num_classes=outputs)
        return replace(
            base,
            parts=("classifier",),
            num_classes=outputs,
            use_pid=base.use_pid and train.field("pid") is not None,
            use_tracks=base.use_tracks and train.field("tracks") is not None,
        )

    def objective(self, model: Any, settings: FinetuneSettings) -> Objective:
        return objective_of(model, settings.seed, turned=settings.augment == "rotation")

    def check(self, run: Path, shards: Shards, settings: EvaluateSettings) -> None:
        model = load_classifier(run)
        class_outputs(load_weights(run), model.config, shards, settings.class_map)

    def judge(
        self,
        run: Path,
        shards: Shards,
        settings: EvaluateSettings,
        device: torch.device,
        label: str,
    ) -> Any:
        model = load_classifier(run, device)
        outputs = class_outputs(
            load_weights(run), model.config, shards, settings.class_map, say=print
        )
        logits, labels = predict(
            model,
            shards,
            batch_size=settings.batch_size,
            num_jets=settings.num_jets,
            seed=settings.seed,
            label=label,
        )
        return self.report(joined(logits, outputs), labels, shards, settings)

    def report(
        self, logits: NDArray[Any], labels: NDArray[Any], shards: Shards, settings: EvaluateSettings
    ) -> Any:
        """The figures of merit of logits (B, C) for the labels (B,) of ``shards``."""
        return classification_report(
            logits, labels, shards.classes, bootstrap=settings.bootstrap, seed=settings.seed
        )

    def table(self, reports: Mapping[str, Report]) -> str:
        return report_table(reports)

    def record(self, report: Report) -> dict[str, Any]:
        return as_json(report)

    def draw(self, reports: Mapping[str, Report], shards: Shards, out: Path) -> None:
        from jetkern.plots import roc_figure

        taken: set[str] = set()
        for number, (name, report) in enumerate(reports.items()):
            if isinstance(report, BinaryReport):
                continue
            file = name.replace("/", "-")
            file = f"{file}-{number}" if file in taken else file
            taken.add(file)
            curves = {c: r.curve for c, r in report.against_background.items()}
            roc_figure(curves, out / f"roc-{file}.png", background=shards.classes[0])
        binary = {n: r.curve for n, r in reports.items() if isinstance(r, BinaryReport)}
        if binary:
            background, signal = shards.classes
            roc_figure(binary, out / "roc.png", signal=signal, background=background)


@register
class TopTagging(Classify):
    """Tops against QCD as in the study: all comes from the checkpoint but the last layer."""

    name = "top"

    def outputs(self, train: Shards, settings: FinetuneSettings) -> int:
        return settings.num_classes
