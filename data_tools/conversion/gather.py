"""Second pass: shuffles a bucket and writes it as a shard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conversion.plan import Plan
from conversion.scatter import read_piece, work_file
from jetkern.data.order import hashes
from jetkern.data.shards import AtomicFile, Block, Field, index_dtype, npy_bytes, write_shard

Array = NDArray[Any]
_SHUFFLE = 103


def record_file(folder: Path, bucket: int) -> Path:
    """Where the shard's rows of the index wait for the manifest; its presence marks the shard."""
    return folder / f"bucket-{bucket:06d}.npy"


def gather(
    plan: Plan, bucket: int, shard: int, first_block: int, path: Path, folder: Path
) -> dict[str, Any]:
    """Writes one bucket as the shard ``path``.

    Args:
        bucket: its number over all splits; shard, first_block: numbers in its split.

    Returns:
        the shard's entry of the manifest, with the counts of its classes.
    """
    pieces = [
        read_piece(work_file(folder, u.number), bucket, sum(plan.splits.values()), plan.fields)
        for u in plan.units
    ]
    jets = {name: np.concatenate([p[name] for p in pieces]) for name in pieces[0]}
    del pieces
    counts = jets.pop("counts").astype(np.int64)
    order = balanced_order(jets["label"], plan.seed, bucket)
    rows, digest = write_shard(
        path, shard, first_block, _blocks(plan, jets, counts, order), plan.fields
    )
    per_class = np.bincount(jets["label"], minlength=len(plan.layout.classes))
    entry = {
        "name": path.name,
        "bytes": path.stat().st_size,
        "sha256": digest,
        "blocks": len(rows),
        "jets": len(counts),
    }
    record = record_file(folder, bucket)
    with AtomicFile(record.with_suffix(".multiplicity.npy")) as file:
        file.write(npy_bytes(counts[order].astype(np.uint8)))
    with AtomicFile(record.with_suffix(".json")) as file:
        file.write(json.dumps({**entry, "counts": per_class.tolist()}).encode())
    with AtomicFile(record) as file:
        file.write(npy_bytes(rows))
    return entry


def balanced_order(label: Array, seed: int, bucket: int) -> NDArray[np.int64]:
    """A random order in which every stretch has about its share of every class.

    The jets of a class, in random order, get places that are spread evenly from 0 to 1, each moved
    by a random part of its distance to the next; the places sort the jets.
    """
    n = len(label)
    keys = hashes(n, _SHUFFLE, seed, bucket)
    order = np.lexsort((keys, label))
    sizes = np.bincount(label)
    turn = np.arange(n) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    jitter = hashes(n, _SHUFFLE, seed, bucket, 1) / 2.0**64
    place = (turn + jitter) / np.repeat(sizes, sizes)
    return order[np.argsort(place, kind="stable")]


def num_blocks(jets: int, jets_per_block: int) -> int:
    """Blocks of a shard: all of about the same size."""
    return max(1, round(jets / jets_per_block))


def _blocks(plan: Plan, jets: dict[str, Array], counts: Array, order: Array) -> Iterator[Block]:
    starts = np.cumsum(counts) - counts
    for chosen in np.array_split(order, num_blocks(len(order), plan.jets_per_block)):
        n = counts[chosen]
        offsets = np.concatenate([[0], np.cumsum(n)])
        rows = np.repeat(starts[chosen] - offsets[:-1], n) + np.arange(offsets[-1])
        block: dict[str, Array] = {"offsets": offsets}
        for field in plan.fields[1:]:
            block[field.name] = jets[field.name].take(
                rows if field.per_particle else chosen, axis=0
            )
        yield block


def read_record(
    folder: Path, bucket: int, fields: tuple[Field, ...]
) -> tuple[dict[str, Any], Array, Array]:
    """The entry, the index rows and the multiplicities of a finished shard."""
    record = record_file(folder, bucket)
    entry = json.loads(record.with_suffix(".json").read_text())
    rows = np.load(record, allow_pickle=False)
    if rows.dtype != index_dtype(fields):
        raise ValueError(f"{record}: unexpected type {rows.dtype}")
    return entry, rows, np.load(record.with_suffix(".multiplicity.npy"), allow_pickle=False)
