"""OmniLearned's HDF5 layout, also that of ``data_tools/simulate.py``.

``data`` (N, P, F) holds padded particles: delta eta, delta phi, ln pT, ln E, then the particle's
identity and four impact-parameter columns (F = 4: neither, 5: identity, 8: impact parameters,
9: both). ``pid`` (N,), in spite of its name, is the label of the jet, shifted by a number that
depends on the data set. ``global`` (N, C) holds quantities of the jet, the last one multiplicity /
100. ``num_particles`` (N,), if there, is the number of real particles; without it, rows that are
zero in every column are padding, so a particle of exactly 1 GeV (ln pT = 0) is kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from readers import JETCLASS, TOP, BaseSource, InputError, Layout, Options, Raw, hdf5, take_real

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
        self.label = hdf5.dataset(self.file, "pid", ndim=1)
        lengths = {"data": len(self.data), "pid": len(self.label)}
        self.globals = self.counts = None
        if "global" in self.file:
            self.globals = hdf5.dataset(self.file, "global", ndim=2)
            lengths["global"] = len(self.globals)
        if "num_particles" in self.file:
            self.counts = hdf5.dataset(self.file, "num_particles", ndim=1)
            lengths["num_particles"] = len(self.counts)
        num_jets = hdf5.same_length(path, **lengths)
        features = self.data.shape[2]
        if features not in _COLUMNS:
            raise InputError(
                f"{path}: data has {features} features, expected 4 (kinematics), 5 (+ identity), "
                "8 (+ impact parameters) or 9 (both)"
            )
        self.pid_column, self.track_column = _COLUMNS[features]
        known = next((DATASETS[p.name] for p in path.parents if p.name in DATASETS), (0, ()))
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
                condition=condition,
            ),
            notes=notes,
        )

    def read(self, start: int, stop: int) -> Raw:
        """The jets ``start`` to ``stop - 1``."""
        data = hdf5.read(self.data, start, stop)
        slots = data.shape[1]
        if self.counts is None:
            mask = (data != 0).any(axis=2)
        else:
            counts = hdf5.integers(
                hdf5.read(self.counts, start, stop), "num_particles", self.path, start
            )
            wrong = (counts < 0) | (counts > slots)
            if wrong.any():
                jet = int(np.flatnonzero(wrong)[0])
                raise InputError(
                    f"{self.path}: jet {start + jet}: num_particles is {counts[jet]}, but data has "
                    f"room for {slots}"
                )
            mask = np.arange(slots) < counts[:, None]
        counts, (rows,) = take_real(mask, data)
        pid = None
        if self.pid_column is not None:
            owner = np.repeat(np.arange(start, stop), counts)
            pid = rows[:, self.pid_column]
            wrong = ~np.isfinite(pid) | (pid != np.floor(pid))
            if wrong.any():
                raise InputError(
                    f"{self.path}: jet {owner[wrong][0]}: the identity of a particle (data, column "
                    f"{self.pid_column}) is {pid[wrong][0]}, not a whole number"
                )
            pid = pid.astype(np.int64)
        label = hdf5.integers(hdf5.read(self.label, start, stop), "pid", self.path, start)
        track = self.track_column
        return Raw(
            counts=counts,
            particles=rows[:, :4],
            label=label - self.shift,
            pid=pid,
            tracks=None if track is None else rows[:, track : track + 4],
            condition=None if self.globals is None else hdf5.read(self.globals, start, stop),
        )

    def close(self) -> None:
        """Closes the file."""
        self.file.close()
