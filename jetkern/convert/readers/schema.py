"""Your own format, described by a TOML file given with --schema. An example with everything:

    format = "hdf5"                   # or "root", "parquet"
    tree = "events"                   # ROOT only
    unit = "GeV"                      # or "MeV", of momenta and energies
    classes = ["background", "signal"]

    [particles]                       # datasets (N, P), or columns: "cands[3]" of (N, P, F)
    pt = "cands[0]"                   # either pt, eta, phi or px, py, pz
    eta = "cands[1]"
    phi = "cands[2]"
    energy = "cands[3]"               # or mass; without either, particles are massless
    count = "n_cands"                 # or mask = "..."; without, rows of zeros are padding
    pdg = "pdg_id"                    # PDG codes; or pid, already from 0 to 8
    d0 = "d0"                         # mm; all four or none
    d0_error = "d0_err"
    dz = "dz"
    dz_error = "dz_err"

    [jets]
    label = "is_signal"               # or a list of one-hot columns, in the order of the classes,
                                      # or files = ["bkg*", "sig*"], patterns of file names
    eta = "jet_eta"                   # the axis; without eta and phi, the sum of the particles
    phi = "jet_phi"
    condition = ["jet_pt", "jet_mass"]

In ROOT and parquet files the columns are ragged lists and need neither count nor mask.
"""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jetkern.convert.readers import (
    BaseSource,
    InputError,
    Layout,
    Options,
    Raw,
    hdf5,
    relative_kinematics,
    take_real,
)
from jetkern.convert.readers.parquet import Parquet
from jetkern.convert.readers.pid import from_pdg
from jetkern.convert.readers.root import Tree, common_counts
from jetkern.convert.readers.toptagging import jet_quantities

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib  # type: ignore[no-redef]

NAME = "schema"
SUFFIXES = (".h5", ".hdf5", ".root", ".parquet")
LOOKS_FOR = "a description with --schema"

_TOP = {"format", "tree", "unit", "classes", "particles", "jets"}
_MOMENTA = ({"pt", "eta", "phi"}, {"px", "py", "pz"})
_TRACKS = ("d0", "d0_error", "dz", "dz_error")
_PARTICLES = {"pt", "eta", "phi", "px", "py", "pz", "energy", "mass", "count", "mask", "pdg", "pid"}
_JETS = {"label", "files", "eta", "phi", "condition"}
_FORMATS = {"hdf5", "root", "parquet"}
_UNITS = {"GeV": 1.0, "MeV": 1e-3}


def recognises(path: Path) -> bool:
    """Never: a format of your own is used only when asked for."""
    return False


def open_source(path: Path, options: Options) -> Described:
    """The opened file."""
    if options.schema is None:
        raise InputError(f"{path}: the reader schema needs --schema FILE.toml")
    return Described(path, options.schema, options)


def load(path: Path) -> dict[str, Any]:
    """A checked description.

    Raises:
        InputError: naming the key that is wrong or missing.
    """
    try:
        schema = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}") from None

    def need(condition: bool, message: str) -> None:
        if not condition:
            raise InputError(f"{path}: {message}")

    for where, allowed in (("", _TOP), ("particles", _PARTICLES | {*_TRACKS}), ("jets", _JETS)):
        table = schema.get(where) if where else schema
        need(isinstance(table, dict), f"there is no table [{where}]")
        unknown = sorted(set(table) - allowed)  # type: ignore[arg-type]
        need(not unknown, f"unknown key {where}{'.' if where else ''}{', '.join(unknown)}")
    particles, jets = schema["particles"], schema["jets"]
    need(schema.get("format") in _FORMATS, f"format must be one of {sorted(_FORMATS)}")
    need(schema.setdefault("unit", "GeV") in _UNITS, f"unit must be one of {sorted(_UNITS)}")
    need(schema["format"] != "root" or "tree" in schema, "a ROOT format needs the name of its tree")
    need(bool(schema.get("classes")), "classes must be a list of names")
    given = [m for m in _MOMENTA if m & set(particles)]
    need(
        len(given) == 1 and given[0] <= set(particles),
        "particles needs either pt, eta, phi or px, py, pz",
    )
    for pair in (("energy", "mass"), ("pdg", "pid"), ("count", "mask")):
        need(not set(pair) <= set(particles), f"particles has both {pair[0]} and {pair[1]}")
    tracks = set(_TRACKS) & set(particles)
    need(len(tracks) in (0, 4), f"particles needs all of {', '.join(_TRACKS)} or none")
    need(("label" in jets) != ("files" in jets), "jets needs either label or files")
    need(("eta" in jets) == ("phi" in jets), "jets needs both eta and phi or neither")
    for key in ("label", "files"):
        if isinstance(jets.get(key), list):
            need(len(jets[key]) == len(schema["classes"]), f"jets.{key} needs one entry per class")
    return schema


