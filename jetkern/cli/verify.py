"""Check shards byte by byte: manifest, index, tars, checksums, counts and values.

  jetkern verify shards/jetclass [more folders]

Prints a table of the classes and every damage found, naming shard, block and field. Exit code 0 if
all is well, 1 if anything is damaged.
"""

from __future__ import annotations

import hashlib
import io
import math
import sys
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from jetkern.cli import command
from jetkern.cli.parser import Parser
from jetkern.convert.clean import NUM_PID
from jetkern.convert.report import folders_of
from jetkern.data.shards import MANIFEST, MAX_PARTICLES, POINTS, ShardError, Shards
from jetkern.io import printable, user_path
from jetkern.tables import show, table


class Totals:
    """What the blocks say, to be compared with the manifest and the multiplicities."""

    def __init__(self, shards: Shards) -> None:
        self.classes = np.zeros(max(1, len(shards.classes)), np.int64)
        self.particles = np.zeros_like(self.classes)
        self.multiplicity = shards.multiplicity()
        self.jet = 0


def check_folder(shards: Shards, progress: bool = False) -> tuple[list[str], Totals]:
    """Every damage of a folder, and the totals of the blocks that could be read."""
    extra = set(shards.folder.glob("*.tar")) - set(shards.paths)
    problems = [f"{path}: not in the manifest" for path in sorted(extra)]
    totals = Totals(shards)
    starts = np.cumsum(shards.index["jets"], dtype=np.int64) - shards.index["jets"]
    for number in tqdm(range(len(shards.paths)), unit=" shards", disable=not progress):
        blocks = np.flatnonzero(shards.index["shard"] == number)
        problems += check_shard(shards, number, blocks, starts, totals)
    if not problems and shards.classes and tuple(totals.classes) != shards.counts:
        problems.append(
            f"{shards.folder / MANIFEST}: counts per class are {shards.counts}, but the shards "
            f"hold {tuple(int(c) for c in totals.classes)}"
        )
    return problems, totals


def strangers(folder: Path) -> Iterator[str]:
    """Yields the splits that another conversion made than the first one."""
    made: dict[str, Any] = {}
    for inner in folders_of(folder):
        with suppress(ShardError, OSError):  # said already
            manifest = Shards(inner).manifest
            made[inner.name] = manifest.get("source"), manifest.get("split")
    first = next(iter(made.values()), None)
    for name, (source, split) in made.items():
        if len(made) > 1 and first and (source != first[0] or split not in (None, name)):
            yield (
                f"{folder / name}: not of the same conversion as the splits beside it: their jets "
                "may be in it, too"
            )


def check_shard(
    shards: Shards, number: int, blocks: NDArray[Any], starts: NDArray[Any], totals: Totals
) -> Iterator[str]:
    """Yields what is wrong with one tar."""
    path, digest = shards.paths[number], hashlib.sha256()
    entry = shards.manifest["shards"][number]
    size = path.stat().st_size
    if size != entry["bytes"]:
        yield f"{path}: {size} bytes, expected {entry['bytes']}"
    if len(blocks) != entry["blocks"]:
        yield f"{path}: {len(blocks)} blocks in the index, {entry['blocks']} in the manifest"
    if (jets := int(shards.index["jets"][blocks].sum())) != entry["jets"]:
        yield f"{path}: {jets} jets in the index, {entry['jets']} in the manifest"
    with open(path, "rb") as file:

        def take(n: int) -> bytes:
            data = file.read(n)
            digest.update(data)
            return data

        for block in blocks.tolist():
            row = shards.index[block]
            arrays: dict[str, NDArray[Any]] = {}
            for i, field in enumerate(shards.fields):
                where = f"{path}: block {block}, {field.name}"
                jets, particles = int(row["jets"]), int(row["particles"])
                nbytes = field.nbytes(jets, particles)
                header = int(row["offset"][i]) - file.tell() - 512
                if header < 0 or header > 4096:
                    yield f"{where}: the index points to byte {row['offset'][i]}"
                    return
                info = tarfile.TarInfo(f"{block:08d}.{field.name}.npy")
                info.size = header + nbytes
                if take(512) != info.tobuf(tarfile.USTAR_FORMAT):
                    yield f"{where}: the tar header is damaged"
                if not npy_header_is(take(header), field.dtype, field.shape(jets, particles)):
                    yield f"{where}: the npy header is damaged"
                data = take(nbytes)
                if len(data) < nbytes:
                    yield f"{where}: the file ends too early"
                    return
                if zlib.crc32(data) != row["crc"][i]:
                    yield f"{where}: the checksum is wrong"
                else:
                    arrays[field.name] = np.frombuffer(data, field.dtype).reshape(
                        field.shape(jets, particles)
                    )
                if any(take(-info.size % 512)):
                    yield f"{where}: the padding is damaged"
            for problem in check_values(shards, arrays, int(starts[block]), totals):
                yield f"{path}: block {block}, {problem}"
        if take(1024) != bytes(1024):
            yield f"{path}: the end of the tar is damaged"
        while chunk := take(1 << 20):
            if any(chunk):
                yield f"{path}: there is something after the end of the tar"
                break
    if digest.hexdigest() != entry["sha256"]:
        yield f"{path}: the SHA-256 is not the manifest's"


