"""Electromagnetic showers of photons in a sampling calorimeter, from a parametrisation.

Longitudinal and radial profiles and their fluctuations after Grindhammer and Peters
(hep-ex/0001020, homogeneous media), for tungsten and photons, which convert after 9/7 radiation
lengths on average. The visible energy is a number of spots drawn from these profiles. It is no
Geant4: given the depth and the shape of its shower a spot knows nothing of the others, there are no
tracks, no clusters and no dead cells.

Each shower is a function of the seed and of its number alone.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from jetkern.io import FolderInUse, locked, remove_leftovers
from jetkern.showers import COLUMNS, Showers
from jetkern.simulate import SimulationError
from jetkern.simulate.files import check_configuration, check_splits, parts_of, writing

PHOTON = 22
REVISION = 1

_Z = 74  # tungsten
_CRITICAL = 0.008  # GeV, of tungsten
_VISIBLE = 0.02  # of the energy, in the sensitive layers
_WIDEST = 5.0  # Molière radii
_AT_ONCE = 50  # showers that a process makes before it hands them on


@dataclass(frozen=True)
class Calorimeter:
    """A stack of layers with square cells, and the photons that it sees.

    Attributes:
        cells: in x and in y; cell: their size, moliere: the Molière radius of the stack, both mm.
        layers: thickness of each in radiation lengths, from the front.
        energies: of the photons in GeV, evenly spread.
        spot: mean visible energy of a spot, threshold: least energy of a hit, both MeV.
    """

    cells: int
    cell: float
    moliere: float
    layers: tuple[float, ...]
    energies: tuple[float, float]
    spot: float
    threshold: float


CALORIMETERS = {
    "small": Calorimeter(12, 10.0, 20.0, (1.6,) * 15, (1.0, 10.0), 0.4, 0.2),
    "full": Calorimeter(30, 5.0, 20.0, (0.6,) * 20 + (1.2,) * 10, (10.0, 100.0), 0.2, 0.1),
}
"""For two cores: about 65 hits a shower. Of the size of an electromagnetic calorimeter of ILD, as
generators of showers are trained on: about 900 hits."""


def simulate_showers(
    calorimeter: Calorimeter, numbers: range, seed: int = 0, energy: float | None = None
) -> Showers:
    """The showers of these numbers: the same bits in whatever ranges they are asked for. Hits are
    ``Showers.ordered``, energies those that are visible.

    Args:
        calorimeter: what they are seen with.
        numbers: from 0.
        seed: non-negative.
        energy: of all photons in GeV, in place of the calorimeter's range.

    Raises:
        SimulationError: for an energy below 0.1 GeV, where the parametrisation ends, or a negative
            seed or number.
    """
    lowest = min(calorimeter.energies) if energy is None else energy
    if not lowest >= 0.1:
        raise SimulationError(f"showers need photons of 0.1 GeV at least, got {lowest}")
    if seed < 0 or min(numbers, default=0) < 0:
        raise SimulationError(f"seed and numbers must not be negative: {seed}, {numbers}")
    edges = np.concatenate([[0.0], np.cumsum(calorimeter.layers)])
    found, energies = [np.empty((0, 4), np.float32)], []
    for number in numbers:
        random = np.random.Generator(np.random.Philox(key=[seed % 2**64, number]))
        low, high = calorimeter.energies
        drawn = float(np.float32(random.uniform(low, high)))  # as it is stored
        energies.append(drawn if energy is None else energy)
        found.append(_shower(calorimeter, edges, energies[-1], random))
    counts = [len(hits) for hits in found]
    return Showers(
        np.concatenate(found), np.cumsum(counts, dtype=np.int64), np.array(energies, np.float32)
    )


def _shower(
    calorimeter: Calorimeter, edges: NDArray[np.float64], energy: float, random: np.random.Generator
) -> NDArray[np.float32]:
    alpha, peak = _profile(energy, random)
    start = random.exponential(9 / 7)
    place = random.uniform(size=2)  # in the central cell
    visible = 1000 * _VISIBLE * energy
    spots = random.poisson(visible / calorimeter.spot)
    depth = random.gamma(alpha, peak / (alpha - 1), spots)
    radius = _radius(energy, depth / peak, random) * calorimeter.moliere / calorimeter.cell
    angle = random.uniform(0, 2 * np.pi, spots)
    deposit = random.gamma(2.0, calorimeter.spot / 2, spots)
    n = calorimeter.cells
    x = np.floor(n // 2 + place[0] + radius * np.cos(angle)).astype(np.int64)
    y = np.floor(n // 2 + place[1] + radius * np.sin(angle)).astype(np.int64)
    layer = np.searchsorted(edges, start + depth, side="right") - 1
    inside = (x >= 0) & (x < n) & (y >= 0) & (y < n) & (layer < len(calorimeter.layers))
    place_of = ((layer * n + y) * n + x)[inside]
    total = np.bincount(place_of, deposit[inside])
    cells = np.flatnonzero(total >= calorimeter.threshold)
    hits = np.stack([cells % n, cells // n % n, cells // n**2, total[cells]], 1).astype(np.float32)
    return hits[np.lexsort((-hits[:, 3], hits[:, 2]))]


def _profile(energy: float, random: np.random.Generator) -> tuple[float, float]:
    """The shape of a gamma distribution of depth, and the depth of its maximum in X0."""
    ln_y = np.log(energy / _CRITICAL)
    rho = 0.705 - 0.023 * ln_y
    first, second = random.standard_normal(2)
    common, own = np.sqrt((1 + rho) / 2) * first, np.sqrt((1 - rho) / 2) * second
    ln_peak = np.log(ln_y - 0.812) + (common + own) / (-1.4 + 1.26 * ln_y)
    ln_alpha = np.log(0.81 + (0.458 + 2.26 / _Z) * ln_y) + (common - own) / (-0.58 + 0.86 * ln_y)
    return max(float(np.exp(ln_alpha)), 1.05), float(np.exp(ln_peak))


def _radius(
    energy: float, tau: NDArray[np.float64], random: np.random.Generator
) -> NDArray[np.float64]:
    """Distances from the axis in Molière radii, at depths in units of the maximum's."""
    ln_e = np.log(energy)
    core = 0.0251 + 0.00319 * ln_e + (0.1162 - 0.000381 * _Z) * tau
    far = np.minimum(tau - 0.645, 20.0)  # no overflow far behind the shower
    tail = (0.659 - 0.00309 * _Z) * (np.exp(-2.59 * far) + np.exp((0.3585 + 0.0421 * ln_e) * far))
    w = (0.401 + 0.00187 * _Z - tau) / (1.313 - 0.0686 * ln_e)
    in_core = np.clip((2.632 - 0.00094 * _Z) * np.exp(w - np.exp(w)), 0, 1)
    chosen = np.where(random.uniform(size=tau.shape) < in_core, core, tail)
    u = random.uniform(size=tau.shape)
    # The distribution ends at _WIDEST: u is spread over what it holds up to there.
    u = u * _WIDEST**2 / (_WIDEST**2 + chosen**2)
    return chosen * np.sqrt(u / (1 - u))


