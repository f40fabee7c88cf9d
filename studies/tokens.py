"""What pre-training on tokens is worth: top tagging with few labels, with and without it.

python studies/tokens.py --data demo/shards --out runs/tokens

The jets are those of ``make demo``: jetclass to pre-train, toptag to tell tops from QCD. A
tokeniser is fitted, decoders that read tokens or what these stand for learn to say the next token,
and classifiers learn from some labels: the body fine-tuned, fixed, or from scratch. It continues
where it was stopped; OUT/table.md has means over seeds and their standard deviation.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from jetkern.recipes import evaluate, finetune, pretrain
from jetkern.tables import table
from jetkern.training.config import EvaluateSettings, OptimSettings, RunSettings, ValidationSettings
from jetkern.training.defaults import finetune_defaults, pretrain_defaults
from jetkern.training.distributed import join_world
from jetkern.training.tokenize import TokenizeSettings, tokenize
from jetkern.training.trainer import SIGNAL

INPUTS = ("tokens", "features")
STARTS = ("fine-tuned", "fixed body", "scratch")
RUN = RunSettings(threads=1, save_every=10**6)


def optim(steps: int, batch_size: int) -> OptimSettings:
    """AdamW at 1e-3, the same for everything."""
    return OptimSettings(
        optimizer="adamw",
        lr=1e-3,
        weight_decay=0.01,
        betas=(0.9, 0.999),
        clip=5.0,
        batch_size=batch_size,
        steps=steps,
        warmup_steps=steps // 20,
    )


def pretrained(inputs: str, options: argparse.Namespace) -> Path:
    """The run of a decoder that reads ``inputs``."""
    if options.body:
        return Path(options.body)
    tokens: Path = options.tokenizer
    fit = TokenizeSettings(
        kind="kmeans",
        data=options.data / "jetclass",
        out=tokens,
        codes=options.codes,
        features=("delta_eta", "delta_phi", "ln_pt"),
    )
    with join_world("cpu") as world:
        tokenize(fit, world)
    out: Path = options.out / f"pretrained-{inputs}"
    steps = options.steps
    settings = replace(
        pretrain_defaults("micro", "next-token"),
        data=options.data / "jetclass",
        out=out,
        tokenizer=tokens,
        inputs=inputs,
        optim=optim(steps, 128),
        validation=ValidationSettings(val_every=max(1, steps // 4), val_jets=1000),
        run=RUN,
    )
    finished(pretrain(settings))
    return out


def finished(result: dict[str, Any]) -> None:
    """Raises: SystemExit: if a signal stopped the training."""
    if result["reason"] == SIGNAL:
        raise SystemExit(SIGNAL)


def judged(start: str, inputs: str, labels: int, seed: int, options: argparse.Namespace) -> Any:
    """The report of a classifier on test jets."""
    source = None if start == "scratch" else pretrained(inputs, options)
    out: Path = options.out / f"{start.replace(' ', '-')}-{inputs}-{labels}-{seed}"
    steps = options.tune_steps
    settings = replace(
        finetune_defaults(tokenizer=options.tokenizer),
        data=options.data / "toptag",
        out=out,
        seed=seed,
        num_jets=labels,
        source=source,
        tokenizer=None if source else options.tokenizer,
        inputs=inputs,
        freeze="body" if start == "fixed body" else None,
        optim=optim(steps, 50),
        validation=ValidationSettings(val_every=max(1, steps // 4), val_jets=500),
        run=RUN,
    )
    finished(finetune("top", settings))
    test = EvaluateSettings(
        runs=(out,),
        data=settings.data,
        out=out / "judged",
        num_jets=options.test_jets,
        threads=1,
    )
    (report,) = evaluate(test).values()
    return report


def rows(options: argparse.Namespace) -> Iterator[list[object]]:
    """A line of the table for each start and input."""
    for inputs in options.inputs:
        pretrained(inputs, options)
        for start in options.starts:
            row: list[object] = [inputs, start]
            for labels in options.labels:
                found = [judged(start, inputs, labels, s, options) for s in range(options.seeds)]
                for figure in ("accuracy", "auc"):
                    values = [getattr(report, figure).value for report in found]
                    spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
                    row.append(f"{mean(values):.4f}{spread}")
            yield row


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder with jetclass and toptag")
    add("--out", type=Path, required=True)
    add("--body", type=Path, help="a decoder's run, instead of one made here")
    add("--tokenizer", type=Path, help="that of the body; default: one fitted here")
    add("--codes", type=int, default=512)
    add("--steps", type=int, default=1000, help="updates of 128 jets, to pre-train")
    add("--tune-steps", type=int, default=200, help="updates of 50 jets")
    add("--inputs", nargs="+", choices=INPUTS, default=INPUTS)
    add("--starts", nargs="+", choices=STARTS, default=STARTS)
    add("--labels", type=int, nargs="+", default=[100, 1000])
    add("--test-jets", type=int, default=4000)
    add("--seeds", type=int, default=3)
    options = parser.parse_args()
    if (options.body is None) != (options.tokenizer is None):
        parser.error("--body and --tokenizer go together")
    options.tokenizer = options.tokenizer or options.out / "tokenizer"
    options.out.mkdir(parents=True, exist_ok=True)
    head = [f"{figure}, {n:,} labels" for n in options.labels for figure in ("accuracy", "AUC")]
    text = table([["reads", "body", *head], *rows(options)], "ll" + "r" * len(head), markdown=True)
    (options.out / "table.md").write_text(f"{text}\n")
    print(text)


if __name__ == "__main__":
    main()