def npy_header_is(header: bytes, dtype: str, shape: tuple[int, ...]) -> bool:
    """Whether the bytes are the header of such an array, and nothing else."""
    stream = io.BytesIO(header)
    try:
        version = np.lib.format.read_magic(stream)
        found = np.lib.format.read_array_header_1_0(stream)
    except Exception:  # numpy has several parsers for it, each with errors of its own
        return False
    return version == (1, 0) and found == (shape, False, np.dtype(dtype)) and not stream.read()


def check_values(
    shards: Shards, arrays: dict[str, NDArray[Any]], start: int, totals: Totals
) -> Iterator[str]:
    """Yields what is wrong with the values of a block, and adds it to the totals."""
    for name in ("particles", POINTS, "tracks", "condition"):
        if name in arrays and not np.isfinite(arrays[name]).all():
            yield f"{name}: {int((~np.isfinite(arrays[name])).sum())} values are not finite"
    if "pid" in arrays and len(arrays["pid"]) and arrays["pid"].max() >= NUM_PID:
        yield f"pid: {arrays['pid'].max()} is not below {NUM_PID}"
    if "offsets" not in arrays:
        return
    counts = np.diff(arrays["offsets"].astype(np.int64))
    if (counts < 0).any() or arrays["offsets"][0] != 0:
        yield "offsets: not increasing from 0"
        return
    if counts.max(initial=0) > MAX_PARTICLES and not shards.points:
        yield f"offsets: a jet has {counts.max()} particles"
    if (counts != totals.multiplicity[start : start + len(counts)]).any():
        yield "offsets: not the multiplicities of multiplicity.npy"
    if "particles" in arrays and len(arrays["particles"]) > 1:
        pt = arrays["particles"][:, 2].astype(np.float32)
        inside = np.ones(len(pt), bool)
        inside[arrays["offsets"][:-1][counts > 0]] = False
        if (inside[1:] & (pt[1:] > pt[:-1])).any():
            yield "particles: not in descending pT"
    if "label" in arrays:
        label = arrays["label"]
        if ((label < 0) | (label >= len(shards.classes))).any():
            yield f"label: outside 0 to {len(shards.classes) - 1}"
            return
        totals.classes += np.bincount(label, minlength=len(totals.classes))
        totals.particles += np.bincount(
            label, weights=counts, minlength=len(totals.classes)
        ).astype(np.int64)


def parser() -> Parser:
    """The command line."""
    parser = Parser("verify", __doc__)
    add = parser.add_argument
    add(
        "folders",
        nargs="+",
        type=user_path,
        metavar="DIR",
        help="what convert wrote, or one split of it",
    )
    add("--quiet", action="store_true", help="no progress bar")
    return parser


@command
def main(arguments: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    args = parser().parse_args(arguments)
    damaged = False
    for folder in (inner for outer in args.folders for inner in folders_of(outer)):
        try:
            shards = Shards(folder)
            problems, totals = check_folder(shards, progress=not args.quiet)
        except (ShardError, OSError) as error:
            print(f"jetkern verify: error: {printable(error)}", file=sys.stderr)
            damaged = True
            continue
        for problem in problems:
            print(f"jetkern verify: error: {printable(problem)}", file=sys.stderr)
        damaged |= bool(problems)
        rows = [["class", *shards.words, "mean"]]
        for i, name in enumerate(shards.classes or shards.words[:1]):
            jets, particles = int(totals.classes[i]), int(totals.particles[i])
            mean = particles / jets if jets else math.nan
            rows.append([name, f"{jets:,}", f"{particles:,}", f"{mean:.1f}"])
        state = f"{len(problems)} damages" if problems else "no damage"
        show(
            f"{printable(folder)}: {len(shards.paths)} shards, {len(shards.index)} blocks: {state}"
        )
        show(table(rows))
    for outer in args.folders:
        for problem in strangers(outer):
            print(f"jetkern verify: error: {printable(problem)}", file=sys.stderr)
            damaged = True
    return int(damaged)
