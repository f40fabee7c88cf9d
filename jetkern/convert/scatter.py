"""First pass: reads a range of jets and deals them to buckets in a work file.

The jets of each class are put in random order and dealt to the buckets in turn, so every bucket
gets its share of every class from every range of the input.

A work file is a table with one row per bucket, then each bucket's jets as raw arrays: counts, then
the fields of the shards. The ``.json`` beside it holds its size and counts, and marks it complete.
"""

from __future__ import annotations

import io
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jetkern.convert import readers
from jetkern.convert.clean import Tally, clean, take_jets
from jetkern.convert.plan import Input, Plan, Unit
from jetkern.convert.readers import InputError, Options, Raw, Source
from jetkern.data.order import hashes
from jetkern.data.shards import Field, npy_bytes
from jetkern.io import AtomicFile

_SPLIT, _DEAL = 101, 102
TABLE = np.dtype(
    [("offset", "<i8"), ("bytes", "<i8"), ("jets", "<i8"), ("particles", "<i8"), ("crc", "<u4")]
)


def work_file(folder: Path, unit: int) -> Path:
    """Where a unit's jets wait for the second pass."""
    return folder / f"unit-{unit:06d}.jets"


def scatter(plan: Plan, unit: Unit, folder: Path) -> Tally:
    """Reads, checks and deals one unit. Returns its counts, which are also on the disk."""
    entry = plan.inputs[unit.input]
    raw = _source(plan, entry).read(unit.start, unit.stop)
    raw, rows, tally = clean(raw, plan.policy, plan.layout.classes, entry.path, unit.start)
    split = _splits(plan, unit, raw, rows - unit.start)
    bucket = _deal(plan, unit, raw, split)
    order = np.argsort(bucket, kind="stable")
    raw, bucket = take_jets(raw, order), bucket[order]
    buckets = sum(plan.splits.values())
    edges = np.searchsorted(bucket, np.arange(buckets + 1))
    ends = np.concatenate([[0], np.cumsum(raw.counts)])
    arrays = _work_arrays(plan.fields, raw)
    table = np.zeros(buckets, TABLE)
    parts = []
    offset = len(npy_bytes(table))
    for b in np.flatnonzero(np.diff(edges)):
        jets, particles = slice(edges[b], edges[b + 1]), slice(ends[edges[b]], ends[edges[b + 1]])
        piece = [array[particles if per_particle else jets] for array, per_particle in arrays]
        crc = 0
        for part in piece:
            crc = zlib.crc32(part.data, crc)
        size = sum(part.nbytes for part in piece)
        table[b] = offset, size, jets.stop - jets.start, particles.stop - particles.start, crc
        offset += size
        parts += piece
    path = work_file(folder, unit.number)
    tally["jets in buckets"] = table["jets"].tolist()
    _write(path, [npy_bytes(table), *(part.data for part in parts)])
    _write(path.with_suffix(".json"), [json.dumps({"bytes": offset, "tally": tally}).encode()])
    return tally


def finished(folder: Path, unit: int) -> Tally | None:
    """The counts of a unit whose work file is complete. Its contents are judged when it is read."""
    path = work_file(folder, unit)
    try:
        record = json.loads(path.with_suffix(".json").read_text())
        return record["tally"] if path.stat().st_size == record["bytes"] else None
    except (FileNotFoundError, ValueError, KeyError):
        return None


_opened: list[tuple[tuple[str, Input, Options], Source]] = []


def _source(plan: Plan, entry: Input) -> Source:
    """The opened input, which stays open until another one is asked for."""
    key = (plan.reader, entry, plan.options)
    if not _opened or _opened[0][0] != key:
        close_source()
        source = readers.module(plan.reader).open_source(entry.path, plan.options)
        if source.num_jets != entry.num_jets:
            source.close()
            raise InputError(f"{entry.path}: the file changed while it was being converted")
        _opened.append((key, source))
    return _opened[0][1]


def close_source() -> None:
    """Closes the input that this process read last."""
    while _opened:
        _opened.pop()[1].close()


