"""Pre-trains a jet foundation model on shards: any of classification, flow matching, masking.

jetkern pretrain --preset micro --objective classifier+mpm --data shards/jetclass --out run

torchrun --nproc-per-node=4 -m jetkern pretrain ... does the same on four GPUs.

The same command again continues a run that was stopped or killed.
"""

import torch

from jetkern.cli import command
from jetkern.model.pet import PET
from jetkern.model.presets import model_preset
from jetkern.objectives import Objective, parse_objective
from jetkern.training.config import parse, pretrain_defaults
from jetkern.training.distributed import join_world
from jetkern.training.trainer import Trainer, open_splits


@command
def main(arguments: list[str]) -> None:
    """Runs the command line."""
    prog = "jetkern pretrain"
    settings = parse(pretrain_defaults, arguments, description=__doc__, prog=prog)
    parts = parse_objective(settings.objective)
    with join_world(settings.run.device) as world:
        train, val = open_splits(settings.data)
        config = model_preset(
            settings.preset,
            parts,
            num_classes=len(train.classes) or 1,
            use_pid=train.field("pid") is not None,
            use_tracks=train.field("tracks") is not None,
            feature_drop=settings.feature_drop,
        )
        torch.manual_seed(settings.seed)
        objective = Objective(PET(config), settings.seed, perturbed=settings.perturbed)
        identity = {"perturbed": settings.perturbed}
        Trainer(settings, objective, world, train, val, identity=identity).fit()
