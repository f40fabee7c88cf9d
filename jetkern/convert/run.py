"""Drives a conversion: two passes over processes, resumed where the last run stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from jetkern.convert.clean import (
    BEYOND,
    HIGH_ENERGY,
    LOW_ENERGY,
    PARTICLES,
    Tally,
    check_cut,
    check_energies,
    merge,
)
from jetkern.convert.gather import gather, num_blocks, read_record
from jetkern.convert.inputs import SPLITS, fingerprint, fingerprints
from jetkern.convert.plan import VERSION, Plan
from jetkern.convert.readers import UNLABELLED
from jetkern.convert.scatter import close_source, finished, scatter, sealed, unsealed
from jetkern.convert.workers import WorkerDied, Workers
from jetkern.data.shards import INDEX, MANIFEST, MULTIPLICITY, write_manifest
from jetkern.io import (
    FolderInUse,
    explain,
    locked,
    read_json,
    remove_leftovers,
    sync_folder,
    write_atomically,
)

WORK = ".convert"
JETS_WORTH_A_PROCESS = 50_000  # starting one takes as long as converting so many
JETS_WORTH_A_FILE = 300  # opening one twice takes as long as converting so many
_CLEARING = "clearing.json"
_CONTENTS = "xxh3_128"
_SUSPICIOUS_PT = 2e4  # GeV; the leading particle of a jet at the LHC stays well below
# What describes the jets of one range rather than a number of them.
_NOT_COUNTS = ("ranges", "median leading pT")


class ConversionError(RuntimeError):
    """A conversion that cannot start or go on, for reasons other than its input."""


@dataclass
class Result:
    """What a conversion reports.

    Attributes:
        report: counts of all jets; of the jets read so far if there are no folders yet.
        folders: those of the splits; empty if other parts have to be converted first.
        notes: lines on what else the user should know.
    """

    report: dict[str, Any]
    folders: dict[str, Path] = field(default_factory=dict)
    already_done: bool = False
    notes: list[str] = field(default_factory=list)


@dataclass
class _Read:
    """What the first pass knows of all jets that have been read."""

    tallies: list[Tally]
    jets: NDArray[np.int64]  # in each bucket
    contents: list[str]  # fingerprint of each input
    missing: int  # units that are still to be read


def convert(
    plan: Plan,
    out: Path,
    *,
    jobs: int = 1,
    max_dropped: float = 0.01,
    overwrite: bool = False,
    progress: bool = True,
    part: tuple[int, int] | None = None,
    join: bool = False,
) -> Result:
    """Writes shards for a plan; the same call again continues one that was interrupted.

    Args:
        out: the shards' folder, or the parent of the folders of the splits.
        jobs: processes.
        max_dropped: fraction of jets that may be dropped before the conversion is given up.
        overwrite: replace the shards and the unfinished conversion that are there.
        part: (k, n) does the k-th of n parts, 1 to n, beside others that do the other ones: of the
            reading, and, where all of that is done, of the writing.
        join: finish what all parts have read.

    Raises:
        InputError: for input that cannot be used.
        ConversionError: if the output is in use, belongs to another plan, or no space is left.
    """
    work = out / WORK
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _locked(out, part):
            done = None if overwrite else _already_done(plan, out, progress)
            if done is not None:
                if not part:
                    shutil.rmtree(work, ignore_errors=True)  # killed while it tidied up
                return done
            plan, notes = _begin(plan, out, overwrite, alone=not part)
            try:
                return _convert(plan, out, jobs, max_dropped, progress, part, join, notes)
            except BaseException:
                if not part and not any(work.glob("unit-*.json")):  # nothing to continue
                    shutil.rmtree(work, ignore_errors=True)
                raise
    except WorkerDied as error:
        raise ConversionError(
            f"{error}; what is finished is kept: run the same command again, perhaps with "
            "fewer --jobs"
        ) from None
    except OSError as error:
        if error.filename is None:
            error = OSError(error.errno, error.strerror or str(error), str(out))
        raise ConversionError(
            f"{explain(error)}; what is finished is kept: run the same command again to continue"
        ) from None


def _convert(
    plan: Plan,
    out: Path,
    jobs: int,
    max_dropped: float,
    progress: bool,
    part: tuple[int, int] | None,
    join: bool,
    notes: list[str],
) -> Result:
    work = out / WORK
    worth = plan.num_jets + JETS_WORTH_A_FILE * len(plan.inputs)
    with Workers(min(jobs, -(-worth // JETS_WORTH_A_PROCESS)), plan) as workers:
        read = _first_pass(plan, work, workers, max_dropped, progress, part, join)
        report = _report(read)
        if read.missing:
            assert part is not None
            notes.append(
                f"part {part[0]} of {part[1]} is read; {read.missing} of {len(plan.units)} ranges "
                "are left to other parts"
            )
            return Result(report, notes=notes)
        if not read.jets.any():
            raise ConversionError(
                f"none of the {plan.num_jets} {plan.words[0]} is left: "
                + _reasons(merge(read.tallies))
            )
        _second_pass(plan, out, read.jets, workers, progress, part)
    if part is not None:
        notes.append(
            f"all parts are read, and part {part[0]} of {part[1]} is written; --join does the rest"
        )
        return Result(report, notes=notes)
    folders = _finish(plan, out, read, report)
    return Result(report, folders, notes=notes + _remarks(plan, read))


@contextmanager
def _locked(out: Path, part: tuple[int, int] | None = None) -> Iterator[None]:
    """One conversion at a time, or each part once; the lock goes with the process that holds it."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(out, shared=part is not None))
            if part is not None:
                own = out / WORK / f"part-{part[0]}-of-{part[1]}"
                own.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(own))
        except FolderInUse:
            raise ConversionError(f"{out}: another conversion is writing here") from None
        try:
            yield
        finally:
            stack.close()
            if part is not None:
                with suppress(OSError):  # where there is more in it
                    own.rmdir()
                    own.parent.rmdir()


