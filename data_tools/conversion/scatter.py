"""First pass: reads a range of jets and deals them to buckets in a work file.

The jets of each class are put in random order and dealt to the buckets in turn, so every bucket
gets its share of every class from every range of the input.

A work file is a table with one row per bucket, then each bucket's jets as raw arrays: counts, then
the fields of the shards. Its ``.json`` beside it holds the counts and marks it as complete.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import readers
from numpy.typing import NDArray
from readers import InputError, Raw

from conversion.clean import Tally, clean, take_jets
from conversion.plan import Plan, Unit
from jetkern.data.order import hashes
from jetkern.data.shards import Field, npy_bytes

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
    source = readers.module(plan.reader).open_source(entry.path, plan.options)
    try:
        if source.num_jets != entry.num_jets:
            raise InputError(f"{entry.path}: the file changed while it was being converted")
        raw = source.read(unit.start, unit.stop)
    finally:
        source.close()
    raw, rows, tally = clean(raw, plan.policy, plan.layout.classes, entry.path, unit.start)
    split = _splits(plan, unit, raw, rows - unit.start)
    bucket = _deal(plan, unit, raw, split)
    order = np.argsort(bucket, kind="stable")
    raw, bucket = take_jets(raw, order), bucket[order]
    buckets = sum(plan.splits.values())
    edges = np.searchsorted(bucket, np.arange(buckets + 1))
    ends = np.concatenate([[0], np.cumsum(raw.counts)])
    table = np.zeros(buckets, TABLE)
    pieces = []
    offset = len(npy_bytes(table))
    for b in np.flatnonzero(np.diff(edges)):
        jets, particles = slice(edges[b], edges[b + 1]), slice(ends[edges[b]], ends[edges[b + 1]])
        piece = _piece(plan.fields, raw, jets, particles)
        table[b] = (
            offset,
            len(piece),
            jets.stop - jets.start,
            particles.stop - particles.start,
            zlib.crc32(piece),
        )
        offset += len(piece)
        pieces.append(piece)
    path = work_file(folder, unit.number)
    tally["jets in buckets"] = table["jets"].tolist()
    _write(path, [npy_bytes(table), *pieces])
    _write(path.with_suffix(".json"), [json.dumps(tally).encode()])
    return tally


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


def _piece(fields: tuple[Field, ...], raw: Raw, jets: slice, particles: slice) -> bytes:
    arrays = [raw.counts[jets].astype("u1")]
    for field in fields[1:]:
        rows = getattr(raw, field.name)[particles if field.per_particle else jets]
        arrays.append(rows.astype(work_dtype(field)))
    return b"".join(a.tobytes() for a in arrays)


def work_dtype(field: Field) -> str:
    """Rounding to float16 waits until the shards are written."""
    return "<f4" if field.dtype == "<f2" else field.dtype


def read_piece(
    path: Path, bucket: int, buckets: int, fields: tuple[Field, ...]
) -> dict[str, NDArray[Any]]:
    """The jets of one bucket in a work file: counts and the shards' fields."""
    header = len(npy_bytes(np.zeros(buckets, TABLE))) - buckets * TABLE.itemsize
    with open(path, "rb") as file:
        row = np.frombuffer(
            os.pread(file.fileno(), TABLE.itemsize, header + bucket * TABLE.itemsize), TABLE
        )
        size = int(row["bytes"][0]) if len(row) else -1
        piece = os.pread(file.fileno(), size, int(row["offset"][0])) if size > 0 else b""
    if len(piece) != size or zlib.crc32(piece) != row["crc"][0]:
        raise InputError(f"{path}: damaged work file; remove it and run the same command again")
    jets, particles = int(row["jets"][0]), int(row["particles"][0])
    arrays = {"counts": np.frombuffer(piece, "u1", jets)}
    at = jets
    for field in fields[1:]:
        shape, dtype = field.shape(jets, particles), np.dtype(work_dtype(field))
        arrays[field.name] = np.frombuffer(piece, dtype, int(np.prod(shape)), at).reshape(shape)
        at += arrays[field.name].nbytes
    return arrays


def _write(path: Path, parts: list[bytes]) -> None:
    """A file that has its name only once it is complete. Work files are not worth a sync: a power
    cut that leaves holes is found by their checksums."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.writelines(parts)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
