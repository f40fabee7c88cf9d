"""Second pass: shuffles a bucket and writes it as a shard."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from jetkern.convert.plan import Plan
from jetkern.convert.scatter import read_bucket, sealed, unsealed, work_file
from jetkern.data.order import hashes
from jetkern.data.shards import Block, counts_dtype, write_shard
from jetkern.io import AtomicFile

Array = NDArray[Any]
_SHUFFLE = 103


def record_file(folder: Path, bucket: int) -> Path:
    """Where what the manifest says of a shard waits for it."""
    return folder / f"bucket-{bucket:06d}.record"


def gather(
    plan: Plan, bucket: int, shard: int, first_block: int, path: Path, folder: Path
) -> dict[str, Any]:
    """Writes one bucket as the shard ``path``, unless an earlier run has, bit for bit.

    Args:
        bucket: its number over all splits; shard, first_block: numbers in its split.

    Returns:
        the shard's entry of the manifest, with the counts of its classes.
    """
    entry = finished(plan, bucket, path, folder)
    if entry is not None:
        return entry
    paths = [work_file(folder, u) for u in plan.units]
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
        "counts": per_class.tolist(),
    }
    record = io.BytesIO()
    np.savez(
        record,
        entry=np.frombuffer(json.dumps({**entry, "plan": plan.digest}).encode(), "u1"),
        index=rows,
        multiplicity=counts[order].astype(counts_dtype(plan.fields)),
    )
    with AtomicFile(record_file(folder, bucket)) as file:
        file.write(sealed(record.getvalue()))
    return entry


def finished(plan: Plan, bucket: int, path: Path, folder: Path) -> dict[str, Any] | None:
    """The entry of a shard that is there and is what this plan makes, by its SHA-256."""
    try:
        entry, *_ = read_record(plan, bucket, folder)
        with open(path, "rb") as file:
            digest = sha256_of(file)
    except (FileNotFoundError, ValueError):
        return None
    return entry if digest == entry["sha256"] else None


def sha256_of(file: IO[bytes]) -> str:
    """Of the rest of an open file, in hexadecimal."""
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


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


def read_record(plan: Plan, bucket: int, folder: Path) -> tuple[dict[str, Any], Array, Array]:
    """The entry, the index rows and the multiplicities of a finished shard.

    Raises:
        ValueError: if the record is damaged, or of another plan.
    """
    path = record_file(folder, bucket)
    with np.load(io.BytesIO(unsealed(path.read_bytes())), allow_pickle=False) as record:
        entry = json.loads(record["entry"].tobytes())
        if entry.pop("plan") != plan.digest:
            raise ValueError(f"{path}: of another plan")
        return entry, record["index"], record["multiplicity"]
