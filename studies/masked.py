"""Targets of masked particle modelling compared: pre-training of equal length, then a probe.

python studies/masked.py --data shards/jetclass --tokenizer tokens --out runs/masked

For each target and seed a pre-training, then for each number of labelled jets an attention probe on
the body as it is; beside a body that was never trained and one that was trained to classify, with
all labels. table.md has the accuracy, mean and standard deviation over the seeds. The same command
again goes on where it stopped.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path

from jetkern.io import write_atomically
from jetkern.recipes import evaluate, finetune, pretrain
from jetkern.tables import table
from jetkern.training.config import (
    EvaluateSettings,
    MaskedSettings,
    OptimSettings,
    RunSettings,
    ValidationSettings,
    finetune_defaults,
    pretrain_defaults,
)

BODIES = {
    "never trained": None,
    "regression": "regression",
    "regression+identity": "regression+identity:0.3",
    "tokens": "tokens",
    "cfm": "cfm",
    "cnf": "cnf",
    "ssfm": "ssfm",
    "classifier, all labels": "",
}


def pretrained(body: str, seed: int, options: argparse.Namespace) -> Path | None:
    """The run of a body, or None for one that was never trained."""
    target = BODIES[body]
    if target is None:
        return None
    out: Path = options.out / f"pretrain-{body.replace(' ', '-')}-{seed}"
    settings = pretrain_defaults(options.preset, "mpm" if target else "classifier")
    masked = MaskedSettings(target=target, tokenizer=options.tokenizer) if target else None
    optim = OptimSettings(
        optimizer="adamw",
        lr=options.lr,
        weight_decay=0.01,
        betas=(0.9, 0.999),
        batch_size=options.batch_size,
        steps=options.steps,
        warmup_steps=options.steps // 20,
    )
    pretrain(
        replace(
            settings,
            data=options.data,
            out=out,
            seed=seed,
            masked=masked or MaskedSettings(),
            optim=optim,
            validation=ValidationSettings(val_every=max(1, options.steps // 4), val_jets=10_000),
            run=RunSettings(threads=1),
        )
    )
    return out


def probed(body: str, seed: int, labels: int, options: argparse.Namespace) -> float:
    """Accuracy of a probe on a body."""
    name = f"{body.replace(' ', '-')}-{seed}-{labels}"
    out = options.out / f"probe-{name}"
    optim = OptimSettings(
        optimizer="adamw",
        lr=1e-3,
        weight_decay=0.01,
        betas=(0.9, 0.999),
        batch_size=min(options.batch_size, labels),
        steps=options.probe_steps,
        warmup_steps=options.probe_steps // 20,
    )
    every = max(1, options.probe_steps // 20)
    finetune(
        "classify",
        replace(
            finetune_defaults(options.preset),
            source=pretrained(body, seed, options),
            data=options.data,
            out=out,
            seed=seed,
            num_jets=labels,
            probe="attention",
            optim=optim,
            validation=ValidationSettings(val_every=every, val_jets=10_000, patience=5),
            run=RunSettings(threads=1),
        ),
    )
    report = evaluate(
        EvaluateSettings(
            runs=(out,),
            data=options.data,
            out=options.out / f"result-{name}",
            split=options.split,
            bootstrap=2,
        )
    )
    return float(next(iter(report.values())).accuracy.value)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="shards of several classes")
    add("--tokenizer", type=Path, required=True, help="of jetkern tokenize, with codes")
    add("--out", type=Path, required=True)
    add("--preset", default="micro")
    add("--bodies", nargs="+", default=list(BODIES), choices=BODIES)
    add("--labels", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--steps", type=int, default=2400, help="of each pre-training")
    add("--probe-steps", type=int, default=2000)
    add("--batch-size", type=int, default=128)
    add("--lr", type=float, default=1e-3, help="of the pre-trainings")
    add("--split", default="test", help="that the probes are judged by")
    options = parser.parse_args()
    rows: list[list[object]] = [["body", *(f"{n:,} labels" for n in options.labels)]]
    for body in options.bodies:
        cells: list[object] = [body]
        for labels in options.labels:
            found = [100 * probed(body, seed, labels, options) for seed in options.seeds]
            spread = statistics.stdev(found) if len(found) > 1 else float("nan")
            cells.append(f"{statistics.mean(found):.1f} ± {spread:.1f}")
        rows.append(cells)
        text = table(rows, "l" + "r" * len(options.labels), markdown=True)
        write_atomically(options.out / "table.md", f"{text}\n".encode())
    print(text)


if __name__ == "__main__":
    main()
