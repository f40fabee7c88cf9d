"""Second pass: shuffles a bucket and writes it as a shard."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jetkern.convert.plan import Plan
from jetkern.convert.scatter import read_bucket, work_file
from jetkern.data.order import hashes
from jetkern.data.shards import Block, Field, index_dtype, write_shard
from jetkern.io import AtomicFile

Array = NDArray[Any]
_SHUFFLE = 103


def record_file(folder: Path, bucket: int) -> Path:
    """Where what the manifest says of a shard waits for it; its presence marks the shard."""
    return folder / f"bucket-{bucket:06d}.npz"


def gather(
    plan: Plan, bucket: int, shard: int, first_block: int, path: Path, folder: Path
) -> dict[str, Any]:
    """Writes one bucket as the shard ``path``.

    Args:
        bucket: its number over all splits; shard, first_block: numbers in its split.

    Returns:
        the shard's entry of the manifest, with the counts of its classes.
    """
    paths = [work_file(folder, u.number) for u in plan.units]
    jets = read_bucket(paths, bucket, sum(plan.splits.values()), plan.fields)
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
    record = io.BytesIO()
    np.savez(
        record,
        entry=np.frombuffer(json.dumps({**entry, "counts": per_class.tolist()}).encode(), "u1"),
        index=rows,
        multiplicity=counts[order].astype(np.uint8),
    )
    with AtomicFile(record_file(folder, bucket)) as file:
        file.write(record.getbuffer())
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
    path = record_file(folder, bucket)
    with np.load(path, allow_pickle=False) as record:
        rows = record["index"]
        if rows.dtype != index_dtype(fields):
            raise ValueError(f"{path}: unexpected type {rows.dtype}")
        return json.loads(record["entry"].tobytes()), rows, record["multiplicity"]
