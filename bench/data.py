"""Rates of the data path: converting, reading, opening; omnilearned's loader on the same jets.

    python -m bench.data SOURCE [--peer DIR] [--copies 40] [--json FILE]

SOURCE is a folder of simulated JetClass jets (``data_tools/simulate.py jetclass``), of which
``train`` is used. The jets of each of its files are repeated ``--copies`` times in a file of a
scratch folder, so that files are as long as published ones and the shards are larger than what a
stream keeps in memory; 5.4 kB a jet. Conversion is timed from the start of the program to its end.
Both loaders read particles, identities, impact parameters, labels and conditions in random order,
each measurement in processes of its own, ours and the peer's in turn. *Warm* begins with the files
just read, *cold* with them dropped from the page cache (``posix_fadvise``), and a plain read of the
same files says what the disk gives. omnilearned 0.2.0 is taken when it can be imported: ``pip
install --no-deps --target DIR omnilearned==0.2.0``, and requests.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.machine import describe, memory, write_results
from jetkern.machine import version
from jetkern.tables import table

PACKAGES = ("h5py", "numpy", "uproot", "webdataset")


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("--peer", default="", help="folder that omnilearned is installed in")
    parser.add_argument("--copies", type=int, default=40)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement of reading")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scratch", type=Path, help="where the copies and shards go for the run")
    parser.add_argument("--json", type=Path, help="also write the results here")
    settings = parser.parse_args()
    files = sorted((settings.source / "train").glob("*.h5"))
    if not files:
        parser.error(f"{settings.source / 'train'} has no *.h5")

    machine = describe(threads=1) | {p: version(p) for p in PACKAGES}
    machine["load_average_at_start"] = os.getloadavg()[0]
    print("\n".join(f"{key:21} {value}" for key, value in machine.items()), flush=True)
    with tempfile.TemporaryDirectory(dir=settings.scratch) as scratch:
        hdf5 = Path(scratch) / "data" / "jetclass" / "train"
        hdf5.mkdir(parents=True)
        for file in files:
            repeat(file, hdf5 / file.name, settings.copies)
        root = Path(scratch) / "root"
        root.mkdir()
        first = write_root(files, root / "000.root")
        for copy in range(1, max(1, settings.copies // 4)):
            shutil.copyfile(first, root / f"{copy:03d}.root")
        jets = count_jets(files)
        results = conversion(hdf5, root, Path(scratch), settings.repeats, jets * settings.copies)
        results += reading(settings, Path(scratch))
        results += opening(Path(scratch) / "shards", Path(scratch) / "huge")
    machine["load_average_at_end"] = os.getloadavg()[0]
    head = ["", "jets/s (median)", "lowest to highest", "memory beyond imports, MB"]
    print(f"\n{table([head, *map(cells, results)], markdown=True)}")
    ours, peer = (rate(results, f"{name}, 1 process, warm") for name in ("jetkern", "omnilearned"))
    if peer:
        print(f"\nOne process, warm: {ours / peer:.0f} times omnilearned's rate")
    names = ("copies", "batch", "seconds", "repeats")
    asked = {name: getattr(settings, name) for name in names} | {"jets_per_copy": jets}
    write_results(settings.json, {"machine": machine, "settings": asked, "results": results})


def conversion(
    hdf5: Path, root: Path, scratch: Path, repeats: int, jets: int
) -> list[dict[str, Any]]:
    """Jets per second from files to finished shards, started as a user does."""
    import subprocess

    from jetkern.data import Shards

    tool = Path(__file__).parents[1] / "data_tools" / "convert.py"
    ways: list[tuple[str, Path, str, int, bool]] = [
        ("convert ROOT, 1 process", root, "from_root", 1, False),
        ("convert ROOT, 2 processes", root, "from_root", 2, False),
        ("convert HDF5, 1 process", hdf5, "shards", 1, False),
        ("convert HDF5, 2 processes", hdf5, "shards", 2, False),
        ("convert HDF5, 2 processes, cold", hdf5, "shards", 2, True),
    ]
    rates: dict[str, list[float]] = {}
    for _ in range(repeats):
        drop(hdf5)
        start = time.perf_counter()
        warm(hdf5)
        rates.setdefault("plain read of the HDF5 files, cold", []).append(
            jets / (time.perf_counter() - start)
        )
        for name, source, out, jobs, cold in ways:
            shutil.rmtree(scratch / out, ignore_errors=True)
            command = [sys.executable, tool, source, "--out", scratch / out, "--quiet"]
            drop(source) if cold else warm(source)
            start = time.perf_counter()
            subprocess.run(
                [*map(str, command), "--jobs", str(jobs)], check=True, stdout=subprocess.DEVNULL
            )
            seconds = time.perf_counter() - start
            rates.setdefault(name, []).append(Shards(scratch / out).num_jets / seconds)
    return [summary(name, values) for name, values in rates.items()]


def repeat(file: Path, to: Path, copies: int) -> None:
    """A file with the same jets several times."""
    import h5py

    with h5py.File(file) as source, h5py.File(to, "w") as target:
        target.attrs.update(source.attrs)
        for name, data in source.items():
            rows = data[:]
            made = target.create_dataset(name, (copies * len(rows), *rows.shape[1:]), rows.dtype)
            made.attrs.update(data.attrs)
            for start in range(0, len(made), len(rows)):
                made[start : start + len(rows)] = rows


def count_jets(files: list[Path]) -> int:
    """Jets in all files."""
    import h5py

    total = 0
    for file in files:
        with h5py.File(file) as f:
            total += len(f["pid"])
    return total


def write_root(files: list[Path], path: Path) -> Path:
    """The same jets in JetClass's ROOT layout, as far as the features tell."""
    import awkward
    import h5py
    import numpy as np
    import uproot

    from jetkern.data.order import permutation

    parts = []
    for file in files:
        with h5py.File(file) as f:
            label = f["pid"][:] - f.attrs["label_shift"]
            parts.append((f["data"][:], f["num_particles"][:], label, f["global"][:]))
    data, counts, label, condition = (np.concatenate(p) for p in zip(*parts, strict=True))
    order = permutation(len(counts), 0)
    data, counts, label, condition = data[order], counts[order], label[order], condition[order]
    rows = data[np.arange(data.shape[1]) < counts[:, None]]
    pt, eta, phi, mass = condition[:, :4].T
    owner = np.repeat(np.arange(len(counts)), counts)
    part_pt, part_phi = np.exp(rows[:, 2]), rows[:, 1] + phi[owner]
    pid = rows[:, 4].astype(int)
    flat = {
        "px": part_pt * np.cos(part_phi),
        "py": part_pt * np.sin(part_phi),
        "pz": part_pt * np.sinh(rows[:, 0] + eta[owner]),
        "energy": np.exp(rows[:, 3]),
        "deta": rows[:, 0],
        "dphi": rows[:, 1],
        "d0val": np.arctanh(np.clip(rows[:, 5], -0.999999, 0.999999)),
        "d0err": rows[:, 6],
        "dzval": np.arctanh(np.clip(rows[:, 7], -0.999999, 0.999999)),
        "dzerr": rows[:, 8],
        "charge": np.isin(pid, (2, 3, 8)) * 1.0 - np.isin(pid, (1, 4, 5)),
        "isChargedHadron": np.isin(pid, (1, 8)),
        "isNeutralHadron": pid == 7,
        "isPhoton": pid == 6,
        "isElectron": np.isin(pid, (3, 4)),
        "isMuon": np.isin(pid, (2, 5)),
    }
    branches = {f"part_{k}": awkward.unflatten(v.astype("f4"), counts) for k, v in flat.items()}
    energy = np.hypot(mass, pt * np.cosh(eta))
    for name, values in {"pt": pt, "eta": eta, "phi": phi, "energy": energy}.items():
        branches[f"jet_{name}"] = values.astype("f4")
    from jetkern.convert.readers import JETCLASS

    for i, name in enumerate(JETCLASS):
        branches[f"label_{name}"] = label == i
    with uproot.recreate(path) as file:
        file.mktree("tree", {k: v.type.content if hasattr(v, "layout") else v.dtype
                             for k, v in branches.items()})  # fmt: skip
        for start in range(0, len(counts), 10_000):
            file["tree"].extend({k: v[start : start + 10_000] for k, v in branches.items()})
    return path


