"""Shards on disk: what the files are, how they are written, and the manifest that opens them.

A folder of shards holds

- ``shard-00000.tar`` ...: WebDataset tars. A sample is a *block* of about 1024 jets with one
  ``.npy`` member per field: ``offsets`` (B + 1,) and the fields of the packed batch.
- ``index.npy``: one row per block: shard, numbers of jets and particles, and for each member the
  offset of its array in the tar and the CRC-32 of the array's bytes.
- ``multiplicity.npy``: (N,) uint8, particles of each jet in file order.
- ``manifest.json``: classes and counts, fields, shards with size and SHA-256, source, report.

Other sets than jets, such as showers, have ``points`` in place of ``particles``, with columns of
any names, and any number of them: their multiplicities are uint32, and their blocks fewer sets.

The index and the multiplicities are small binary files, so a hundred million jets open at once and
any block is one seek away.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jetkern.io import AtomicFile, Document, explain, printable, read_json, regular_file
from jetkern.showers import COLUMNS as SHOWERS

FORMAT = "jetkern-shards"
VERSION = 1
MANIFEST, INDEX, MULTIPLICITY = "manifest.json", "index.npy", "multiplicity.npy"
PER_PARTICLE = (
    "particles",
    "pid",
    "tracks",
    "vertex",
    "origin",
)  # as in jetkern.jets, which needs torch
POINTS = "points"  # of sets that are no jets, as in jetkern.clouds
MAX_PARTICLES = 150  # of a jet; the multiplicities are stored in one byte

Block = Mapping[str, NDArray[Any]]


class ShardError(ValueError):
    """Shards that are damaged, incomplete, or not what was asked for."""


@dataclass(frozen=True)
class Field:
    """One array of a block.

    Attributes:
        name: the member's name and, but for ``offsets``, that of the field of ``Jets``.
        dtype: little-endian numpy type, such as ``<f4``.
        columns: names of the columns of a 2-d array; empty for a 1-d one.
    """

    name: str
    dtype: str
    columns: tuple[str, ...] = ()

    @property
    def per_particle(self) -> bool:
        """Whether it has a row per particle, or point; otherwise per jet, or is the offsets."""
        return self.name in PER_PARTICLE or self.name == POINTS

    def shape(self, jets: int, particles: int) -> tuple[int, ...]:
        """Shape in a block with so many jets and particles."""
        if self.name == "offsets":
            return (jets + 1,)
        rows = particles if self.per_particle else jets
        return (rows, len(self.columns)) if self.columns else (rows,)

    def nbytes(self, jets: int, particles: int) -> int:
        """Size of the array, without its header."""
        return int(np.prod(self.shape(jets, particles))) * np.dtype(self.dtype).itemsize


DTYPES = {  # that each field may have
    "offsets": ("<i4",),
    "particles": ("<f4", "<f2"),
    POINTS: ("<f4",),
    "pid": ("|u1",),
    "tracks": ("<f4", "<f2"),
    "vertex": ("|u1",),
    "origin": ("|u1",),
    "label": ("<i2",),
    "condition": ("<f4",),
}
KINEMATICS = ("delta_eta", "delta_phi", "ln_pt", "ln_energy")
TRACKS = ("tanh_d0", "d0_error", "tanh_dz", "dz_error")
"""The columns of tracks, where d0 and dz (mm) are on the usual scale"""


def make_fields(
    *,
    pid: bool = False,
    tracks: bool = False,
    vertices: bool = False,
    label: bool = True,
    condition: Iterable[str] = (),
    dtype: str = "float32",
    track_scale: str = "tanh",
    points: Iterable[str] = (),
) -> tuple[Field, ...]:
    """The fields of a set of shards, in the order of their members; ``track_scale`` is tanh, asinh
    or raw, what d0 and dz are stored as; ``vertices`` the truth of where particles come from;
    ``points`` the columns of sets that are no jets."""
    real = np.dtype(dtype).newbyteorder("<").str
    condition, points = tuple(condition), tuple(points)
    rows = Field(POINTS, real, points) if points else Field("particles", real, KINEMATICS)
    chosen = [Field("offsets", "<i4"), rows]
    chosen += [Field("pid", "|u1")] if pid else []
    if tracks:
        prefix = "" if track_scale == "raw" else f"{track_scale}_"
        names = tuple(name.replace("tanh_", prefix) for name in TRACKS)
        chosen.append(Field("tracks", real, names))
    chosen += [Field(name, "|u1") for name in ("vertex", "origin") if vertices]
    chosen += [Field("label", "<i2")] if label else []
    chosen += [Field("condition", "<f4", condition)] if condition else []
    return tuple(chosen)


def words_of(points: tuple[str, ...]) -> tuple[str, str]:
    """What sets and their points are called, given the columns of these; none for jets."""
    if points == SHOWERS:
        return "showers", "hits"
    return ("sets", "points") if points else ("jets", "particles")


def counts_dtype(fields: tuple[Field, ...]) -> np.dtype:
    """Of ``multiplicity.npy``: a byte for a jet, four for sets of any number of points."""
    return np.dtype("<u4" if any(f.name == POINTS for f in fields) else "|u1")


def index_dtype(fields: tuple[Field, ...]) -> np.dtype:
    """One row of ``index.npy``."""
    return np.dtype(
        [
            ("shard", "<i4"),
            ("jets", "<i4"),
            ("particles", "<i8"),
            ("offset", "<i8", (len(fields),)),
            ("crc", "<u4", (len(fields),)),
        ]
    )


def write_shard(
    path: Path, shard: int, first_block: int, blocks: Iterable[Block], fields: tuple[Field, ...]
) -> tuple[NDArray[Any], str]:
    """Writes one tar, all of it or nothing.

    Args:
        path: where it goes; the bytes are written beside it first.
        shard: its number, for the index.
        first_block: number of its first block; numbers name the members.
        blocks: arrays of each block by field name.

    Returns:
        the rows of the index and the SHA-256 of the file.
    """
    rows = []
    with AtomicFile(path) as file:
        for number, block in enumerate(blocks, first_block):
            row = np.zeros((), index_dtype(fields))
            row["shard"], row["jets"] = shard, len(block["offsets"]) - 1
            row["particles"] = block["offsets"][-1]
            for i, field in enumerate(fields):
                array = np.ascontiguousarray(block[field.name], dtype=field.dtype)
                expected = field.shape(int(row["jets"]), int(row["particles"]))
                if array.shape != expected:
                    raise ValueError(f"{field.name} has shape {array.shape}, expected {expected}")
                header = npy_header(array)
                size = len(header) + array.nbytes
                info = tarfile.TarInfo(f"{number:08d}.{field.name}.npy")
                info.size = size
                file.write(info.tobuf(tarfile.USTAR_FORMAT) + header)
                row["offset"][i] = file.tell()
                row["crc"][i] = zlib.crc32(array.data)
                file.write(array.data)
                file.write(bytes(-size % 512))
            rows.append(row)
        file.write(bytes(1024))  # the end of a tar
        digest = file.sha256()
    return np.array(rows, dtype=index_dtype(fields)), digest


def npy_header(array: NDArray[Any]) -> bytes:
    """The bytes that come before an array's in an ``.npy`` file."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, np.lib.format.header_data_from_array_1_0(array))
    return buffer.getvalue()


