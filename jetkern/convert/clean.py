"""Judges and repairs the values of jets; everything that is not kept as it came is counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jetkern.convert.readers import UNLABELLED, InputError, Raw
from jetkern.data.shards import MAX_PARTICLES

NUM_PID = 9
MAX_DELTA_ETA = 10.0
MAX_DELTA_PHI = 3 * np.pi * (1 + 1e-5)  # 0 to 2 pi less an axis of -pi to pi
ENERGY_TOLERANCE = 1e-2  # in ln E - ln pT: what rounding and smearing do to massless particles
MAX_ENERGY = 200.0  # in pT: |eta| is then 6
MAX_ODD_ENERGIES = 0.5  # of the particles
_FOLD = 256
_COLUMNS = ("delta eta", "delta phi", "ln pT", "ln E")

PARTICLES = "particles read"
LOW_ENERGY = "particles with E below pT"
HIGH_ENERGY = f"particles with E above {MAX_ENERGY:g} pT"
BEYOND = f"particles beyond the {MAX_PARTICLES}th of their jet"

Tally = dict[str, Any]
Array = NDArray[Any]


@dataclass(frozen=True)
class Policy:
    """What to do with jets that cannot be used as they are.

    Attributes:
        bad_jets: "error" stops at a jet with a value that is not finite or not physical or with no
            particle; "drop" leaves it out.
        bad_tracks: what to do where only impact parameters are not finite, or their errors
            negative: "error", "drop" the jet, or set them to "zero".
        max_particles: jets with more keep those of highest pT.
        unlabelled: what to do with jets of none of the classes: "error" or "drop".
        max_cut: the fraction of particles beyond the 150th of their jets, at most.
    """

    bad_jets: str = "error"
    bad_tracks: str = "error"
    max_particles: int = 150
    unlabelled: str = "error"
    max_cut: float = 0.25

    @property
    def unusual(self) -> dict[str, Any]:
        """What manifests say of the settings that came later, where it is not the default."""
        return {} if self.unlabelled == "error" else {"unlabelled": self.unlabelled}


def clean(
    raw: Raw, policy: Policy, classes: tuple[str, ...], path: Path, start: int
) -> tuple[Raw, NDArray[np.int64], Tally]:
    """The jets that are kept, each sorted by pT.

    Args:
        raw: jets of a file from row ``start`` on.
        path, start: for messages.

    Returns:
        the jets, their rows in the file, and counts of what was repaired or left out.

    Raises:
        InputError: for a particle identity out of range, and by policy for bad jets, naming file,
            jet and field.
    """
    tally: Tally = {"read": len(raw.counts), **raw.tally}
    raw = _skip(raw, tally)
    tally[PARTICLES] = len(raw.particles)
    raw.counts = np.asarray(raw.counts, np.int64)
    judge = Judge(raw.counts, path, start, tally)
    for fault in raw.faults:
        judge(fault.reason, fault.jets, fault.message, getattr(policy, fault.policy))
    _judge_labels(raw, judge, policy, classes)
    _judge_identities(raw, judge)
    judge("no particles", raw.counts == 0, "the jet has no particles", policy.bad_jets)
    _judge_particles(raw, judge, policy)
    _judge_condition(raw, judge, policy)
    _judge_tracks(raw, judge, policy)

    rows = np.arange(start, start + len(raw.counts))
    if not judge.keep.all():
        raw = take_jets(raw, np.flatnonzero(judge.keep))
        rows = rows[judge.keep]
    raw = _wrap(raw, tally)
    raw = _sort(raw, tally)
    raw = _truncate(raw, policy.max_particles, tally)
    _observe(raw, tally)
    return raw, rows, tally


class Judge:
    """Marks bad jets for dropping and counts them, or fails at the first of them.

    Attributes:
        keep: (B,) false for the jets to be dropped.
    """

    def __init__(
        self, counts: Array, path: Path, start: int, tally: Tally, word: str = "jet"
    ) -> None:
        self.keep = np.ones(len(counts), bool)
        self.tally = tally
        self._path, self._start, self._word = path, start, word
        self._counts, self._ends = counts, np.cumsum(counts)

    def __call__(
        self, reason: str, bad: NDArray[np.bool_], what: str | Callable[[int], str], action: str
    ) -> None:
        """Judges jets (B,): an error with the words ``what``, or to be dropped for a reason."""
        bad = bad & self.keep
        if bad.any():
            if action == "error":
                jet = int(np.argmax(bad))
                self.fail(jet, what(jet) if callable(what) else what)
            self.keep[bad] = False
            key = reason if reason == UNLABELLED else f"dropped: {reason}"
            self.tally[key] = self.tally.get(key, 0) + int(bad.sum())

    def fail(self, jet: int, what: str) -> None:
        """Raises the error that names file and jet."""
        raise InputError(f"{self._path}: {self._word} {self._start + jet}: {what}")

    def owner(self, particles: Any) -> Any:
        """The jets of particles that are given by their rows."""
        return np.searchsorted(self._ends, particles, side="right")

    def jets_of(self, bad: Any) -> NDArray[np.bool_]:
        """(B,) the jets with any of the particles (T,)."""
        marked = np.zeros(len(self.keep), bool)
        marked[self.owner(np.flatnonzero(bad))] = True
        return marked

    def particles_of(self, jet: int) -> slice:
        """The rows of a jet's particles."""
        return slice(self._ends[jet] - self._counts[jet], self._ends[jet])


