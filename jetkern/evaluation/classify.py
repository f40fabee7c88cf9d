"""Runs trained classifiers over shards and reports how good they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from jetkern.data import Shards, Stream
from jetkern.io import printable
from jetkern.jets import Jets
from jetkern.metrics import BinaryReport, MulticlassReport, binary_report, multiclass_report
from jetkern.model.kinds import Model, ModelConfig
from jetkern.tables import table
from jetkern.training.checkpoints import RunError
from jetkern.training.data import check_same
from jetkern.training.weights import Weights, any_config, load_model, load_weights

Report = BinaryReport | MulticlassReport
Kept = TypeVar("Kept")


def load_classifier(source: Path | str, device: torch.device | str = "cpu") -> Model:
    """The model of a run (its best checkpoint, else its newest) or of one checkpoint that has a
    classifier, in evaluation mode.

    Raises:
        RunError: if there is no such checkpoint, or no classifier in it.
    """
    return load_part(source, "classifier", device)


def load_part(source: Path | str, part: str, device: torch.device | str = "cpu") -> Any:
    """As ``load_classifier``, for any part of a model."""
    weights = load_weights(source)
    config = any_config(weights)
    if part not in config.parts:
        raise RunError(f"{weights.path} has no {part}, only {', '.join(config.parts)}")
    return load_model(weights).to(device).eval()


def ask(
    model: Model,
    shards: Shards,
    answer: Callable[[Any], Tensor],
    keep: Callable[[Any], Kept],
    *,
    fields: tuple[str, ...] = (),
    batch_size: int = 1024,
    num_jets: int | None = None,
    seed: int = 0,
    label: str = "",
) -> tuple[NDArray[Any], list[Kept]]:
    """What a model says of jets, in the order of the files.

    Args:
        model: in evaluation mode, on the device to use.
        shards: the jets.
        answer: of a batch on that device.
        keep: what of each batch is wanted besides.
        fields: optional ones that are read besides those that the model embeds.
        batch_size: jets per pass.
        num_jets: a random subset of so many, given by ``seed``; None for all.
        label: shown beside the progress bar.

    Returns:
        the answers, back to back, and what was kept, by batch.
    """
    device = next(model.parameters()).device
    stream = Stream(
        shards,
        batch_size=batch_size,
        shuffle=False,
        epochs=1,
        num_jets=num_jets,
        subset_seed=seed,
        fields=(*model.config.fields, *fields),
        pin_memory=device.type == "cuda",
    )
    answers: list[Tensor] = []
    kept: list[Kept] = []
    with (
        torch.inference_mode(),
        tqdm(total=stream.num_jets, unit="jets", unit_scale=True, desc=label, disable=None) as bar,
    ):
        for jets in stream:
            answers.append(answer(jets.to(device, non_blocking=True)).cpu())
            kept.append(keep(jets))
            bar.update(len(jets))
    return torch.cat(answers).numpy(), kept


def check_classes(model: Model, shards: Shards) -> None:
    """Makes sure that a classifier can be judged by these jets.

    Raises:
        ValueError: for jets without labels, or with more classes than the model.
    """
    if not shards.classes:
        raise ValueError(f"{shards.folder} has no labels to evaluate against")
    if len(shards.classes) > model.config.num_classes:
        raise ValueError(
            f"{shards.folder} has {len(shards.classes)} classes, but the model tells "
            f"{model.config.num_classes} apart"
        )


def class_outputs(
    weights: Weights,
    config: ModelConfig,
    shards: Shards,
    class_map: Sequence[str] = (),
    *,
    say: Callable[[str], None] | None = None,
) -> list[list[int]]:
    """Which outputs of a classifier stand for each class of the jets, by the classes' names.

    Args:
        weights: of the checkpoint, which knows the classes that it was trained on.
        config: of its model.
        shards: of the jets to judge.
        class_map: what to take for classes that are not called the same, as "top=Tbqq+Tbl".
        say: called with a note about a checkpoint that knows no names: its outputs are taken in
            the order of the jets' classes.

    Raises:
        ValueError: naming the class that the model does not know.
    """
    check_same(weights.data, shards, config.fields, str(weights.path))
    names = [printable(name) for name in weights.data.get("classes", [])]
    if not shards.classes:
        raise ValueError(f"{shards.folder} has no labels to evaluate against")
    if not names and not class_map:
        if len(shards.classes) > config.num_classes:
            raise ValueError(
                f"{shards.folder} has {len(shards.classes)} classes, but {weights.path} tells "
                f"{config.num_classes} apart"
            )
        if say is not None:
            say(
                f"{weights.path} knows no names of classes: its outputs are taken to be "
                f"{', '.join(shards.classes)}"
            )
        return [[i] for i in range(len(shards.classes))]
    chosen = {}
    for entry in class_map:
        name, equals, others = entry.partition("=")
        if not equals or name not in shards.classes:
            raise ValueError(
                f"--class-map {entry}: say CLASS=NAME with CLASS of {', '.join(shards.classes)}"
            )
        chosen[name] = others.split("+")
    outputs = []
    for name in shards.classes:
        for wanted in chosen.get(name, [name]):
            if wanted not in names:
                raise ValueError(
                    f"{weights.path} tells {', '.join(names) or 'unnamed classes'} apart, none is "
                    f"called {wanted}: --class-map {name}=NAME says which stands for {name}, and "
                    "--classes names those of the jets to judge by"
                )
        outputs.append([names.index(wanted) for wanted in chosen.get(name, [name])])
    flat = [i for chosen_outputs in outputs for i in chosen_outputs]
    if len(set(flat)) < len(flat) or max(flat) >= config.num_classes:
        raise ValueError(f"{weights.path}: a class of it cannot stand for two of {shards.folder}")
    return outputs


def joined(logits: NDArray[np.float32], outputs: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """(N, classes) logits of the jets' classes: the log of the summed weights of their outputs."""
    from scipy.special import logsumexp

    columns = [logsumexp(logits[:, list(chosen)], axis=1) for chosen in outputs]
    return np.stack(columns, axis=1)


