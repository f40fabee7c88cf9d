"""Drives a conversion: two passes over processes, resumed where the last run stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from jetkern.convert.clean import BEYOND, PARTICLES, Tally, check_cut, merge
from jetkern.convert.gather import gather, num_blocks, read_record, record_file
from jetkern.convert.plan import VERSION, Plan
from jetkern.convert.readers import UNLABELLED
from jetkern.convert.scatter import close_source, finished, scatter
from jetkern.convert.workers import WorkerDied, Workers
from jetkern.data.shards import MANIFEST, write_manifest
from jetkern.io import AtomicFile, FolderInUse, locked, remove_leftovers, sync_folder

WORK = ".convert"
JETS_WORTH_A_PROCESS = 50_000  # starting one takes as long as converting so many
_SUSPICIOUS_PT = 2e4  # GeV; the leading particle of a jet at the LHC stays well below
# What describes the jets of one range rather than a number of them.
_NOT_COUNTS = ("ranges", "median leading pT")


class ConversionError(RuntimeError):
    """A conversion that cannot start or go on, for reasons other than its input."""


@dataclass
class Result:
    """What a finished conversion reports."""

    report: dict[str, Any]
    folders: dict[str, Path]
    already_done: bool = False


def convert(
    plan: Plan,
    out: Path,
    *,
    jobs: int = 1,
    max_dropped: float = 0.01,
    overwrite: bool = False,
    progress: bool = True,
) -> Result:
    """Writes shards for a plan; the same call again continues one that was interrupted.

    Args:
        out: the shards' folder, or the parent of the folders of the splits.
        jobs: processes.
        max_dropped: fraction of jets that may be dropped before the conversion is given up.
        overwrite: replace finished shards that differ.

    Raises:
        InputError: for input that cannot be used.
        ConversionError: if the output is in use, belongs to another plan, or no space is left.
    """
    out.mkdir(parents=True, exist_ok=True)
    work = out / WORK
    with _locked(out):
        finished = _check_output(plan, out, work, overwrite)
        if finished is not None:
            return finished
        work.mkdir(exist_ok=True)
        for folder in (out, work, *(out / split for split in plan.splits)):
            remove_leftovers(folder)
        if not (work / "plan.json").exists():
            with AtomicFile(work / "plan.json") as file:
                file.write(plan.to_json().encode())
        try:
            jobs = min(jobs, -(-plan.num_jets // JETS_WORTH_A_PROCESS))
            with Workers(jobs, plan) as workers:
                tallies, jets = _first_pass(plan, work, workers, max_dropped, progress)
                _second_pass(plan, out, work, jets, workers, progress)
            return _finish(plan, out, work, tallies, jets)
        except WorkerDied as error:
            raise ConversionError(
                f"{error}; what is finished is kept: run the same command again, perhaps with "
                "fewer --jobs"
            ) from None
        except OSError as error:
            where = error.filename or out
            raise ConversionError(
                f"{where}: {error.strerror or error}; what is finished is kept: run the same "
                "command again to continue"
            ) from None


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """One conversion at a time; the lock goes with the process that holds it."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(out))
        except FolderInUse:
            raise ConversionError(f"{out}: another conversion is writing here") from None
        yield


def _check_output(plan: Plan, out: Path, work: Path, overwrite: bool) -> Result | None:
    """The result, if it is there already; makes way for the conversion or refuses."""
    manifests = {split: out / split / MANIFEST for split in plan.splits}
    started = (work / "plan.json").exists()
    if started and (work / "plan.json").read_text() == plan.to_json():
        return None
    if overwrite:
        _clear(out, plan)
        return None
    if started:
        raise ConversionError(
            f"{out} holds an unfinished conversion with other inputs or settings; finish it with "
            "its own command, or start over with --overwrite"
        )
    present = {split: path for split, path in manifests.items() if path.exists()}
    if present and all(_made_by(path, plan) for path in present.values()):
        shutil.rmtree(work, ignore_errors=True)  # a run that was killed while it tidied up
        report = json.loads(next(iter(present.values())).read_text())["report"]
        return Result(report, {s: p.parent for s, p in present.items()}, already_done=True)
    if present or (out / MANIFEST).exists():
        raise ConversionError(
            f"{out} holds shards of other inputs or settings, or older than the inputs; choose "
            "another folder, or replace them with --overwrite"
        )
    if any(p for split in plan.splits for p in (out / split).glob("*.tar")):
        raise ConversionError(f"{out} holds tar files that this conversion did not write")
    return None


def _clear(out: Path, plan: Plan) -> None:
    """Removes shards and work files, the manifests that vouch for them first."""
    for folder in {out, *(out / split for split in plan.splits)}:
        for path in [folder / MANIFEST, *folder.glob("shard-*.tar"), *folder.glob("*.npy")]:
            path.unlink(missing_ok=True)
    shutil.rmtree(out / WORK, ignore_errors=True)


