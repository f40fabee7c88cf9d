"""What goes where: the inputs, the splits, the ranges to read and the shards to write."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

from tqdm import tqdm

from jetkern.convert import readers
from jetkern.convert.clean import Policy
from jetkern.convert.inputs import SPLITS, Found, find
from jetkern.convert.readers import InputError, Layout, Options
from jetkern.data.shards import Field, make_fields, words_of

VERSION = 2
FEW_FILES = 200  # that are looked at without a bar
SIZES = (1024, 65536, 16384)  # jets of a block, of a shard, and that are read at a time


@dataclass(frozen=True)
class Input:
    """One file: its name in the manifest, its jets, and its split (None if its rows have one).

    Attributes:
        named: the name that readers judge, see ``inputs.Found``.
        twin: number of the inputs of the same name before it.
        state: of the file's bytes, see ``state_of``.
    """

    path: Path
    name: str
    named: str
    twin: int
    num_jets: int
    size: int
    state: tuple[int, int, int]
    split: str | None
    notes: dict[str, Any]

    @property
    def key(self) -> int:
        """64 bits that stand for the name."""
        return _hash(self.name, self.twin)

    @property
    def identity(self) -> list[Any]:
        """What must not change while a conversion goes on."""
        return [self.name, self.twin, self.num_jets, self.size, *self.state, self.split]

    def open(self, reader: str, options: Options) -> readers.Source:
        """The opened file.

        Raises:
            InputError: if it is damaged, or not the file that was planned with.
        """
        source = open_named(self.path, self.named, reader, options)
        if source.num_jets != self.num_jets:
            source.close()
            raise self.changed()
        return source

    def check(self) -> None:
        """Raises an ``InputError`` if the file was written to or replaced since it was planned
        with."""
        try:
            status = self.path.stat()
        except OSError as error:
            raise InputError(f"{self.path}: {error.strerror}") from None
        if status.st_size != self.size or state_of(status) != self.state:
            raise self.changed()

    def changed(self) -> InputError:
        """The error for a file that is no longer the same."""
        return InputError(f"{self.path}: the file changed while it was being converted")


def state_of(status: os.stat_result) -> tuple[int, int, int]:
    """Changes whenever a file is written to or replaced, also by one of the same size and time:
    the second of its times is the system's own."""
    return status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def open_named(path: Path, named: str, reader: str, options: Options) -> readers.Source:
    """The file opened by a reader, which may judge the name ``named``."""
    return readers.open_source(reader, path, replace(options, name=named))


@dataclass(frozen=True)
class Piece:
    """Jets ``start`` to ``stop - 1`` of an input."""

    input: int
    start: int
    stop: int


@dataclass(frozen=True)
class Unit:
    """What a process reads at a time: a range of one input, or some small inputs.

    Attributes:
        key: 64 bits that stand for the inputs' names and the ranges, for the shuffle.
        name: of the work file: stands for all that determines its bytes.
    """

    pieces: tuple[Piece, ...]
    key: int
    name: str


