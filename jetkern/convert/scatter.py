"""First pass: reads a range of jets and deals them to buckets in a work file.

The jets of each class are put in random order and dealt to the buckets in turn, so every bucket
gets its share of every class from every range of the input.

A work file is a table with one row per bucket, then each bucket's jets as raw arrays: counts, then
the fields of the shards. The ``.json`` beside it holds its size and counts, and marks it complete.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64

from jetkern.convert.clean import Tally, clean, merge, take_jets
from jetkern.convert.inputs import fingerprints
from jetkern.convert.plan import Input, Piece, Plan, Unit
from jetkern.convert.readers import InputError, Options, Raw, Source
from jetkern.convert.showers import clean_showers
from jetkern.data.order import hashes
from jetkern.data.shards import POINTS, Field, counts_dtype, npy_bytes
from jetkern.io import AtomicFile

_SPLIT, _DEAL = 101, 102
_ARRAYS = ("particles", "pid", "tracks", "vertex", "origin", "condition")
TABLE = np.dtype(
    [("offset", "<i8"), ("bytes", "<i8"), ("jets", "<i8"), ("particles", "<i8"), ("xxh3", "<u8")]
)


def work_file(folder: Path, unit: Unit) -> Path:
    """Where a unit's jets wait for the second pass."""
    return folder / f"{unit.name}.jets"


def scatter(plan: Plan, unit: Unit, folder: Path) -> Tally:
    """Reads, checks and deals one unit. Returns its counts, which are also on the disk."""
    raws, splits, tallies, prints = [], [], [], []
    for piece in unit.pieces:
        entry = plan.inputs[piece.input]
        # Before the jets are read, so that the file's bytes come from the disk in long stretches.
        prints.append(fingerprints(entry.path, entry.size, piece.start, piece.stop, entry.num_jets))
        raw = _source(plan, entry).read(piece.start, piece.stop)
        entry.check()
        if plan.layout.points:
            raw, rows, tally = clean_showers(raw, plan.policy, entry.path, piece.start)
        else:
            classes = plan.layout.classes
            raw, rows, tally = clean(raw, plan.policy, classes, entry.path, piece.start)
        raws.append(raw)
        splits.append(_splits(plan, piece, raw, rows - piece.start))
        tallies.append(tally)
    raw, split = _join(raws), np.concatenate(splits)
    tally = merge(tallies)
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
        own = [array[particles if per_particle else jets] for array, per_particle in arrays]
        digest = xxh3_64()
        for part in own:
            digest.update(part.data)
        size = sum(part.nbytes for part in own)
        table[b] = (
            offset,
            size,
            jets.stop - jets.start,
            particles.stop - particles.start,
            digest.intdigest(),
        )
        offset += size
        parts += own
    path = work_file(folder, unit)
    tally["jets in buckets"] = table["jets"].tolist()
    tally["fingerprints"] = prints
    header = npy_bytes(table)
    _write(path, [header, *(part.data for part in parts)])
    record = {"bytes": offset, "table": zlib.crc32(header), "tally": tally}
    _write(path.with_suffix(".json"), [sealed(json.dumps(record).encode())])
    return tally


def finished(plan: Plan, unit: Unit, folder: Path) -> Tally | None:
    """The counts of a unit whose work file is complete: its size and its table of buckets are
    checked here, the buckets when they are read."""
    path = work_file(folder, unit)
    try:
        record = json.loads(unsealed(path.with_suffix(".json").read_bytes()))
        with open(path, "rb") as file:
            header = file.read(_table_bytes(sum(plan.splits.values())))
        if path.stat().st_size == record["bytes"] and zlib.crc32(header) == record["table"]:
            return record["tally"]
    except (FileNotFoundError, ValueError):
        pass
    return None


def sealed(content: bytes) -> bytes:
    """The content below a line with its SHA-256."""
    return hashlib.sha256(content).hexdigest().encode() + b"\n" + content


def unsealed(data: bytes) -> bytes:
    """What ``sealed`` was given.

    Raises:
        ValueError: if a bit of it is no longer the same.
    """
    digest, _, content = data.partition(b"\n")
    if hashlib.sha256(content).hexdigest().encode() != digest:
        raise ValueError("the SHA-256 is not that of the content")
    return content


_opened: list[tuple[tuple[str, Input, Options], Source]] = []


def _source(plan: Plan, entry: Input) -> Source:
    """The opened input, which stays open until another one is asked for."""
    key = (plan.reader, entry, plan.options)
    if not _opened or _opened[0][0] != key:
        close_source()
        entry.check()
        _opened.append((key, entry.open(plan.reader, plan.options)))
    return _opened[0][1]


def close_source() -> None:
    """Closes the input that this process read last."""
    while _opened:
        _opened.pop()[1].close()


