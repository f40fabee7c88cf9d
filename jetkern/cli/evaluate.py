"""Evaluates trained classifiers: accuracy, AUC, R50 and R30 with uncertainties, ROC curves.

jetkern evaluate runs/scratch runs/finetuned --data shards/toptag --out results/top
"""

import json
from pathlib import Path

import torch

from jetkern.cli import command
from jetkern.data import Shards
from jetkern.evaluation import classification_report, load_classifier, predict, report_table
from jetkern.io import write_atomically
from jetkern.machine import environment
from jetkern.metrics import BinaryReport
from jetkern.metrics.classification import as_json
from jetkern.plots import roc_figure, training_figure
from jetkern.training.config import evaluate_defaults, parse
from jetkern.training.distributed import join_world
from jetkern.training.log import read_metrics


@command
def main(arguments: list[str]) -> None:
    """Runs the command line."""
    prog = "jetkern evaluate"
    settings = parse(evaluate_defaults, arguments, description=__doc__, prog=prog)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    shards = Shards(settings.data / settings.split)
    unique = len({run.name for run in settings.runs}) == len(settings.runs)
    runs = {run.name if unique else str(run): run for run in settings.runs}
    reports = {}
    with join_world(settings.device) as world:
        for name, run in runs.items():
            model = load_classifier(run, world.device)
            logits, labels = predict(
                model,
                shards,
                batch_size=settings.batch_size,
                num_jets=settings.num_jets,
                seed=settings.seed,
                label=name,
            )
            reports[name] = classification_report(
                logits, labels, shards.classes, bootstrap=settings.bootstrap, seed=settings.seed
            )
    settings.out.mkdir(parents=True, exist_ok=True)
    for name, report in reports.items():
        if isinstance(report, BinaryReport):
            continue
        curves = {c: r.curve for c, r in report.against_background.items()}
        path = settings.out / f"roc-{Path(name).name}.png"
        roc_figure(curves, path, background=shards.classes[0])
    binary = {n: r.curve for n, r in reports.items() if isinstance(r, BinaryReport)}
    if binary:
        background, signal = shards.classes
        roc_figure(binary, settings.out / "roc.png", signal=signal, background=background)
    logs = {name: run / "metrics.jsonl" for name, run in runs.items()}
    records = {name: read_metrics(path) for name, path in logs.items() if path.exists()}
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
    print(f"{len(labels):,} jets of {shards.folder}\n\n{table}\n\nwritten to {settings.out}")
