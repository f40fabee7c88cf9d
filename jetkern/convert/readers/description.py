"""Descriptions of formats (``readers.schema`` documents them): loading, merging and checking."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jetkern.convert.readers import SCHEMAS, SHIPPED, InputError, check_classes, first_line
from jetkern.convert.readers import links as linking
from jetkern.convert.readers.expressions import Expression, Lists

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib  # type: ignore[no-redef]


_TOP = {"like", "format", "tree", "unit", "length", "classes", "particles", "jets", "constituents"}
_TRANSVERSE = ("pt", "ln_pt", "et", "relative_pt")
_LONGITUDINAL = ("eta", "rapidity", "delta_eta")
_AZIMUTH = ("phi", "delta_phi")
CARTESIAN = ("px", "py", "pz")
_ENERGY = ("energy", "ln_energy", "mass")
MOMENTA = (*_TRANSVERSE, *_LONGITUDINAL, *_AZIMUTH, *CARTESIAN, *_ENERGY)
TRACKS = ("d0", "d0_error", "dz", "dz_error")
IDENTITY = ("pdg", "pid")
VERTEX, ORIGIN = "vertex", "origin"
_PARTICLES = {*MOMENTA, *TRACKS, *IDENTITY, VERTEX, ORIGIN, "count", "mask", "id"}
_PARTICLE_SETTINGS = {"missing", "padding", "number"}
_JETS = {"label", "files", "codes", "pt", "eta", "phi", "condition", "select", "first"}
UNITS = {"GeV": 1.0, "MeV": 1e-3}
LENGTHS = {"mm": 1.0, "cm": 10.0, "m": 1000.0, "um": 1e-3}
_IN_UNITS = {"pt", "et", "p", "px", "py", "pz", "e", "energy", "m", "mass", "msoftdrop", "sdmass"}
_UNITLESS = {"eta", "phi", "y", "rapidity", "n", "count", "multiplicity", "charge", "nparticles"}

Array = NDArray[Any]


def load(path: Path | None, like: str | None = None) -> dict[str, Any]:
    """A checked description.

    Args:
        path: the file, or None for one that comes with jetkern as it is.
        like: the description of ``readers.SHIPPED`` that says what the file does not.

    Raises:
        InputError: naming the key that is wrong or missing.
    """
    schema = {} if path is None else _parse(path)
    like = schema.setdefault("like", like) if like or "like" in schema else None
    if like is not None:
        if like not in SHIPPED:
            raise InputError(f"{path}: like must be one of {', '.join(SHIPPED)}")
        schema = _over(_parse(SCHEMAS / f"{like}.toml"), schema)
    try:
        _check(schema)
    except ValueError as error:
        raise InputError(f"{path or like}: {error}") from None
    return schema


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {first_line(error)}") from None


def _over(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """A description with another one put over it; what says the same in another way goes."""
    result = dict(base)
    for key, value in own.items():
        old = base.get(key)
        result[key] = (
            _over(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
        )
    if "files" in own:
        result.pop("label", None), result.pop("codes", None)
    elif "label" in own:
        result.pop("files", None)
        if "codes" not in own:
            result.pop("codes", None)
    return result


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check(schema: dict[str, Any]) -> None:
    """Fills in what is not said; a ``ValueError`` names what is wrong."""
    _only(schema, _TOP, "")
    schema.setdefault("unit", "GeV")
    schema.setdefault("length", "mm")
    for key, allowed in (
        ("format", ("hdf5", "npz", "parquet", "root")), ("unit", UNITS), ("length", LENGTHS)
    ):  # fmt: skip
        known = isinstance(schema.get(key), str) and schema[key] in allowed
        _need(known, f"{key} must be one of {sorted(allowed)}")
    _need("tree" not in schema or isinstance(schema["tree"], str), "tree must be a name")
    _need(
        schema["format"] != "root" or "tree" in schema, "a ROOT format needs the name of its tree"
    )
    _need(_names(schema.get("classes")), "classes must be a list of names")
    try:
        check_classes(tuple(schema["classes"]), "classes")
    except InputError as error:
        raise ValueError(str(error)) from None

    particles: Any = schema.get("particles")
    if isinstance(particles, dict):
        particles = [particles]
    tables = isinstance(particles, list) and all(isinstance(p, dict) for p in particles)
    _need(tables and bool(particles), "there is no table [particles]")
    schema["particles"] = particles
    jets: Any = schema.get("jets")
    _need(isinstance(jets, dict), "there is no table [jets]")
    constituents = schema.setdefault("constituents", {})
    _need(isinstance(constituents, dict), "constituents must be a table")
    for table in particles:
        _check_particles(table, jets)
    _need(
        len({bool(set(IDENTITY) & set(p)) for p in particles}) == 1,
        "all particles need pdg or pid, or none",
    )
    for key in (VERTEX, ORIGIN):
        _need(len({key in p for p in particles}) == 1, f"all particles need a {key}, or none")
    known = ORIGIN not in particles[0] or VERTEX in particles[0]
    _need(known, "particles.origin goes with particles.vertex")
    _check_jets(jets, schema)
    _check_constituents(constituents, particles, jets)


def _check_particles(table: dict[str, Any], jets: dict[str, Any]) -> None:
    _only(table, _PARTICLES | _PARTICLE_SETTINGS, "particles.")
    for key in _PARTICLES & set(table):
        _value(table[key], f"particles.{key}")
    columns = [n for key in _PARTICLES & set(table) for n in Value(table[key]).names]
    _need(bool(columns), "particles needs a column")
    given = set(table)
    cartesian = bool(given & set(CARTESIAN))
    parts = (_TRANSVERSE, _LONGITUDINAL, _AZIMUTH)
    if cartesian:
        good = set(CARTESIAN) <= given and not any(given & set(part) for part in parts)
    else:
        good = all(len(given & set(part)) == 1 for part in parts)
    _need(good, "particles needs either pt, eta, phi or px, py, pz")
    for group in (_ENERGY, IDENTITY, ("count", "mask")):
        several = [key for key in group if key in given]
        _need(len(several) <= 1, f"particles has both {' and '.join(several)}")
    _need(
        ("delta_eta" in given) == ("delta_phi" in given),
        "particles needs both delta_eta and delta_phi or neither",
    )
    if "delta_eta" in given:
        known = bool(given & {"energy", "ln_energy"}) or "eta" in jets
        _need(known, "particles.delta_eta needs an energy, or the axis jets.eta")
        _need("et" not in given or "eta" in jets, "particles.et with delta_eta needs jets.eta")
    _need(
        "et" not in given or not given & {"energy", "ln_energy"}, "particles has et and an energy"
    )
    _need("relative_pt" not in given or "pt" in jets, "particles.relative_pt needs jets.pt")
    tracks = set(TRACKS) & given
    _need(len(tracks) in (0, 4), f"particles needs all of {', '.join(TRACKS)} or none")
    missing = table.get("missing", {})
    _need(isinstance(missing, dict), "particles.missing must be a table like { d0 = -1 }")
    _only(missing, {*tracks, *(set(IDENTITY) & given)}, "particles.missing.")
    for key, values in missing.items():
        sentinels(values, f"particles.missing.{key}")
    if "padding" in table:
        sentinels(table["padding"], "particles.padding")
    _need(_is_int(table.get("number", 0)), "particles.number must be a whole number")


def _check_jets(jets: dict[str, Any], schema: dict[str, Any]) -> None:
    _only(jets, _JETS, "jets.")
    classes = schema["classes"]
    _need(("label" in jets) != ("files" in jets), "jets needs either label or files")
    if "files" in jets:
        _need(_names(jets["files"]), "jets.files must be a list of patterns, one for each class")
        _need(len(jets["files"]) == len(classes), "jets.files needs one entry per class")
    elif isinstance(jets["label"], list):
        for entry in jets["label"]:
            _value(entry, "jets.label")
        _need(len(jets["label"]) == len(classes), "jets.label needs one entry per class")
        _need("codes" not in jets, "jets.codes needs a single column jets.label")
    else:
        _value(jets["label"], "jets.label")
    if "codes" in jets:
        codes = jets["codes"]
        _need(
            isinstance(codes, list) and "label" in jets, "jets.codes must be a list for jets.label"
        )
        _need(len(codes) == len(classes), "jets.codes needs one entry per class")
        flat = [c for code in codes for c in (code if isinstance(code, list) else [code])]
        _need(all(map(_is_int, flat)), "jets.codes must be whole numbers, or lists of them")
        _need(len(set(flat)) == len(flat), "jets.codes has a code twice")
    for key in ("pt", "eta", "phi"):
        if key in jets:
            _value(jets[key], f"jets.{key}")
    relative = "delta_eta" in schema["particles"][0]
    _need("phi" not in jets or "eta" in jets, "jets needs both eta and phi or neither")
    _need("eta" not in jets or "phi" in jets or relative, "jets needs both eta and phi or neither")
    if "select" in jets:
        _need(isinstance(jets["select"], str), "jets.select must be an expression")
        Expression(jets["select"])
    first = jets.get("first", 1)
    _need(_is_int(first) and first > 0, "jets.first must be a number of jets")
    condition = jets.get("condition", [])
    _need(isinstance(condition, list), "jets.condition must be a list of columns")
    jets["condition"] = [_condition(entry, schema["unit"]) for entry in condition]
    names = [entry["name"] for entry in jets["condition"]]
    _need(len(set(names)) == len(names), "jets.condition has a name twice")


def _condition(entry: Any, unit: str) -> dict[str, str]:
    """A quantity of the jet: its name, its column, and its unit."""
    if not isinstance(entry, dict):
        entry = {"column": entry}
    _only(entry, {"column", "name", "unit"}, "jets.condition: ")
    _need("column" in entry, "jets.condition: an entry needs a column")
    _value(entry["column"], "jets.condition")
    name = entry.get("name", str(entry["column"]))
    _need(isinstance(name, str) and bool(name.strip()), "jets.condition: name must be a text")
    if "unit" not in entry:
        word = re.split(r"[^A-Za-z0-9]+|(?<=[a-z])(?=[A-Z])", name)[-1].lower()
        if unit == "GeV" or word in _UNITLESS:
            entry = {**entry, "unit": "1"}
        else:
            _need(
                word in _IN_UNITS,
                f"jets.condition: is {name} in {unit}? Say {{ column = ..., unit = "
                f'"{unit}" }} or unit = "1"',
            )
            entry = {**entry, "unit": unit}
    known = isinstance(entry["unit"], str) and entry["unit"] in {*UNITS, "1"}
    _need(known, f"jets.condition: the unit of {name} must be one of {[*UNITS, '1']}")
    return {"column": entry["column"], "name": name, "unit": entry["unit"]}


def _check_constituents(
    constituents: dict[str, Any], particles: list[dict[str, Any]], jets: dict[str, Any]
) -> None:
    _only(constituents, set(linking.KEYS), "constituents.")
    for key, name in constituents.items():
        _need(isinstance(name, str) and bool(name), f"constituents.{key} must be a column")
    given = set(constituents)
    forms: tuple[set[str], ...] = (
        {"jet", "particle"}, {"begin", "end"}, {"begin", "end", "index"}, {"index"}, {"refs"},
        {"begin", "end", "index", "collection"}, {"index", "collection"},
    )  # fmt: skip
    if given:
        _need(
            given in forms,
            "constituents needs jet and particle, or begin and end, or index, or refs",
        )
        _need("count" not in particles[0], "particles.count is for lists of each jet")
        _need(
            given != {"jet", "particle"} or any(jet_columns(jets)),
            "constituents.jet needs a column of the jets, such as jets.eta and jets.phi",
        )
    for table in particles:
        _need(("id" in table) == ("refs" in given), "particles.id and constituents.refs need both")
    several = len(particles) > 1
    _need(not several or bool(given & {"refs", "collection"}), "several [[particles]] need "
          "constituents.refs, or a constituents.collection")  # fmt: skip
    numbered = [p["number"] for p in particles if "number" in p]
    _need("collection" in given or not numbered, "particles.number needs constituents.collection")
    _need(
        not ("collection" in given and several) or len(set(numbered)) == len(particles),
        "each of several [[particles]] needs a number of its own",
    )


def _only(table: dict[str, Any], allowed: Any, where: str) -> None:
    unknown = sorted(set(table) - set(allowed))
    _need(not unknown, f"unknown key {where}{', '.join(unknown)}")


def _names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value)


def _is_int(value: Any) -> bool:
    return type(value) is int


def _value(given: Any, key: str) -> None:
    number = type(given) in (int, float) and math.isfinite(given)
    _need(number or (isinstance(given, str) and bool(given.strip())), f"{key} must be a column")
    try:
        Value(given)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


def sentinels(given: Any, key: str) -> Array:
    """Values that stand for nothing, of a number, "nan" or a list of them."""
    values = given if isinstance(given, list) else [given]
    good = all(type(v) in (int, float) or v == "nan" for v in values)
    _need(good and bool(values), f'{key} must be a number, "nan" or a list of them')
    return np.array([float(v) for v in values])


def is_any(values: Array, sentinels: Array) -> NDArray[np.bool_]:
    found = np.isin(
        values, sentinels.astype(values.dtype) if values.dtype.kind == "f" else sentinels
    )
    return found | np.isnan(values) if np.isnan(sentinels).any() else found


class Value:
    """A column, a number, or an expression over columns.

    Attributes:
        names: the columns that it needs.
        lists: the columns whose lists it takes entries of.
    """

    def __init__(self, given: str | float) -> None:
        self.given = given
        self._expression = None
        self.names: tuple[str, ...] = ()
        self.lists: tuple[str, ...] = ()
        if isinstance(given, str):
            if given.lstrip().startswith("="):
                self._expression = Expression(given.lstrip()[1:])
                self.names, self.lists = self._expression.names, self._expression.lists
            else:
                self.names = (given,)

    def of(self, columns: Mapping[str, Array], size: int, lists: Lists | None = None) -> Array:
        """(size,) values for columns (size,)."""
        if self._expression is not None:
            return np.broadcast_to(self._expression.evaluate(columns, lists), size)
        if self.names:
            return columns[self.names[0]]
        return np.full(size, self.given)


def jet_columns(jets: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The columns of [jets], and those whose lists it takes entries of."""
    label = jets.get("label", [])
    given = [*(label if isinstance(label, list) else [label])]
    given += [jets[key] for key in ("pt", "eta", "phi") if key in jets]
    given += [entry["column"] for entry in jets["condition"]]
    values: list[Value | Expression] = [Value(value) for value in given]
    if "select" in jets:
        values.append(Expression(jets["select"]))
    names = dict.fromkeys(name for value in values for name in value.names)
    return tuple(names), tuple(dict.fromkeys(name for value in values for name in value.lists))
