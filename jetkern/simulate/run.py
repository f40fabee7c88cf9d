"""All shards of a data set over several processes, with progress and resumption."""

from __future__ import annotations

import json
import multiprocessing as mp
import multiprocessing.queues
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for
from pathlib import Path

import numpy as np
from tqdm import tqdm

from jetkern.io import FolderInUse, locked, remove_leftovers
from jetkern.simulate import SimulationError
from jetkern.simulate.files import check_configuration, check_splits, parts_of, reading, writing
from jetkern.simulate.processes import DATA_SETS
from jetkern.simulate.shard import REVISION, Unit, make_shard, versions

POLL_SECONDS = 0.2
LINE_SECONDS = 15.0


@dataclass(frozen=True)
class Request:
    """What to simulate.

    Attributes:
        data_set: "jetclass", "toptag", "jetnet" or "flavour".
        jets_per_class: jets of each kind, over all splits.
        jets_per_shard: largest number of jets in one file and one unit of work.
        splits: fraction of the jets in each split; empty for JetNet, which has none.
        seed: any non-negative integer.
        mpi: multi-parton interactions; None for the data set's own choice.
        out: output directory.
        kinds: names of the kinds to make; empty for all. They are the same jets whatever others
            are made, so that a directory can be filled in parts.
    """

    data_set: str
    jets_per_class: int
    jets_per_shard: int
    splits: Mapping[str, float]
    seed: int
    mpi: bool | None
    out: Path
    kinds: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("jets_per_class", "jets_per_shard"):
            if getattr(self, name) < 1:
                raise SimulationError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise SimulationError(f"the seed must not be negative, got {self.seed}")
        names = DATA_SETS[self.data_set].class_names
        if unknown := [kind for kind in self.kinds if kind not in names]:
            raise SimulationError(
                f"{self.data_set} has no {', '.join(unknown)}; there are {', '.join(names)}"
            )
        if self.splits:
            check_splits(self.splits)
            if self.data_set == "jetnet":
                raise SimulationError(
                    "jetnet is one file per type; it is split when it is converted"
                )
        elif self.data_set != "jetnet":
            raise SimulationError(f"{self.data_set} needs splits")

    @property
    def configuration(self) -> dict:
        """All that determines the output."""
        data_set = DATA_SETS[self.data_set]
        mpi = data_set.mpi if self.mpi is None else self.mpi
        return {
            "data_set": self.data_set,
            "title": data_set.title,
            "jets_per_class": self.jets_per_class,
            "jets_per_shard": self.jets_per_shard,
            "splits": dict(self.splits),
            "seed": self.seed,
            "mpi": mpi,
            "revision": REVISION,
            "versions": versions(),
        }

    def units(self) -> list[Unit]:
        """The shards, in the order of classes, splits and indices."""
        data_set, mpi = DATA_SETS[self.data_set], self.configuration["mpi"]
        units = []
        for kind in data_set.kinds:
            if self.kinds and kind.name not in self.kinds:
                continue
            index = 0
            for split, jets in self._jets_per_split().items():
                shards = -(-jets // self.jets_per_shard)
                for i in range(shards):
                    size = jets * (i + 1) // shards - jets * i // shards
                    name = f"{self.data_set}_{kind.name}_{index:04d}.h5"
                    path = self.out / (split or "parts") / name
                    units.append(
                        Unit(self.data_set, kind.name, split, index, size, self.seed, mpi, path)
                    )
                    index += 1
        return units

    def _jets_per_split(self) -> dict[str, int]:
        if not self.splits:
            return {"": self.jets_per_class}
        return {name: len(part) for name, part in parts_of(self.splits, self.jets_per_class)}


def simulate(request: Request, jobs: int, progress: bool = True) -> tuple[int, int]:
    """Makes what is missing of the request, with progress on stderr.

    Returns:
        The number of jets in all and of those made now.

    Raises:
        SimulationError: if the directory holds jets of another request or is being written to, if
            Pythia does not start, if a worker dies, or if a file cannot be written.
        OSError: if the directory cannot be made.
    """
    request.out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(request.out))
        except FolderInUse:
            raise SimulationError(f"{request.out}: another simulation is writing there") from None
        check_configuration(request.out, request.configuration)
        units = request.units()
        for folder in {request.out, *(unit.path.parent for unit in units)}:
            remove_leftovers(folder)
        missing = [unit for unit in units if not _finished(unit, request.out)]
        total, made = (sum(unit.jets for unit in these) for these in (units, missing))
        if missing:
            _run(missing, total, min(jobs, len(missing)), progress)
        if request.data_set == "jetnet":
            for kind in dict.fromkeys(unit.kind for unit in units):
                _merge_jetnet([u for u in units if u.kind == kind], jetnet_path(request.out, kind))
    return total, made


