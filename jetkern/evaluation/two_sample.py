"""The classifier two-sample test: how well a network tells generated from real jets."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from jetkern.data import Shards
from jetkern.evaluation.classify import load_classifier, predict
from jetkern.evaluation.files import write_sets
from jetkern.jets import Jets
from jetkern.metrics import binary_report
from jetkern.metrics.classification import Estimate
from jetkern.model.pet import PET
from jetkern.model.presets import model_preset
from jetkern.objectives import Objective
from jetkern.training.config import FinetuneSettings, OptimSettings, RunSettings
from jetkern.training.distributed import World
from jetkern.training.trainer import Trainer

NAMES = ("real", "generated")
TRAINED_ON = 0.6  # of the jets; the others are judged


def two_sample_auc(
    real: Jets,
    generated: Jets,
    *,
    steps: int,
    batch_size: int = 64,
    bootstrap: int = 200,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Estimate:
    """Area under the ROC curve of a micro PET that was trained to tell the two apart.

    0.5 for jets that it cannot tell apart (arXiv 1610.06545; the AUC as in arXiv 2106.05285). The
    network sees the particles only, their identities and tracks where both have some, of all types
    together. The error is that of a bootstrap over
    the jets judged, so it holds for this one training.

    Args:
        real, generated: as many of each are taken as the fewer.
        steps, batch_size: of the training, by Lion at 1e-3.
        bootstrap: resamplings.
        seed: of the training and of which jets it is done on.

    Raises:
        ValueError: for fewer than 10 jets of either.
    """
    size = min(len(real), len(generated))
    if size < 10:
        raise ValueError(f"a two-sample test needs 10 jets of each, there are {size}")
    draw = torch.Generator().manual_seed(seed)
    both = [
        jets.select(torch.randperm(len(jets), generator=draw)[:size]).replace(
            label=torch.full((size,), number), condition=None, index=None
        )
        for number, jets in enumerate((real, generated))
    ]
    first = int(TRAINED_ON * size)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for split, rows in (("train", slice(0, first)), ("test", slice(first, size))):
            jets = Jets.concat([one.select(rows) for one in both])
            mixed = jets.select(torch.randperm(len(jets), generator=draw))
            write_sets(folder / split, mixed, NAMES)
        settings = FinetuneSettings(
            data=folder,
            out=folder / "run",
            seed=seed,
            optim=OptimSettings(
                lr=1e-3,
                weight_decay=0.01,
                batch_size=min(batch_size, 2 * first),
                steps=steps,
                warmup_steps=steps // 10,
            ),
            run=RunSettings(log_every=max(1, steps // 5)),
        )
        torch.manual_seed(seed)
        has = {f"use_{n}": getattr(both[0], n) is not None for n in ("pid", "tracks")}
        config = model_preset("micro", ("classifier",), num_classes=2, feature_drop=0.0, **has)
        world = World(0, 1, torch.device(device))
        Trainer(settings, Objective(PET(config), seed), world, Shards(folder / "train"), None).fit()
        model = load_classifier(folder / "run", device)
        logits, labels = predict(model, Shards(folder / "test"), label="two-sample test")
    odds = logits[:, 1].astype("f8") - logits[:, 0]
    return binary_report(odds, labels, bootstrap=bootstrap, seed=seed).auc
