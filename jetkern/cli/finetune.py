"""Fine-tunes a pre-trained model on labelled jets, or trains the same model from scratch.

jetkern finetune top --from runs/pretrained --data shards/toptag --out runs/top

jetkern finetune top --preset micro --num-jets 1000 --data shards/toptag --out runs/scratch

The same command again continues a run that was stopped or killed.
"""

from dataclasses import replace

import torch

from jetkern.cli import command
from jetkern.data import Shards
from jetkern.model.config import PETConfig
from jetkern.model.pet import PET
from jetkern.model.presets import model_preset
from jetkern.objectives import Objective
from jetkern.training.config import (
    FinetuneSettings,
    SettingsError,
    finetune_defaults,
    parse,
)
from jetkern.training.distributed import join_world
from jetkern.training.trainer import Trainer, open_splits
from jetkern.training.weights import load_matching, load_weights, model_config


@command
def main(arguments: list[str]) -> None:
    """Runs the command line."""
    task, *flags = arguments or [""]
    if task in ("-h", "--help"):
        flags = ["--help"]
    elif not task:
        raise SettingsError("name the task: jetkern finetune top ...")
    elif task != "top":
        raise SettingsError(f"unknown task {task!r}: say jetkern finetune top ...")
    prog = "jetkern finetune top"
    fine_tune_top(parse(finetune_defaults, flags, description=__doc__, prog=prog))


def fine_tune_top(settings: FinetuneSettings) -> None:
    """Top tagging: everything is taken from the checkpoint but the classifier's last layer."""
    with join_world(settings.run.device) as world:
        train, val = open_splits(settings.data)
        if not 2 <= len(train.classes) <= settings.num_classes:
            raise ValueError(
                f"{train.folder} has {len(train.classes)} classes, --num-classes is "
                f"{settings.num_classes}"
            )
        weights = None if settings.source is None else load_weights(settings.source)
        torch.manual_seed(settings.seed)
        if weights is None or settings.preset is not None:
            config = model_preset(settings.preset or "micro", ("classifier",))
        else:
            config = model_config(weights)
        model = PET(for_labels_of(train, config, settings.num_classes))
        new: set[str] = set()
        if weights is not None:
            report = load_matching(model, weights.state, reset=("classifier.out",))
            new = set(report.new) & {name for name, _ in model.named_parameters()}
            if world.is_main:
                print(f"from {weights.path}:\n{report}")
        Trainer(
            settings,
            Objective(model, settings.seed),
            world,
            train,
            val,
            identity={
                "source": None if weights is None else weights.sha256,
                "lr_factor": settings.lr_factor,
            },
            new=new,
            lr_factor=settings.lr_factor,
        ).fit()


def for_labels_of(shards: Shards, config: PETConfig, num_classes: int) -> PETConfig:
    """The same body with a classifier only, embedding what these jets have."""
    return replace(
        config,
        parts=("classifier",),
        num_classes=num_classes,
        use_pid=config.use_pid and shards.field("pid") is not None,
        use_tracks=config.use_tracks and shards.field("tracks") is not None,
    )