def _already_done(plan: Plan, out: Path, progress: bool) -> Result | None:
    """The result, if the plan's shards are there and its inputs have the same contents still."""
    manifests = _manifests(plan, out)
    present = {}
    for split in plan.splits:
        manifest = manifests.get(out / split)
        if manifest is not None:
            present[split] = manifest
    if not present or len(present) != len(manifests):
        return None
    first = next(iter(present.values()))
    expected = _comparable(_identity(plan, [""] * len(plan.inputs)))
    if any(_comparable(m.get("source")) != expected for m in present.values()):
        return None
    if first.get("splits") != list(present):
        return None
    contents = [
        fingerprint(fingerprints(i.path, i.size, 0, 1, 1) if i.num_jets else [])
        for i in tqdm(plan.inputs, desc="check", unit=" files", disable=not progress)
    ]
    if any([f.get(_CONTENTS) for f in m["source"]["files"]] != contents for m in present.values()):
        return None
    return Result(first["report"], {s: out / s for s in present}, already_done=True)


def _manifests(plan: Plan, out: Path) -> dict[Path, dict[str, Any] | None]:
    """What the manifests in ``out`` say that belong to one conversion into it, whichever: its own,
    and those of splits. None for one that is damaged."""
    found: dict[Path, dict[str, Any] | None] = {}
    for path in [out / MANIFEST, *sorted(out.glob(f"*/{MANIFEST}"))]:
        if not path.exists():
            continue
        try:
            manifest = read_json(path).content
        except ValueError:
            manifest = None
        name = path.parent.name
        own = path.parent == out or name in (*SPLITS, *plan.splits)
        if own or (manifest is not None and manifest.get("split") == name):
            found[path.parent] = manifest
    return found


