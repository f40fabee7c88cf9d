"""Making jets of the five types of JetNet, conditioned on pT, mass and multiplicity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jetkern.data import Shards
from jetkern.evaluation.conditions import learn_conditions
from jetkern.evaluation.figures import grid_figure, image_figure, quality_figure, sheet_figure
from jetkern.evaluation.generate import (
    default_scheme,
    first_jets,
    is_generated,
    load_generator,
    read_generated,
)
from jetkern.evaluation.generation import (
    AVERAGE,
    Distance,
    GenerationReport,
    generation_report,
    generation_table,
    jets_of_type,
)
from jetkern.evaluation.two_sample import two_sample_auc
from jetkern.jets import Jets
from jetkern.metrics.classification import Estimate
from jetkern.model.config import PETConfig
from jetkern.sampling import PETVelocity, noise_jets, sample, with_evaluations
from jetkern.tasks.task import Task, register
from jetkern.training.config import EvaluateSettings, FinetuneSettings

AUC = "AUC of a classifier"
SCALES = {"jet_pt": 1000.0, "jet_mass": 100.0}  # GeV; multiplicity comes as n / 100


@register
class JetNet(Task):
    """Conditional generation as in arXiv 2606.14870: kinematics only, the type after the body."""

    name = "jetnet"
    reset: tuple[str, ...] = ("generator.type_embed", "generator.out", "body.condition_embed")

    def defaults(
        self, preset: str | None = None, source: str | None = None, num_jets: int | None = None
    ) -> FinetuneSettings:
        """Lion, decay 0.01, 70,000 updates of 4096 jets; averaged weights are what generates.

        The study's rates are not public: these are OmniLearn's for JetNet, 5e-5 from scratch and
        1e-5 from a checkpoint (5e-6 for medium and large).
        """
        base = super().defaults(preset, source, num_jets)
        rate = 5e-5 if source is None else 5e-6 if preset in ("medium", "large") else 1e-5
        return replace(
            base,
            optim=replace(
                base.optim,
                lr=rate,
                weight_decay=0.01,
                batch_size=4096,
                steps=70_000,
                warmup_steps=1000,
                ema_decay=0.999,
            ),
            validation=replace(base.validation, patience=None, val_jets=None),
        )

    def config(self, base: PETConfig, train: Shards, settings: FinetuneSettings) -> PETConfig:
        if not train.condition:
            raise ValueError(f"{train.folder} has no conditions; jets of JetNet have them")
        return replace(
            base,
            parts=("generator",),
            num_classes=len(train.classes),
            condition_dim=len(train.condition),
            condition_scale=tuple(SCALES.get(name, 1.0) for name in train.condition),
            use_pid=False,
            use_tracks=False,
            label_drop=settings.label_drop,
        )

    def complete(self, train: Shards, settings: FinetuneSettings) -> None:
        """Learns the conditions, for ``generate --conditions model``."""
        learn_conditions(
            settings.out,
            train,
            num_jets=settings.num_jets,
            steps=settings.optim.steps,
            seed=settings.seed,
        )

    def check(self, run: Path, shards: Shards, settings: EvaluateSettings) -> None:
        if settings.coverage:
            import_module("ot")  # rather than after all else
        if not is_generated(run):
            load_generator(run)
        elif (found := read_generated(run)[0].classes) != shards.classes:
            raise ValueError(
                f"{run} has jets of {', '.join(found)}, {shards.folder} of "
                f"{', '.join(shards.classes)}"
            )

    def judge(
        self,
        run: Path,
        shards: Shards,
        settings: EvaluateSettings,
        device: torch.device,
        label: str,
    ) -> GenerationReport:
        """Draws and compares generated with real jets.

        A run makes a jet for each of the first jets of ``shards``; a folder of ``generate`` has
        its jets.
        """
        real = first_jets(shards, settings.num_jets)
        if is_generated(run):
            source, evaluations = read_generated(run)
            made = first_jets(source)
        else:
            made, evaluations = _imitate(run, real, settings, device)
        stem = label.replace("/", "-")
        for number, kind in enumerate(shards.classes):
            one, other = (jets_of_type(jets, number) for jets in (real, made))
            if len(one):
                sheet_figure(one, {label: other}, settings.out / f"{stem}-{kind}.png")
        grid_figure(real, {label: made}, shards.classes, settings.out / f"{stem}-grid.png")
        image_figure(real, made, shards.classes, settings.out / f"{stem}-images.png")
        report = generation_report(
            real, made, shards.classes, seed=settings.seed, coverage=settings.coverage
        )
        if settings.two_sample:
            report.distances[AVERAGE][AUC] = _two_sample(real, made, settings, device)
        return replace(report, evaluations=evaluations)

    def draw(self, reports: Mapping[str, GenerationReport], shards: Shards, out: Path) -> None:
        if len({r.evaluations for r in reports.values()}) > 1:
            quality_figure(reports, out / "evaluations.png")

    def table(self, reports: Mapping[str, GenerationReport]) -> str:
        return "\n\n".join(f"**{name}**\n\n{generation_table(r)}" for name, r in reports.items())

    def record(self, report: GenerationReport) -> dict[str, Any]:
        def plain(value: Estimate) -> list[float]:
            return [value.value, value.error]

        distances = {
            kind: {n: {"value": plain(d.value), "floor": plain(d.floor)} for n, d in all_.items()}
            for kind, all_ in report.distances.items()
        }
        return {
            "distances": distances,
            "resampled": report.jets,
            "evaluations": report.evaluations,
        }


def _imitate(
    run: Path, real: Jets, settings: EvaluateSettings, device: torch.device
) -> tuple[Jets, int]:
    """A jet like each of ``real``, and the evaluations that each took."""
    model, _ = load_generator(run)
    start = noise_jets(real.counts, seed=settings.seed, label=real.label, condition=real.condition)
    few = bool(model.config.few_steps)
    scheme = with_evaluations(*default_scheme(model.config, None if few else "ab2"))
    made = sample(
        PETVelocity(model.to(device)),
        start.to(device),
        scheme,
        batch_size=settings.batch_size,
        progress=True,
    )
    return made.to("cpu"), scheme.evaluations


def _two_sample(
    real: Jets, made: Jets, settings: EvaluateSettings, device: torch.device
) -> Distance:
    """Generated jets against one half of the real ones, and that half against the other."""
    order = torch.from_numpy(np.random.default_rng(settings.seed).permutation(len(real)))
    one, other = (real.select(half) for half in order.tensor_split(2))
    value, floor = (
        two_sample_auc(
            one,
            jets,
            steps=settings.two_sample,
            bootstrap=settings.bootstrap,
            seed=settings.seed,
            device=device,
        )
        for jets in (made, other)
    )
    return Distance(value, floor)