def write_showers(
    path: Path,
    calorimeter: Calorimeter,
    numbers: range,
    seed: int,
    made: Iterable[Showers] | None = None,
) -> int:
    """Writes showers in the layout of ShowerData, and returns their hits.

    ``showers`` (N,) rows of x, y, layer, energy one after the other, ``shape`` (N, most hits, 4),
    ``num_points`` and ``pdg`` (N,), ``energies`` (N, 1) in GeV, ``directions`` (N, 3),
    ``shower_ids`` (N,) the numbers. x, y are cells and energies MeV; attributes say so, and how it
    was made.

    Args:
        made: the showers of ``numbers`` in parts; None simulates them.

    Raises:
        SimulationError: naming the file, if it cannot be written; as ``simulate_showers``.
    """
    provenance = {"calorimeter": asdict(calorimeter), "seed": seed, "revision": REVISION}
    parts = [simulate_showers(calorimeter, numbers, seed)] if made is None else made
    return write_showerdata(path, parts, numbers, PHOTON, provenance)


def write_showerdata(
    path: Path,
    made: Iterable[Showers],
    numbers: Sequence[int],
    pdg: int,
    provenance: Mapping[str, object],
) -> int:
    """Writes showers in the layout of ShowerData, see ``write_showers``, and returns their hits.

    Args:
        made: showers, as many as ``numbers``, in parts.
        numbers: of the showers.
        pdg: code of their particles, 0 for unknown ones.
        provenance: how they were made, for an attribute of the file.

    Raises:
        SimulationError: naming the file, if it cannot be written.
    """
    import h5py

    n = len(numbers)
    counts, energies = np.zeros(n, np.int32), np.zeros(n, np.float32)
    with writing(path) as file:
        flat, first = file.create_dataset("showers", (n,), h5py.vlen_dtype(np.float32)), 0
        for part in made:
            place = slice(first, first + len(part))
            counts[place], energies[place] = part.counts, part.energies
            for hits in np.split(part.hits, part.offsets[1:-1]) if len(part) else ():
                flat[first] = hits.ravel()
                first += 1
        file["shape"] = np.array([n, counts.max(initial=0), len(COLUMNS)])
        file["num_points"] = counts
        file["energies"] = energies[:, None]
        file["directions"] = np.tile(np.array([0, 0, 1], np.float32), (n, 1))
        file["pdg"] = np.full(n, pdg, np.int32)
        file["shower_ids"] = np.array(numbers, np.int64)
        file.attrs["columns"] = list(COLUMNS)
        file.attrs["units"] = ["cells", "cells", "1", "MeV"]
        file.attrs["provenance"] = json.dumps(provenance)
    return int(counts.sum())