@dataclass(frozen=True)
class Plan:
    """Everything that determines the bytes of the output.

    Attributes:
        splits: output folder (relative, "" for the output itself) and number of buckets of each.
        fractions: of a random split, empty if the inputs decide.
        own_splits: whether rows carry the split of the source.
        passed_over: lines that say what was not read.
    """

    reader: str
    inputs: tuple[Input, ...]
    layout: Layout
    options: Options
    policy: Policy
    splits: dict[str, int]
    fractions: dict[str, float]
    own_splits: tuple[str, ...]
    seed: int
    jets_per_block: int
    jets_per_shard: int
    jets_per_read: int
    dtype: str
    units: tuple[Unit, ...] = ()
    passed_over: tuple[str, ...] = ()

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields of the shards."""
        return make_fields(
            pid=self.layout.pid,
            tracks=self.layout.tracks,
            vertices=self.layout.vertices,
            condition=self.layout.condition,
            dtype=self.dtype,
            track_scale=self.options.tracks,
            points=self.layout.points,
        )

    @property
    def words(self) -> tuple[str, str]:
        """What the inputs' sets and their points are called."""
        return words_of(self.layout.points)

    @property
    def num_jets(self) -> int:
        """Jets in all inputs."""
        return sum(i.num_jets for i in self.inputs)

    def first_bucket(self, split: str) -> int:
        """Buckets are numbered through, split by split."""
        names = list(self.splits)
        return sum(self.splits[s] for s in names[: names.index(split)])

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All that determines the output but the inputs and the numbers of buckets, as JSON."""
        chosen = {
            "version": VERSION,
            "reader": self.reader,
            "layout": asdict(self.layout),
            "options": asdict(self.options),
            "policy": {k: v for k, v in asdict(self.policy).items() if k != "max_cut"},
            "splits": list(self.splits),
            "fractions": self.fractions,
            "own_splits": self.own_splits,
            "seed": self.seed,
            "jets_per_block": self.jets_per_block,
            "jets_per_shard": self.jets_per_shard,
            "jets_per_read": self.jets_per_read,
            "dtype": self.dtype,
        }
        return json.loads(json.dumps(chosen, default=str))

    @cached_property
    def digest(self) -> str:
        """Stands for all that determines the shards."""
        return f"{_hash(self.settings, self.splits, [i.identity for i in self.inputs]):016x}"

    def with_buckets(self, splits: dict[str, int]) -> Plan:
        """The plan with these numbers of buckets, and its units, which depend on them."""
        plan = replace(self, splits=splits)
        return replace(plan, units=tuple(_units(plan)))


def _hash(*values: Any) -> int:
    text = json.dumps(values, sort_keys=True, default=str)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def _units(plan: Plan) -> Iterable[Unit]:
    """Ranges of ``jets_per_read`` jets; small inputs together.

    Which ones go together depends on their own names and sizes and hardly on the others', so that
    most units stay as they are when an input is taken out.
    """
    settings = _hash(plan.settings, plan.splits)

    def unit(pieces: list[Piece]) -> Unit:
        of = [(plan.inputs[p.input], p.start, p.stop) for p in pieces]
        return Unit(
            tuple(pieces),
            _hash([(i.key, start, stop) for i, start, stop in of]),
            f"unit-{_hash(settings, [(i.identity, start, stop) for i, start, stop in of]):016x}",
        )

    step = plan.jets_per_read
    together: list[Piece] = []
    jets = 0
    for number, entry in enumerate(plan.inputs):
        for start in range(0, entry.num_jets, step):
            piece = Piece(number, start, min(start + step, entry.num_jets))
            if piece.stop - start == step:
                yield unit([piece])
                continue
            size = piece.stop - piece.start
            # Of the places between small inputs about one per jets_per_read jets ends a unit.
            begins = zlib.crc32(entry.name.encode()) * step < size << 32
            if together and (begins or jets + size > 2 * step):
                yield unit(together)
                together, jets = [], 0
            together.append(piece)
            jets += size
    if together:
        yield unit(together)


def make_plan(
    sources: Sequence[Path],
    *,
    reader: str = "auto",
    options: Options | None = None,
    policy: Policy | None = None,
    fractions: dict[str, float] | None = None,
    use_splits: bool = True,
    seed: int = 0,
    jets_per_block: int | None = None,
    jets_per_shard: int | None = None,
    jets_per_read: int | None = None,
    dtype: str = "float32",
    progress: bool = False,
) -> Plan:
    """Looks at the inputs and decides.

    Args:
        sources: files, and folders that are searched for files that the reader reads.
        fractions: split every source at random into these parts.
        use_splits: false puts everything into one set of shards.
        jets_per_block, jets_per_shard, jets_per_read: None for those of ``SIZES``, or of a reader
            of larger sets its own.
        progress: shows a bar where there are many inputs.

    Raises:
        InputError: if an input is missing, not readable, or does not fit the others.
    """
    options, policy, fractions = options or Options(), policy or Policy(), fractions or {}
    if sum(fractions.values()) and abs(sum(fractions.values()) - 1) > 1e-9:
        raise InputError(f"the fractions of the splits add up to {sum(fractions.values())}, not 1")
    endings = readers.suffixes() if reader == "auto" else set(readers.module(reader).SUFFIXES)
    by_name = use_splits and not fractions
    search = find(sources, endings, use_splits=by_name)
    detected = reader == "auto"
    if detected:
        reader = readers.detect(search.found[0].path)
    inputs: list[Input] = []
    layouts, own = [], []
    names: dict[str, int] = {}
    few = len(search.found) < FEW_FILES
    for found in tqdm(search.found, desc="look ", unit=" files", disable=few or not progress):
        entry, layout, splits = _look(found, reader, options, detected, names)
        inputs.append(entry)
        layouts.append(layout)
        own.append(splits)
        if layout != layouts[0]:
            raise InputError(_misfit(entry, layout, inputs[0], layouts[0]))
    if layouts[0].points:
        policy = _of_points(policy, options, dtype, inputs[0].path)
    sizes = getattr(readers.module(reader), "SIZES", SIZES)
    given = (jets_per_block, jets_per_shard, jets_per_read)
    per_block, per_shard, per_read = (
        own if size is None else size for size, own in zip(given, sizes, strict=True)
    )
    total = sum(i.num_jets for i in inputs)
    if not total:
        what = inputs[0].path if len(inputs) == 1 else f"{len(inputs)} files"
        sets = words_of(layouts[0].points)[0]
        raise InputError(f"{what}: there are no {sets} in the input")
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
            "or use --splits or --one-set"
        )
    order = sorted(expected, key=lambda s: (SPLITS.index(s) if s in SPLITS else 9, s))
    plan = Plan(
        reader=reader,
        inputs=tuple(inputs),
        layout=replace(layouts[0]),
        options=options,
        policy=policy,
        splits={},
        fractions=fractions,
        own_splits=own_splits,
        seed=seed,
        jets_per_block=per_block,
        jets_per_shard=per_shard,
        jets_per_read=per_read,
        dtype=dtype,
        passed_over=tuple(search.notes()),
    )
    return plan.with_buckets({s: max(1, round(expected[s] / per_shard)) for s in order})


def _of_points(policy: Policy, options: Options, dtype: str, path: Path) -> Policy:
    """The policy for sets that are no jets, which are never cut.

    Raises:
        InputError: for settings that are of jets.
    """
    for name, given in (
        ("max-particles", policy.max_particles != Policy.max_particles),
        ("dtype", dtype != "float32"),
        ("tracks", options.tracks != "tanh"),
        ("classes", bool(options.classes)),
        ("label-shift", options.label_shift is not None),
    ):
        if given:
            raise InputError(f"{path}: --{name} is for jets, and these are none")
    return replace(policy, max_particles=0)


def _look(
    found: Found, reader: str, options: Options, detected: bool, names: dict[str, int]
) -> tuple[Input, Layout, dict[str, float]]:
    """A file as an input, its layout, and the splits that its rows tell of."""
    before = found.path.stat()
    try:
        source = open_named(found.path, found.named, reader, options)
    except InputError:
        if detected and (other := readers.detect(found.path)) != reader:
            several = ", ".join(sorted((reader, other)))
            raise InputError(f"the inputs have several formats: {several} ({found.path})") from None
        raise
    twin = names.get(found.name, 0)
    names[found.name] = twin + 1
    try:
        entry = Input(
            path=found.path,
            name=found.name,
            named=found.named,
            twin=twin,
            num_jets=source.num_jets,
            size=before.st_size,
            state=state_of(before),
            split=found.split,
            notes=source.notes,
        )
        return entry, source.layout, source.splits
    finally:
        source.close()


def _misfit(entry: Input, layout: Layout, first: Input, expected: Layout) -> str:
    own, others = asdict(layout), asdict(expected)
    differ = [
        f"{k} {v or 'none'} against {others[k] or 'none'}" for k, v in own.items() if v != others[k]
    ]
    return f"{entry.path} does not fit {first.path}: " + "; ".join(differ)