def _begin(plan: Plan, out: Path, overwrite: bool, alone: bool) -> tuple[Plan, list[str]]:
    """The plan as it goes on from what is there, and notes; makes way for it or refuses."""
    work = out / WORK
    saved = _saved(work)
    units = [p.stem for p in work.glob("unit-*.json")]
    if saved is not None and saved["settings"] != plan.settings:
        if units and not overwrite:
            raise _unfinished(out)
        saved = None
    notes = []
    if saved is not None:
        plan = plan.with_buckets(saved["splits"])
        if saved["inputs"] != _inputs(plan):
            kept = len(set(units) & {u.name for u in plan.units})
            if units and (not kept or len(units) >= saved["units"]):
                if not overwrite:
                    raise _unfinished(out)
                saved = None
            elif kept:
                notes.append(
                    f"{kept} of {len(plan.units)} ranges were read before, when the inputs were "
                    "not all the same"
                )
    if (work / _CLEARING).exists() or (saved is None and overwrite):
        _clear(plan, out)
    elif saved is None:
        _refuse_foreign(plan, out)
    work.mkdir(exist_ok=True)
    if alone:
        for folder in (out, work, *(out / split for split in plan.splits)):
            remove_leftovers(folder)
        _remove_stale(plan, work)
    content = {
        "settings": plan.settings,
        "splits": plan.splits,
        "inputs": _inputs(plan),
        "units": len(plan.units),
    }
    if saved != content:
        write_atomically(work / "plan.json", sealed(json.dumps(content, indent=1).encode()))
    return plan, notes


def _saved(work: Path) -> dict[str, Any] | None:
    """What ``plan.json`` says; None if it is not there or damaged. Then nothing is lost: the names
    of the work files say which plan they belong to."""
    try:
        return json.loads(unsealed((work / "plan.json").read_bytes()))
    except (FileNotFoundError, ValueError):
        return None


def _inputs(plan: Plan) -> list[Any]:
    return json.loads(json.dumps([i.identity for i in plan.inputs]))


def _unfinished(out: Path) -> ConversionError:
    return ConversionError(
        f"{out} holds an unfinished conversion with other inputs or settings; finish it with "
        "its own command, or start over with --overwrite"
    )


def _refuse_foreign(plan: Plan, out: Path) -> None:
    manifests = _manifests(plan, out)
    if manifests:
        where = ", ".join(sorted(f.relative_to(out).as_posix() for f in manifests))
        of = "" if where == "." else f" (in {where})"
        raise ConversionError(
            f"{out} holds shards of other inputs or settings{of}, or older than the inputs; choose "
            "another folder, or replace all of them with --overwrite"
        )
    if any(p for split in plan.splits for p in (out / split).glob("*.tar")) and not any(
        (out / WORK).glob("unit-*.json")
    ):
        raise ConversionError(f"{out} holds tar files that this conversion did not write")


def _clear(plan: Plan, out: Path) -> None:
    """Removes shards and work files of all splits, the manifests that vouch for them first.

    What is to be removed is written down before, so that a run that is killed here is continued.
    """
    work = out / WORK
    listed = work / _CLEARING
    names = {f.relative_to(out).as_posix() for f in _manifests(plan, out)} | set(plan.splits)
    if listed.exists():
        with suppress(ValueError):
            names |= set(json.loads(unsealed(listed.read_bytes())))
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(exist_ok=True)
    write_atomically(listed, sealed(json.dumps(sorted(names)).encode()))
    folders = [out / name for name in sorted(names)]
    for folder in folders:
        (folder / MANIFEST).unlink(missing_ok=True)
    for folder in folders:
        for path in [*folder.glob("shard-*.tar"), folder / INDEX, folder / MULTIPLICITY]:
            path.unlink(missing_ok=True)
        if folder != out:
            remove_leftovers(folder)
            with suppress(OSError):  # something else is in it, or it is not there
                folder.rmdir()
    listed.unlink()


def _remove_stale(plan: Plan, work: Path) -> None:
    """Removes work files of inputs that have been replaced or taken out."""
    names = {unit.name for unit in plan.units}
    for path in work.glob("unit-*"):
        if path.stem not in names:
            path.unlink(missing_ok=True)


