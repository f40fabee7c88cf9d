"""A finished conversion in words and tables."""

from __future__ import annotations

from jetkern.convert.run import Result
from jetkern.data import Shards
from jetkern.io import printable
from jetkern.tables import table


def text(result: Result) -> str:
    """What was read, kept, repaired and left out, and the classes of every split."""
    report = result.report
    lines = ["The shards were there already; nothing was done."] if result.already_done else []
    lines.append(f"{report['read']:,} jets read, {report['kept']:,} kept")
    lines += [
        f"  {key}: {value:,}"
        for key, value in report.items()
        if isinstance(value, int) and key not in ("read", "kept")
    ]
    if "warning" in report:
        lines.append(f"WARNING: {report['warning']}")
    opened = {split or "all": Shards(folder) for split, folder in result.folders.items()}
    rows = [["class", *opened]]
    classes = next(iter(opened.values())).classes
    for i, name in enumerate(classes):
        rows.append([name, *(f"{s.counts[i]:,}" for s in opened.values())])
    rows.append(["all", *(f"{s.num_jets:,}" for s in opened.values())])
    rows.append(["particles", *(f"{s.num_particles:,}" for s in opened.values())])
    rows.append(["shards", *(f"{len(s.paths):,}" for s in opened.values())])
    rows.append(["MB", *(f"{sum(s.bytes) / 1e6:,.1f}" for s in opened.values())])
    lines += ["", table(rows), ""]
    ranges = report.get("ranges", {})
    if ranges:
        columns = {field.name: field.columns for s in opened.values() for field in s.fields} | {
            "multiplicity": ("multiplicity",)
        }
        limits = [["column", "lowest", "highest"]]
        for name, (low, high) in ranges.items():
            for column, a, b in zip(columns[name], low, high, strict=True):
                limits.append([column, f"{a:.4g}", f"{b:.4g}"])
        lines.append(table(limits))
    lines += ["", *(printable(folder) for folder in result.folders.values())]
    return "\n".join(lines)