def _run(units: list[Unit], total: int, jobs: int, show_progress: bool) -> None:
    context = mp.get_context("spawn")
    queue = context.SimpleQueue()
    executor = ProcessPoolExecutor(jobs, context, _start_worker, (queue,))
    units = sorted(units, key=lambda unit: -unit.cost)
    todo = sum(unit.jets for unit in units)
    progress = Progress(units[0].data_set, total, total - todo, quiet=not show_progress)
    try:
        pending = {executor.submit(_work, unit) for unit in units}
        while pending:
            done, pending = wait(pending, POLL_SECONDS, FIRST_COMPLETED)
            while not queue.empty():
                progress.add(queue.get())
            for future in done:
                future.result()
    except BrokenProcessPool:
        message = "a process ended early (out of memory?); the same command continues"
        raise SimulationError(message) from None
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        for process in mp.active_children():
            process.terminate()
        raise
    finally:
        progress.close()
    executor.shutdown()


_queue: mp.queues.SimpleQueue | None = None


def _start_worker(queue: mp.queues.SimpleQueue) -> None:
    global _queue
    _queue = queue
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = mp.parent_process()
    assert parent is not None
    wait_for([parent.sentinel])
    os._exit(1)


def _work(unit: Unit) -> None:
    assert _queue is not None
    make_shard(unit, _queue.put)


class Progress:
    """A bar on a terminal; a line now and then elsewhere; nothing if ``quiet``."""

    def __init__(self, name: str, total: int, done: int, quiet: bool) -> None:
        self.quiet = quiet
        self.terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=total,
            initial=done,
            desc=name,
            unit=" jets",
            disable=quiet or not self.terminal,
            smoothing=0.05,
        )
        self.name, self.total, self.initial, self.done = name, total, done, done
        self.start = self.last = time.monotonic()

    def add(self, jets: int) -> None:
        self.bar.update(jets)
        self.done += jets
        if not self.terminal and time.monotonic() - self.last > LINE_SECONDS:
            self._line()

    def close(self) -> None:
        self.bar.close()
        if not self.terminal:
            self._line()

    def _line(self) -> None:
        if self.quiet:
            return
        self.last = time.monotonic()
        meter = tqdm.format_meter(
            self.done,
            self.total,
            self.last - self.start,
            prefix=self.name,
            unit=" jets",
            initial=self.initial,
            ncols=0,
        )
        print(meter, file=sys.stderr, flush=True)


def jetnet_path(out: Path, kind: str) -> Path:
    """The file of one type in JetNet's layout."""
    return out / f"{kind}{DATA_SETS['jetnet'].padding}.hdf5"


def _finished(unit: Unit, out: Path) -> bool:
    return unit.path.exists() or (
        unit.data_set == "jetnet" and jetnet_path(out, unit.kind).exists()
    )


def _merge_jetnet(units: list[Unit], path: Path) -> None:
    """One file from the parts of a type, which then go."""
    if not path.exists():
        with writing(path) as merged:
            total, start = sum(unit.jets for unit in units), 0
            provenances = []
            for unit in units:
                with reading(unit.path) as part:
                    arrays = {name: dataset[:] for name, dataset in part.items()}
                    attributes = dict(part.attrs)
                provenances.append(json.loads(attributes.pop("provenance")))
                for name, array in arrays.items():
                    merged.require_dataset(name, (total, *array.shape[1:]), array.dtype)
                    merged[name][start : start + unit.jets] = array
                merged.attrs.update(attributes)
                start += unit.jets
            merged.attrs["provenance"] = json.dumps(_combined(provenances))
    for unit in units:
        unit.path.unlink(missing_ok=True)
    with suppress(OSError):
        units[0].path.parent.rmdir()


def _combined(provenances: list[dict]) -> dict:
    """The provenance of shards of one type, with sums of what was counted."""
    result = dict(provenances[0], shards=len(provenances))
    for name in ("shard", "pythia_seeds"):
        del result[name]
    for name in ("events", "jets_selected", "constituents_beyond_padding"):
        result[name] = sum(provenance[name] for provenance in provenances)
    sections = np.array([provenance["cross_section_pb"] for provenance in provenances])
    errors = np.sqrt((sections[..., 1] ** 2).sum(0)) / len(sections)
    result["cross_section_pb"] = np.stack([sections[..., 0].mean(0), errors], axis=1).tolist()
    return result