def ours(settings: argparse.Namespace, scratch: Path, rank: int, world: int) -> Iterator[int]:
    """Numbers of jets of our batches."""
    from jetkern.data import Shards, Stream

    stream = Stream(
        Shards(scratch / "shards"), batch_size=settings.batch * world, rank=rank, world_size=world
    )
    return (len(jets) for jets in stream)


def ours_alone(settings: argparse.Namespace, scratch: Path, rank: int, world: int) -> Iterator[int]:
    """The same without the prefetch thread."""
    from jetkern.data import Shards, Stream

    stream = Stream(Shards(scratch / "shards"), batch_size=settings.batch, prefetch=0)
    return (len(jets) for jets in stream)


def peer(settings: argparse.Namespace, scratch: Path, rank: int, world: int) -> Iterator[int]:
    """Numbers of jets of omnilearned's batches; its processes are its loader's workers."""
    sys.path.append(settings.peer)
    from omnilearned.dataloader import load_data

    loader = load_data(
        "jetclass",
        str(scratch / "data"),
        batch=settings.batch,
        use_cond=True,
        use_pid=True,
        use_add=True,
        num_workers=0 if world == 1 else world,
    )

    def endless() -> Iterator[int]:
        while True:
            for batch in loader:
                yield len(batch["y"])

    return endless()


