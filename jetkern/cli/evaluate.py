"""Evaluates trained classifiers: accuracy, AUC, R50 and R30 with uncertainties, ROC curves.

jetkern evaluate runs/scratch runs/finetuned --data shards/toptag --out results/top
"""

import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from jetkern.cli import command
from jetkern.data import Shards
from jetkern.evaluation import (
    check_classes,
    classification_report,
    load_classifier,
    predict,
    report_table,
)
from jetkern.io import prepare_folder, printable, remove_leftovers, write_atomically
from jetkern.machine import environment
from jetkern.metrics import BinaryReport
from jetkern.metrics.classification import as_json
from jetkern.plots import roc_figure, training_figure
from jetkern.tables import show
from jetkern.training.config import evaluate_defaults, parse
from jetkern.training.distributed import choose_device
from jetkern.training.log import read_metrics


@command
def main(arguments: list[str]) -> None:
    """Runs the command line."""
    prog = "jetkern evaluate"
    settings = parse(evaluate_defaults, arguments, description=__doc__, prog=prog)
    if int(os.environ.get("RANK", "0")):
        return  # below torchrun, one process does it
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    device = choose_device(settings.device)
    shards = Shards(settings.data / settings.split)
    runs = by_name(settings.runs)
    for run in runs.values():  # what is wrong with the last is said before the first is judged
        check_classes(load_classifier(run), shards)
    prepare_folder(settings.out)
    remove_leftovers(settings.out)
    reports = {}
    for name, run in runs.items():
        logits, labels = predict(
            load_classifier(run, device),
            shards,
            batch_size=settings.batch_size,
            num_jets=settings.num_jets,
            seed=settings.seed,
            label=printable(name),
        )
        reports[name] = classification_report(
            logits, labels, shards.classes, bootstrap=settings.bootstrap, seed=settings.seed
        )
    for number, (name, report) in enumerate(reports.items()):
        if isinstance(report, BinaryReport):
            continue
        curves = {c: r.curve for c, r in report.against_background.items()}
        file = name.replace("/", "-")
        taken = [other.replace("/", "-") for other in list(reports)[:number]]
        path = settings.out / f"roc-{file}{f'-{number}' if file in taken else ''}.png"
        roc_figure(curves, path, background=shards.classes[0])
    binary = {n: r.curve for n, r in reports.items() if isinstance(r, BinaryReport)}
    if binary:
        background, signal = shards.classes
        roc_figure(binary, settings.out / "roc.png", signal=signal, background=background)
    logs = {name: run / "metrics.jsonl" for name, run in runs.items()}
    records = {
        name: read_metrics(path, say=partial(print, file=sys.stderr))
        for name, path in logs.items()
        if path.exists()
    }
    if records:
        training_figure(records, settings.out / "training.png")
    table = report_table(reports)
    record = {
        "data": {"folder": str(shards.folder), "fingerprint": shards.fingerprint},
        "jets": len(labels),
        "models": {n: {"path": str(runs[n]), **as_json(r)} for n, r in reports.items()},
        "environment": environment(),
    }
    write_atomically(settings.out / "report.json", json.dumps(record, indent=2).encode())
    write_atomically(settings.out / "table.md", f"{table}\n".encode())
    show(f"{len(labels):,} jets of {shards.folder}\n\n{table}\n\nwritten to {settings.out}")


def by_name(runs: Sequence[Path]) -> dict[str, Path]:
    """The runs by as many of their last folders as tell them apart."""
    paths = {run.resolve(): run for run in runs}
    for depth in range(1, 1 + max(len(path.parts) for path in paths)):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return dict(zip(names, paths.values(), strict=True))
