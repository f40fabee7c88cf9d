"""OmniLearned's HDF5 layout, also that of ``data_tools/simulate.py``.

``data`` (N, P, F) holds padded particles: delta eta, delta phi, ln pT, ln E, then the particle's
identity and four impact-parameter columns (F = 4: neither, 5: identity, 8: impact parameters,
9: both). ``pid`` (N,), in spite of its name, is the label of the jet, shifted by a number that
depends on the data set. ``global`` (N, C) holds quantities of the jet, the last one multiplicity /
100. ``num_particles`` (N,), if there, is the number of real particles; without it, rows that are
zero in every column are padding, so a particle of exactly 1 GeV (ln pT = 0) is kept. ``vertex`` and
``origin`` (N, P), of simulated flavour jets, say where the particles come from, as in ``Jets``.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jetkern.convert.readers import (
    JETCLASS,
    TOP,
    BaseSource,
    InputError,
    Layout,
    Options,
    Raw,
    hdf5,
)

NAME = "omnilearned"
SUFFIXES = (".h5", ".hdf5")
LOOKS_FOR = "HDF5 datasets data (N, P, F) and pid (N,)"

# Label shift and classes of OmniLearned's data sets, which are folders of these names.
DATASETS: dict[str, tuple[int, tuple[str, ...]]] = {
    "jetclass": (2, JETCLASS),
    "top": (0, TOP),
    "toptag": (0, TOP),
    "qg": (0, ("gluon", "quark")),
    "jetclass2": (12, ()),
    "aspen": (200, ("AspenOpenJets",)),
    "cms_qcd": (201, ("QCD",)),
    "cms_bsm": (202, ("BSM",)),
}
_COLUMNS = {4: (None, None), 5: (4, None), 8: (None, 4), 9: (4, 5)}


def recognises(path: Path) -> bool:
    """Whether the file has this layout's datasets."""
    with hdf5.open_file(path) as file:
        return "data" in file or "pid" in file


def open_source(path: Path, options: Options) -> OmniLearned:
    """The opened file."""
    return OmniLearned(path, options)