def _splits(plan: Plan, unit: Unit, raw: Raw, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """(B,) number of each jet's split in ``plan.splits``."""
    names = list(plan.splits)
    entry = plan.inputs[unit.input]
    if plan.fractions:
        uniform = hashes(unit.stop - unit.start, _SPLIT, plan.seed, unit.input, unit.start)[rows]
        edges = np.cumsum([plan.fractions[s] for s in names])[:-1]
        return np.searchsorted(edges, uniform / 2.0**64, side="right")
    if raw.split is not None and plan.own_splits and entry.split is None:
        return np.array([names.index(s) for s in plan.own_splits])[raw.split]
    return np.full(len(raw.counts), names.index(entry.split or ""))


def _deal(plan: Plan, unit: Unit, raw: Raw, split: NDArray[np.int64]) -> NDArray[np.int64]:
    """(B,) bucket of each jet."""
    classes = len(plan.layout.classes)
    group = split * classes + raw.label
    keys = hashes(len(group), _DEAL, plan.seed, unit.number)
    order = np.lexsort((keys, group))
    sizes = np.bincount(group, minlength=len(plan.splits) * classes)
    turn = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    # Each group starts at another bucket, so that the first ones do not get more.
    start = (hashes(len(sizes), _DEAL, plan.seed, unit.number, 1) >> np.uint64(1)).astype(np.int64)
    buckets = np.array(list(plan.splits.values()))
    first = np.cumsum(buckets) - buckets
    of = split[order]
    bucket = np.empty(len(group), np.int64)
    bucket[order] = first[of] + (start[group[order]] + turn) % buckets[of]
    return bucket


def _work_arrays(fields: tuple[Field, ...], raw: Raw) -> list[tuple[NDArray[Any], bool]]:
    """What a work file holds of jets, and whether it has a row per particle."""
    counts = (raw.counts.astype(np.uint8), False)
    return [counts] + [
        (np.ascontiguousarray(getattr(raw, f.name), work_dtype(f)), f.per_particle)
        for f in fields[1:]
    ]


def work_dtype(field: Field) -> str:
    """Rounding to float16 waits until the shards are written."""
    return "<f4" if field.dtype == "<f2" else field.dtype


def read_bucket(
    paths: list[Path], bucket: int, buckets: int, fields: tuple[Field, ...]
) -> dict[str, NDArray[Any]]:
    """The jets of one bucket in all work files: ``counts`` and the shards' fields."""
    header = len(npy_bytes(np.zeros(buckets, TABLE))) - buckets * TABLE.itemsize
    rows = np.zeros(len(paths), TABLE)
    for i, path in enumerate(paths):
        with open(path, "rb", buffering=0) as file:
            _fill(file, rows[i : i + 1], header + bucket * TABLE.itemsize)
    jets, particles = int(rows["jets"].sum()), int(rows["particles"].sum())
    arrays = {"counts": np.empty(jets, np.uint8)}
    for field in fields[1:]:
        arrays[field.name] = np.empty(field.shape(jets, particles), work_dtype(field))
    per_particle = [False, *(f.per_particle for f in fields[1:])]
    jet = particle = 0
    for path, row in zip(paths, rows.tolist(), strict=True):
        offset, size, jets, particles, expected = row
        crc = 0
        with open(path, "rb", buffering=0) as file:
            for array, by_particle in zip(arrays.values(), per_particle, strict=True):
                part = array[particle:][:particles] if by_particle else array[jet:][:jets]
                _fill(file, part, offset)
                offset += part.nbytes
                crc = zlib.crc32(part.data, crc)
        if crc != expected or offset != row[0] + size:
            raise _damaged(path)
        jet, particle = jet + jets, particle + particles
    return arrays


def _fill(file: io.FileIO, array: NDArray[Any], offset: int) -> None:
    """Reads a contiguous array from an offset."""
    view = array.reshape(-1).view(np.uint8).data
    while view:
        got = os.preadv(file.fileno(), [view], offset)
        if not got:
            raise _damaged(Path(str(file.name)))
        view, offset = view[got:], offset + got


def _damaged(path: Path) -> InputError:
    return InputError(f"{path}: damaged work file; remove it and run the same command again")


def _write(path: Path, parts: Sequence[bytes | memoryview]) -> None:
    """A file that has its name only once it is complete. Work files are not worth a sync: a power
    cut that leaves holes is found by their checksums."""
    with AtomicFile(path, durable=False) as file:
        for part in parts:
            file.write(part)