def _judge_labels(raw: Raw, judge: Judge, policy: Policy, classes: tuple[str, ...]) -> None:
    judge(
        UNLABELLED,
        (raw.label < 0) | (raw.label >= len(classes)),
        lambda jet: (
            f"the label is {raw.label[jet]}, but there are {len(classes)} classes, 0 to "
            f"{len(classes) - 1} (after the label shift; see --label-shift, --classes and "
            "--unlabelled)"
        ),
        policy.unlabelled,
    )


def _judge_identities(raw: Raw, judge: Judge) -> None:
    if raw.pid is None:
        return
    wrong = (raw.pid < 0) | (raw.pid >= NUM_PID)
    if wrong.any():
        row = int(np.argmax(wrong))
        found = f"a particle's identity is {raw.pid[row]}, expected 0 to 8"
        judge.fail(int(judge.owner(row)), found)
    raw.pid = raw.pid.astype(np.uint8, copy=False)


def _judge_particles(raw: Raw, judge: Judge, policy: Policy) -> None:
    particles = raw.particles = np.ascontiguousarray(raw.particles, np.float32)
    limits = extremes(particles)
    if not np.isfinite(limits).all():
        finite = np.isfinite(particles)

        def describe(jet: int) -> str:
            of = particles[judge.particles_of(jet)]
            # A jet's axis spreads what is wrong with a momentum over the angles of all.
            column = next(c for c in (2, 3, 0, 1) if not np.isfinite(of[:, c]).all())
            value = of[~np.isfinite(of[:, column]), column][0]
            return f"{_COLUMNS[column]} of a particle is {value}"

        judge("not finite", judge.jets_of(~finite.all(axis=1)), describe, policy.bad_jets)
    for column, limit, shown, hint in (
        (0, MAX_DELTA_ETA, "10", ""),
        (1, MAX_DELTA_PHI, "3 pi", ": are the angles in degrees?"),
    ):
        if not np.abs(limits[:, column]).max() <= limit:
            far = judge.jets_of(np.abs(particles[:, column]) > limit)
            reason = f"|{_COLUMNS[column]}| > {shown}"
            judge(reason, far, f"a particle has {reason}{hint}", policy.bad_jets)


def _judge_condition(raw: Raw, judge: Judge, policy: Policy) -> None:
    if raw.condition is None:
        return
    raw.condition = np.asarray(raw.condition, np.float32)
    judge(
        "condition not finite",
        ~np.isfinite(raw.condition).all(axis=1),
        "a quantity of the jet (global) is not finite",
        policy.bad_jets,
    )