class OmniLearned(BaseSource):
    """One file of the layout."""

    def __init__(self, path: Path, options: Options) -> None:
        self.file = hdf5.open_file(path)
        self.data = hdf5.dataset(self.file, "data", ndim=3, kind="f")
        self.label = hdf5.per_jet(self.file, "pid")
        lengths = {"data": len(self.data), "pid": len(self.label)}
        self.globals = self.counts = None
        if "global" in self.file:
            self.globals = hdf5.dataset(self.file, "global", ndim=2)
            lengths["global"] = len(self.globals)
        if "num_particles" in self.file:
            self.counts = hdf5.per_jet(self.file, "num_particles")
            lengths["num_particles"] = len(self.counts)
        num_jets = hdf5.same_length(path, **lengths)
        self.truth = self._truth()
        features = self.data.shape[2]
        if features not in _COLUMNS:
            raise InputError(
                f"{path}: data has {features} features, expected 4 (kinematics), 5 (+ identity), "
                "8 (+ impact parameters) or 9 (both)"
            )
        self.pid_column, self.track_column = _COLUMNS[features]
        if self.track_column is not None and options.tracks != "tanh":
            raise InputError(
                f"{path}: data holds tanh of d0 and dz, which --tracks {options.tracks} cannot undo"
            )
        folders = PurePosixPath(options.name).parts[:-1]
        known = next((DATASETS[f] for f in reversed(folders) if f in DATASETS), (0, ()))
        attributes = self.file.attrs
        self.shift = int(attributes.get("label_shift", known[0]))
        if options.label_shift is not None:
            self.shift = options.label_shift
        classes = options.classes or hdf5.attribute_names(attributes.get("classes", ())) or known[1]
        if not classes:
            raise InputError(
                f"{path}: the file does not say what its classes are; give their names with "
                "--classes, in the order of the labels"
            )
        condition: tuple[str, ...] = ()
        if self.globals is not None:
            condition = hdf5.attribute_names(
                self.globals.attrs.get("columns", attributes.get("columns", ()))
            )
            width = self.globals.shape[1]
            if len(condition) != width:
                condition = (*(f"global_{i}" for i in range(width - 1)), "multiplicity/100")
        notes: dict[str, Any] = {"label_shift": self.shift}
        if "title" in attributes:
            notes["title"] = str(attributes["title"])
        super().__init__(
            path,
            num_jets,
            Layout(
                classes=tuple(classes),
                pid=self.pid_column is not None,
                tracks=self.track_column is not None,
                vertices=bool(self.truth),
                condition=condition,
            ),
            notes=notes,
        )

    def read(self, start: int, stop: int) -> Raw:
        """The jets ``start`` to ``stop - 1``."""
        counts = self._counts(start, stop)
        number, kept = [], []
        at = 0
        for padded in hdf5.parts(self.data, start, stop):
            n = None if counts is None else counts[at : at + len(padded)]
            n, rows = _real(padded, n)
            number.append(n)
            kept.append(self._split(rows, n, start + at))
            at += len(padded)
        particles, pid, tracks = zip(*kept, strict=True)
        label = hdf5.integers(hdf5.read_per_jet(self.label, start, stop), "pid", self.path, start)
        truth: dict[str, Any] = {}
        for name, data in self.truth.items():
            assert counts is not None
            real = np.arange(data.shape[1]) < counts[:, None]
            truth[name] = hdf5.read(data, start, stop)[real]
        return Raw(
            **truth,
            counts=np.concatenate(number),
            particles=np.concatenate(particles),
            label=label - self.shift,
            pid=None if self.pid_column is None else np.concatenate(pid),
            tracks=None if self.track_column is None else np.concatenate(tracks),
            condition=None if self.globals is None else hdf5.read(self.globals, start, stop),
        )

    def _truth(self) -> dict[str, Any]:
        """The datasets that say where particles come from, if the file has them."""
        if not {"vertex", "origin"} <= set(self.file):
            return {}
        if self.counts is None:
            raise InputError(f"{self.file.filename}: vertex and origin need num_particles")
        found = {name: hdf5.dataset(self.file, name, ndim=2) for name in ("vertex", "origin")}
        for name, data in found.items():
            if data.shape != self.data.shape[:2] or data.dtype != np.uint8:
                raise InputError(
                    f"{self.file.filename}: {name} is {data.dtype} {data.shape}, expected uint8 "
                    f"{self.data.shape[:2]}, as data has jets and particles"
                )
        return found

    def _counts(self, start: int, stop: int) -> NDArray[np.int64] | None:
        """Real particles of each jet, if the file has their numbers."""
        if self.counts is None:
            return None
        counts = hdf5.integers(
            hdf5.read_per_jet(self.counts, start, stop), "num_particles", self.path, start
        )
        slots = self.data.shape[1]
        wrong = (counts < 0) | (counts > slots)
        if wrong.any():
            jet = int(np.flatnonzero(wrong)[0])
            raise InputError(
                f"{self.path}: jet {start + jet}: num_particles is {counts[jet]}, but data has "
                f"room for {slots}"
            )
        return counts

    def _split(
        self, rows: NDArray[Any], counts: NDArray[np.int64], start: int
    ) -> tuple[NDArray[Any], NDArray[Any] | None, NDArray[Any] | None]:
        """Kinematics, identities and impact parameters of real rows (T, F) of jets from
        ``start`` on."""
        pid: NDArray[Any] | None = None
        tracks = None
        if self.pid_column is not None:
            values = rows[:, self.pid_column]
            with np.errstate(invalid="ignore"):
                pid = values.astype(np.uint8)
            if (pid != values).any():
                pid = self._identities(values, counts, start)
        if self.track_column is not None:
            tracks = rows[:, self.track_column : self.track_column + 4].astype(np.float32)
        return rows[:, :4].astype(np.float32), pid, tracks

    def _identities(
        self, values: NDArray[Any], counts: NDArray[np.int64], start: int
    ) -> NDArray[np.int64]:
        """Identities that do not fit into a byte, for the value checks to judge."""
        wrong = ~np.isfinite(values) | (values != np.floor(values))
        if wrong.any():
            row = int(np.argmax(wrong))
            jet = start + int(np.searchsorted(np.cumsum(counts), row, side="right"))
            raise InputError(
                f"{self.path}: jet {jet}: the identity of a particle (data, column "
                f"{self.pid_column}) is {values[row]}, not a whole number"
            )
        return values.astype(np.int64)

    def close(self) -> None:
        """Closes the file."""
        self.file.close()


def _real(
    padded: NDArray[Any], counts: NDArray[np.int64] | None
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Counts (B,) and the real rows (T, F) of padded jets (B, P, F); without counts, rows that are
    not zero in every column."""
    slots, features = padded.shape[1:]
    rows = padded.reshape(-1, features)
    if counts is not None:
        mask = np.arange(slots) < counts[:, None]
        return counts, rows.take(np.flatnonzero(mask), axis=0)
    # Nearly always, what is not zero lies in rows with ln E != 0, and counting shows whether it
    # does: that is several times faster than a search through all columns.
    mask = padded[:, :, 3] != 0
    filled = padded != 0
    real = rows.take(np.flatnonzero(mask), axis=0)
    if np.count_nonzero(filled) != np.count_nonzero(real):
        mask = filled.any(axis=2)
        real = rows.take(np.flatnonzero(mask), axis=0)
    return np.count_nonzero(mask, axis=1), real
