"""Pre-train, fine-tune, evaluate: functions of settings, for the commands, scripts and notebooks.

from dataclasses import replace
from pathlib import Path
from jetkern.recipes import pretrain
from jetkern.training.defaults import pretrain_defaults

settings = pretrain_defaults(preset="micro", objective="classifier+mpm")
pretrain(replace(settings, data=Path("shards/jetclass"), out=Path("runs/a")))
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from jetkern.data import Shards, select_classes
from jetkern.evaluation.generate import is_generated, read_generated
from jetkern.io import prepare_folder, printable, remove_leftovers, write_atomically
from jetkern.machine import environment
from jetkern.model.config import PETConfig
from jetkern.model.epic import EPIC_SIZES, EPiCConfig, epic_preset
from jetkern.model.jet_decoder import NEXT_TOKEN, JetDecoder, jet_decoder_config
from jetkern.model.kinds import build
from jetkern.model.pet import PET
from jetkern.model.presets import model_preset
from jetkern.model.shower_decoder import SHOWER_PRESETS, ShowerDecoder, shower_decoder_config
from jetkern.objectives import Objective, objective_of, parse_objective
from jetkern.tables import show
from jetkern.tasks import Task, find_task
from jetkern.tokenizers import Tokenizer
from jetkern.training import masked
from jetkern.training.columns import columns_of, conditions_of, of_kinematics
from jetkern.training.config import EvaluateSettings, FinetuneSettings, PretrainSettings
from jetkern.training.data import check_same
from jetkern.training.distributed import World, choose_device, join_world
from jetkern.training.log import read_metrics
from jetkern.training.plugins import load_plugins
from jetkern.training.schedule import thawed_at
from jetkern.training.showers import shower_shape
from jetkern.training.start import adapted, base_config, begun
from jetkern.training.tokenize import tokenizer_for
from jetkern.training.trainer import SIGNAL, Trainer, open_splits
from jetkern.training.transfer import freeze, lr_factors
from jetkern.training.weights import load_matching, load_weights


def pretrain(settings: PretrainSettings) -> dict[str, Any]:
    """Trains a foundation model in a run folder, or continues it.

    Returns:
        what ``Trainer.fit`` does.

    Raises:
        ValueError: for settings and jets that do not fit each other.
    """
    load_plugins(settings.plugin)
    parts = parse_objective(settings.objective)
    with join_world(settings.run.device) as world:
        train, val = open_splits(settings.data, settings.classes)
        if train.points or settings.preset in SHOWER_PRESETS:
            return _showers(settings, parts, world, train, val)
        tokenizer = tokenizer_for(settings.tokenizer, train)
        if NEXT_TOKEN in parts:
            return _next_token(settings, tokenizer, world, train, val)
        if settings.columns is not None or settings.preset in EPIC_SIZES:
            return _columns(settings, world, train, val)
        config = model_preset(
            settings.preset,
            parts,
            num_classes=len(train.classes) or 1,
            use_pid=train.field("pid") is not None,
            use_tracks=train.field("tracks") is not None,
            feature_drop=settings.feature_drop,
            **of_kinematics(None, settings.velocity_units or "features"),
            **(masked.model_changes(settings.masked, tokenizer) if "mpm" in parts else {}),
        )
        masked.check_fields(config, train)
        torch.manual_seed(settings.seed)
        model = PET(config)
        masked.keep_tokenizer(model, tokenizer)
        objective = Objective(
            model,
            settings.seed,
            perturbed=settings.perturbed,
            losses=masked.losses(config, settings.masked),
        )
        identity = {"perturbed": settings.perturbed}
        identity |= masked.identity(settings.masked, tokenizer)
        return Trainer(settings, objective, world, train, val, identity=identity).fit()


def _next_token(
    settings: PretrainSettings,
    tokenizer: Tokenizer | None,
    world: World,
    train: Shards,
    val: Shards | None,
) -> dict[str, Any]:
    """``pretrain`` of a decoder."""
    if tokenizer is None:
        raise ValueError("next-token predicts tokens: --tokenizer names a folder of tokenize")
    torch.manual_seed(settings.seed)
    model = JetDecoder(jet_decoder_config(settings.preset, tokenizer, inputs=settings.inputs))
    model.keep_tokenizer(tokenizer)
    objective = objective_of(model, settings.seed)
    identity = {"tokenizer": tokenizer.fingerprint}
    return Trainer(settings, objective, world, train, val, identity=identity).fit()


def _showers(
    settings: PretrainSettings,
    parts: tuple[str, ...],
    world: World,
    train: Shards,
    val: Shards | None,
) -> dict[str, Any]:
    """``pretrain`` of a decoder of showers."""
    shape = shower_shape(train)
    if parts != (NEXT_TOKEN,) or settings.inputs != "tokens":
        raise ValueError(
            f"{train.folder} has showers: these are learned by --objective next-token, without "
            "--inputs"
        )
    tokenizer = tokenizer_for(settings.tokenizer, train)
    torch.manual_seed(settings.seed)
    model = ShowerDecoder(shower_decoder_config(settings.preset, **shape, tokenizer=tokenizer))
    identity = {}
    if tokenizer is not None:
        model.keep_tokenizer(tokenizer)
        identity["tokenizer"] = tokenizer.fingerprint
    objective = objective_of(model, settings.seed)
    return Trainer(settings, objective, world, train, val, identity=identity).fit()


def _columns(
    settings: PretrainSettings, world: World, train: Shards, val: Shards | None
) -> dict[str, Any]:
    """``pretrain`` of a generator of identities and tracks, too, or of EPiC."""
    base: PETConfig | EPiCConfig
    if settings.preset in EPIC_SIZES:
        base = replace(epic_preset(settings.preset), **conditions_of(train))
    else:
        types = len(train.classes) or 1
        plain = {"use_pid": False, "use_tracks": False, "num_classes": types}
        base = model_preset(settings.preset, ("generator",), **plain)
    columns = columns_of(
        base,
        settings.columns,
        train,
        fresh=True,
        units=settings.velocity_units,
        num_jets=settings.num_jets,
        seed=settings.seed,
    )
    torch.manual_seed(settings.seed)
    model = build(replace(base, **columns))
    return Trainer(settings, objective_of(model, settings.seed), world, train, val).fit()


def finetune(task: Task | str, settings: FinetuneSettings) -> dict[str, Any]:
    """Trains a model for a task, from a checkpoint or from scratch, or continues it.

    Returns:
        what ``Trainer.fit`` does.

    Raises:
        ValueError: for an unknown task, or settings, jets and checkpoint that do not fit.
    """
    load_plugins(settings.plugin)
    task = find_task(task) if isinstance(task, str) else task
    with join_world(settings.run.device) as world:
        train, val = open_splits(settings.data, settings.classes)
        train.check_jets(f"the task {task.name}")
        weights = None if settings.source is None else load_weights(settings.source)
        torch.manual_seed(settings.seed)
        tokenizer = tokenizer_for(settings.tokenizer, train)
        base = base_config(settings, weights, tokenizer)
        if not isinstance(base, task.configs):
            kinds = " or ".join(kind.__name__.removesuffix("Config") for kind in task.configs)
            raise ValueError(f"the task {task.name} is for models of the kind {kinds}")
        config = adapted(task.config(base, train, settings), settings)
        model = begun(config, tokenizer)
        names = [name for name, _ in model.named_parameters()]
        new: set[str] = set()
        if weights is not None:
            check_same(weights.data, train, config.fields, str(weights.path))
            state = task.state(weights, config, train)
            report = load_matching(model, state, reset=task.reset)
            new = set(report.new) & set(names)
            if world.is_main:
                print(f"from {weights.path}:\n{report}")
        # Without a checkpoint a probe tells what the features of a body that knows nothing say.
        kept = "body" if settings.probe else settings.freeze
        freeze(model, kept, set(names) - (set() if weights is None else new))
        identity: dict[str, Any] = {
            "source": None if weights is None else weights.sha256,
            "lr_factor": settings.lr_factor,
        }
        if settings.augment is not None:
            if not (task.augments and isinstance(config, PETConfig) and not config.use_tracks):
                raise ValueError(
                    f"--augment {settings.augment}: for classifiers of jets as they are, by a model"
                    f" that reads no tracks and no tokens; not for {task.name} of this one"
                )
            identity["augment"] = settings.augment
        if isinstance(model, JetDecoder):
            identity["tokenizer"] = model.tokenizer.fingerprint
        identity |= task.identity(settings)
        if kept is not None:
            identity["freeze"] = kept
        if settings.layer_decay != 1:
            identity["layer_decay"] = settings.layer_decay
        held = {n for n in names if n.startswith("body.") and n not in new}
        thaws = settings.thaw_at > 0 and kept is None
        if thaws:
            identity |= {"thaw_at": settings.thaw_at, "catch_up": settings.catch_up}
        result = Trainer(
            settings,
            task.objective(model, settings),
            world,
            train,
            val,
            identity=identity,
            lr_factors=lr_factors(
                names,
                layers=config.layers,
                decay=settings.layer_decay,
                new=new,
                new_factor=settings.lr_factor,
            ),
            held=held if thaws else (),
            thawed=partial(thawed_at, thaw_at=settings.thaw_at, catch_up=settings.catch_up),
            task=task.name,
        ).fit()
        if world.is_main and result["reason"] != SIGNAL:
            task.complete(train, settings)
        return result


def evaluate(settings: EvaluateSettings) -> dict[str, Any]:
    """Judges runs, prints a table and writes report.json, table.md and figures.

    Returns:
        what ``Task.judge`` says of each run, by name.

    Raises:
        ValueError: for runs that cannot be judged by these jets, before the first one is.
    """
    load_plugins(settings.plugin)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    device = choose_device(settings.device)
    shards = select_classes(Shards(settings.data / settings.split), settings.classes)
    runs = by_name(settings.runs)
    task = _task_of(settings)
    if task.name != "showers":
        shards.check_jets(f"the task {task.name}")
    for run in runs.values():  # what is wrong with the last is said before the first is judged
        task.check(run, shards, settings)
    prepare_folder(settings.out)
    remove_leftovers(settings.out)
    reports = {
        name: task.judge(run, shards, settings, device, printable(name))
        for name, run in runs.items()
    }
    task.draw(reports, shards, settings.out)
    logs = {name: run / "metrics.jsonl" for name, run in runs.items()}
    records = {
        name: read_metrics(path, say=partial(print, file=sys.stderr))
        for name, path in logs.items()
        if path.exists()
    }
    if records:
        from jetkern.plots import training_figure

        training_figure(records, settings.out / "training.png")
    table = task.table(reports)
    jets = shards.num_jets if settings.num_jets is None else settings.num_jets
    record = {
        "data": {"folder": str(shards.folder), "fingerprint": shards.fingerprint},
        "jets": jets,
        "models": {n: {"path": str(runs[n]), **task.record(r)} for n, r in reports.items()},
        "environment": environment(),
    }
    write_atomically(settings.out / "report.json", json.dumps(record, indent=2).encode())
    write_atomically(settings.out / "table.md", f"{table}\n".encode())
    show(f"{jets:,} {shards.words[0]} of {shards.folder}\n\n{table}\n\nwritten to {settings.out}")
    return reports


def by_name(runs: Sequence[Path]) -> dict[str, Path]:
    """The runs by as many of their last folders as tell them apart."""
    paths = {run.resolve(): run for run in runs}
    for depth in range(1, 1 + max(len(path.parts) for path in paths)):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return dict(zip(names, paths.values(), strict=True))


def _task_of(settings: EvaluateSettings) -> Task:
    """The task that was asked for, or that the first run was trained for."""
    if settings.task is not None:
        return find_task(settings.task)
    if is_generated(settings.runs[0]):
        return find_task("showers" if read_generated(settings.runs[0])[0].points else "jetnet")
    weights = load_weights(settings.runs[0])
    if weights.kind == "showers":
        return find_task("showers")
    untold = "next-token" if NEXT_TOKEN in weights.config.get("parts", ()) else "classify"
    return find_task(weights.data.get("task") or untold)
