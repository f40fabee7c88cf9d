"""What goes where: the inputs, the splits, the ranges to read and the shards to write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jetkern.convert import readers
from jetkern.convert.clean import Policy
from jetkern.convert.readers import InputError, Layout, Options
from jetkern.data.shards import Field, make_fields

SPLITS = ("train", "val", "test")
VERSION = 1


@dataclass(frozen=True)
class Input:
    """One file: its name in the manifest, its jets, and its split (None if its rows have one)."""

    path: Path
    name: str
    num_jets: int
    size: int
    modified: int
    split: str | None
    notes: dict[str, Any]


@dataclass(frozen=True)
class Unit:
    """Jets ``start`` to ``stop - 1`` of an input: what a process reads at a time."""

    number: int
    input: int
    start: int
    stop: int


@dataclass(frozen=True)
class Plan:
    """Everything that determines the bytes of the output.

    Attributes:
        splits: output folder (relative, "" for the output itself) and number of buckets of each.
        fractions: of a random split, empty if the inputs decide.
        own_splits: whether rows carry the split of the source.
    """

    reader: str
    inputs: tuple[Input, ...]
    units: tuple[Unit, ...]
    layout: Layout
    options: Options
    policy: Policy
    splits: dict[str, int]
    fractions: dict[str, float]
    own_splits: tuple[str, ...]
    seed: int
    jets_per_block: int
    dtype: str

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields of the shards."""
        return make_fields(
            pid=self.layout.pid,
            tracks=self.layout.tracks,
            condition=self.layout.condition,
            dtype=self.dtype,
            track_scale=self.options.tracks,
        )

    @property
    def num_jets(self) -> int:
        """Jets in all inputs."""
        return sum(i.num_jets for i in self.inputs)

    def first_bucket(self, split: str) -> int:
        """Buckets are numbered through, split by split."""
        names = list(self.splits)
        return sum(self.splits[s] for s in names[: names.index(split)])

    def to_json(self) -> str:
        """Text that is equal for equal plans only."""
        return json.dumps(asdict(self), default=str, sort_keys=True, indent=1)


def make_plan(
    sources: Sequence[Path],
    *,
    reader: str = "auto",
    options: Options | None = None,
    policy: Policy | None = None,
    fractions: dict[str, float] | None = None,
    use_splits: bool = True,
    seed: int = 0,
    jets_per_block: int = 1024,
    jets_per_shard: int = 65536,
    jets_per_read: int = 16384,
    dtype: str = "float32",
) -> Plan:
    """Looks at the inputs and decides.

    Args:
        sources: files, and folders that are searched for files that the reader reads.
        fractions: split every source at random into these parts.
        use_splits: false puts everything into one set of shards.

    Raises:
        InputError: if an input is missing, not readable, or does not fit the others.
    """
    options, policy, fractions = options or Options(), policy or Policy(), fractions or {}
    if sum(fractions.values()) and abs(sum(fractions.values()) - 1) > 1e-9:
        raise InputError(f"the fractions of the splits add up to {sum(fractions.values())}, not 1")
    found = _find(sources, reader)
    detected = reader == "auto"
    if detected:
        reader = readers.detect(found[0][0])
    module = readers.module(reader)
    inputs, layouts, own = [], [], []
    for path, name, split in found:
        try:
            source = module.open_source(path, options)
        except InputError:
            if detected and (other := readers.detect(path)) != reader:
                names = ", ".join(sorted((reader, other)))
                raise InputError(f"the inputs have several formats: {names} ({path})") from None
            raise
        try:
            stat = path.stat()
            inputs.append(
                Input(
                    path,
                    name,
                    source.num_jets,
                    stat.st_size,
                    stat.st_mtime_ns,
                    None if fractions or not use_splits else split,
                    source.notes,
                )
            )
            layouts.append(source.layout)
            own.append(source.splits)
        finally:
            source.close()
    for entry, layout in zip(inputs, layouts, strict=True):
        if layout != layouts[0]:
            raise InputError(
                f"{entry.path} does not fit {inputs[0].path}: "
                + "; ".join(
                    f"{key} {value or 'none'} against {asdict(layouts[0])[key] or 'none'}"
                    for key, value in asdict(layout).items()
                    if value != asdict(layouts[0])[key]
                )
            )
    total = sum(i.num_jets for i in inputs)
    if not total:
        raise InputError(f"{inputs[0].path}: there are no jets in the input")
    own_splits: tuple[str, ...] = ()
    expected: dict[str, float] = {}
    if fractions:
        expected = {s: f * total for s, f in fractions.items() if f > 0}
    elif use_splits:
        for entry, splits in zip(inputs, own, strict=True):
            parts = {entry.split or "": 1.0} if entry.split is not None or not splits else splits
            if parts is splits:
                own_splits = tuple(splits)
            for split, fraction in parts.items():
                expected[split] = expected.get(split, 0) + fraction * entry.num_jets
    else:
        expected = {"": total}
    if "" in expected and len(expected) > 1:
        unclear = next(i for i in inputs if i.split is None)
        raise InputError(
            f"{unclear.path} belongs to no split, others do; give the files of a split only, "
            "or use --splits"
        )
    order = sorted(expected, key=lambda s: (SPLITS.index(s) if s in SPLITS else 9, s))
    units: list[Unit] = []
    for number, entry in enumerate(inputs):
        for start in range(0, entry.num_jets, jets_per_read):
            stop = min(start + jets_per_read, entry.num_jets)
            units.append(Unit(len(units), number, start, stop))
    return Plan(
        reader=reader,
        inputs=tuple(inputs),
        units=tuple(units),
        layout=replace(layouts[0]),
        options=options,
        policy=policy,
        splits={s: max(1, round(expected[s] / jets_per_shard)) for s in order},
        fractions=fractions,
        own_splits=own_splits,
        seed=seed,
        jets_per_block=jets_per_block,
        dtype=dtype,
    )


def _find(sources: Sequence[Path], reader: str) -> list[tuple[Path, str, str | None]]:
    """(path, name, split) of each input, sorted by name, so that their order does not matter."""
    endings = readers.suffixes() if reader == "auto" else set(readers.module(reader).SUFFIXES)
    found: dict[Path, tuple[Path, str, str | None]] = {}
    files = [s for s in sources if not s.is_dir()]
    for source in sources:
        if source.is_dir():
            inside = [p for p in sorted(source.rglob("*")) if p.suffix.lower() in endings]
            if not inside:
                raise InputError(
                    f"{source}: the folder has no file ending in {', '.join(sorted(endings))}"
                )
            for path in inside:
                name = path.relative_to(source)
                found[path.resolve()] = (path, name.as_posix(), _split_of(name))
        elif source.exists():
            found[source.resolve()] = (source, source.name, _split_of(Path(source.name)))
        else:
            raise InputError(f"{source}: no such file or folder")
    if files and len({split for _, _, split in found.values()}) == 1:
        # Files of one split, given by name, go straight to the output folder.
        found = {k: (path, name, None) for k, (path, name, _) in found.items()}
    return sorted(found.values(), key=lambda entry: (entry[1], str(entry[0])))


def _split_of(name: Path) -> str | None:
    """The split that a relative path names: ``val_5M/x.root`` and ``val.h5`` are of val."""
    for part in (*name.parts[:-1], name.stem):
        for split in SPLITS:
            if part == split or part.startswith((f"{split}_", f"{split}-")):
                return split
    return None