class Described(BaseSource):
    """One file of a described format."""

    def __init__(self, path: Path, schema: dict[str, Any], options: Options) -> None:
        self.schema = schema
        particles, jets = schema["particles"], schema["jets"]
        label = jets.get("label", [])
        self.label_columns = label if isinstance(label, list) else [label]
        self.axis = [jets["eta"], jets["phi"]] if "eta" in jets else []
        self.conditions = jets.get("condition", [])
        self.shift = options.label_shift or 0
        classes = options.classes or tuple(schema["classes"])
        self.file_label = None
        if "files" in jets:
            fits = [i for i, p in enumerate(jets["files"]) if fnmatch(path.name, p)]
            if len(fits) != 1:
                raise InputError(f"{path}: the name must fit one of jets.files {jets['files']}")
            self.file_label = fits[0]
        per_jet = [*self.label_columns, *self.axis, *self.conditions]
        self.columns: _Padded | _Ragged = (
            _Padded(path, schema, per_jet)
            if schema["format"] == "hdf5"
            else _Ragged(path, schema, per_jet)
        )
        layout = Layout(
            classes=classes,
            pid=bool({"pid", "pdg"} & set(particles)),
            tracks="d0" in particles,
            condition=(*self.conditions, "multiplicity/100") if self.conditions else (),
        )
        super().__init__(path, self.columns.num_jets, layout)

    def read(self, start: int, stop: int) -> Raw:
        """The jets ``start`` to ``stop - 1``."""
        counts, p, jet = self.columns.read(start, stop)
        unit = _UNITS[self.schema["unit"]]
        p = {k: v if k in ("pdg", "pid") else v.astype(np.float64) for k, v in p.items()}
        for key in {"pt", "px", "py", "pz", "energy", "mass"} & set(p):
            p[key] *= unit
        if "pt" in p:
            px, py = p["pt"] * np.cos(p["phi"]), p["pt"] * np.sin(p["phi"])
            pz = p["pt"] * np.sinh(p["eta"])
        else:
            px, py, pz = p["px"], p["py"], p["pz"]
        energy = p.get("energy")
        if energy is None:
            energy = np.sqrt(px**2 + py**2 + pz**2 + p.get("mass", np.float64(0)) ** 2)
        owner = np.repeat(np.arange(len(counts)), counts)
        if self.axis:
            eta, phi = (jet[name].astype(np.float64) for name in self.axis)
        else:
            (eta, phi), _ = jet_quantities(px, py, pz, energy, counts)
        condition = None
        if self.conditions:
            condition = np.stack([*(jet[n] for n in self.conditions), counts / 100], axis=1)
        tracks = None
        if self.layout.tracks:
            tracks = np.stack(
                [np.tanh(p["d0"]), p["d0_error"], np.tanh(p["dz"]), p["dz_error"]], axis=1
            )
        return Raw(
            counts=counts,
            particles=relative_kinematics(px, py, pz, energy, eta[owner], phi[owner]),
            label=self._label(jet, len(counts), start),
            pid=self._pid(p, owner, start),
            tracks=tracks,
            condition=condition,
        )

    def _label(self, jet: dict[str, NDArray[Any]], jets: int, start: int) -> NDArray[np.int64]:
        if self.file_label is not None:
            return np.full(jets, self.file_label)
        if not isinstance(self.schema["jets"]["label"], list):
            name = self.label_columns[0]
            return hdf5.integers(jet[name], name, self.path, start) - self.shift
        one_hot = np.stack([jet[name] for name in self.label_columns], axis=1)
        wrong = (one_hot.sum(axis=1) != 1) | (one_hot.max(axis=1) != 1)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise InputError(
                f"{self.path}: jet {start + row}: exactly one of {', '.join(self.label_columns)} "
                f"must be 1, found {one_hot[row].tolist()}"
            )
        return one_hot.argmax(axis=1)

    def _pid(
        self, p: dict[str, NDArray[Any]], owner: NDArray[Any], start: int
    ) -> NDArray[np.int64] | None:
        if "pid" in p:
            return hdf5.integers(p["pid"], "pid", self.path, start)
        if "pdg" not in p:
            return None
        codes = hdf5.integers(p["pdg"], "pdg", self.path, start)
        pid = from_pdg(codes)
        if (pid < 0).any():
            row = int(np.argmin(pid))
            raise InputError(
                f"{self.path}: jet {start + owner[row]}: the PDG code {codes[row]} is not known"
            )
        return pid

    def close(self) -> None:
        """Closes the file."""
        self.columns.close()


