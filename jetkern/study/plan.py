"""A study as a file: what is pre-trained, on how much, what is tuned from it, how often."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jetkern.io import Document, printable, read_toml, user_path
from jetkern.model.config import unknown
from jetkern.model.presets import SIZES
from jetkern.objectives import parse_objective

TASKS = ("top", "jetnet")
# How a downstream model comes to be, and the flags of ``jetkern finetune`` for it.
WAYS: dict[str, tuple[str, ...]] = {
    "finetuned": (),
    "frozen": ("--freeze", "body"),
    "last-layers": ("--freeze", "all-but-head"),
    "probe": ("--probe", "linear"),
    "scratch": (),
}
Flags = dict[str, Any]


class StudyError(ValueError):
    """A study file that cannot be used, or results that are not those of the study."""

    exit_code = 2


@dataclass(frozen=True)
class Data:
    """Where shards are, and, if the study makes them, of what.

    Attributes:
        shards: folder with the splits.
        source: what ``jetkern convert`` reads, or None for shards that are there.
        convert: its further flags.
        simulate: words after ``jetkern simulate`` that make ``source``; none if it is there.
    """

    shards: Path
    source: Path | None = None
    convert: tuple[str, ...] = ()
    simulate: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pretraining:
    """The pre-trainings: every combination of the lists.

    Attributes:
        data: of the jets.
        objectives: in the model's order of parts.
        sizes: of models.
        jets: numbers of pre-training jets.
        seeds: of each.
        checkpoints: so many equally distant ones are kept, for the trajectories.
        settings: flags of ``jetkern pretrain``.
    """

    data: Data
    objectives: tuple[str, ...]
    sizes: tuple[str, ...]
    jets: tuple[int, ...]
    seeds: tuple[int, ...] = (0,)
    checkpoints: int = 0
    settings: Flags = field(default_factory=dict)


@dataclass(frozen=True)
class Downstream:
    """The fine-tunings of one task: every combination of the lists and of the pre-trainings.

    Attributes:
        task: as for ``jetkern finetune``.
        data: of the jets.
        jets: numbers of training jets.
        seeds: of each, for subset, order and new weights.
        ways: of ``WAYS``.
        objectives: of the pre-trainings to start from; none means all.
        rates: learning rates to choose from, by way of ``WAYS``; the one with the best validation
            loss of the first seed is taken for all. Without an entry, that of ``settings``.
        settings: flags of ``jetkern finetune``, and ``by_jets`` those for one number of jets.
        test_jets: jets to judge with; None for all.
        trees: also train boosted trees on jet variables.
        trajectory: numbers of jets for which to fine-tune from the intermediate checkpoints, too.
    """

    task: str
    data: Data
    jets: tuple[int, ...]
    seeds: tuple[int, ...]
    ways: tuple[str, ...]
    objectives: tuple[str, ...] = ()
    rates: dict[str, tuple[float, ...]] = field(default_factory=dict)
    settings: Flags = field(default_factory=dict)
    by_jets: dict[int, Flags] = field(default_factory=dict)
    test_jets: int | None = None
    trees: bool = False
    trajectory: tuple[int, ...] = ()


@dataclass(frozen=True)
class Study:
    """All of a study file; ``metric`` is what the verdicts on classifiers go by."""

    name: str
    pretraining: Pretraining
    tasks: tuple[Downstream, ...]
    metric: str = "r30"


def read_study(path: Path) -> Study:
    """The study in a TOML file.

    Raises:
        StudyError: naming the file and the field that is missing or wrong.
    """
    file = read_toml(path, error=StudyError, what="the study")
    _only(file, {"name", "metric", "data", "pretrain", *TASKS})
    data = file.record("data")
    places = {name: _data(data.record(name)) for name in data.content}

    def of(record: Document) -> Data:
        name = record.text("data")
        if name not in places:
            record.fail("data", f"is {name!r}, which is not below [data]")
        return places[name]

    training = file.record("pretrain")
    _only(training, {"data", "objectives", "sizes", "jets", "seeds", "checkpoints", "settings"})
    pretraining = Pretraining(
        data=of(training),
        objectives=tuple(_objective(training, o) for o in _some(training, "objectives")),
        sizes=_choices(training, "sizes", SIZES),
        jets=_numbers(training, "jets"),
        seeds=_numbers(training, "seeds", low=0) if "seeds" in training else (0,),
        checkpoints=training.integer("checkpoints") if "checkpoints" in training else 0,
        settings=_flags(training, "settings"),
    )
    if pretraining.checkpoints and "steps" not in pretraining.settings:
        training.fail("settings", "has no steps, which checkpoints divides")
    tasks = tuple(_task(name, file.record(name), of) for name in TASKS if name in file)
    for task in tasks:
        for objective in task.objectives:
            if objective not in pretraining.objectives:
                file.record(task.task).fail(
                    "objectives", f"has {objective}, which [pretrain] has not"
                )
    if any(task.trajectory for task in tasks) and not pretraining.checkpoints:
        training.fail("checkpoints", "is not above 0, but a task has a trajectory")
    if not tasks:
        raise StudyError(f"{printable(path)} has no task: a table [top] or [jetnet]")
    metric = file.text("metric") if "metric" in file else "r30"
    if metric not in ("r30", "r50", "auc", "accuracy", "cross_entropy"):
        file.fail("metric", f"is {metric!r}, which is no figure of merit")
    return Study(file.text("name"), pretraining, tasks, metric)


def _task(name: str, record: Document, of: Any) -> Downstream:
    known = {"data", "jets", "seeds", "transfer", "rates", "settings", "by_jets", "test_jets"}
    _only(record, known | {"objectives", "trees", "trajectory"})
    ways = _choices(record, "transfer", WAYS)
    if name != "top" and "probe" in ways:
        record.fail("transfer", "has a probe, which only a task with classes can have")
    rates: dict[str, tuple[float, ...]] = {}
    if "rates" in record:
        table = record.record("rates")
        _only(table, set(WAYS))
        for way in table.content:
            values = table.items(way)
            if not values or any(type(v) not in (int, float) or not v > 0 for v in values):
                table.fail(way, "is no list of learning rates")
            rates[way] = tuple(map(float, values))
    by_jets: dict[int, Flags] = {}
    if "by_jets" in record:
        table = record.record("by_jets")
        for jets in table.content:
            if not jets.isdigit():
                table.fail(jets, "is not named by a number of jets")
            by_jets[int(jets)] = _flags(table, jets)
    trees = record.content.get("trees", False)
    if type(trees) is not bool or (trees and name != "top"):
        record.fail("trees", "must be true or false, and is only for top")
    return Downstream(
        task=name,
        data=of(record),
        jets=_numbers(record, "jets"),
        seeds=_numbers(record, "seeds", low=0),
        ways=ways,
        objectives=tuple(_objective(record, o) for o in _some(record, "objectives"))
        if "objectives" in record
        else (),
        rates=rates,
        settings=_flags(record, "settings"),
        by_jets=by_jets,
        test_jets=record.integer("test_jets", low=1) if "test_jets" in record else None,
        trees=trees,
        trajectory=_numbers(record, "trajectory") if "trajectory" in record else (),
    )


def _data(record: Document) -> Data:
    _only(record, {"shards", "source", "convert", "simulate"})
    source = user_path(record.text("source")) if "source" in record else None
    lists = {n: tuple(record.texts(n)) if n in record else () for n in ("convert", "simulate")}
    if source is None and any(lists.values()):
        record.fail("source", "is missing: where do the files go that are made or converted?")
    return Data(user_path(record.text("shards")), source, **lists)


def _only(record: Document, known: set[str]) -> None:
    for name in record.content:
        if name not in known:
            record.fail(name, f"is unknown; {unknown('entry', name, known)}")


def _some(record: Document, key: str) -> list[str]:
    values = record.texts(key)
    if not values or len(set(values)) < len(values):
        record.fail(key, "must name at least one, each once")
    return values


def _choices(record: Document, key: str, known: Any) -> tuple[str, ...]:
    values = _some(record, key)
    for value in values:
        if value not in known:
            record.fail(key, str(unknown("entry", value, known)))
    return tuple(values)


def _objective(record: Document, text: str) -> str:
    try:
        return "+".join(parse_objective(text))
    except ValueError as error:
        record.fail("objectives", str(error))


def _numbers(record: Document, key: str, low: int = 1) -> tuple[int, ...]:
    values = record.integers(key, low=low)
    if not values or len(set(values)) < len(values):
        record.fail(key, "must have at least one number, each once")
    return tuple(values)


def _flags(record: Document, key: str) -> Flags:
    if key not in record:
        return {}
    table = record.record(key)
    for name, value in table.content.items():
        if not isinstance(value, (bool, int, float, str)):
            table.fail(name, "is no value of a flag")
    return dict(table.content)