def _judge_tracks(raw: Raw, judge: Judge, policy: Policy) -> None:
    if raw.tracks is None:
        return
    tracks = raw.tracks = np.ascontiguousarray(raw.tracks, np.float32)
    limits = extremes(tracks)
    if not np.isfinite(limits).all():
        finite = np.isfinite(tracks)
        if policy.bad_tracks == "zero":
            judge.tally["tracks set to zero"] = int((~finite).sum())
            tracks[~finite] = 0
        else:
            judge(
                "tracks not finite",
                judge.jets_of(~finite.all(axis=1)),
                "an impact parameter of a particle is not finite",
                policy.bad_tracks,
            )
    if not (limits[0, 1::2] >= 0).all():
        negative = tracks[:, 1::2] < 0
        if policy.bad_tracks == "zero":
            judge.tally["tracks with a negative error set to zero"] = int(negative.sum())
            for pair in (0, 1):
                tracks[negative[:, pair], 2 * pair : 2 * pair + 2] = 0
        else:
            judge(
                "tracks with a negative error",
                judge.jets_of(negative.any(axis=1)),
                lambda jet: (
                    "the error of an impact parameter is "
                    f"{tracks[judge.particles_of(jet), 1::2].min():g} (if that stands for no "
                    "track, a schema can say so with missing; see --bad-tracks)"
                ),
                policy.bad_tracks,
            )


def _skip(raw: Raw, tally: Tally) -> Raw:
    """Without the particles that have no momentum."""
    if raw.skip is None:
        return raw
    tally["particles without momentum left out"] = int(raw.skip.sum())
    owner = np.repeat(np.arange(len(raw.counts)), raw.counts)
    counts = raw.counts - np.bincount(owner[raw.skip], minlength=len(raw.counts))
    rest = _take(raw, counts, np.flatnonzero(~raw.skip), np.arange(len(counts)))
    return replace(rest, faults=raw.faults)


def take_jets(raw: Raw, jets: NDArray[np.int64]) -> Raw:
    """The chosen jets in the given order."""
    counts = raw.counts[jets]
    starts = np.cumsum(raw.counts) - raw.counts
    rows = np.repeat(starts[jets] - (np.cumsum(counts) - counts), counts)
    rows += np.arange(len(rows))
    return _take(raw, counts, rows, jets)


def _take(raw: Raw, counts: Array, rows: Array, jets: Array) -> Raw:
    def pick(array: Array | None, which: Array) -> Any:
        return None if array is None else array.take(which, axis=0)

    return Raw(
        counts=counts,
        particles=pick(raw.particles, rows),
        label=pick(raw.label, jets),
        pid=pick(raw.pid, rows),
        tracks=pick(raw.tracks, rows),
        vertex=pick(raw.vertex, rows),
        origin=pick(raw.origin, rows),
        condition=pick(raw.condition, jets),
        split=pick(raw.split, jets),
    )


def _wrap(raw: Raw, tally: Tally) -> Raw:
    phi, limit = raw.particles[:, 1], np.float32(np.pi) * (1 + 1e-6)
    if len(phi) and max(-phi.min(), phi.max()) > limit:
        outside = np.abs(phi) > limit
        tally["particles with delta phi wrapped"] = int(outside.sum())
        phi[outside] = np.remainder(phi[outside].astype(np.float64) + np.pi, 2 * np.pi) - np.pi
    return raw


def _sort(raw: Raw, tally: Tally) -> Raw:
    pt = raw.particles[:, 2]
    rising = pt[1:] > pt[:-1]
    starts = np.cumsum(raw.counts)[:-1]
    rising[starts[(starts > 0) & (starts < len(pt))] - 1] = False
    if not rising.any():
        return raw
    owner = np.repeat(np.arange(len(raw.counts)), raw.counts)
    unsorted = np.zeros(len(raw.counts), bool)
    unsorted[owner[1:][rising]] = True
    tally["jets sorted by pT"] = int(unsorted.sum())
    affected = np.flatnonzero(unsorted[owner])
    rows = np.arange(len(owner))
    rows[affected] = affected[np.lexsort((-pt[affected], owner[affected]))]
    return _take(raw, raw.counts, rows, np.arange(len(raw.counts)))


def _truncate(raw: Raw, limit: int, tally: Tally) -> Raw:
    long = raw.counts > limit
    if not long.any():
        return raw
    beyond = int(np.maximum(raw.counts - MAX_PARTICLES, 0).sum())
    if beyond:
        tally[BEYOND] = beyond
    tally["jets cut to the particle limit"] = int(long.sum())
    tally["particles cut"] = int((raw.counts[long] - limit).sum())
    starts = np.cumsum(raw.counts) - raw.counts
    rank = np.arange(len(raw.particles)) - np.repeat(starts, raw.counts)
    counts = np.minimum(raw.counts, limit)
    return _take(raw, counts, np.flatnonzero(rank < limit), np.arange(len(counts)))


