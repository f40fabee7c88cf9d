"""A finished conversion in words and tables."""

from __future__ import annotations

from pathlib import Path

from jetkern.convert.inputs import SPLITS
from jetkern.convert.run import Result
from jetkern.data import Shards
from jetkern.data.shards import MANIFEST
from jetkern.io import printable
from jetkern.tables import table


def text(result: Result) -> str:
    """What was read, kept, repaired and left out, and the classes of every split."""
    report = result.report
    lines = ["The shards were there already; nothing was done."] if result.already_done else []
    opened = {split or "all": Shards(folder) for split, folder in result.folders.items()}
    sets, points = next((s.words for s in opened.values()), ("jets", "particles"))
    lines.append(f"{report.get('read', 0):,} {sets} read, {report['kept']:,} kept")
    lines += [
        f"  {key}: {value:,}"
        for key, value in report.items()
        if isinstance(value, int) and key not in ("read", "kept")
    ]
    lines += [f"  {printable(note)}" for note in result.notes]
    if "warning" in report:
        lines.append(f"WARNING: {report['warning']}")
    if not result.folders:
        return "\n".join(lines)
    classes = next(iter(opened.values())).classes
    lines += _gaps(opened, classes)
    rows = [["class", *opened]]
    for i, name in enumerate(classes):
        rows.append([name, *(f"{s.counts[i]:,}" for s in opened.values())])
    rows.append(["all", *(f"{s.num_jets:,}" for s in opened.values())])
    rows.append([points, *(f"{s.num_particles:,}" for s in opened.values())])
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


def _gaps(opened: dict[str, Shards], classes: tuple[str, ...]) -> list[str]:
    """Warnings of splits that got no jets, or none of a class that others have."""
    source = next(iter(opened.values())).manifest.get("source", {})
    empty = [split for split in source.get("buckets", {}) if (split or "all") not in opened]
    sets = next(iter(opened.values())).words[0]
    lines = [f"WARNING: no {sets[:-1]} fell to {split}" for split in empty]
    present = [any(s.counts[i] for s in opened.values()) for i in range(len(classes))]
    for split, shards in opened.items():
        counts = zip(classes, shards.counts, present, strict=True)
        lacking = [name for name, count, there in counts if there and not count]
        if lacking:
            lines.append(f"WARNING: {split} has no {sets} of {printable(', '.join(lacking))}")
    absent = [name for name, there in zip(classes, present, strict=True) if not there]
    if absent:
        lines.append(f"WARNING: there are no {sets} of {printable(', '.join(absent))}")
    return lines


def folders_of(folder: Path) -> list[Path]:
    """The folders of shards in what ``jetkern convert`` wrote: itself, or those of its splits."""
    if not (folder / MANIFEST).exists():
        inside = [p.parent for p in folder.glob(f"*/{MANIFEST}")]
        known = [folder / s for s in SPLITS if folder / s in inside]
        if inside:
            return known + sorted(set(inside) - set(known))
    return [folder]
