"""The report of a study: tables in Markdown, CSV and LaTeX, verdicts, figures.

Everything in it is a function of the results: the same results give the same bytes.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from jetkern.io import prepare_folder, write_atomically
from jetkern.study import figures
from jetkern.study.analysis import (
    Score,
    far_off,
    figures_of,
    objectives_of,
    published,
    scores,
    short,
    slopes,
    trajectories,
)
from jetkern.study.collect import NAMES, Row, cells
from jetkern.study.plan import Study
from jetkern.study.statistics import Spread, spread
from jetkern.study.verdicts import ALPHA, CLAIMS, Verdict, verdicts
from jetkern.tables import table

Cells = list[tuple[object, ...]]
DIGITS = {"r30": 0, "r50": 0, "energy": 2, "mass": 2}


def write_report(study: Study, rows: Sequence[Row], out: Path) -> str:
    """Writes report.md, verdicts and tables (CSV and LaTeX) and figures into the folder ``out``.

    Returns:
        what is said on the screen: verdicts and where the rest is.
    """
    prepare_folder(out)
    judged = verdicts(rows, study.metric, [claim.asked_by(study) for claim in CLAIMS])
    tables = {
        "runs": _runs(rows),
        **{f"{task.task}": _merits(rows, task.task) for task in study.tasks},
        "score": _scores(scores(rows)),
        "slopes": _slopes(rows),
        "trajectories": _trajectories(rows),
        "outliers": _outliers(rows),
        "verdicts": _verdicts(judged),
    }
    for name, content in tables.items():
        _write(out / f"{name}.csv", _csv(content))
        _write(out / f"{name}.tex", _latex(content))
    drawn = figures.draw(rows, out)
    there = sum(row.there for row in rows)
    parts = [
        f'# The study "{study.name}"',
        f"{there} of {len(rows)} runs are there. Means over seeds ± their sample standard "
        'deviation; "-" is no run, "∞" no background jet left; intervals are at 95 %, those of '
        "the test sample at 68 %. Definitions: docs/study.md.",
        f"## Verdicts\n\nCompared by {NAMES[study.metric]}, at {ALPHA:.0%} after Holm's correction "
        f"for {2 * len(judged)} tests.",
        _markdown(tables["verdicts"], "lllrrl"),
        _details(judged),
    ]
    for task in study.tasks:
        parts += [f"## {task.task}", _markdown(tables[task.task], "lllrr")]
    parts += ["## Data efficiency", _markdown(tables["score"], "llrr")]
    parts += ["## Slopes per decade", _markdown(tables["slopes"], "lllr")]
    if len(tables["trajectories"]) > 1:
        parts += ["## Trajectories", _markdown(tables["trajectories"], "llllr")]
    parts += ["## Outliers, not left out", _markdown(tables["outliers"], "lr")]
    parts += ["## Figures", "\n".join(f"![{name}]({name})" for name in drawn)]
    _write(out / "report.md", "\n\n".join(parts) + "\n")
    return f"{_markdown(tables['verdicts'], 'lllrrl')}\n\nwritten to {out}"


def _runs(rows: Sequence[Row]) -> Cells:
    names = [*NAMES]
    head = ["task", "way", "size", "objective", "pre-training jets", "jets", "seed"]
    head += ["pre-training seed", "checkpoint", "rate", "best update", "last update"]
    head += ["pre-training loss", "loss", *names]
    head += [f"{n} bootstrap" for n in names] + [f"{n} {e}" for n in ("r30", "r50") for e in ENDS]
    body: Cells = [tuple(head)]
    for row in rows:
        r = row.run
        facts: list[object] = [r.task, r.way, r.size, r.objective, r.pretrain_jets, r.jets, r.seed]
        facts += [r.pretrain_seed, r.checkpoint, _g(row.rate), row.best, row.stopped]
        facts += [_g(row.pretrain_loss), _g(row.values.get("loss", math.nan))]
        facts += [_g(row.values.get(n, math.nan)) for n in names]
        facts += [_g(row.errors.get(n, math.nan)) for n in names]
        facts += [_g(getattr(row, e).get(n, math.nan)) for n in ("r30", "r50") for e in ENDS]
        body.append(tuple(facts))
    return body


ENDS = ("low", "high")


def _merits(rows: Sequence[Row], task: str) -> Cells:
    """A line for each cell: mean and spread over seeds, then the uncertainties of the sample."""
    names = figures_of(task)
    head = ["jets", "model", "pre-training", "runs"]
    for name in names:
        head += [NAMES[name], "bootstrap"]
    counted = [n for n in ("r30", "r50") if n in names]
    head += [f"{NAMES[n]} counting" for n in counted] + (["published R30"] if counted else [])
    body: Cells = [tuple(head)]
    for key, group in sorted(cells(rows).items(), key=_order):
        where, way, size, objective, pretrain_jets, jets = key
        if where != task:
            continue
        line: list[object] = [f"{jets:,}", _model(way, size, objective)]
        line += [f"{pretrain_jets:,}" if pretrain_jets else "-"]
        line.append(f"{sum(row.there for row in group)}/{len(group)}")
        for name in names:
            line.append(_spread(spread([row.values[name] for row in group]), name))
            line.append(_number(_median(row.errors.get(name, math.nan) for row in group), name))
        for name in counted:
            low = _median(row.low.get(name, math.nan) for row in group)
            high = _median(row.high.get(name, math.nan) for row in group)
            line.append(f"{_number(low, name)} to {_number(high, name)}")
        if counted:
            theirs = published(task, size, objective, pretrain_jets, jets)
            line.append(theirs if way in ("finetuned", "scratch") else "-")
        body.append(tuple(line))
    return body


def _scores(found: Iterable[Score]) -> Cells:
    body: Cells = [("jets", "model", "same labels", "all labels", "relative to all labels")]
    for s in found:
        ratios = (s.same, s.all, s.relative)
        shown = (
            "-" if math.isnan(r.value) else f"{r.value:.2f} ± {_number(r.error, '', 2)}"
            for r in ratios
        )
        body.append((f"{s.jets:,}", f"{s.size} {short(s.objective)}, {s.pretrain_jets:,}", *shown))
    return body


def _slopes(rows: Sequence[Row]) -> Cells:
    body: Cells = [("of", "against", "model", "slope", "95 %", "R² of means", "points")]
    for s in slopes(rows):
        digits = 0 if s.metric in ("r30", "r50") else 4
        between = "-"
        if math.isfinite(s.line.low):
            between = f"{s.line.low:.{digits}f} to {s.line.high:.{digits}f}"
        slope = "-" if math.isnan(s.line.slope) else f"{s.line.slope:.{digits}f}"
        r2 = "-" if math.isnan(s.r2) else f"{s.r2:.2f}"
        body.append((NAMES[s.metric], f"lg {s.against}", s.model, slope, between, r2, s.line.n))
    return body


def _trajectories(rows: Sequence[Row]) -> Cells:
    body: Cells = [("of", "model", "jets", "points", "Pearson", "95 %", "Spearman", "95 %")]
    for t in trajectories(rows):
        parts: list[object] = [NAMES[t.metric], t.model, f"{t.jets:,}", len(t.points)]
        for c in (t.pearson, t.spearman):
            parts.append("-" if math.isnan(c.value) else f"{c.value:.2f}")
            parts.append("-" if math.isnan(c.low) else f"{c.low:.2f} to {c.high:.2f}")
        body.append(tuple(parts))
    return body


def _outliers(rows: Sequence[Row]) -> Cells:
    body: Cells = [("run", "of", "value", "median of its seeds")]
    for row, name, median in far_off(rows):
        r = row.run
        what = f"{r.task}, {r.jets:,} jets, {_model(r.way, r.size, r.objective)}, seed {r.seed}"
        values = _number(row.values[name], name), _number(median, name)
        body.append((what, NAMES[name], *values))
    return body if len(body) > 1 else [*body, ("none", "-", "-", "-")]


def _verdicts(judged: Sequence[Verdict]) -> Cells:
    body: Cells = [("claim", "says", "verdict", "p for", "p against", "")]
    for v in judged:
        p = ("-" if math.isnan(p) else f"{p:.3g}" for p in (v.p_for, v.p_against))
        body.append((v.claim.name, v.claim.text, v.word, *p, v.why))
    return body


def _details(judged: Sequence[Verdict]) -> str:
    """The comparisons behind the verdicts: mean differences of ln(error) with their intervals."""
    body: Cells = [("claim", "comparison", "labels", "pairs", "ln(error) lower by", "95 %")]
    for v in judged:
        for comparison, test in zip(v.claim.comparisons, v.tests, strict=True):
            if test.n:
                between = f"{test.low:.3f} to {test.high:.3f}" if test.n > 1 else "-"
                name = f"{comparison}, {comparison.task}"
                line = (v.claim.name, name, comparison.labels, test.n, f"{test.mean:.3f}", between)
                body.append(line)
    return _markdown(body, "lllr") if len(body) > 1 else "No comparison has a pair of runs."


def _model(way: str, size: str, objective: str) -> str:
    if way == "trees":
        return "boosted trees"
    return f"{size} {short(objective)}" + ("" if way in ("finetuned", "scratch") else f", {way}")


def _order(item: tuple[tuple, list[Row]]) -> tuple:
    task, way, size, objective, pretrain_jets, jets = item[0]
    sizes = ["", "micro", "small", "medium", "large"]
    ways = ["finetuned", "frozen", "last-layers", "probe", "scratch", "trees"]
    place = objectives_of([objective])
    return task, jets, sizes.index(size), ways.index(way), place, objective, pretrain_jets


def _spread(s: Spread, name: str) -> str:
    if not s.n:
        return "-"
    if s.infinite:
        return f"∞ ({s.infinite} of {s.n})"
    return _number(s.mean, name) + ("" if math.isnan(s.std) else f" ± {_number(s.std, name)}")


def _number(value: float, name: str, digits: int = 4) -> str:
    if math.isnan(value):
        return "-"
    return "∞" if math.isinf(value) else f"{value:.{DIGITS.get(name, digits)}f}"


def _g(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def _median(values: Iterable[float]) -> float:
    there = sorted(v for v in values if not math.isnan(v))
    return there[len(there) // 2] if there else math.nan


def _markdown(cells: Cells, align: str) -> str:
    return table(cells, align, markdown=True)


def _csv(cells: Cells) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(cells)
    return text.getvalue()


def _latex(cells: Cells) -> str:
    """A ``tabular`` with the rules of booktabs."""
    special = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "±": r"$\pm$", "∞": r"$\infty$"}
    special |= {"τ": r"$\tau$", "²": "$^2$", "\\": r"\textbackslash{}", "$": r"\$"}
    lines = [
        " & ".join("".join(special.get(c, c) for c in str(cell)) for cell in row) + r" \\"
        for row in cells
    ]
    columns = "l" * len(cells[0])
    body = "\n".join([lines[0], r"\midrule", *lines[1:]])
    return f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"


def _write(path: Path, text: str) -> None:
    write_atomically(path, text.encode())