def _observe(raw: Raw, tally: Tally) -> None:
    """Counts oddities that are left as they are, and the ranges of all columns."""
    p = raw.particles
    low = p[:, 3] < p[:, 2] - ENERGY_TOLERANCE
    if low.any():
        tally[LOW_ENERGY] = int(low.sum())
    high = p[:, 3] > p[:, 2] + np.float32(np.log(MAX_ENERGY))
    if high.any():
        tally[HIGH_ENERGY] = int(high.sum())
    twins = p[1:, 2] == p[:-1, 2]  # sorted, so equal particles are nearly always neighbours
    if twins.any():
        at = np.flatnonzero(twins)
        owner = np.repeat(np.arange(len(raw.counts)), raw.counts)
        same = (p[at] == p[at + 1]).all(axis=1) & (owner[at] == owner[at + 1])
        if same.any():
            tally["particles twice in a jet"] = int(same.sum())
    ranges = {}
    for name, array in (
        ("particles", p),
        ("tracks", raw.tracks),
        ("condition", raw.condition),
    ):
        if array is not None and len(array):
            ranges[name] = extremes(array).tolist()
    ranges["multiplicity"] = [[int(raw.counts.min())], [int(raw.counts.max())]] if len(p) else []
    tally["ranges"] = {k: v for k, v in ranges.items() if v}
    if len(p):
        starts = np.cumsum(raw.counts) - raw.counts
        leading = p[starts[raw.counts > 0], 2]
        tally["median leading pT"] = [float(np.exp(np.median(leading)))]


def extremes(array: Array) -> Array:
    """(2, columns) smallest and largest values; NaN if there is one. Zeros for no rows.

    As one row of many at first, because numpy reduces rows of four slowly.
    """
    if not len(array):
        return np.zeros((2, array.shape[1]), array.dtype)
    columns, whole = array.shape[1], len(array) - len(array) % _FOLD
    limits = []
    for extreme, none in ((np.minimum, np.inf), (np.maximum, -np.inf)):
        long = array[:whole].reshape(-1, _FOLD * columns)
        folded = extreme.reduce(long, axis=0, initial=none).reshape(_FOLD, columns)
        rest = np.concatenate([folded, array[whole:]])
        limits.append(extreme.reduce(rest, axis=0, initial=none))
    return np.array(limits)


def check_cut(tally: Tally, part: float, policy: Policy) -> None:
    """Refuses an input of which too much would be cut, in sight of a part (0 to 1) of it.

    Raises:
        InputError: saying how much, and what such jets look like.
    """
    beyond, particles = tally.get(BEYOND, 0), tally.get(PARTICLES, 0)
    if beyond > policy.max_cut * particles / max(part, 1e-9):
        raise InputError(
            f"{beyond:,} of {particles:,} particles lie beyond the {MAX_PARTICLES}th of their jet, "
            f"more than --max-cut {policy.max_cut:g} allows: is a row of the input one jet, or an "
            "event, or a whole file?"
        )


def check_energies(tally: Tally, part: float) -> None:
    """Refuses an input of which most energies do not fit their pT, in sight of a part of it.

    Raises:
        InputError: saying how many.
    """
    particles = tally.get(PARTICLES, 0)
    for key in (LOW_ENERGY, HIGH_ENERGY):
        if tally.get(key, 0) > MAX_ODD_ENERGIES * particles / max(part, 1e-9):
            raise InputError(
                f"{tally[key]:,} of {particles:,} {key}: is one of them in MeV, the other in GeV?"
            )


def merge(tallies: list[Tally]) -> Tally:
    """One tally of many: counts add, ranges widen, medians are collected."""
    total: Tally = {}
    for tally in tallies:
        for key, value in tally.items():
            if key == "ranges":
                for name, (low, high) in value.items():
                    old = total.setdefault(key, {}).get(name, [low, high])
                    total[key][name] = [
                        [min(a, b) for a, b in zip(old[0], low, strict=True)],
                        [max(a, b) for a, b in zip(old[1], high, strict=True)],
                    ]
            else:
                total[key] = total[key] + value if key in total else value
    return total