def npy_bytes(array: NDArray[Any]) -> bytes:
    """An array as an ``.npy`` file."""
    return npy_header(array) + array.tobytes()


def write_manifest(
    folder: Path,
    *,
    index: NDArray[Any],
    multiplicity: NDArray[Any],
    fields: tuple[Field, ...],
    classes: Iterable[str],
    counts: Iterable[int],
    shards: list[dict[str, Any]],
    extra: Mapping[str, Any],
) -> None:
    """Writes the index, the multiplicities and, last, the manifest that makes the folder valid."""
    digests = {}
    for name, array in ((INDEX, index), (MULTIPLICITY, multiplicity)):
        with AtomicFile(folder / name) as file:
            file.write(npy_bytes(array))
            digests[name] = file.sha256()
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "jets": len(multiplicity),
        "particles": int(index["particles"].sum()),
        "blocks": len(index),
        "classes": list(classes),
        "counts": [int(c) for c in counts],
        "fields": [{"name": f.name, "dtype": f.dtype, "columns": list(f.columns)} for f in fields],
        "files": digests,
        "shards": shards,
        **extra,
    }
    manifest["sha256"] = manifest_digest(manifest)
    with AtomicFile(folder / MANIFEST) as file:
        file.write((json.dumps(manifest, indent=1) + "\n").encode())


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of everything a manifest says but the digest itself."""
    rest = {k: v for k, v in manifest.items() if k != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


class Shards:
    """A folder of shards, opened by its manifest.

    Attributes:
        folder: where it is.
        manifest: all of ``manifest.json``.
        num_jets, num_particles: in all.
        classes: names in the order of the labels; empty without labels.
        counts: (classes,) number of jets of each.
        fields: the arrays of a block.
        condition: names of the condition's columns; empty if there are none.
        points: names of the points' columns; empty for jets.
        index: one row per block, see ``index_dtype``.
        fingerprint: SHA-256 of what the manifest says, which includes the digests of all files.
        rows: of each block those that count, or None for all; ``numbers``: the label of each class
            as stored, or None for the stored one. Both are None but in a ``ClassSelection``.

    Raises:
        ShardError: if the manifest, the index or a shard is missing or does not fit the others. A
            shard's contents are checked when they are read, and all at once by
            ``data_tools/verify.py``.
    """

    rows: list[NDArray[np.int32]] | None = None
    numbers: NDArray[np.int64] | None = None

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        if "://" in str(folder) or str(folder).startswith("pipe:"):
            raise ShardError(f"{folder} is not a folder: shards are opened from local paths only")
        self.folder = Path(folder)
        path = self.folder / MANIFEST
        if self.folder.exists() and not self.folder.is_dir():
            raise ShardError(f"{printable(folder)} is not a folder of shards")
        if not path.exists():
            splits = sorted(p.parent.name for p in self.folder.glob(f"*/{MANIFEST}"))
            hint = f"; did you mean one of its folders: {', '.join(splits)}?" if splits else ""
            raise ShardError(printable(f"{self.folder} has no {MANIFEST}{hint}"))
        document = read_json(path, error=ShardError)
        self.manifest: dict[str, Any] = document.content
        self._read(path, document)

    def _read(self, path: Path, manifest: Document) -> None:
        required = ("format", "version", "sha256", "jets", "particles", "blocks", "classes")
        for key in (*required, "counts", "fields", "files", "shards"):
            if key not in manifest:
                raise ShardError(f"{path} is damaged: it has no {key!r}")
        if (found := (manifest.text("format"), manifest.integer("version"))) != (FORMAT, VERSION):
            this = f"this reads {FORMAT} version {VERSION}"
            raise ShardError(f"{path} is {printable(found[0])} version {found[1]}, {this}")
        self.fingerprint: str = manifest.text("sha256")
        if self.fingerprint != manifest_digest(self.manifest):
            raise ShardError(f"{path} is damaged: its SHA-256 is not the one it states")
        self.num_jets: int = manifest.integer("jets")
        self.num_particles: int = manifest.integer("particles")
        self.classes: tuple[str, ...] = tuple(manifest.texts("classes"))
        self.counts: tuple[int, ...] = tuple(manifest.integers("counts"))
        if len(self.counts) != len(self.classes):
            manifest.fail("counts", f"has {len(self.counts)} values, classes {len(self.classes)}")
        self.fields = tuple(_fields(manifest))
        names = {f.name: f for f in self.fields}
        if bool(self.classes) != ("label" in names):
            manifest.fail("classes", "and the field label are there only together")
        self.condition = names["condition"].columns if "condition" in names else ()
        self.points = names[POINTS].columns if POINTS in names else ()
        entries = manifest.records("shards")
        self.paths = [self.folder / shard_name(e.text("name"), path) for e in entries]
        self.bytes: list[int] = [e.integer("bytes") for e in entries]
        for entry in entries:
            entry.text("sha256"), entry.integer("blocks"), entry.integer("jets")
        for name in ("source", "report"):
            if name in manifest:
                manifest.record(name)
        present = set(os.listdir(self.folder))
        missing = [p.name for p in self.paths if p.name not in present]
        if missing:
            raise ShardError(
                f"{self.folder} lacks {len(missing)} of its {len(self.paths)} shards: "
                + printable(f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}")
            )
        self.index = self._array(INDEX, index_dtype(self.fields))
        self._check_index(self.folder / INDEX)
        if (
            len(self.index) != manifest.integer("blocks")
            or int(self.index["jets"].sum()) != self.num_jets
            or int(self.index["particles"].sum()) != self.num_particles
            or sum(self.counts) != (self.num_jets if self.classes else 0)
        ):
            raise ShardError(f"{path} and {INDEX} do not belong together: their counts differ")

    def _check_index(self, path: Path) -> None:
        """Makes sure that the files can hold what the blocks claim, before memory is taken."""
        index = self.index
        jets, particles = index["jets"].astype(np.int64), index["particles"]
        wrong = (index["shard"] < 0) | (index["shard"] >= len(self.paths)) | (jets < 0)
        wrong |= (particles < 0) | ((particles > MAX_PARTICLES * jets) & (not self.points))
        if not wrong.any():
            ends = np.array(self.bytes, np.int64)[index["shard"]] if len(index) else jets
            for i, field in enumerate(self.fields):
                rows = particles if field.per_particle else jets + (field.name == "offsets")
                size = rows * max(1, len(field.columns)) * np.dtype(field.dtype).itemsize
                offset = index["offset"][:, i]
                wrong |= (offset < 0) | (offset > ends - size)
        if wrong.any():
            raise ShardError(f"{path}: block {int(wrong.argmax())} cannot be in its shard")
        for column in (jets, particles) if len(index) else ():
            number = int(index["shard"][int(column.argmax())])
            nbytes = regular_file(self.paths[number], error=ShardError).st_size
            if nbytes != self.bytes[number]:
                raise ShardError(
                    f"{self.paths[number]} has {nbytes} bytes, expected {self.bytes[number]}"
                )

    def _array(self, name: str, dtype: np.dtype) -> NDArray[Any]:
        path = self.folder / name
        expected = Document(self.folder / MANIFEST, self.manifest, ShardError).record("files")
        regular_file(path, error=ShardError)
        try:
            digest = hashlib.sha256()
            with open(path, "rb") as file:
                while chunk := file.read(1 << 22):
                    digest.update(chunk)
            if digest.hexdigest() != expected.text(name):
                raise ShardError(f"{path} is damaged: its SHA-256 is not the manifest's")
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except ShardError:
            raise
        except Exception as error:  # numpy evaluates the header as Python: nearly any kind
            raise ShardError(f"{path} cannot be read: {explain(error)}") from None
        if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != 1:
            raise ShardError(f"{path} does not hold one array of {dtype}")
        return np.asarray(array)  # still mapped, but indexed faster than a memmap

    @property
    def words(self) -> tuple[str, str]:
        """What its sets and their points are called."""
        return words_of(self.points)

    def check_jets(self, user: str) -> None:
        """Raises: ValueError: for sets that are no jets, which ``user`` needs."""
        if self.points:
            raise ValueError(f"{self.folder} has {self.words[0]}, {user} needs jets")

    def longest(self) -> int:
        """Points that a set has at most: of jets what they may have, of others what these have."""
        return int(self.multiplicity().max(initial=1)) if self.points else MAX_PARTICLES

    def multiplicity(self) -> NDArray[Any]:
        """(N,) particles of each jet of the files in their order, mapped from the disk.

        Raises:
            ShardError: if the file is not that of these shards.
        """
        array = self._array(MULTIPLICITY, counts_dtype(self.fields))
        if len(array) != int(self.index["jets"].sum()):
            raise ShardError(f"{self.folder / MULTIPLICITY} has {len(array)} jets")
        return array

    def __len__(self) -> int:
        return self.num_jets

    def field(self, name: str) -> Field | None:
        """The field of that name, or None."""
        return next((f for f in self.fields if f.name == name), None)


def _fields(manifest: Document) -> Iterator[Field]:
    """The fields of a manifest; each must be one that ``Jets`` has, with as many columns."""
    seen: set[str] = set()
    for entry in manifest.records("fields"):
        field = Field(entry.text("name"), entry.text("dtype"), tuple(entry.texts("columns")))
        if field.dtype not in DTYPES.get(field.name, ()) or field.name in seen:
            unknown = printable(f"unknown field {field.name} of type {field.dtype}")
            raise ShardError(f"{manifest.path}: {unknown}")
        columns: dict[str, int | None] = {"particles": len(KINEMATICS), "tracks": len(TRACKS)}
        columns |= dict.fromkeys(("condition", POINTS))
        number = columns.get(field.name, 0)
        if len(field.columns) != number and (number is not None or not field.columns):
            entry.fail("columns", f"are {len(field.columns)} for {field.name}")
        if bool(seen) == (field.name == "offsets"):
            entry.fail("name", f"is {field.name!r}; the first field is offsets")
        seen.add(field.name)
        yield field
    if POINTS in seen and seen & set(PER_PARTICLE):
        manifest.fail("fields", "are those of jets and points of other sets")
    if not seen & {"particles", POINTS}:
        manifest.fail("fields", "are without particles")


def shard_name(name: str, manifest: Path) -> str:
    """A plain file name, or an error: a manifest may not point outside its folder."""
    if not isinstance(name, str) or Path(name).name != name or not name.endswith(".tar"):
        raise ShardError(f"{manifest}: {name!r} is not the name of a shard")
    return name