class _Padded:
    """Columns of an HDF5 file."""

    def __init__(self, path: Path, schema: dict[str, Any], per_jet: list[str]) -> None:
        self.path = path
        self.file = hdf5.open_file(path)
        particles = dict(schema["particles"])
        self.count = particles.pop("count", None)
        self.mask = particles.pop("mask", None)
        self.particles = {key: self._column(name, 2) for key, name in particles.items()}
        if self.mask:
            self.mask = self._column(self.mask, 2)
        if self.count:
            per_jet = [*per_jet, self.count]
        self.jets = {name: self._column(name, 1) for name in per_jet}
        everything = [*self.particles.values(), *self.jets.values()]
        self.num_jets = hdf5.same_length(path, **{d.name: len(d) for d, _ in everything})

    def _column(self, name: str, ndim: int) -> tuple[Any, int | None]:
        found = re.fullmatch(r"(.+?)\[(\d+)\]", name)
        base, column = (found.group(1), int(found.group(2))) if found else (name, None)
        data = hdf5.dataset(self.file, base, ndim=ndim + (column is not None), kind="fiub")
        if column is not None and column >= data.shape[-1]:
            raise InputError(f"{self.path}: {base} has {data.shape[-1]} columns, asked for {name}")
        return data, column

    def read(
        self, start: int, stop: int
    ) -> tuple[NDArray[np.int64], dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
        """Counts, values per particle, values per jet."""
        rows: dict[str, NDArray[Any]] = {}

        def get(data: Any, column: int | None) -> NDArray[Any]:
            if data.name not in rows:
                rows[data.name] = hdf5.read(data, start, stop)
            return rows[data.name] if column is None else rows[data.name][..., column]

        padded = {key: get(*where) for key, where in self.particles.items()}
        jets = {name: get(*where) for name, where in self.jets.items()}
        shapes = {key: a.shape for key, a in padded.items()}
        if len(set(shapes.values())) > 1:
            raise InputError(f"{self.path}: the particles' columns have different shapes: {shapes}")
        if self.mask:
            mask = get(*self.mask) > 0
        elif self.count:
            slots = next(iter(shapes.values()))[1]
            counts = hdf5.integers(jets[self.count], self.count, self.path, start)
            if ((counts < 0) | (counts > slots)).any():
                jet = int(np.argmax((counts < 0) | (counts > slots)))
                raise InputError(
                    f"{self.path}: jet {start + jet}: {self.count} is {counts[jet]}, but there is "
                    f"room for {slots}"
                )
            mask = np.arange(slots) < counts[:, None]
        else:
            mask = np.any([a != 0 for a in padded.values()], axis=0)
        counts, values = take_real(mask, *padded.values())
        return counts, dict(zip(padded, values, strict=True)), jets

    def close(self) -> None:
        """Closes the file."""
        self.file.close()


class _Ragged:
    """Columns of a ROOT or parquet file."""

    def __init__(self, path: Path, schema: dict[str, Any], per_jet: list[str]) -> None:
        self.path = path
        self.particles: dict[str, str] = schema["particles"]
        if {"count", "mask"} & set(self.particles):
            raise InputError(f"{path}: count and mask are for HDF5 only; lists have a length")
        self.per_jet = per_jet
        names = [*self.particles.values(), *per_jet]
        self.file: Tree | Parquet = (
            Tree(path, schema["tree"], names)
            if schema["format"] == "root"
            else Parquet(path, names)
        )
        self.num_jets = self.file.num_jets

    def read(
        self, start: int, stop: int
    ) -> tuple[NDArray[np.int64], dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
        """Counts, values per particle, values per jet."""
        names = list(dict.fromkeys([*self.particles.values(), *self.per_jet]))
        values, counts = self.file.read(names, start, stop)
        for name in names:
            if (name in self.particles.values()) != (name in counts):
                kind = "lists" if name in counts else "single values"
                raise InputError(f"{self.path}: {name} holds {kind}, expected the opposite")
        return (
            common_counts(self.path, counts, start),
            {key: values[name] for key, name in self.particles.items()},
            {name: values[name] for name in self.per_jet},
        )

    def close(self) -> None:
        """Closes the file."""
        self.file.close()