def predict(
    model: Any,
    shards: Shards,
    *,
    batch_size: int = 1024,
    num_jets: int | None = None,
    seed: int = 0,
    label: str = "",
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Logits (N, classes of the model) and labels (N,), in the order of the files.

    Args:
        model: in evaluation mode, on the device to use.
        shards: labelled jets.
        batch_size: jets per pass.
        num_jets: a random subset of so many, given by ``seed``; None for all.
        label: shown beside the progress bar.

    Raises:
        ValueError: for jets without labels, or with more classes than the model.
    """
    check_classes(model, shards)

    def labels_of(jets: Jets) -> Tensor:
        assert jets.label is not None  # the shards have classes
        return jets.label

    logits, labels = ask(
        model,
        shards,
        lambda jets: model.classify(jets).float(),
        labels_of,
        batch_size=batch_size,
        num_jets=num_jets,
        seed=seed,
        label=label,
    )
    return logits, torch.cat(labels).numpy()


def classification_report(
    logits: NDArray[np.float32],
    labels: NDArray[np.int64],
    classes: tuple[str, ...],
    *,
    bootstrap: int = 200,
    seed: int = 0,
) -> Report:
    """The report for two classes (1 against 0) or for several.

    Outputs beyond the number of classes are ignored: a model that was trained with ten outputs on
    two classes is judged by p1 / (p0 + p1).
    """
    used = logits[:, : len(classes)].astype(np.float64)
    if len(classes) == 2:
        return binary_report(used[:, 1] - used[:, 0], labels, bootstrap=bootstrap, seed=seed)
    return multiclass_report(used, labels, classes, bootstrap=bootstrap, seed=seed)


def report_table(reports: Mapping[str, Report]) -> str:
    """A Markdown table of the reports, one line for each name."""
    if all(isinstance(r, BinaryReport) for r in reports.values()):
        return _binary_table(reports)  # type: ignore[arg-type]
    rows = [["model", "accuracy", "macro AUC", "cross-entropy"]]
    details = []
    for name, report in reports.items():
        assert isinstance(report, MulticlassReport)
        rows.append(
            [name, f"{report.accuracy:.4f}", f"{report.auc:.4f}", f"{report.cross_entropy:.4f}"]
        )
        each = {f"{name}: {c}": r for c, r in report.against_background.items()}
        details.append(_binary_table(each, heading="class against the first"))
    return "\n\n".join([table(rows, "l", markdown=True), *details])


def _binary_table(reports: Mapping[str, BinaryReport], heading: str = "model") -> str:
    rows = [[heading, "AUC", "accuracy", "R50", "R30", "cross-entropy"]]
    for name, r in reports.items():
        cells = f"{r.auc:.4f}", f"{r.accuracy:.4f}", f"{r.r50:.1f}", f"{r.r30:.1f}"
        rows.append([name, *cells, f"{r.cross_entropy:.4f}"])
    return table(rows, "l", markdown=True)