def _splits(plan: Plan, piece: Piece, raw: Raw, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """(B,) number of each jet's split in ``plan.splits``."""
    names = list(plan.splits)
    entry = plan.inputs[piece.input]
    if plan.fractions:
        uniform = hashes(piece.stop - piece.start, _SPLIT, plan.seed, entry.key, piece.start)[rows]
        edges = np.cumsum([plan.fractions[s] for s in names])[:-1]
        return np.searchsorted(edges, uniform / 2.0**64, side="right")
    if raw.split is not None and plan.own_splits and entry.split is None:
        return np.array([names.index(s) for s in plan.own_splits])[raw.split]
    return np.full(len(raw.counts), names.index(entry.split or ""))


def _deal(plan: Plan, unit: Unit, raw: Raw, split: NDArray[np.int64]) -> NDArray[np.int64]:
    """(B,) bucket of each jet."""
    classes = len(plan.layout.classes)
    group = split * classes + raw.label
    keys = hashes(len(group), _DEAL, plan.seed, unit.key)
    order = np.lexsort((keys, group))
    sizes = np.bincount(group, minlength=len(plan.splits) * classes)
    turn = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    # Each group starts at another bucket, so that the first ones do not get more.
    start = (hashes(len(sizes), _DEAL, plan.seed, unit.key, 1) >> np.uint64(1)).astype(np.int64)
    buckets = np.array(list(plan.splits.values()))
    first = np.cumsum(buckets) - buckets
    of = split[order]
    bucket = np.empty(len(group), np.int64)
    bucket[order] = first[of] + (start[group[order]] + turn) % buckets[of]
    return bucket


def _join(raws: list[Raw]) -> Raw:
    """The jets of some inputs, back to back."""
    if len(raws) == 1:
        return raws[0]

    def joined(name: str) -> Any:
        arrays = [getattr(raw, name) for raw in raws]
        return None if arrays[0] is None else np.concatenate(arrays)

    return Raw(**{name: joined(name) for name in ("counts", "label", *_ARRAYS)})


def _work_arrays(fields: tuple[Field, ...], raw: Raw) -> list[tuple[NDArray[Any], bool]]:
    """What a work file holds of jets, and whether it has a row per particle."""
    counts = (raw.counts.astype(counts_dtype(fields)), False)
    arrays = {f: raw.particles if f.name == POINTS else getattr(raw, f.name) for f in fields[1:]}
    return [counts] + [
        (np.ascontiguousarray(array, work_dtype(f)), f.per_particle) for f, array in arrays.items()
    ]


def work_dtype(field: Field) -> str:
    """Rounding to float16 waits until the shards are written."""
    return "<f4" if field.dtype == "<f2" else field.dtype


def read_bucket(
    paths: list[Path], bucket: int, buckets: int, fields: tuple[Field, ...]
) -> dict[str, NDArray[Any]]:
    """The jets of one bucket in all work files: ``counts`` and the shards' fields."""
    header = _table_bytes(buckets) - buckets * TABLE.itemsize
    rows = np.zeros(len(paths), TABLE)
    for i, path in enumerate(paths):
        with open(path, "rb", buffering=0) as file:
            _fill(file, rows[i : i + 1], header + bucket * TABLE.itemsize)
    jets, particles = int(rows["jets"].sum()), int(rows["particles"].sum())
    arrays = {"counts": np.empty(jets, counts_dtype(fields))}
    for field in fields[1:]:
        arrays[field.name] = np.empty(field.shape(jets, particles), work_dtype(field))
    per_particle = [False, *(f.per_particle for f in fields[1:])]
    jet = particle = 0
    for path, row in zip(paths, rows.tolist(), strict=True):
        offset, size, jets, particles, expected = row
        if not jets:
            continue
        digest = xxh3_64()
        with open(path, "rb", buffering=0) as file:
            for array, by_particle in zip(arrays.values(), per_particle, strict=True):
                part = array[particle:][:particles] if by_particle else array[jet:][:jets]
                _fill(file, part, offset)
                offset += part.nbytes
                digest.update(part.data)
        if digest.intdigest() != expected or offset != row[0] + size:
            raise _damaged(path)
        jet, particle = jet + jets, particle + particles
    return arrays


def _table_bytes(buckets: int) -> int:
    """Size of the table at the beginning of a work file."""
    return len(npy_bytes(np.zeros(buckets, TABLE)))


def _fill(file: io.FileIO, array: NDArray[Any], offset: int) -> None:
    """Reads a contiguous array from an offset."""
    view = array.reshape(-1).view(np.uint8).data
    while view:
        got = os.preadv(file.fileno(), [view], offset)
        if not got:
            raise _damaged(Path(str(file.name)))
        view, offset = view[got:], offset + got


def _damaged(path: Path) -> InputError:
    path.with_suffix(".json").unlink(missing_ok=True)
    return InputError(f"{path}: damaged work file; the same command again makes it anew")


def _write(path: Path, parts: Sequence[bytes | memoryview]) -> None:
    """A file that has its name only once it is complete. Work files are not worth a sync: a power
    cut that leaves holes is found by their checksums."""
    with AtomicFile(path, durable=False) as file:
        for part in parts:
            file.write(part)
