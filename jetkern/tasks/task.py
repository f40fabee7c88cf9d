"""What a task is made of, and the tasks that there are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from jetkern.data import Shards
from jetkern.model.config import PETConfig, unknown
from jetkern.objectives import Objective, objective_of
from jetkern.training.config import EvaluateSettings, FinetuneSettings
from jetkern.training.defaults import finetune_defaults
from jetkern.training.weights import Weights


class Task(ABC):
    """Jets, the part of the model, its losses, figures of merit, and the settings to begin with.

    Attributes:
        name: on the command line.
        reset: prefixes of parameters that are never taken from a checkpoint.
        augments: whether its jets may be turned, see ``FinetuneSettings.augment``.
        configs: of the kinds of models that it can be learned by.
    """

    name: ClassVar[str]
    reset: tuple[str, ...] = ()
    augments: ClassVar[bool] = False
    configs: tuple[type[Any], ...] = (PETConfig,)

    def defaults(
        self,
        preset: str | None = None,
        source: str | None = None,
        num_jets: int | None = None,
        tokenizer: str | None = None,
    ) -> FinetuneSettings:
        """Settings by model size, checkpoint, number of jets, and the tokeniser of a decoder."""
        return finetune_defaults(preset, source, num_jets, tokenizer)

    def state(self, weights: Weights, config: Any, train: Shards) -> Mapping[str, Tensor]:
        """The tensors of a checkpoint as the model for these jets takes them."""
        return weights.state

    @abstractmethod
    def config(self, base: Any, train: Shards, settings: FinetuneSettings) -> Any:
        """The model for these jets, given that of the checkpoint or preset, one of ``configs``.

        Raises:
            ValueError: for jets that lack what the task needs.
        """

    def objective(self, model: Any, settings: FinetuneSettings) -> Objective:
        """The losses to train with; by default those of the model's parts."""
        return objective_of(model, settings.seed)

    def identity(self, settings: FinetuneSettings) -> dict[str, Any]:
        """What else the result depends on, by the names of settings."""
        return {}

    def complete(self, train: Shards, settings: FinetuneSettings) -> None:  # noqa: B027 - a hook
        """Adds to a run whose training has ended, unless it did before; by default nothing.

        A run that was killed in the middle of it is completed by the same command.
        """

    @abstractmethod
    def check(self, run: Path, shards: Shards, settings: EvaluateSettings) -> None:
        """Makes sure that ``judge`` can begin.

        Raises:
            ValueError: naming what does not fit.
        """

    @abstractmethod
    def judge(
        self,
        run: Path,
        shards: Shards,
        settings: EvaluateSettings,
        device: torch.device,
        label: str,
    ) -> Any:
        """The figures of merit of a run or checkpoint; ``label`` for a progress bar."""

    @abstractmethod
    def table(self, reports: Mapping[str, Any]) -> str:
        """The results of ``judge`` by run as a Markdown table."""

    @abstractmethod
    def record(self, report: Any) -> dict[str, Any]:
        """A result of ``judge`` in JSON's types."""

    def draw(  # noqa: B027 - a hook
        self, reports: Mapping[str, Any], shards: Shards, out: Path
    ) -> None:
        """Writes the task's figures into the folder ``out``; by default none."""


TASKS: dict[str, type[Task]] = {}


def register(task: type[Task]) -> type[Task]:
    """Makes a task known under its name; used as a decorator.

    Raises:
        ValueError: if another task has the name.
    """
    if TASKS.get(task.name, task) is not task:
        raise ValueError(f"there is a task {task.name!r} already")
    TASKS[task.name] = task
    return task


def find_task(name: str) -> Task:
    """The task of that name.

    Raises:
        ValueError: if there is none, with the one that may have been meant.
    """
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return TASKS[name]()
