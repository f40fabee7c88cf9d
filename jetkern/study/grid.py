"""The runs of a study: names, commands and what each waits for.

Every job is one command that a user could type in the study's folder. Its last output is written
when it has ended, so that a workflow that was killed knows what is left.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from jetkern.evaluation.generate import EVALUATIONS, RECORD
from jetkern.study.plan import WAYS, Data, Downstream, Flags, Study
from jetkern.tasks import find_task
from jetkern.training.config import OptimSettings
from jetkern.training.defaults import pretrain_defaults

RULES = (
    "simulate",
    "convert",
    "pretrain",
    "finetune",
    "choose",
    "baseline",
    "generate",
    "evaluate",
    "report",
)


@dataclass(frozen=True)
class Work:
    """What a job costs: ``jets`` through a model of ``size`` with the losses of ``objective``,
    trained with a ``batch_size`` or, with 0, only looked at."""

    size: str
    objective: str
    jets: int
    batch_size: int = 0


@dataclass(frozen=True)
class Job:
    """One command.

    Attributes:
        rule: of ``RULES``.
        name: unique in its rule, and part of the output.
        output: file that it writes last, relative to the study's folder.
        inputs: files that must be there before.
        words: of the command after ``jetkern``.
        work: for the estimate of its time.
    """

    rule: str
    name: str
    output: str
    inputs: tuple[str, ...]
    words: tuple[str, ...]
    work: Work | None = None


@dataclass(frozen=True)
class Run:
    """A trained model of the study, and where its results are.

    Attributes:
        task: "pretrain" or that of ``Downstream``.
        way: of ``WAYS``, "trees", or "" for a pre-training.
        size: of the model.
        objective: of the pre-training, "scratch", or "trees".
        pretrain_jets: 0 without pre-training.
        jets: of this training.
        seed: of this training, and ``pretrain_seed``.
        checkpoint: updates of the pre-training that it started from; 0 for its best.
        folder: of the run.
        report: of its evaluation.
    """

    task: str
    way: str
    size: str
    objective: str
    pretrain_jets: int
    jets: int
    seed: int
    pretrain_seed: int = 0
    checkpoint: int = 0
    folder: str = ""
    report: str = ""


@dataclass
class Grid:
    """All runs and jobs of a study."""

    study: Study
    runs: list[Run] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._by_name: dict[tuple[str, str], Job] = {}

    def of(self, rule: str, name: str) -> Job:
        """The job of that rule and name."""
        return self._by_name[rule, name]

    def add(self, job: Job) -> None:
        """Takes a job in, once."""
        if (job.rule, job.name) not in self._by_name:
            self._by_name[job.rule, job.name] = job
            self.jobs.append(job)


def make_grid(study: Study, file: Path, base: Path) -> Grid:
    """The grid of a study.

    Args:
        study: from ``file``, which the report is made from, too.
        base: folder that relative paths in the file start from.
    """
    grid = Grid(study)
    sources = _pretrainings(grid, base)
    for task in study.tasks:
        _tunings(grid, task, sources, base)
    grid.add(
        Job(
            "report",
            "report",
            "report/report.md",
            tuple(job.output for job in grid.jobs),
            ("report", os.path.abspath(base / file), "--results", "."),
        )
    )
    return grid


def _pretrainings(grid: Grid, base: Path) -> list[Run]:
    plan = grid.study.pretraining
    shards, made = _shards(grid, plan.data, base)
    runs = []
    for size in plan.sizes:
        for objective in plan.objectives:
            for jets in plan.jets:
                for seed in plan.seeds:
                    run = Run("pretrain", "", size, objective, jets, jets, seed)
                    folder = f"pretrain/{size}-{objective}-{jets}-s{seed}"
                    flags = dict(plan.settings)
                    optim = _optim(pretrain_defaults(size, objective).optim, flags)
                    if plan.checkpoints:
                        flags["keep_every"] = max(1, optim.steps // plan.checkpoints)
                        flags["val_every"] = flags["keep_every"]
                    words = ["pretrain", "--preset", size, "--objective", objective]
                    words += ["--data", shards, "--num-jets", str(jets), "--seed", str(seed)]
                    work = Work(size, objective, optim.steps * optim.batch_size, optim.batch_size)
                    grid.add(_training(folder, (made,), [*words, *_words(flags)], work))
                    runs.append(_with(run, folder=folder))
    grid.runs += runs
    return runs


def _tunings(grid: Grid, task: Downstream, sources: list[Run], base: Path) -> None:
    shards, made = _shards(grid, task.data, base)
    plan = grid.study.pretraining
    sources = [s for s in sources if not task.objectives or s.objective in task.objectives]
    for jets in task.jets:
        for way in task.ways:
            if way == "scratch":
                for size in plan.sizes:
                    start = Run(task.task, way, size, "scratch", 0, jets, 0)
                    _cell(grid, task, start, None, shards, made)
                continue
            for source in sources:
                start = _with(source, task=task.task, way=way, jets=jets)
                start = _with(start, pretrain_seed=source.seed)
                _cell(grid, task, start, source, shards, made)
                last = source.jets == max(plan.jets)
                if way == "finetuned" and last and jets in task.trajectory:
                    steps = plan.settings["steps"]
                    every = max(1, steps // plan.checkpoints)
                    for step in range(every, steps + 1, every):
                        early = _with(start, checkpoint=step)
                        _cell(grid, task, early, source, shards, made)
        for seed in task.seeds if task.trees else ():
            name = f"{task.task}-{jets}-trees-s{seed}"
            report = f"evaluations/{name}/report.json"
            words = ["baseline", "--data", shards, "--num-jets", str(jets)]
            words += ["--seed", str(seed), "--out", f"evaluations/{name}"]
            words += ["--test-jets", str(task.test_jets)] if task.test_jets else []
            grid.add(Job("baseline", name, report, (made,), tuple(words)))
            grid.runs.append(Run(task.task, "trees", "", "trees", 0, jets, seed, report=report))


def _cell(
    grid: Grid, task: Downstream, start: Run, source: Run | None, shards: str, made: str
) -> None:
    """The runs of all seeds from one starting point, and the choice of their learning rate."""
    cell = f"{task.task}-{start.jets}-{start.way}-{start.size}"
    checkpoint = ""
    if source is not None:
        cell += f"-{start.objective}-{start.pretrain_jets}-s{start.pretrain_seed}"
        checkpoint = source.folder
    choice = f"choices/{cell}.toml"
    if start.checkpoint:  # learns at the rate that was chosen for the last one
        cell += f"-u{start.checkpoint}"
        checkpoint += f"/checkpoints/step-{start.checkpoint:08d}"
    waits = (made,) if source is None else (made, f"{source.folder}/DONE")
    flags = task.settings | task.by_jets.get(start.jets, {})
    rates = task.rates.get(start.way, ())
    if rates:
        flags = {name: value for name, value in flags.items() if name != "lr"}
    defaults = find_task(task.task).defaults(start.size, checkpoint or None, start.jets)
    optim = _optim(defaults.optim, flags)
    work = Work(
        start.size,
        "generator" if task.task == "jetnet" else "classifier",
        optim.steps * optim.batch_size,
        optim.batch_size,
    )

    def train(folder: str, seed: int, more: list[str], *needs: str) -> None:
        words = ["finetune", task.task, "--preset", start.size]
        words += ["--from", checkpoint] if checkpoint else []
        words += [*WAYS[start.way], "--data", shards, "--num-jets", str(start.jets)]
        words += ["--seed", str(seed), *_words(flags), *more]
        grid.add(_training(folder, (*waits, *needs), words, work))

    first, folders = task.seeds[0], {}
    if len(rates) > 1 and not start.checkpoint:
        tried = []
        for rate in rates:
            tried.append(f"finetune/{cell}-s{first}-lr{rate:g}")
            train(tried[-1], first, ["--lr", f"{rate:g}"])
        folders[first] = f"chosen/{cell}"
        words = ["choose", *tried, "--out", choice, "--run", folders[first]]
        grid.add(Job("choose", cell, choice, tuple(f"{t}/DONE" for t in tried), tuple(words)))
    for seed in task.seeds[:1] if start.checkpoint else task.seeds:
        if seed not in folders:
            folders[seed] = f"finetune/{cell}-s{seed}"
            if len(rates) > 1:
                train(folders[seed], seed, ["--config", choice], choice)
            else:
                train(folders[seed], seed, [w for r in rates for w in ("--lr", f"{r:g}")])
        name = f"{cell}-s{seed}"
        report = f"evaluations/{name}/report.json"
        done = choice if folders[seed].startswith("chosen/") else f"{folders[seed]}/DONE"
        number = ["--num-jets", str(task.test_jets)] if task.test_jets else []
        judged, subject = Work(start.size, work.objective, task.test_jets or 0), folders[seed]
        if task.task == "jetnet":  # its jets are made once, and judged
            subject, ready = f"generated/{name}", f"generated/{name}/{RECORD}"
            words = ["generate", folders[seed], "--conditions", f"{shards}/test"]
            words += ["--solver", "ab2", "--out", subject, *number]
            passes = replace(judged, jets=EVALUATIONS * judged.jets)
            grid.add(Job("generate", name, ready, (made, done), tuple(words), passes))
            done = ready
        words = ["evaluate", subject, "--data", shards, "--out", f"evaluations/{name}", *number]
        grid.add(Job("evaluate", name, report, (made, done), tuple(words), judged))
        grid.runs.append(_with(start, seed=seed, folder=folders[seed], report=report))


def _shards(grid: Grid, data: Data, base: Path) -> tuple[str, str]:
    """The shard folder of a data set and the file that is there once it is complete."""
    shards = os.path.abspath(base / data.shards)
    if data.source is None:
        return shards, f"{shards}/train/manifest.json"
    name, source = data.shards.name, os.path.abspath(base / data.source)
    made = f"made/{name}.shards"
    waits: tuple[str, ...] = ()
    if data.simulate:
        waits = (f"made/{name}.jets",)
        words = ["simulate", *data.simulate, "--out", source]
        grid.add(Job("simulate", name, waits[0], (), tuple(words)))
    words = ["convert", source, "--out", shards]
    for before, word in zip(("", *data.convert), data.convert, strict=False):
        words.append(os.path.abspath(base / word) if before == "--schema" else word)
    grid.add(Job("convert", name, made, waits, tuple(words)))
    return shards, made


def _training(folder: str, inputs: tuple[str, ...], words: list[str], work: Work) -> Job:
    rule, _, name = folder.partition("/")
    return Job(rule, name, f"{folder}/DONE", inputs, (*words, "--out", folder), work)


def _optim(defaults: OptimSettings, flags: Flags) -> OptimSettings:
    known = {name: flags[name] for name in ("steps", "batch_size") if name in flags}
    return replace(defaults, warmup_steps=0, **known)


def _words(flags: Flags) -> Iterator[str]:
    for name, value in flags.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{flag}" if value else f"--no-{flag}"
        else:
            yield from (f"--{flag}", str(value))


def _with(run: Run, **changes: object) -> Run:
    return replace(run, **changes)  # type: ignore[arg-type]