def _identity(plan: Plan, contents: list[str]) -> dict[str, Any]:
    """What of the plan is in the manifest: everything that determines the bytes."""
    return {
        "reader": plan.reader,
        "version": VERSION,
        "files": [
            {"name": i.name, "bytes": i.size, "jets": i.num_jets, _CONTENTS: digest, **i.notes}
            for i, digest in zip(plan.inputs, contents, strict=True)
        ],
        "classes": list(plan.layout.classes),
        "label_shift": plan.options.label_shift,
        "schema": plan.options.schema,
        "splits": plan.fractions or "as in the source",
        "buckets": plan.splits,
        "jets_per_read": plan.jets_per_read,
        "jets_per_block": plan.jets_per_block,
        "jets_per_shard": plan.jets_per_shard,
        "bad_jets": plan.policy.bad_jets,
        "bad_tracks": plan.policy.bad_tracks,
        **plan.policy.unusual,
        **({} if plan.options.tracks == "tanh" else {"tracks": plan.options.tracks}),
        "max_particles": plan.policy.max_particles,
        "dtype": plan.dtype,
        "seed": plan.seed,
    }


def _comparable(identity: Any) -> Any:
    """An identity as read from JSON, without the inputs' contents and what follows from the rest.

    The numbers of buckets are those of the first plan if an input was taken out on the way.
    """
    try:
        files = [{k: v for k, v in f.items() if k != _CONTENTS} for f in identity["files"]]
        rest = {k: v for k, v in identity.items() if k not in ("files", "buckets")}
        return json.loads(json.dumps({**rest, "splits in": list(identity["buckets"]), "f": files}))
    except (TypeError, KeyError, AttributeError):
        return None


def _first_pass(
    plan: Plan,
    work: Path,
    workers: Workers,
    max_dropped: float,
    progress: bool,
    part: tuple[int, int] | None,
    join: bool,
) -> _Read:
    """Reads the units, or those of a part, that have not been read."""
    tallies: dict[int, Tally] = {}
    jets = np.zeros(sum(plan.splits.values()), np.int64)
    prints: dict[tuple[int, int], list[str]] = {}
    total, read = plan.num_jets, 0
    sums = dict.fromkeys((UNLABELLED, BEYOND, PARTICLES, LOW_ENERGY, HIGH_ENERGY), 0)
    with tqdm(
        total=total, unit=f" {plan.words[0]}", unit_scale=True, desc="read ", disable=not progress
    ) as bar:

        def done(number: int, tally: Tally) -> None:
            nonlocal read
            jets[:] += tally.pop("jets in buckets")
            of_pieces = tally.pop("fingerprints")
            for piece, found in zip(plan.units[number].pieces, of_pieces, strict=True):
                prints[piece.input, piece.start] = found
            tallies[number] = tally
            read += tally["read"]
            bar.update(tally["read"])
            for key in sums:
                sums[key] += tally.get(key, 0)
            check_cut(sums, read / total, plan.policy)
            check_energies(sums, read / total)
            dropped = read - int(jets.sum()) - sums[UNLABELLED]
            if dropped > max_dropped * total:
                raise ConversionError(
                    f"{dropped} {plan.words[0]} were dropped, more than --max-dropped "
                    f"{max_dropped:g} of {total} allows: " + _reasons(merge(list(tallies.values())))
                )

        waiting = []
        for number, unit in enumerate(plan.units):
            tally = finished(plan, unit, work)
            if tally is None:
                waiting.append((number, (unit, work)))
            else:
                done(number, tally)
        if join and waiting:
            raise ConversionError(
                f"{len(waiting)} of {len(plan.units)} ranges are not read yet; run the parts that "
                "lack first, or leave out --join to read them here"
            )
        if part is not None:
            mine = [task for task in waiting if task[0] % part[1] == part[0] - 1]
        else:
            mine = waiting
        try:
            workers.run(scatter, mine, done)
        finally:
            close_source()
    contents: list[list[str]] = [[] for _ in plan.inputs]
    for (number, _), found in sorted(prints.items()):
        contents[number] += found
    return _Read(
        tallies=[tallies[number] for number in sorted(tallies)],
        jets=jets,
        contents=[fingerprint(found) for found in contents],
        missing=len(waiting) - len(mine),
    )