def measure(
    make: Callable[..., Iterator[int]],
    settings: argparse.Namespace,
    scratch: Path,
    place: tuple[int, int],
    cold: bool,
    pipe: Any,
) -> None:
    """Runs in a process of its own: sends jets per second and memory."""
    import torch

    torch.set_num_threads(1)
    import jetkern.data  # noqa: F401

    base = memory("VmRSS")
    batches = make(settings, scratch, *place)
    if not cold:
        next(batches)
    pipe.send("ready")
    pipe.recv()
    jets, start = 0, time.perf_counter()
    while (seconds := time.perf_counter() - start) < settings.seconds:
        jets += next(batches)
    pipe.send((jets / seconds, memory("VmHWM") - base))


def reading(settings: argparse.Namespace, scratch: Path) -> list[dict[str, Any]]:
    """Rates of both loaders, in turn."""
    sys.path.append(settings.peer)
    shards, padded = scratch / "shards", scratch / "data"
    contenders: list[tuple[str, Path, Callable[..., Iterator[int]], int, int]] = [
        ("jetkern, 1 process", shards, ours, 1, 1),
        ("jetkern, 1 process without prefetch thread", shards, ours_alone, 1, 1),
        ("jetkern, 2 processes", shards, ours, 2, 2),
    ]
    try:
        import omnilearned.dataloader  # noqa: F401

        # Its first use writes an index of all jets beside them.
        next(peer(settings, scratch, 0, 1))
        contenders += [
            ("omnilearned, 1 process", padded, peer, 1, 1),
            ("omnilearned, 2 loader workers", padded, peer, 1, 2),
        ]
    except ImportError as error:
        print(f"omnilearned is not installed ({error})", file=sys.stderr)
    context = multiprocessing.get_context("spawn")
    rates: dict[str, list[float]] = {}
    highest: dict[str, float] = {}
    for _ in range(settings.repeats):
        for cold in (False, True):
            for name, folder, make, processes, world in contenders:
                name = f"{name}, {'cold' if cold else 'warm'}"
                drop(folder) if cold else warm(folder)
                pipes, running = [], []
                for rank in range(processes):
                    here, there = context.Pipe()
                    place = (rank, world)
                    process = context.Process(
                        target=measure, args=(make, settings, scratch, place, cold, there)
                    )
                    process.start()
                    pipes.append(here)
                    running.append(process)
                for pipe in pipes:
                    pipe.recv()
                for pipe in pipes:
                    pipe.send("go")
                answers = [pipe.recv() for pipe in pipes]
                for process in running:
                    process.join()
                rates.setdefault(name, []).append(sum(a[0] for a in answers))
                highest[name] = max(highest.get(name, 0), *(a[1] for a in answers))
    return [summary(name, values, highest[name]) for name, values in rates.items()]


