"""Typed settings from the command line: presets, then a file, then flags.

The fields of the settings become flags and their docstrings the text of ``--help``. A settings file
is TOML or JSON with the names of the flags as keys, in tables or not; the ``config.json`` of a run
is such a file too.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import inspect
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from jetkern.cli.parser import Parser
from jetkern.io import printable, read_json, read_toml, user_path
from jetkern.training.config import UNSET, SettingsError
from jetkern.training.plugins import load_plugins

S = TypeVar("S")


def parse(
    defaults: Callable[..., S], arguments: Sequence[str], *, name: str, description: str | None
) -> S:
    """Settings from flags, over those of ``--config FILE``, over presets.

    Args:
        defaults: makes the settings; its parameters are the settings that choose a preset, and
            are looked up in the flags and the file first.
        arguments: the flags.
        name: of the command, for ``--help`` and errors.
        description: first lines of ``--help``.

    Raises:
        SystemExit: with code 2 and one line for wrong flags, with code 0 after ``--help``.
        SettingsError: for a settings file that cannot be used.
    """
    base = defaults()
    parser = parser_of(base, name, description)
    words = parser.spelled(arguments)
    file = _early({"config": Path}, words).get("config")
    if file is not None:
        words = [*_flags_of(file, base), *words]
    load_named_plugins(words)
    kinds = {
        parameter: _optional(int) if "int" in str(p.annotation) else str
        for parameter, p in inspect.signature(defaults).parameters.items()
    }
    chosen = _early(kinds, words)
    preset: Any = defaults(**{k: v for k, v in chosen.items() if v not in (None, "None")})
    given = vars(parser_of(preset, name, description).parse_args(words))
    try:
        return _made(preset, given)
    except ValueError as error:
        parser.error(str(error))


def load_named_plugins(flags: Sequence[str]) -> None:
    """Imports the modules after ``--plugin``, before anything that they register is asked for.

    Raises:
        SettingsError: naming the one that cannot be imported.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--plugin", nargs="*", default=[])
    try:
        load_plugins(parser.parse_known_args(flags)[0].plugin)
    except ValueError as error:
        raise SettingsError(str(error)) from error


def parser_of(settings: Any, name: str, description: str | None) -> Parser:
    """The parser of the flags of some settings, whose values are the defaults; what is ``UNSET`` is
    required."""
    renamed = {
        f"--{sign}{f.name}": f"--{sign}{_flag(f)}"
        for f in _fields(settings)
        for sign in ("", "no-")
        if "_" in f.name
    }
    parser = Parser(name, description, renamed=renamed)
    fields = list(_fields(settings))
    needed = [f"{f.name.upper()} [{f.name.upper()} ...]" for f in fields if _positional(f)]
    needed += [
        f"--{_flag(f)} PATH"
        for f in fields
        if not _positional(f) and getattr(settings, f.name, None) == UNSET
    ]
    parser.usage = " ".join(["%(prog)s", *needed, "[options]"])
    config = "TOML or JSON file with settings; flags have the last word"
    parser.add_argument("--config", type=Path, metavar="FILE", help=config)
    _add(parser, settings)
    return parser


def _add(place: Any, settings: Any) -> None:
    """Adds the flags of settings to a parser or a group; nested settings are groups."""
    kinds, words = get_type_hints(type(settings)), _docstrings(type(settings))
    for f in dataclasses.fields(settings):
        value = getattr(settings, f.name)
        if dataclasses.is_dataclass(value):
            text = inspect.cleandoc(type(value).__doc__ or "")
            _add(place.add_argument_group(f"{f.name} settings", text), value)
            continue
        unset = value in (UNSET, (UNSET,))
        more: dict[str, Any] = {"help": _escaped(words.get(f.name, ""))}
        more |= _kind(kinds[f.name])
        if _positional(f):
            place.add_argument(f.name, **more | {"nargs": "+", "metavar": f.name.upper()})
            continue
        if not unset:
            more["default"] = value
            if "default" not in more["help"]:
                more["help"] += f" (default: {_shown(value)})"
        place.add_argument(f"--{_flag(f)}", dest=f.name, required=unset, **more)