def make_showers(
    out: Path,
    calorimeter: str,
    number: int,
    splits: Mapping[str, float],
    *,
    per_file: int = 2000,
    seed: int = 0,
    jobs: int = 1,
    progress: bool = False,
) -> int:
    """Makes what is missing of the files of ``number`` showers; returns how many were made now.

    Args:
        out: folder of the files ``SPLIT/showers_NNNN.h5``.
        calorimeter: of ``CALORIMETERS``.
        splits: fraction of the showers in each split.
        per_file: showers of a file, the last of a split may have fewer.
        seed: non-negative.
        jobs: processes.
        progress: whether to show a bar.

    Raises:
        SimulationError: if the folder holds other showers or is being written to, or if a file
            cannot be written.
        OSError: if the folder cannot be made.
    """
    check_splits(splits)
    asked = {
        "data_set": "showers", "calorimeter": calorimeter, "showers": number, "per_file": per_file,
        "splits": dict(splits), "seed": seed, "revision": REVISION,
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    made = 0
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(out))
        except FolderInUse:
            raise SimulationError(f"{out}: another simulation is writing there") from None
        check_configuration(out, asked)
        missing: dict[Path, range] = {}
        for split, part in parts_of(splits, number):
            folder = out / split
            folder.mkdir(exist_ok=True)
            remove_leftovers(folder)
            for i, start in enumerate(range(part.start, part.stop, per_file)):
                path = folder / f"showers_{i:04d}.h5"
                if not path.exists():
                    missing[path] = range(start, min(start + per_file, part.stop))
        run: Callable[..., Iterable[Showers]] = map
        total = sum(map(len, missing.values()))
        if jobs > 1 and total > _AT_ONCE:
            context = multiprocessing.get_context("spawn")
            run = stack.enter_context(ProcessPoolExecutor(jobs, context)).map
        bar = tqdm(
            total=total,
            desc="showers",
            unit=" showers",
            disable=None if progress else True,
        )
        simulated = partial(simulate_showers, CALORIMETERS[calorimeter], seed=seed)
        with bar:
            for path, numbers in missing.items():
                parts = [numbers[i : i + _AT_ONCE] for i in range(0, len(numbers), _AT_ONCE)]
                found = _counted(run(simulated, parts), bar.update)
                write_showers(path, CALORIMETERS[calorimeter], numbers, seed, found)
                made += len(numbers)
    return made


def _counted(parts: Iterable[Showers], update: Callable[[int], object]) -> Iterator[Showers]:
    """The same parts; ``update`` is told how many showers each has."""
    for part in parts:
        update(len(part))
        yield part
