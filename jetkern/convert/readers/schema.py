"""Your own format, described by a TOML file given with --schema. An example with everything:

    format = "hdf5"                   # or "root", "parquet", "npz"
    tree = "events"                   # ROOT only: a TTree or RNTuple
    unit = "GeV"                      # or "MeV", of momenta, energies and masses
    length = "mm"                     # or "cm", "m", "um", of impact parameters
    classes = ["background", "signal"]

    [particles]                       # datasets (N, P), or columns: "cands[3]" of (N, P, F)
    pt = "cands[0]"                   # pt, eta, phi or px, py, pz; or see below
    eta = "cands[1]"
    phi = "cands[2]"
    energy = "cands[3]"               # or mass; without either, particles are massless
    count = "n_cands"                 # or mask = "..."; without, rows of zeros are padding
    pdg = "pdg_id"                    # PDG codes; or pid, already from 0 to 8
    d0 = "d0"                         # all four or none
    d0_error = "d0_err"
    dz = "dz"
    dz_error = "dz_err"
    missing = { d0 = -1, d0_error = -1, dz = -1, dz_error = -1, pdg = [-99, 0] }
    vertex = "vtx_index"              # that a particle comes from, 0 the primary; below 0: unknown
    origin = "origin"                 # 0 primary, 1 charm, 2 bottom, 3 other; with a vertex only

    [jets]
    label = "flavour"                 # or a list of one-hot columns, in the order of the classes,
                                      # or files = ["bkg*", "sig*"], patterns of file names;
                                      # without such a column, folders flavour=5/ say it
    codes = [[0, 4], 5]               # values of the label of each class; without, 0, 1, 2 ...
    eta = "jet_eta"                   # the axis; without eta and phi, the sum of the particles
    phi = "jet_phi"
    condition = ["jet_pt", "jet_mass", { column = "tau21", unit = "1" }]
    select = "jet_pt > 200 and abs(jet_eta) < 2.5"

In ROOT and parquet files the columns are ragged lists and need neither count nor mask; where lists
have room for a fixed number of particles, count and mask work as in HDF5.

**Values.** Where a column is meant, a number stands for itself (``pdg = 22``) and a text that
begins with ``=`` for an expression over columns of the same table (``pt = "= sin(theta) /
abs(qOverP)"``, see ``readers.expressions``). An expression also takes values of any other list of
the event by an index: ``d0 = "= take(Track_d0, PFCand_trackIdx)"``, NaN for an index below 0. A
column ``a.b`` may be the member ``b`` of records ``a``; parts of arrays are described in
``readers.tables``.

**Particles** have one of pt, ln_pt, et, relative_pt (which needs jets.pt); one of eta, rapidity,
delta_eta; phi or delta_phi; and at most one of energy, ln_energy, mass. Or px, py, pz. delta_eta
and delta_phi go together, and without an energy need jets.eta.

**Padding** is what count or mask leave out. Without them it is rows of zeros (of HDF5 and npz),
rows of NaN, and rows that hold nothing but a value of ``padding``, such as ``padding = -999``.

**Missing values.** A particle has no d0 where d0 and d0_error have the values that ``missing``
names for them (a number, "nan" or a list), and no dz likewise: both are set to 0 and counted. A pdg
or pid of a missing value is identity 0. An impact parameter that is not finite and an error below 0
are judged by --bad-tracks, never converted.

**Units.** With ``unit = "MeV"`` columns of the condition are divided by 1000 if the last word of
their name is pt, et, p, px, py, pz, e, energy, m, mass, msoftdrop or sdmass; eta, phi, rapidity, n
and the like are not; any other needs ``{ column = ..., unit = ... }``. name = "..." renames one.

**Jets in events.** Where the particles' columns are lists of lists (events, jets, particles), a
row is an event. So it is with a table that says how a jet finds its particles:

    [constituents]
    jet = "FatJetPFCands_jetIdx"      # one of these forms; readers.links describes them
    particle = "FatJetPFCands_pFCandsIdx"
    # begin, end [, index]            # ranges (EDM4hep)
    # index [, collection]            # lists of indices of each jet (ntuples, PHYSLITE)
    # refs                            # unique numbers (Delphes); each collection has an id

Each jet that ``select`` leaves, of an event at most ``first = n``, becomes one row. Columns of
jets may also be those of the event. Several collections of particles are joined: ``[[particles]]``
once for each, with ``id`` for refs and ``number`` for collection; one without d0 has no tracks.

``like = "delphes"`` as the first line takes everything that the file does not say from a schema
that comes with jetkern (``jetkern/convert/readers/schemas``), which --from uses by its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from jetkern.convert.readers import (
    UNLABELLED,
    BaseSource,
    Column,
    Fault,
    InputError,
    Layout,
    Options,
    Raw,
    hdf5,
    track_columns,
)
from jetkern.convert.readers import links as linking
from jetkern.convert.readers.description import (
    CARTESIAN,
    IDENTITY,
    LENGTHS,
    ORIGIN,
    TRACKS,
    UNITS,
    VERTEX,
    Array,
    Value,
    is_any,
    jet_columns,
    load,
)
from jetkern.convert.readers.expressions import Expression, Lists
from jetkern.convert.readers.pid import from_pdg
from jetkern.convert.readers.rows import Collection, Jets
from jetkern.convert.readers.tables import open_table
from jetkern.convert.readers.toptagging import jet_quantities

__all__ = ["load", "open_source", "recognises"]

NAME = "schema"
SUFFIXES = (".h5", ".hdf5", ".root", ".parquet", ".npz")
LOOKS_FOR = "a description with --schema"
UNKNOWN = 255  # a vertex or origin, and what is no number of one
NUM_ORIGINS = 4  # primary, charm, bottom, other, as in jetkern.jets, which needs torch
_EVENTS = 500  # read at a time: their particles are many more than those of their jets
_INDEX_ROWS = 1 << 16
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"  # of a folder, as Hive, Spark and pyarrow write it
_MAX_PHI = 2 * np.pi * (1 + 1e-5)


def recognises(path: Path) -> bool:
    """Never: a format of your own is used only when asked for."""
    return False


def open_source(path: Path, options: Options) -> Described:
    """The opened file."""
    if options.schema is None:
        raise InputError(f"{path}: the reader schema needs --schema FILE.toml")
    return Described(path, options.schema, options)


class Described(BaseSource):
    """One file of a described format."""

    def __init__(self, path: Path, schema: dict[str, Any], options: Options) -> None:
        self.path, self.schema = path, schema
        jets = schema["jets"]
        self.shift, self.scale = options.label_shift or 0, options.tracks
        self.unit, self.length = UNITS[schema["unit"]], LENGTHS[schema["length"]]
        self.collections = [Collection(table) for table in schema["particles"]]
        self.links: dict[str, str] = schema["constituents"]
        self.jet_columns, self.jet_lists = jet_columns(jets)
        self.select = Expression(jets["select"]) if "select" in jets else None
        label = jets.get("label", [])
        self.label_columns = [Value(v) for v in (label if isinstance(label, list) else [label])]
        self.file_label = (
            _file_label(path, options.name, jets["files"]) if "files" in jets else None
        )
        counters = [n for c in self.collections if c.count is not None for n in c.count.names]
        self.jet_columns = tuple(dict.fromkeys([*self.jet_columns, *counters]))
        names = self._names()
        opened = path, schema["format"], schema.get("tree")
        folder = _label_of_folder(options.name, label)
        if folder is None:
            self.table = open_table(*opened, names)
        else:
            self.table = open_table(*opened, [n for n in names if n != label])
            if self.table.has(label):
                self.table.close()
                self.table = open_table(*opened, names)
            else:
                self.file_label = self._class_of(folder, options.classes or schema["classes"])
                self.jet_columns = tuple(n for n in self.jet_columns if n != label)
                self.label_columns = []
        condition = tuple(entry["name"] for entry in jets["condition"])
        layout = Layout(
            classes=options.classes or tuple(schema["classes"]),
            pid=bool(set(IDENTITY) & set(schema["particles"][0])),
            tracks=any("d0" in table for table in schema["particles"]),
            vertices=VERTEX in schema["particles"][0],
            condition=(*condition, "multiplicity/100") if condition else (),
        )
        self.events = bool(self.links) or self._depth() == 2
        self.first: NDArray[np.int64] | None = None
        # Checked by the claimed rows before anything of their number is made.
        super().__init__(path, self.table.num_rows, layout)
        if self.events or self.select is not None:
            self.first = self._count_jets()
            self.num_jets = int(self.first[-1])
            if not self.num_jets and self.table.num_rows:
                self.notes["note"] = f"none of the jets in {self.table.num_rows} rows is selected"

    def _names(self) -> list[str]:
        """All columns."""
        names = [n for c in self.collections for n in (*c.names, *c.lists)]
        names += [*self.jet_columns, *self.jet_lists, *self.links.values()]
        return list(dict.fromkeys(names))

    def _class_of(self, text: str, classes: Sequence[str]) -> int:
        """The class that a folder's value of the label stands for; -1 for none."""
        if text in classes:
            return classes.index(text)
        if text == _NO_VALUE:
            return -1
        try:
            code = int(text)
        except ValueError:
            raise InputError(
                f"{self.path}: the folder's label is {text}, neither a class nor a whole number"
            ) from None
        codes = self.schema["jets"].get("codes")
        if codes is None:
            return code - self.shift
        fits = [i for i, c in enumerate(codes) if code in (c if isinstance(c, list) else [c])]
        return fits[0] if fits else -1

    def _depth(self) -> int:
        """How deep the lists of particles are."""
        if not self.table.num_rows:
            return 1
        name = self.collections[0].names[0]
        depth = len(self.table.read([name], 0, 1)[name].counts)
        if depth not in (1, 2):
            found = "lists of lists of lists" if depth else "single values"
            raise InputError(f"{self.path}: {name} holds {found}, expected lists of particles")
        return depth

    def _count_jets(self) -> NDArray[np.int64]:
        """(rows + 1,) the first jet of each row, of those that are selected."""
        counts = [np.zeros(1, np.int64)]
        names = (*self.jet_columns, *self.jet_lists)
        if self.events and not any(self._lists_jets(name) for name in self.jet_columns):
            names = (*names, self._jets_list())
        for start in range(0, self.table.num_rows, _INDEX_ROWS):
            stop = min(start + _INDEX_ROWS, self.table.num_rows)
            jets = self._jets(self.table.read(names, start, stop), start, stop)
            counts.append(np.bincount(jets.row[jets.keep], minlength=stop - start))
        return np.cumsum(np.concatenate(counts))

    def _lists_jets(self, name: str) -> bool:
        """Whether a column of jets has a list in each row, and so says how many jets there are."""
        return bool(self.table.num_rows) and bool(self.table.read([name], 0, 1)[name].counts)

    def _jets_list(self) -> str:
        """A column with a list for each jet, or a number."""
        for key in ("begin", "index", "refs"):
            if key in self.links and not (key == "index" and "begin" in self.links):
                return self.links[key]
        return self.collections[0].names[0]

    def _jets(self, columns: dict[str, Column], start: int, stop: int) -> Jets:
        """The jets of a range of rows."""
        rows = stop - start
        counts = np.ones(rows, np.int64)
        if self.events:
            lists = [n for n in (*self.jet_columns, self._jets_list()) if n in columns]
            lists = [n for n in lists if columns[n].counts]
            if not lists:
                raise InputError(
                    f"{self.path}: no column of jets is a list, of the jets of an event"
                )
            counts = columns[lists[0]].counts[0]
        own, looked_up = (
            {n: columns[n] for n in names} for names in (self.jet_columns, self.jet_lists)
        )
        jets = Jets(self.path, start, counts, own, self.events, looked_up)
        if self.select is not None:
            try:
                chosen = self.select.evaluate(jets.columns, jets.lists)
            except ValueError as error:
                raise InputError(f"{self.path}: jets.select: {error}") from None
            jets.keep &= np.broadcast_to(np.asarray(chosen) != 0, len(jets.keep))
        if "first" in self.schema["jets"] and self.events:
            rank = np.cumsum(jets.keep)
            before = np.concatenate([[0], rank])[np.cumsum(counts) - counts]
            jets.keep &= rank - before[jets.row] <= self.schema["jets"]["first"]
        return jets

    def read(self, start: int, stop: int) -> Raw:
        """The jets ``start`` to ``stop - 1``."""
        first, last = start, stop
        if self.first is not None:
            first = int(np.searchsorted(self.first, start, side="right")) - 1
            last = int(np.searchsorted(self.first, stop, side="left"))
        step = _EVENTS if self.links else self.table.step
        pieces = [
            self._piece(row, min(row + step, last), start, stop) for row in range(first, last, step)
        ]
        counts = np.concatenate([p[0] for p in pieces])
        particles = {k: np.concatenate([p[1][k] for p in pieces]) for k in pieces[0][1]}
        jets = {k: np.concatenate([p[2][k] for p in pieces]) for k in pieces[0][2]}
        tally: dict[str, int] = {}
        for key, number in (item for p in pieces for item in p[3].items()):
            tally[key] = tally.get(key, 0) + number
        return self._raw(counts, particles, jets, tally, start)

    def _piece(
        self, first: int, last: int, start: int, stop: int
    ) -> tuple[NDArray[np.int64], dict[str, Array], dict[str, Array], dict[str, int]]:
        """Counts, values of particles and of jets, and a tally of the jets of some rows that are
        among ``start`` to ``stop - 1``."""
        columns = self.table.read(self._names(), first, last)
        jets = self._jets(columns, first, last)
        if self.first is not None:
            number = self.first[first] + np.cumsum(jets.keep) - 1
            jets.keep &= (number >= start) & (number < stop)
        position = np.cumsum(jets.keep) - 1
        tally: dict[str, int] = {}
        owners, values = [], []
        links = self._pairs(columns, jets, first, tally)
        for collection, (owner, rows) in zip(self.collections, links, strict=True):
            chosen = jets.keep[owner]
            if not chosen.all():
                owner, rows = owner[chosen], rows[chosen]
            kept, found = self._particles(collection, columns, owner, rows, jets, first, tally)
            owners.append(position[owner[kept]])
            values.append(found)
        owner, particles = owners[0], values[0]
        if len(owners) > 1:
            owner = np.concatenate(owners)
            order = np.argsort(owner, kind="stable")
            owner = owner[order]
            # What a collection lacks, of tracks or codes, is 0: none.
            particles = {
                key: np.concatenate(
                    [v.get(key, np.zeros(len(o))) for v, o in zip(values, owners, strict=True)]
                )[order]
                for key in {k: None for v in values for k in v}
            }
        counts = np.bincount(owner, minlength=int(jets.keep.sum()))
        return counts, particles, self._jet_values(jets), tally

    def _pairs(
        self, columns: dict[str, Column], jets: Jets, first: int, tally: dict[str, int]
    ) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """(jet, row of the collection) of all particles, for each collection; jets rise."""
        depth = 2 if self.events and not self.links else 1
        per_row = [self._counts(c, columns, depth, first) for c in self.collections]
        if not self.links:
            collection, counts = self.collections[0], per_row[0]
            if len(counts) != len(jets.row):
                raise InputError(
                    f"{self.path}: rows from {first} on have {len(jets.row)} jets, but "
                    f"{len(counts)} lists of particles"
                )
            if collection.count is None:
                owner = np.repeat(np.arange(len(counts)), counts)
                return [(owner, np.arange(len(owner)))]
            number = self._integers(collection.count, jets, first)
            wrong = (number < 0) | (number > counts)
            if wrong.any():
                jet = int(np.argmax(wrong))
                raise InputError(
                    f"{self.path}: jet {self._number(first, jet)}: {collection.count.given} is "
                    f"{number[jet]}, but there is room for {counts[jet]}"
                )
            self._look_behind(collection, columns, counts, number, jets, tally)
            owner = np.repeat(np.arange(len(counts)), number)
            behind = np.cumsum(counts) - counts - (np.cumsum(number) - number)
            return [(owner, np.arange(len(owner)) + behind[owner])]
        targets = [
            linking.Target(counts, c.numbers(columns, counts), c.number)
            for c, counts in zip(self.collections, per_row, strict=True)
        ]
        try:
            found, lost = linking.pairs(
                {key: columns[name] for key, name in self.links.items()}, jets.counts, targets
            )
        except linking.LinkError as error:
            raise InputError(f"{self.path}: event {first + error.row}: {error.message}") from None
        if lost:
            tally["links to no particle"] = lost
        return found

    def _look_behind(
        self,
        collection: Collection,
        columns: dict[str, Column],
        counts: NDArray[np.int64],
        number: NDArray[np.int64],
        jets: Jets,
        tally: dict[str, int],
    ) -> None:
        """Counts jets with a particle right behind their count, which may be wrong."""
        room = np.flatnonzero((number < counts) & jets.keep)
        if not collection.momenta:
            return
        rows = (np.cumsum(counts) - counts + number)[room]
        flat = np.array([columns[n].values[rows] for n in collection.momenta], np.float64)
        alike = (flat == flat[:1]).all(axis=0) & (len(flat) > 1)  # as what fills up lists is
        found = np.isfinite(flat).all(axis=0) & flat.any(axis=0) & ~alike
        if collection.padding is not None:
            found &= ~is_any(flat, collection.padding).all(axis=0)
        if found.any():
            tally["jets with a particle behind their count, left out"] = int(found.sum())

    def _number(self, first: int, jet: int) -> int:
        """What a jet of a range of rows is called."""
        return first + jet if self.first is None else int(self.first[first]) + jet

    def _counts(
        self, collection: Collection, columns: dict[str, Column], depth: int, first: int
    ) -> NDArray[np.int64]:
        """Particles of each list, which all columns of a collection must agree on."""
        common: Column | None = None
        for name in collection.names:
            column = columns[name]
            if len(column.counts) != depth:
                kinds = ("single values", "lists", "lists of lists", "lists of lists of lists")
                hint = ""
                if depth == 1 and len(column.counts) == 2:
                    hint = " (are the rows events? see [constituents])"
                found = kinds[len(column.counts)]
                raise InputError(
                    f"{self.path}: {name} holds {found}, expected the opposite, {kinds[depth]}"
                    f"{hint}"
                )
            if common is None:
                common, named = column, name
            for mine, other in zip(column.counts, common.counts, strict=True):
                if len(mine) != len(other) or (mine != other).any():
                    at = int(np.argmax(mine != other)) if len(mine) == len(other) else 0
                    raise InputError(
                        f"{self.path}: jet {first + at}: {name} has {mine[at]} particles, "
                        f"{named} has {other[at]}"
                    )
        assert common is not None
        return common.counts[-1]

    def _particles(
        self,
        collection: Collection,
        columns: dict[str, Column],
        owner: NDArray[np.int64],
        rows: NDArray[np.int64],
        jets: Jets,
        first: int,
        tally: dict[str, int],
    ) -> tuple[NDArray[np.int64], dict[str, Array]]:
        """Which of the particles are real (T,), and their pt, eta, phi, energy, identities and
        tracks, in GeV and mm."""
        flat = {name: columns[name].values for name in collection.names}
        if len(rows) != len(next(iter(flat.values()))) or self.links:
            flat = {name: values.take(rows) for name, values in flat.items()}
        lists = Lists({n: columns[n] for n in collection.lists}, jets.row[owner], first)
        try:
            real = collection.real(flat, len(rows), self.table.rectangular, lists)
            if not real.all():
                kept = np.flatnonzero(real)
                lists = lists.of(kept)
                flat = {name: values.take(kept) for name, values in flat.items()}
            else:
                kept = np.arange(len(real))
            p = {k: v.of(flat, len(kept), lists) for k, v in collection.values.items()}
        except ValueError as error:
            raise InputError(f"{self.path}: {error}") from None
        p = {k: np.asarray(v, np.float64) for k, v in p.items()}
        with np.errstate(all="ignore"):
            found = self._kinematics(p, owner[kept], jets)
        if collection.pdg or collection.pid:
            key = "pdg" if collection.pdg else "pid"
            found["code"] = np.where(collection.missing(key, p), 0, p[key])
            found["of_pdg"] = np.full(len(kept), float(collection.pdg))
        found |= {key: p[key] for key in (VERTEX, ORIGIN) if key in p}
        if "d0" in p:
            none = np.ones(len(kept), bool)
            for pair in (TRACKS[:2], TRACKS[2:]):
                named = [collection.missing(k, p) for k in pair if k in collection.sentinels]
                absent = np.logical_and.reduce(named) if named else np.zeros(len(kept), bool)
                none &= absent
                for key in pair:
                    found[key] = np.where(absent, 0, p[key] * self.length)
            if none.any():
                tally["particles without a track"] = int(none.sum())
        return kept, found

    def _kinematics(
        self, p: dict[str, Array], owner: NDArray[np.int64], jets: Jets
    ) -> dict[str, Array]:
        """pt, eta, phi, energy in GeV of whatever a collection has of them; eta and phi are
        relative to the jet if they are given so."""

        def of_jet(key: str) -> Array:
            return self._jet_value(Value(self.schema["jets"][key]), jets)[owner]

        unit, mass = self.unit, p.get("mass", np.float64(0)) * self.unit
        energy = p["energy"] * unit if "energy" in p else None
        if "ln_energy" in p:
            energy = np.exp(p["ln_energy"]) * unit
        if "px" in p:
            px, py, pz = (p[key] * unit for key in CARTESIAN)
            pt, phi = np.hypot(px, py), np.arctan2(py, px)
            if energy is None:
                energy = np.sqrt(pt**2 + pz**2 + mass**2)
            return {"pt": pt, "eta": np.arcsinh(pz / pt), "phi": phi, "energy": energy}
        phi = p["phi"] if "phi" in p else p["delta_phi"]
        eta = (
            p["delta_eta" if "delta_eta" in p else "eta"] if "rapidity" not in p else p["rapidity"]
        )
        absolute = eta
        if "delta_eta" in p and "eta" in self.schema["jets"]:
            absolute = eta + of_jet("eta")
        if "et" in p:
            energy = p["et"] * unit * np.cosh(absolute)
            pt = np.sqrt(energy**2 - mass**2) / np.cosh(absolute) if "mass" in p else p["et"] * unit
        elif "relative_pt" in p:
            pt = p["relative_pt"] * of_jet("pt") * unit
        else:
            pt = p["pt"] * unit if "pt" in p else np.exp(p["ln_pt"]) * unit
        if "rapidity" in p:
            if energy is None:
                transverse = np.hypot(pt, mass)
                pz, energy = (transverse * f(p["rapidity"]) for f in (np.sinh, np.cosh))
            else:
                pz = energy * np.tanh(p["rapidity"])
            eta = np.arcsinh(pz / pt)
        elif energy is None:
            energy = np.sqrt((pt * np.cosh(absolute)) ** 2 + mass**2)
        return {"pt": pt, "eta": eta, "phi": phi, "energy": energy}

    def _jet_value(self, value: Value, jets: Jets) -> Array:
        try:
            return np.asarray(value.of(jets.columns, len(jets.row), jets.lists))
        except ValueError as error:
            raise InputError(f"{self.path}: {error}") from None

    def _integers(self, value: Value, jets: Jets, first: int) -> NDArray[np.int64]:
        numbers = self._jet_value(value, jets)
        return hdf5.integers(numbers, str(value.given), self.path, self._number(first, 0))

    def _jet_values(self, jets: Jets) -> dict[str, Array]:
        """What [jets] says of the jets that are kept."""
        table = self.schema["jets"]
        values = {f"label {i}": self._jet_value(v, jets) for i, v in enumerate(self.label_columns)}
        for key in ("eta", "phi"):
            if key in table:
                values[key] = self._jet_value(Value(table[key]), jets).astype(np.float64)
        for i, entry in enumerate(table["condition"]):
            value = self._jet_value(Value(entry["column"]), jets).astype(np.float64)
            values[f"condition {i}"] = value * UNITS.get(entry["unit"], 1.0)
        return {key: value[jets.keep] for key, value in values.items()}

    def _raw(
        self,
        counts: NDArray[np.int64],
        p: dict[str, Array],
        jet: dict[str, Array],
        tally: dict[str, int],
        start: int,
    ) -> Raw:
        owner = np.repeat(np.arange(len(counts)), counts)
        pt, eta, phi, energy = (p[key] for key in ("pt", "eta", "phi", "energy"))
        faults: list[Fault] = []
        broken = _not_finite({k: p[k] for k in ("pt", "eta", "phi", "energy")}, owner, len(counts))
        angles: list[tuple[str, Array, Array]] = []
        with np.errstate(all="ignore"):
            if "delta_eta" not in self.schema["particles"][0]:
                angles.append(("phi of a particle", phi, owner))
                if "eta" in jet:
                    angles.append(("phi of the jet", jet["phi"], np.arange(len(counts))))
                    axis_eta, axis_phi = jet["eta"], jet["phi"]
                else:
                    px, py = pt * np.cos(phi), pt * np.sin(phi)
                    (axis_eta, axis_phi), _ = jet_quantities(
                        px, py, pt * np.sinh(eta), energy, counts
                    )
                eta, phi = eta - axis_eta[owner], phi - axis_phi[owner]
                phi = np.remainder(phi + np.pi, 2 * np.pi) - np.pi
            particles = np.stack([eta, phi, np.log(pt), np.log(energy)], axis=1).astype(np.float32)
        negative = pt < 0
        if negative.any():
            marked = np.zeros(len(counts), bool)
            marked[owner[negative]] = True
            lowest = pt / self.unit

            def hint(b: int) -> str:
                value = lowest[owner == b].min()
                return (
                    f"pt of a particle is {value:g}, below 0: logarithms are ln_pt, and what fills "
                    f"up lists is padding = {value:g}"
                )

            faults.append(Fault("negative pt", marked, hint))
        for what, angle, of in angles:
            far = np.abs(angle) > _MAX_PHI
            if far.any():
                faults.append(_degrees(what, angle, far, of, len(counts)))
        faults += broken
        skip = pt == 0
        pid = self._pid(p, owner, start)
        tracks = None
        if self.layout.tracks:
            tracks, ones = track_columns([p[key] for key in TRACKS], self.scale)
            tally = {**tally, **ones}
        condition = None
        if self.schema["jets"]["condition"]:
            columns = [jet[f"condition {i}"] for i in range(len(self.schema["jets"]["condition"]))]
            condition = np.stack([*columns, counts / 100], axis=1)
        label = self._label(jet, len(counts), start, faults)
        vertex = origin = None
        if self.layout.vertices:
            vertex = _numbers(p[VERTEX], UNKNOWN)
            origin = _numbers(p.get(ORIGIN, np.full(len(vertex), UNKNOWN)), NUM_ORIGINS)
        return Raw(
            counts=counts,
            particles=particles,
            label=label,
            pid=pid,
            tracks=tracks,
            vertex=vertex,
            origin=origin,
            condition=condition,
            skip=skip if skip.any() else None,
            faults=faults,
            tally=tally,
        )

    def _label(
        self, jet: dict[str, Array], jets: int, start: int, faults: list[Fault]
    ) -> NDArray[np.int64]:
        """(B,) classes; -1 and a fault for jets of none."""
        if self.file_label is not None:
            return np.full(jets, self.file_label)
        given = self.schema["jets"]["label"]
        if isinstance(given, list):
            one_hot = np.stack([jet[f"label {i}"] for i in range(len(given))], axis=1)
            wrong = (one_hot.sum(axis=1) != 1) | (one_hot.max(axis=1) != 1)
            names = ", ".join(str(v.given) for v in self.label_columns)
            label = np.where(wrong, -1, one_hot.argmax(axis=1))

            def message(b: int) -> str:
                return f"exactly one of {names} must be 1, found {(one_hot[b] * 1).tolist()}"

            faults.append(Fault(UNLABELLED, wrong, message, "unlabelled"))
            return label
        value = jet["label 0"]
        codes = self.schema["jets"].get("codes")
        nan = np.isnan(value) if value.dtype.kind == "f" else np.zeros(jets, bool)
        whole = hdf5.integers(np.where(nan, 0, value), str(given), self.path, start)
        if codes is None:
            label, wrong = np.where(nan, -1, whole - self.shift), nan
        else:
            label = np.full(jets, -1)
            for number, code in enumerate(codes):
                label[np.isin(whole, code)] = number
            label[nan] = -1
            wrong = label < 0
        faults.append(
            Fault(
                UNLABELLED,
                wrong,
                lambda b: (
                    f"the label {given} is {value[b]}, of none of the classes (--unlabelled drop "
                    "leaves such jets out)"
                ),
                "unlabelled",
            )
        )
        return label

    def _pid(
        self, p: dict[str, Array], owner: NDArray[Any], start: int
    ) -> NDArray[np.int64] | None:
        if "code" not in p:
            return None
        wrong = ~np.isfinite(p["code"]) | (p["code"] != np.floor(p["code"]))
        if wrong.any():
            row = int(np.argmax(wrong))
            raise InputError(
                f"{self.path}: jet {start + owner[row]}: pid or pdg of a particle is "
                f"{p['code'][row]}, not a whole number"
            )
        codes = p["code"].astype(np.int64)
        of_pdg = p["of_pdg"] > 0
        pid = np.where(of_pdg, from_pdg(codes), codes)
        strange = of_pdg & (pid < 0)
        if strange.any():
            row = int(np.argmax(strange))
            raise InputError(
                f"{self.path}: jet {start + owner[row]}: the PDG code {codes[row]} is not known; "
                "missing = { pdg = [...] } names codes of unknown particles"
            )
        return pid

    def close(self) -> None:
        """Closes the file."""
        self.table.close()


