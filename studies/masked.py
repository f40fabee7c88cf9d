"""Masked particle modelling in small: tokenisers, targets and what is learnt from each of them.

python studies/masked.py --jetclass shards/jetclass --flavour shards/flavour --out runs/masked

Four tables, each cell the mean and standard deviation over seeds: tokenisers of equal size; the
loss of each target beside the best answer that does not look at the jet; attention probes of bodies
after equal pre-training; tasks learnt from a pre-trained body and from scratch. The shards are
those of ``jetkern simulate`` (jetclass and flavour), converted with train, val and test. The same
command again goes on where it stopped; results.json has every number.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from jetkern.data import Shards, select_classes
from jetkern.io import read_json, write_atomically
from jetkern.recipes import finetune, pretrain
from jetkern.tables import table
from jetkern.tasks import find_task
from jetkern.training.config import (
    EvaluateSettings,
    MaskedSettings,
    OptimSettings,
    RunSettings,
    ValidationSettings,
)
from jetkern.training.defaults import finetune_defaults, pretrain_defaults
from jetkern.training.distributed import World
from jetkern.training.log import read_metrics
from jetkern.training.tokenize import TokenizeSettings, tokenize
from jetkern.training.trainer import SIGNAL

TUNE_LR, PROBE_LR = 1e-3, 1e-2  # a probe is small, and alone to learn
SIX = ("QCD", "Hbb", "Hcc", "Hgg", "H4q", "Hqql")  # MPM's split into known and new classes
FOUR = ("Tbqq", "Tbl", "Wqq", "Zqq")


@dataclass(frozen=True)
class Body:
    """A pre-training: target ("" for classes), kind of tokeniser, decoder's blocks, and jets."""

    target: str
    tokens: str = "kmeans"
    layers: int | None = None
    data: str = "jetclass"
    classes: tuple[str, ...] = ()


BODIES = {
    "regression, identity": Body("regression+identity:0.3"),
    "k-means, identity": Body("tokens+identity:0.3"),
    "VQ-VAE, identity": Body("tokens+identity:0.3", "vqvae"),
    "CFM, identity": Body("cfm+identity:0.3"),
    "CNF, identity": Body("cnf+identity:0.3"),
    "SSFM": Body("ssfm"),
    "regression, identity, no decoder": Body("regression+identity:0.3", layers=0),
    "classifier, all labels": Body(""),
    "regression": Body("regression"),
}
STARTS = ("from scratch", "pre-trained")
NONE, SCRATCH = "probe of an untrained body", "from scratch, all weights"
OTHERS = {
    "flavour jets": Body("regression+identity:0.3", data="flavour"),
    "six classes": Body("regression+identity:0.3", classes=SIX),
}


@dataclass(frozen=True)
class Transfer:
    """A task, the body that it starts from, its jets, and its figures of merit by name."""

    task: str
    body: str
    sizes: tuple[int, ...]
    figures: dict[str, Callable[[Any], float]]
    data: str = "flavour"
    classes: tuple[str, ...] = ()
    jets: int | None = None  # if sizes are signal jets among so many


TRANSFERS = {
    "vertices": Transfer(
        "vertices",
        "flavour jets",
        (2000, 19_000),
        {"ARI": lambda r: r.all.adjusted.value, "perfect jets": lambda r: r.all.perfect.value},
    ),
    "origin": Transfer(
        "origin",
        "flavour jets",
        (2000, 19_000),
        {"balanced accuracy": lambda r: r.balanced.value},
    ),
    "flavour": Transfer(
        "flavour", "flavour jets", (2000, 19_000), {"accuracy": lambda r: r.accuracy.value}
    ),
    "weak": Transfer(
        "weak",
        "regression, identity",
        (250, 1000),
        {"SIC at 1 %": lambda r: r.at_efficiency.value, "AUC": lambda r: r.tagger.auc.value},
        "jetclass",
        ("QCD", "Tbqq"),
        16_000,
    ),
    "unseen classes": Transfer(
        "classify",
        "six classes",
        (1000, 10_000),
        {"accuracy": lambda r: r.accuracy.value},
        "jetclass",
        FOUR,
    ),
}


