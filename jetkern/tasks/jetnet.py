"""Making jets of given types, conditioned on pT, mass and multiplicity, such as JetNet's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jetkern.data import Shards
from jetkern.evaluation.conditions import learn_conditions
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
from jetkern.evaluation.species import Species, species_report, species_table
from jetkern.evaluation.two_sample import two_sample_auc
from jetkern.jets import Jets
from jetkern.metrics.classification import Estimate
from jetkern.model.columns import without_columns
from jetkern.model.config import PETConfig, noise_of
from jetkern.model.epic import EPIC_SIZES, EPiCConfig, with_conditions
from jetkern.sampling import field_of, noise_jets, sample, with_evaluations
from jetkern.tasks.task import Task, register
from jetkern.training.columns import columns_of, conditions_of
from jetkern.training.config import EvaluateSettings, FinetuneSettings
from jetkern.training.data import check_same, describe
from jetkern.training.defaults import size_from
from jetkern.training.weights import Weights, any_config

AUC = "AUC of a classifier"


@register
class JetNet(Task):
    """Conditional generation as in arXiv 2606.14870, the type after the body; of kinematics only,
    or with identities and tracks, by a PET or an EPiC (arXiv 2312.00123)."""

    name = "jetnet"
    configs: tuple[type[Any], ...] = (PETConfig, EPiCConfig)
    reset: tuple[str, ...] = ("generator.type_embed", "generator.out", "body.condition_embed")

    def defaults(
        self,
        preset: str | None = None,
        source: str | None = None,
        num_jets: int | None = None,
        tokenizer: str | None = None,
    ) -> FinetuneSettings:
        """Lion, decay 0.01, 70,000 updates of 4096 jets; averaged weights are what generates.

        The study's rates are not public: these are OmniLearn's for JetNet, 5e-5 from scratch and
        1e-5 from a checkpoint (5e-6 for medium and large).
        """
        base = super().defaults(preset, source, num_jets, tokenizer)
        if size_from(preset, source, tokenizer) in EPIC_SIZES:
            return base
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

    def config(
        self, base: Any, train: Shards, settings: FinetuneSettings
    ) -> PETConfig | EPiCConfig:
        if not train.condition:
            raise ValueError(f"{train.folder} has no conditions; jets of JetNet have them")
        fresh = settings.source is None or settings.preset is not None
        told = conditions_of(train) | {"label_drop": settings.label_drop}
        told |= columns_of(
            base,
            settings.columns,
            train,
            fresh=fresh,
            units=settings.velocity_units,
            num_jets=settings.num_jets,
            seed=settings.seed,
        )
        if isinstance(base, EPiCConfig):
            return replace(base, **told)
        return replace(base, parts=("generator",), use_pid=False, use_tracks=False, **told)

    def state(
        self, weights: Weights, config: PETConfig | EPiCConfig, train: Shards
    ) -> Mapping[str, Tensor]:
        """Of an EPiC that has learned other types or conditions, without what is known of these."""
        if not isinstance(config, EPiCConfig):
            return weights.state
        before = any_config(weights)
        here, there = describe(train), weights.data
        same = all(here[name] == list(there.get(name, ())) for name in ("classes", "condition"))
        if same or not isinstance(before, EPiCConfig):
            return weights.state
        return with_conditions(weights.state, before, config)

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
            model, weights = load_generator(run)
            check_same(weights.data, shards, model.config.fields, str(weights.path))
        elif (found := read_generated(run)[0].classes) not in ((), shards.classes):
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
        its jets. Where these have no types, a decoder's, all real jets are of one.
        """
        if is_generated(run):
            source, evaluations = read_generated(run)
            fields, classes = _made_fields(source, shards), source.classes
            real = first_jets(shards, settings.num_jets, fields)
            made = first_jets(source, None, fields)
        else:
            model, _ = load_generator(run)
            fields, classes = model.config.fields, shards.classes
            real = first_jets(shards, settings.num_jets, fields)
            made, evaluations = _imitate(model, real, settings, device)
        if not classes:
            classes = ("all",)
            real, made = (
                jets.replace(label=torch.zeros_like(jets.counts)) for jets in (real, made)
            )
        from jetkern.evaluation.figures import grid_figure, image_figure, sheet_figure

        stem = label.replace("/", "-")
        for number, kind in enumerate(classes):
            one, other = (jets_of_type(jets, number) for jets in (real, made))
            if len(one):
                sheet_figure(one, {label: other}, settings.out / f"{stem}-{kind}.png")
        grid_figure(real, {label: made}, classes, settings.out / f"{stem}-grid.png")
        image_figure(real, made, classes, settings.out / f"{stem}-images.png")
        report = generation_report(
            real, made, classes, seed=settings.seed, coverage=settings.coverage
        )
        if settings.two_sample:
            report.distances[AVERAGE][AUC] = _two_sample(real, made, settings, device)
        species: dict[str, dict[str, Species]] = {}
        if "pid" in fields:
            tracks = shards.field("tracks") if "tracks" in fields else None
            columns = () if tracks is None else tracks.columns
            species = species_report(real, made, classes, columns, seed=settings.seed)
        return replace(report, evaluations=evaluations, species=species)

    def draw(self, reports: Mapping[str, GenerationReport], shards: Shards, out: Path) -> None:
        from jetkern.evaluation.figures import quality_figure

        if len({r.evaluations for r in reports.values()} - {None}) > 1:
            quality_figure(reports, out / "evaluations.png")

    def table(self, reports: Mapping[str, GenerationReport]) -> str:
        parts: list[str] = []
        for name, report in reports.items():
            parts += [f"**{name}**", generation_table(report)]
            parts += [species_table(report.species)] if report.species else []
        return "\n\n".join(parts)

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
            "species": {
                kind: {name: asdict(found) for name, found in all_.items()}
                for kind, all_ in report.species.items()
            },
        }


def _made_fields(source: Shards, shards: Shards) -> tuple[str, ...]:
    """The fields that generated jets have beside kinematics.

    Raises:
        ValueError: if the real jets lack one, or have it on another scale.
    """
    fields = []
    for name in ("pid", "tracks"):
        made, real = source.field(name), shards.field(name)
        if made is None:
            continue
        if real is None or real.columns != made.columns:
            raise ValueError(
                f"{source.folder} has {name} on a scale that {shards.folder} does not have"
            )
        fields.append(name)
    return tuple(fields)


def _imitate(
    model: Any, real: Jets, settings: EvaluateSettings, device: torch.device
) -> tuple[Jets, int]:
    """A jet like each of ``real``, and the evaluations that each took."""
    config = model.config
    few = bool(config.few_steps)
    scheme = with_evaluations(*default_scheme(config, None if few else "ab2"))
    start = noise_jets(
        real.counts,
        seed=settings.seed,
        label=real.label,
        condition=real.condition,
        statistics=noise_of(config),
    )
    made = sample(
        field_of(model.to(device)),
        start.to(device),
        scheme,
        batch_size=settings.batch_size,
        progress=True,
    )
    return without_columns(made.to("cpu"), config.columns), scheme.evaluations


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