def drop(folder: Path) -> None:
    """Takes all files below a folder out of the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def warm(folder: Path) -> None:
    """Brings all files below a folder into the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                while file.read(1 << 24):
                    pass


def opening(shards: Path, huge: Path) -> list[dict[str, Any]]:
    """Opens a made-up manifest of 100 million jets and goes to a late batch."""
    import numpy as np

    from jetkern.data import Shards
    from jetkern.data.shards import write_manifest

    real = Shards(shards)
    huge.mkdir()
    os.link(real.paths[0], huge / real.paths[0].name)
    blocks = real.index[real.index["shard"] == 0]
    index = np.tile(blocks, -(-100_000_000 // int(blocks["jets"].sum())))
    jets = int(index["jets"].sum())
    write_manifest(
        huge,
        index=index,
        multiplicity=np.resize(real.multiplicity()[: int(blocks["jets"].sum())], jets),
        fields=real.fields,
        classes=["any"],
        counts=[jets],
        shards=[real.manifest["shards"][0]],
        extra={},
    )
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=open_huge, args=(huge, there))
    process.start()
    seconds, batch_seconds, megabytes = here.recv()
    process.join()
    return [
        {"name": f"open {jets:,} jets", "seconds": seconds, "memory_mb": megabytes},
        {
            "name": "then to batch 50,000,000 of 1024",
            "seconds": batch_seconds,
            "memory_mb": megabytes,
        },
    ]


def open_huge(folder: Path, pipe: Any) -> None:
    """Sends the seconds to open and to the first batch there, and the memory of both."""
    from jetkern.data import Shards, Stream

    base = memory("VmRSS")
    start = time.perf_counter()
    shards = Shards(folder)
    opened = time.perf_counter() - start
    start = time.perf_counter()
    stream = Stream(shards, batch_size=1024, prefetch=0)
    stream.seek(50_000_000 * 1024)
    next(iter(stream))
    there = time.perf_counter() - start
    pipe.send((opened, there, memory("VmHWM") - base))


def summary(name: str, rates: list[float], megabytes: float | None = None) -> dict[str, Any]:
    """Median, and all values."""
    result = {"name": name, "jets_per_second": statistics.median(rates), "all": rates}
    return result if megabytes is None else result | {"memory_mb": megabytes}


def rate(results: list[dict[str, Any]], name: str) -> float:
    """The median rate of a measurement, 0 if it was not made."""
    return next((r["jets_per_second"] for r in results if r["name"] == name), 0.0)


def cells(result: dict[str, Any]) -> list[str]:
    """A row of the table."""
    used = f"{result['memory_mb']:,.0f}" if "memory_mb" in result else ""
    if "seconds" in result:
        return [result["name"], f"{result['seconds']:.3f} s", "", used]
    low, high = min(result["all"]), max(result["all"])
    return [
        result["name"], f"{result['jets_per_second']:,.0f}", f"{low:,.0f} to {high:,.0f}", used,
    ]  # fmt: skip


if __name__ == "__main__":
    main()