class Study:
    """All trainings in one folder, and the numbers that they gave."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.out = options, options.out
        self.data = {"jetclass": options.jetclass, "flavour": options.flavour}
        self.results: dict[str, Any] = {}
        if (self.out / "results.json").exists():
            self.results = read_json(self.out / "results.json", error=ValueError).content

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, made at most once."""
        if key not in self.results:
            self.results[key] = make()
            text = json.dumps(self.results, indent=1)
            write_atomically(self.out / "results.json", text.encode())
            write_atomically(self.out / "table.md", f"{self.tables}\n".encode())
        return self.results[key]

    def tokenizer(self, kind: str, data: str, seed: int, classes: tuple[str, ...] = ()) -> Path:
        """A fitted one: k-means and VQ-VAE of ``--codes``, or a scale alone."""
        name = f"{kind}-{data}-{len(classes) or 'all'}-{seed}"
        settings = TokenizeSettings(
            kind=kind,
            data=self.data[data],
            out=self.out / "tokens" / name,
            codes=self.options.codes,
            classes=classes,
            seed=seed,
            batch_size=128 if kind == "vqvae" else 1024,
            steps=self.options.vq_steps if kind == "vqvae" else None,
            shape=(64, 2, 4, 16),
            report_jets=5000,
        )
        done = (settings.out / "DONE").exists()
        if not done and tokenize(settings, World(0, 1, torch.device("cpu"))) is None:
            raise SystemExit(SIGNAL)
        return settings.out

    def optim(self, steps: int, lr: float, batch_size: int) -> OptimSettings:
        """AdamW with a twentieth of the updates to warm up."""
        return OptimSettings(
            optimizer="adamw",
            lr=lr,
            weight_decay=0.01,
            betas=(0.9, 0.999),
            batch_size=batch_size,
            steps=steps,
            warmup_steps=steps // 20,
            precision="bf16",
        )

    def pretrained(self, name: str, seed: int) -> Path:
        """The run of a body; its losses go into the results."""
        body = (BODIES | OTHERS)[name]
        out: Path = self.out / "bodies" / f"{_plain(name)}-{seed}"
        if not (out / "DONE").exists():
            self._pretrain(body, out, seed)
        records = [r for r in read_metrics(out / "metrics.jsonl") if r["kind"] == "validation"]
        losses = {k: v for k, v in records[-1].items() if k.startswith("mpm_")}
        self.once(f"losses/{name}/{seed}", lambda: losses)
        return out

    def _pretrain(self, body: Body, out: Path, seed: int) -> None:
        masked, tokens = MaskedSettings(), None
        if body.target:
            kind = body.tokens if "tokens" in body.target else "scale"
            tokens = self.tokenizer(kind, body.data, 0, body.classes)
            masked = replace(masked, target=body.target, decoder_layers=body.layers)
        steps = self.options.steps
        settings = pretrain_defaults(self.options.preset, "mpm" if body.target else "classifier")
        self.finished(
            pretrain(
                replace(
                    settings,
                    data=self.data[body.data],
                    out=out,
                    seed=seed,
                    classes=body.classes,
                    tokenizer=tokens,
                    masked=masked,
                    perturbed=False,
                    optim=self.optim(steps, self.options.lr, self.options.batch_size),
                    validation=ValidationSettings(val_every=steps, val_jets=2000),
                    run=RunSettings(threads=1),
                )
            )
        )

    @staticmethod
    def finished(result: dict[str, Any]) -> None:
        """Raises: SystemExit: if a signal stopped the training."""
        if result["reason"] == SIGNAL:
            raise SystemExit(SIGNAL)

    def tuned(self, task: str, name: str, source: Path | None, steps: int, **changes: Any) -> Any:
        """The report of a task on the test jets after fine-tuning."""
        out = self.out / "tuned" / name
        settings = finetune_defaults(self.options.preset)
        settings = replace(
            settings,
            source=source,
            preset=None if source is not None else self.options.preset,
            out=out,
            lr_factor=1.0,
            optim=self.optim(steps, PROBE_LR if changes.get("probe") else TUNE_LR, 64),
            validation=ValidationSettings(val_every=steps, val_jets=500),
            run=RunSettings(threads=1),
            **changes,
        )
        self.finished(finetune(task, settings))
        shards = select_classes(Shards(settings.data / "test"), settings.classes)
        jets = min(self.options.test_jets, shards.num_jets)
        judged = EvaluateSettings(runs=(out,), data=settings.data, out=out, num_jets=jets)
        return find_task(task).judge(out, shards, judged, torch.device("cpu"), name)

    def probe(self, name: str, seed: int, labels: int) -> float:
        """Accuracy in percent: ten classes, so many labelled jets, an attention probe."""
        steps = dict(zip(self.options.labels, self.options.probe_steps, strict=True))[labels]

        def make() -> float:
            source = None if name in (NONE, SCRATCH) else self.pretrained(name, seed)
            report = self.tuned(
                "classify",
                f"probe-{_plain(name)}-{seed}-{labels}",
                source,
                steps,
                data=self.data["jetclass"],
                num_jets=labels,
                seed=seed,
                probe=None if name == SCRATCH else "attention",
            )
            return 100 * float(report.accuracy.value)

        return self.once(f"probe/{name}/{seed}/{labels}", make)

    def transfer(self, name: str, size: int, seed: int, start: str) -> dict[str, float]:
        """Figures of merit of a task, from one of ``STARTS``."""
        task = TRANSFERS[name]
        changes: dict[str, Any] = {"num_jets": task.jets or size}
        if task.jets is not None:
            changes["signal_jets"] = size

        def make() -> dict[str, float]:
            source = None if start == STARTS[0] else self.pretrained(task.body, seed)
            report = self.tuned(
                task.task,
                f"{_plain(name)}-{_plain(start)}-{size}-{seed}",
                source,
                self.options.tune_steps,
                data=self.data[task.data],
                classes=task.classes,
                seed=seed,
                **changes,
            )
            return {figure: float(read(report)) for figure, read in task.figures.items()}

        return self.once(f"transfer/{name}/{size}/{seed}/{start}", make)

    def tokens(self, kind: str, seed: int) -> dict[str, Any]:
        """The report of a tokeniser of the ten classes."""

        def make() -> dict[str, Any]:
            folder = self.tokenizer(kind, "jetclass", seed)
            return read_json(folder / "report.json", error=ValueError).content

        return self.once(f"tokens/{kind}/{seed}", make)

    def run(self) -> None:
        """Everything, seed by seed, so that what is there first is a whole table."""
        parts, few = self.options.parts, self.options.labels[:2]
        for seed in self.options.seeds:
            if "tokens" in parts:
                self.tokens("kmeans", seed), self.tokens("vqvae", seed)
            if "probes" in parts:
                for name in (NONE, SCRATCH, *BODIES):
                    for labels in few:
                        self.probe(name, seed, labels)
            if "transfers" in parts:
                for name, task in TRANSFERS.items():
                    for size in task.sizes:
                        for start in STARTS:
                            self.transfer(name, size, seed, start)
        if "probes" in parts:
            for labels in self.options.labels[2:]:
                for name in (NONE, SCRATCH, *BODIES):
                    self.probe(name, self.options.seeds[0], labels)

    def cell(self, keys: str, digits: int, read: Callable[[Any], float] = float) -> str:
        """Mean and standard deviation over the seeds that are there; ``keys`` has {} for these."""
        found = [self.results.get(keys.format(seed)) for seed in self.options.seeds]
        numbers = [read(value) for value in found if value is not None]
        if not numbers:
            return ""
        spread = f" ± {statistics.stdev(numbers):.{digits}f}" if len(numbers) > 1 else ""
        missing = "" if len(numbers) == len(found) else f" ({len(numbers)})"
        return f"{statistics.mean(numbers):.{digits}f}{spread}{missing}"

    @property
    def tables(self) -> str:
        """All tables of what is there; a number in brackets counts seeds that are fewer."""
        tokens: list[list[object]] = [["codes", "dead, %", "perplexity", "mass, %", "pT, %"]]
        for kind in ("kmeans", "vqvae"):
            key = f"tokens/{kind}/{{}}"
            row = [
                self.cell(key, 2, lambda r: 100 * r["dead"]),
                self.cell(key, 0, lambda r: r["perplexity"]),
                self.cell(key, 2, lambda r: 100 * r["observables"]["mass"]["width"]),
                self.cell(key, 2, lambda r: 100 * r["observables"]["pT"]["width"]),
            ]
            tokens.append([f"{kind}, {self.options.codes}", *row])
        losses: list[list[object]] = [["body", "loss", "value", "without the jet"]]
        for name in (*BODIES, *OTHERS):
            key = f"losses/{name}/{{}}"
            found = {k for r, v in self.results.items() if r.startswith(key[:-2]) for k in v}
            for loss in sorted(k for k in found if f"{k}_trivial" in found):
                cells = [
                    self.cell(key, 3, lambda r, k=k: r[k])  # type: ignore[misc]
                    for k in (loss, f"{loss}_trivial")
                ]
                losses.append([name, loss.removeprefix("mpm_"), *cells])
        labels = self.options.labels
        probes: list[list[object]] = [["body", *(f"{n:,} labels" for n in labels)]]
        probes += [
            [name, *(self.cell(f"probe/{name}/{{}}/{n}", 1) for n in labels)]
            for name in (NONE, SCRATCH, *BODIES)
        ]
        transfers: list[list[object]] = [["task", "figure", "jets", *STARTS]]
        for name, task in TRANSFERS.items():
            for figure in task.figures:
                for size in task.sizes:
                    cells = [
                        self.cell(
                            f"transfer/{name}/{size}/{{}}/{start}",
                            3,
                            lambda r, f=figure: r[f],  # type: ignore[misc]
                        )
                        for start in STARTS
                    ]
                    transfers.append([name, figure, f"{size:,}", *cells])
        all_rows = (tokens, losses, probes, transfers)
        return "\n\n".join(table(rows, "lr", markdown=True) for rows in all_rows)


def _plain(name: str) -> str:
    """A name for a folder."""
    return name.replace(",", "").replace(" ", "-")


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--jetclass", type=Path, required=True, help="shards of the ten classes")
    add("--flavour", type=Path, required=True, help="shards of flavour jets with their truth")
    add("--out", type=Path, required=True)
    add("--preset", default="micro")
    parts = ("tokens", "probes", "transfers")
    add("--parts", nargs="+", default=parts, choices=parts)
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--codes", type=int, default=512)
    add("--vq-steps", type=int, default=400, help="updates of a VQ-VAE, of 128 jets")
    add("--steps", type=int, default=600, help="updates of a pre-training")
    add("--batch-size", type=int, default=64, help="of a pre-training")
    add("--lr", type=float, default=2e-3, help="of a pre-training")
    add("--labels", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    add("--probe-steps", type=int, nargs="+", default=[200, 400, 1200], help="for each of these")
    add("--tune-steps", type=int, default=200, help="updates of a fine-tuning")
    add("--test-jets", type=int, default=4000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    study = Study(options)
    study.run()
    print(study.tables)


if __name__ == "__main__":
    main()