def _second_pass(
    plan: Plan,
    out: Path,
    jets: NDArray[np.int64],
    workers: Workers,
    progress: bool,
    part: tuple[int, int] | None,
) -> None:
    tasks = []
    for split, buckets in plan.splits.items():
        shard = block = 0
        first = plan.first_bucket(split)
        for bucket in range(first, first + buckets):
            if not jets[bucket]:
                continue
            (out / split).mkdir(exist_ok=True)
            path = out / split / f"shard-{shard:05d}.tar"
            if part is None or bucket % part[1] == part[0] - 1:
                tasks.append((bucket, (bucket, shard, block, path, out / WORK)))
            shard += 1
            block += num_blocks(int(jets[bucket]), plan.jets_per_block)
    total = sum(int(jets[bucket]) for bucket, _ in tasks)
    with tqdm(
        total=total, unit=f" {plan.words[0]}", unit_scale=True, desc="write", disable=not progress
    ) as bar:
        workers.run(gather, tasks, lambda _, entry: bar.update(entry["jets"]))


def _report(read: _Read) -> dict[str, Any]:
    total = merge(read.tallies)
    report = {k: v for k, v in total.items() if k not in _NOT_COUNTS}
    report["kept"] = int(read.jets.sum())
    report["ranges"] = total.get("ranges", {})
    leading = float(np.median(total.get("median leading pT", [0])))
    if leading > _SUSPICIOUS_PT:
        report["warning"] = (
            f"the leading particles' median pT is {leading:.3g} GeV: is the input in MeV?"
        )
    return report


def _finish(plan: Plan, out: Path, read: _Read, report: dict[str, Any]) -> dict[str, Path]:
    """Writes the manifests and tidies up. Returns the folders of the splits that have jets."""
    work = out / WORK
    kept = {}
    for split, buckets in plan.splits.items():
        first = plan.first_bucket(split)
        kept[split] = [b for b in range(first, first + buckets) if read.jets[b]]
    filled = [split for split, buckets in kept.items() if buckets]
    for split in filled:
        records = [read_record(plan, bucket, work) for bucket in kept[split]]
        entries = [entry for entry, *_ in records]
        counts = np.sum([entry.pop("counts") for entry in entries], axis=0)
        write_manifest(
            out / split,
            index=np.concatenate([rows for _, rows, _ in records]),
            multiplicity=np.concatenate([m for *_, m in records]),
            fields=plan.fields,
            classes=plan.layout.classes,
            counts=counts,
            shards=entries,
            extra={
                "split": split,
                "splits": filled,
                "source": _identity(plan, read.contents),
                "report": report,
            },
        )
    # The manifests are complete; from here the work files are only in the way.
    shutil.rmtree(work)
    sync_folder(out)
    return {split: out / split for split in filled}


def _remarks(plan: Plan, read: _Read) -> list[str]:
    """Oddities of the inputs that are no errors."""
    empty = [str(i.path) for i in plan.inputs if not i.num_jets]
    sets = plan.words[0]
    notes = [f"{path}: there are no {sets} in it" for path in empty[:5]]
    if len(empty) > 5:
        notes.append(f"{len(empty) - 5} other files have no {sets}")
    same: dict[str, Path] = {}
    for entry, contents in zip(plan.inputs, read.contents, strict=True):
        first = same.setdefault(contents, entry.path)
        if entry.num_jets and first != entry.path:
            notes.append(
                f"{entry.path} and {first} have the same contents: these {sets} count twice"
            )
    return notes


def _reasons(tally: Tally) -> str:
    return ", ".join(
        f"{key.removeprefix('dropped: ')} {number}"
        for key, number in tally.items()
        if "dropped" in key or key == UNLABELLED
    )
