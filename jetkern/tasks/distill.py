"""Few-step generators: a trained generator's trajectories, learned as mean velocities of steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from jetkern.data import Shards
from jetkern.evaluation.generate import load_generator
from jetkern.jets import Jets
from jetkern.model.config import PETConfig
from jetkern.model.pet import PET
from jetkern.objectives import Objective, flow
from jetkern.objectives.losses import FlowMatching
from jetkern.objectives.views import NOISE, TIME, View
from jetkern.packed import constant
from jetkern.random import uniform
from jetkern.sampling import Velocity, integrate, scheme, uniform_grid
from jetkern.tasks.jetnet import JetNet
from jetkern.tasks.task import register
from jetkern.training.config import FinetuneSettings

STEPS = (1, 2, 4)  # numbers of steps that the generator learns
TEACHER = scheme("midpoint", uniform_grid(2, 0, 1))  # over one of the shortest steps


class Distillation(FlowMatching):
    """Squared error of the mean velocity of a step, in units of the noise's widths.

    A jet is put on the path to noise where one of the steps of ``STEPS`` begins. The target of a
    shortest step is the teacher's mean velocity over it; that of a longer one is the mean of the
    model's own over its two halves, without a gradient (progressive distillation, arXiv 2202.00512,
    with all levels at once as in shortcut models, arXiv 2410.12557, and a teacher at the bottom).
    """

    def __init__(self, model: PET, teacher: PET) -> None:
        super().__init__(flow.NOISE_WIDTH)
        self.model, self.teacher = model, teacher
        self.view = self.make

    def make(self, jets: Jets, index: Tensor, seed: int) -> View:
        """The jets where their step begins; ``target`` is the mean velocity of the step."""
        time = steps_at(uniform(seed, TIME, index)).to(jets.particles.dtype)
        moved, _ = flow.on_path(jets, index, seed, NOISE, time[:, 0])
        with torch.no_grad():
            target = self.target(moved, time)
        return View(moved, jets, time=time, target=target)

    def target(self, jets: Jets, time: Tensor) -> Tensor:
        """(T, 4) mean velocity of ``jets`` over their steps ``time`` (B, 2)."""
        shortest = time[:, 0] - time[:, 1] <= 1 / max(STEPS)
        teacher = self.teacher.to(jets.offsets.device)
        known = mean_velocity(teacher.velocity, jets.select(shortest), time[shortest])
        longer, (begin, end) = jets.select(~shortest), time[~shortest].unbind(1)
        middle = (begin + end) / 2
        first = self.model.velocity(longer, torch.stack([begin, middle], 1))
        moved = (middle - begin)[longer.jet_of_particle][:, None] * first
        halfway = longer.replace(particles=longer.particles + moved)
        second = self.model.velocity(halfway, torch.stack([middle, end], 1))
        target = torch.empty_like(jets.particles)
        of_shortest = shortest[jets.jet_of_particle]
        target[of_shortest] = known
        target[~of_shortest] = (first + second) / 2
        return target

    def outputs(self, model: PET, seen: Sequence[View]) -> list[Tensor]:
        assert model.generator is not None
        return [model.generator(*view.read(), view.whole) for view in seen]


def steps_at(chance: Tensor) -> Tensor:
    """(B, 2) begin and end of one step for each number in (0, 1), all steps as likely."""
    steps = tuple((1 - k / n, 1 - (k + 1) / n) for n in STEPS for k in range(n))
    return constant(steps, chance.dtype, chance.device)[(chance * len(steps)).long()]


def mean_velocity(velocity: Velocity, jets: Jets, time: Tensor) -> Tensor:
    """(T, 4) mean velocity along the trajectories from ``time[:, 0]`` to ``time[:, 1]``."""
    begin, length = time[:, 0], time[:, 1] - time[:, 0]

    def along(x: Tensor, k: int) -> Tensor:
        return velocity(jets.replace(particles=x), begin + TEACHER.times[k] * length) * scale

    scale = length[jets.jet_of_particle][:, None]
    return (integrate(along, jets.particles, TEACHER) - jets.particles) / scale


@register
class Distill(JetNet):
    """A generator for ``STEPS`` evaluations, from one that was trained for the task jetnet."""

    name = "distill"
    reset = ()
    configs: tuple[type[Any], ...] = (PETConfig,)

    def defaults(
        self,
        preset: str | None = None,
        source: str | None = None,
        num_jets: int | None = None,
        tokenizer: str | None = None,
    ) -> FinetuneSettings:
        """Lion, decay 0.01, 10,000 updates of 1024 jets; averaged weights are what generates.

        The rate is for micro, the one size it was tried with.
        """
        base = super().defaults(preset, source, num_jets, tokenizer)
        optim = replace(base.optim, lr=1e-4, batch_size=1024, steps=10_000, warmup_steps=200)
        return replace(base, optim=optim, validation=replace(base.validation, val_jets=10_000))

    def config(self, base: PETConfig, train: Shards, settings: FinetuneSettings) -> PETConfig:
        if settings.source is None or settings.preset is not None:
            raise ValueError("distill takes its model, a trained generator, from --from RUN alone")
        if base.columns:
            raise ValueError(f"{settings.source} makes columns beside kinematics: not distilled")
        if base.few_steps:
            raise ValueError(f"{settings.source} is distilled already")
        for what, ours, theirs in (
            ("conditions", base.condition_dim, len(train.condition)),
            ("types", base.num_classes, len(train.classes)),
        ):
            if ours != theirs:
                raise ValueError(f"{settings.source} has {ours} {what}, {train.folder} {theirs}")
        return replace(base, few_steps=STEPS)

    def objective(self, model: PET, settings: FinetuneSettings) -> Objective:
        assert settings.source is not None
        teacher, _ = load_generator(settings.source)
        loss = Distillation(model, teacher.requires_grad_(False))
        return Objective(model, settings.seed, losses=[loss])