def _identity(plan: Plan) -> dict[str, Any]:
    """What of the plan is in the manifest: everything that determines the bytes."""
    return {
        "reader": plan.reader,
        "version": VERSION,
        "files": [
            {"name": i.name, "bytes": i.size, "jets": i.num_jets, **i.notes} for i in plan.inputs
        ],
        "classes": list(plan.layout.classes),
        "label_shift": plan.options.label_shift,
        "schema": plan.options.schema,
        "splits": plan.fractions or "as in the source",
        "buckets": plan.splits,
        "jets_per_read": max(u.stop - u.start for u in plan.units),
        "jets_per_block": plan.jets_per_block,
        "bad_jets": plan.policy.bad_jets,
        "bad_tracks": plan.policy.bad_tracks,
        **plan.policy.unusual,
        **({} if plan.options.tracks == "tanh" else {"tracks": plan.options.tracks}),
        "max_particles": plan.policy.max_particles,
        "dtype": plan.dtype,
        "seed": plan.seed,
    }


def _made_by(manifest: Path, plan: Plan) -> bool:
    """Whether the plan would write these shards, of inputs that have not changed since."""
    if any(i.modified > manifest.stat().st_mtime_ns for i in plan.inputs):
        return False
    try:
        return json.loads(manifest.read_text())["source"] == _identity(plan)
    except (ValueError, KeyError):
        return False


def _first_pass(
    plan: Plan, work: Path, workers: Workers, max_dropped: float, progress: bool
) -> tuple[list[Tally], NDArray[np.int64]]:
    """The counts of all units, and the jets of all buckets."""
    tallies: dict[int, Tally] = {}
    jets = np.zeros(sum(plan.splits.values()), np.int64)
    total, read = plan.num_jets, 0
    sums = dict.fromkeys((UNLABELLED, BEYOND, PARTICLES), 0)
    with tqdm(
        total=total, unit=" jets", unit_scale=True, desc="read ", disable=not progress
    ) as bar:

        def done(number: int, tally: Tally) -> None:
            nonlocal read
            jets[:] += tally.pop("jets in buckets")
            tallies[number] = tally
            read += tally["read"]
            bar.update(tally["read"])
            for key in sums:
                sums[key] += tally.get(key, 0)
            check_cut(sums, read / total, plan.policy)
            dropped = read - int(jets.sum()) - sums[UNLABELLED]
            if dropped > max_dropped * total:
                raise ConversionError(
                    f"{dropped} jets were dropped, more than --max-dropped {max_dropped:g} of "
                    f"{total} allows: " + _reasons(merge(list(tallies.values())))
                )

        waiting = []
        for unit in plan.units:
            tally = finished(work, unit.number)
            if tally is None:
                waiting.append((unit.number, (unit, work)))
            else:
                done(unit.number, tally)
        try:
            workers.run(scatter, waiting, done)
        finally:
            close_source()
    return [tallies[u.number] for u in plan.units], jets


def _second_pass(
    plan: Plan, out: Path, work: Path, jets: NDArray[np.int64], workers: Workers, progress: bool
) -> None:
    with tqdm(
        total=int(jets.sum()), unit=" jets", unit_scale=True, desc="write", disable=not progress
    ) as bar:
        waiting = []
        for split, buckets in plan.splits.items():
            shard = block = 0
            first = plan.first_bucket(split)
            for bucket in range(first, first + buckets):
                if not jets[bucket]:
                    continue
                (out / split).mkdir(exist_ok=True)
                path = out / split / f"shard-{shard:05d}.tar"
                if record_file(work, bucket).exists() and path.exists():
                    bar.update(int(jets[bucket]))
                else:
                    waiting.append((bucket, (bucket, shard, block, path, work)))
                shard += 1
                block += num_blocks(int(jets[bucket]), plan.jets_per_block)
        workers.run(gather, waiting, lambda _, entry: bar.update(entry["jets"]))


def _finish(
    plan: Plan, out: Path, work: Path, tallies: list[Tally], jets: NDArray[np.int64]
) -> Result:
    total = merge(tallies)
    report = {k: v for k, v in total.items() if k not in _NOT_COUNTS}
    report["kept"] = int(jets.sum())
    report["ranges"] = total.get("ranges", {})
    leading = float(np.median(total.get("median leading pT", [0])))
    if leading > _SUSPICIOUS_PT:
        report["warning"] = (
            f"the leading particles' median pT is {leading:.3g} GeV: is the input in MeV?"
        )
    folders = {}
    for split, buckets in plan.splits.items():
        first = plan.first_bucket(split)
        records = [
            read_record(work, b, plan.fields) for b in range(first, first + buckets) if jets[b]
        ]
        if not records:
            continue
        entries = [entry for entry, *_ in records]
        counts = np.sum([entry.pop("counts") for entry in entries], axis=0)
        folders[split] = out / split
        write_manifest(
            out / split,
            index=np.concatenate([rows for _, rows, _ in records]),
            multiplicity=np.concatenate([m for *_, m in records]),
            fields=plan.fields,
            classes=plan.layout.classes,
            counts=counts,
            shards=entries,
            extra={"split": split, "source": _identity(plan), "report": report},
        )
    # The manifests are complete; from here the work files are only in the way.
    shutil.rmtree(work)
    sync_folder(out)
    return Result(report, folders)


def _reasons(tally: Tally) -> str:
    found = [f"{k.removeprefix('dropped: ')} {v}" for k, v in tally.items() if "dropped" in k]
    return ", ".join(found)
