"""Reads what the runs of a study have left: one row of plain numbers for each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jetkern.evaluation.generation import AVERAGE
from jetkern.io import read_json
from jetkern.study.grid import Grid, Run
from jetkern.study.plan import StudyError
from jetkern.training.log import read_metrics

NAN = math.nan
# Figures of merit of a classifier, and whether more of it is better.
CLASSIFIER = {"r30": True, "r50": True, "auc": True, "accuracy": True, "cross_entropy": False}
# Distances of JetNet, averaged over the types.
GENERATOR = {"tau21": False, "tau32": False, "mass": False, "energy": False}
NAMES = {
    "r30": "R30",
    "r50": "R50",
    "auc": "AUC",
    "accuracy": "accuracy",
    "cross_entropy": "cross-entropy",
    "tau21": "W1(τ21)",
    "tau32": "W1(τ32)",
    "mass": "W1(mass), GeV",
    "energy": "W1(energy), GeV",
}


@dataclass(frozen=True)
class Row:
    """One run of the study and how good it is.

    Attributes:
        run: which one.
        values: figures of merit by name; NaN for all if it is not there yet.
        errors: of the test sample by bootstrap, half of the central 68.27 %.
        low, high: the interval of the background count at fixed threshold (Clopper-Pearson,
            68.27 %) as rejections, of r30 and r50 only; ``kept``: the count, and of how many.
        pretrain_loss: validation loss of the checkpoint that it started from.
        curve: updates and losses of its validations; ``roc``: background efficiencies at 1 %,
            2 %, ... 100 % of the signal.
        rate: peak learning rate; ``stopped`` after so many updates, ``best`` with its loss.
    """

    run: Run
    values: dict[str, float]
    errors: dict[str, float] = field(default_factory=dict)
    low: dict[str, float] = field(default_factory=dict)
    high: dict[str, float] = field(default_factory=dict)
    kept: dict[str, tuple[int, int]] = field(default_factory=dict)
    pretrain_loss: float = math.nan
    rate: float = math.nan
    stopped: int = 0
    best: int = 0
    curve: tuple[tuple[int, float], ...] = ()
    roc: tuple[float, ...] = ()

    @property
    def there(self) -> bool:
        """Whether the run has been judged."""
        return any(not math.isnan(value) for value in self.values.values())


def collect(grid: Grid, folder: Path) -> list[Row]:
    """A row for each run below ``folder``, in the order of the grid.

    Raises:
        StudyError: naming a file that is there, but is not what the run should have left.
    """
    losses = {run.folder: _losses(folder / run.folder) for run in grid.runs if not run.report}
    return [_row(run, folder, losses) for run in grid.runs]


def _row(run: Run, folder: Path, losses: dict[str, dict[int, float]]) -> Row:
    done = _done(folder / run.folder) if run.folder else {}
    best = done.get("best") or {}
    facts = {
        "rate": _rate(folder / run.folder) if run.folder else math.nan,
        "stopped": done.get("step", 0),
        "best": best.get("step", 0),
    }
    if not run.report:
        return Row(run, {"loss": best.get("loss", math.nan)}, **facts)
    names = GENERATOR if run.task == "jetnet" else CLASSIFIER
    path = folder / run.report
    if not path.exists():
        return Row(run, dict.fromkeys(names, math.nan))
    models = read_json(path, error=StudyError).record("models")
    if len(models.content) != 1:
        models.fail("*", f"are {len(models.content)} models, expected one")
    record = models.record(next(iter(models.content)))
    source = f"pretrain/{run.size}-{run.objective}-{run.pretrain_jets}-s{run.pretrain_seed}"
    seen = losses.get(source, {})
    loss = seen.get(run.checkpoint, math.nan) if run.checkpoint else min(seen.values(), default=NAN)
    read = _distances if run.task == "jetnet" else _merits
    curve = tuple(_losses(folder / run.folder).items()) if run.folder else ()
    return Row(run, **read(record.content, path), pretrain_loss=loss, curve=curve, **facts)


def _merits(record: dict[str, Any], path: Path) -> dict[str, Any]:
    try:
        values = {name: float(record[name]["value"]) for name in CLASSIFIER}
        errors = {name: float(record[name]["error"]) for name in CLASSIFIER}
        counts = {"r30": record["rejection_30"], "r50": record["rejection_50"]}
        ends = {
            end: {name: float(count[end]) for name, count in counts.items()}
            for end in ("low", "high")
        }
        roc = tuple(float(value) for value in record["background_efficiency"])
        kept = {name: (int(c["kept"]), int(c["total"])) for name, c in counts.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise StudyError(f"{path} is no report of a classifier of two classes: {error}") from None
    return {"values": values, "errors": errors, **ends, "kept": kept, "roc": roc}


def _distances(record: dict[str, Any], path: Path) -> dict[str, dict[str, float]]:
    try:
        means = record["distances"][AVERAGE]
        values = {name: float(means[f"W1 {name}"]["value"][0]) for name in GENERATOR}
        errors = {name: float(means[f"W1 {name}"]["value"][1]) for name in GENERATOR}
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise StudyError(f"{path} is no report of a generator: {error}") from None
    return {"values": values, "errors": errors}


def _done(folder: Path) -> dict[str, Any]:
    path = folder / "DONE"
    return read_json(path, error=StudyError).content if path.exists() else {}


def _rate(folder: Path) -> float:
    path = folder / "config.json"
    if not path.exists():
        return NAN
    return read_json(path, error=StudyError).record("identity").number("lr")


def _losses(folder: Path) -> dict[int, float]:
    """Validation losses of a pre-training by the updates before them."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return {}
    records = [r for r in read_metrics(path) if r.get("kind") == "validation"]
    return {r["step"]: r["loss"] for r in records if isinstance(r.get("loss"), float)}


def cells(rows: Sequence[Row]) -> dict[tuple, list[Row]]:
    """Rows that differ in their seeds only, by task, way, size, objective and numbers of jets."""
    found: dict[tuple, list[Row]] = {}
    for row in rows:
        r = row.run
        if r.task != "pretrain" and not r.checkpoint:
            key = (r.task, r.way, r.size, r.objective, r.pretrain_jets, r.jets)
            found.setdefault(key, []).append(row)
    return found