def _kind(annotation: Any) -> dict[str, Any]:
    """How argparse reads a field of some type."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        kind = _kind(next(a for a in inner if a is not type(None)))
        if choices := kind.pop("choices", None):
            shown = f"{{{','.join(choices)}}}"
            return {"type": _optional(str), "choices": (*choices, None), "metavar": shown}
        return kind | {"type": _optional(kind["type"])}
    if origin is Literal:
        return {"choices": inner}
    if origin is tuple:
        many = inner[-1] is Ellipsis
        kind = _kind(inner[0])
        metavar = kind["metavar"]
        return kind | {"nargs": "*" if many else len(inner), "metavar": metavar}
    if annotation is bool:
        return {"action": argparse.BooleanOptionalAction}
    if annotation is Path:
        return {"type": user_path, "metavar": "PATH"}
    names = {int: "N", float: "X", str: "NAME"}
    return {"type": annotation, "metavar": names[annotation]}


def _optional(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """Reads "None" as None and everything else as the kind."""

    def read(text: str) -> Any:
        return None if text == "None" else kind(text)

    read.__name__ = getattr(kind, "__name__", "value")  # for argparse's messages
    return read


def _made(settings: S, given: Mapping[str, Any]) -> S:
    """The settings with the values that were given."""
    changes: dict[str, Any] = {}
    for f in dataclasses.fields(settings):  # type: ignore[arg-type]
        value = getattr(settings, f.name)
        if dataclasses.is_dataclass(value):
            changes[f.name] = _made(value, given)
        else:
            new = given[f.name]
            changes[f.name] = tuple(new) if isinstance(value, tuple) else new
    return dataclasses.replace(settings, **changes)  # type: ignore[type-var]


def _early(kinds: Mapping[str, Callable[[str], Any]], flags: Sequence[str]) -> dict[str, Any]:
    """The values of a few settings before all the others are known."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name, kind in kinds.items():
        flag = "from" if name == "source" else name.replace("_", "-")
        parser.add_argument(f"--{flag}", dest=name, type=kind, nargs="?")
    try:
        return vars(parser.parse_known_args(flags)[0])
    except argparse.ArgumentError:
        return {}  # the parser of all flags says what is wrong


def _fields(settings: Any) -> Iterator[Any]:
    """The fields of settings and of those within."""
    for f in dataclasses.fields(settings):
        value = getattr(settings, f.name)
        if dataclasses.is_dataclass(value):
            yield from _fields(value)
        else:
            yield f


def _positional(f: Any) -> bool:
    return bool(f.metadata.get("positional"))


def _flag(f: Any) -> str:
    """The flag of a field, without its dashes."""
    return f.metadata.get("flag", f.name).replace("_", "-")


def _docstrings(kind: type) -> dict[str, str]:
    """The strings below the fields of a dataclass and of those that it extends."""
    found: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        assert isinstance(tree, ast.ClassDef)
        for line, following in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(line, ast.AnnAssign) and isinstance(following, ast.Expr):
                text = ast.literal_eval(following.value)
                found[ast.unparse(line.target)] = " ".join(text.split())
    return found


def _shown(value: Any) -> str:
    """A default as one would type it."""
    if isinstance(value, (tuple, list)):
        return " ".join(map(str, value)) or "none"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def _flags_of(path: Path, settings: Any) -> list[str]:
    """A settings file as flags, so that its values are checked as those of flags are."""
    content = _read(path)
    allowed = {f.name: f for f in _fields(settings)} | {_flag(f): f for f in _fields(settings)}
    flags = []
    for key, value in _leaves(content.get("settings", content)):
        f = allowed.get(key) or allowed.get(key.replace("-", "_"))
        if f is None or _positional(f):
            near = difflib.get_close_matches(key, allowed, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise SettingsError(f"{path} has an unknown setting {key!r}{hint}")
        flag = f"--{_flag(f)}"
        if isinstance(value, bool):
            flags.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, list):
            flags += [flag, *map(str, value)]
        else:
            flags.append(f"{flag}={value}")
    return flags


def _read(path: Path) -> dict[str, Any]:
    readers = {".json": read_json, ".toml": read_toml}
    if path.suffix not in readers:
        raise SettingsError(f"{printable(path)}: a settings file ends in .toml or .json")
    return readers[path.suffix](path, error=SettingsError, what="settings").content


def _leaves(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    waiting = list(content.items())[::-1]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += list(value.items())[::-1]
        else:
            yield key, value