def _numbers(values: Array, end: int) -> NDArray[np.uint8]:
    """(T,) whole numbers below ``end``, 255 for all other values."""
    known = (values >= 0) & (values < end) & (values == np.floor(values))
    return np.where(known, values, UNKNOWN).astype(np.uint8)


def _not_finite(p: dict[str, Array], owner: NDArray[np.int64], jets: int) -> list[Fault]:
    """For jets with such a value, before the jet's axis spreads it over all particles."""
    wrong = ~np.isfinite(sum(p.values())) & (p["pt"] != 0)
    if not wrong.any():
        return []

    def message(jet: int) -> str:
        first = int(np.argmax(wrong & (owner == jet)))
        name = next((key for key in p if not np.isfinite(p[key][first])), "energy")
        value = p[name][first]
        return f"{name} of a particle is {value}{', or empty' if np.isnan(value) else ''}"

    return [Fault("not finite", np.bincount(owner[wrong], minlength=jets) > 0, message)]


def _degrees(
    what: str, angle: Array, far: NDArray[np.bool_], of: NDArray[np.int64], jets: int
) -> Fault:
    """For jets with an angle that is not one in radians."""

    def message(jet: int) -> str:
        value = angle[far & (of == jet)][0]
        return (
            f"{what} is {value:g}, more than a turn: is it in degrees? Say "
            'phi = "= phi * 0.017453292519943295"'
        )

    return Fault("phi beyond a turn", np.bincount(of[far], minlength=jets) > 0, message)


def _file_label(path: Path, named: str, patterns: list[str]) -> int:
    """The class of a file by its name or, if that fits no pattern, by the nearest folder that does,
    of those that ``Options.name`` has."""
    for name in (path.name, *reversed(PurePosixPath(named).parts[:-1])):
        fits = [i for i, pattern in enumerate(patterns) if fnmatch(name, pattern)]
        if len(fits) == 1:
            return fits[0]
        if fits:
            break
    raise InputError(f"{path}: the name must fit one of jets.files {patterns}")


def _label_of_folder(named: str, label: Any) -> str | None:
    """What a folder ``label=VALUE`` says, which such files have in place of a column."""
    for part in reversed(PurePosixPath(named).parts[:-1]):
        if isinstance(label, str) and part.startswith(f"{label}="):
            return unquote(part[len(label) + 1 :])
    return None
