"""Checkpoint folders: written whole or not at all, and nothing in them is believed unchecked.

::

    checkpoints/step-00001000/state.pt        tensors and plain Python values
    checkpoints/step-00001000/MANIFEST.json   its SHA-256, and readable facts

A checkpoint is written under a temporary name, synced and then renamed. Nothing is unpickled but
tensors and plain Python values (``weights_only=True``), and no tensor may claim to be larger than
the bytes that it has.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jetkern.io import (
    AtomicFile,
    Document,
    explain,
    naming,
    part_of,
    printable,
    publish,
    read_json,
    regular_file,
    sync_folder,
    write_atomically,
)
from jetkern.machine import environment

FORMAT = 1
STATE, MANIFEST = "state.pt", "MANIFEST.json"


class RunError(ValueError):
    """A run folder or checkpoint that cannot be used, and why."""


def checkpoint_folders(run: Path, kind: str) -> list[Path]:
    """The checkpoints of a run of the given kind, "step" or "best", oldest first."""
    names = re.compile(rf"{kind}-\d{{8,18}}", re.ASCII)
    return sorted(
        (p for p in (run / "checkpoints").glob(f"{kind}-*") if names.fullmatch(p.name)),
        key=step_of,
    )


def step_of(folder: Path) -> int:
    """The step in the name of a checkpoint."""
    return int(folder.name.rsplit("-", 1)[1])


def find_checkpoint(source: Path) -> Path:
    """A checkpoint folder, or of a run its best one, else its newest.

    Raises:
        RunError: if there is none.
    """
    if (source / MANIFEST).exists():
        return source
    candidates = [*checkpoint_folders(source, "step"), *checkpoint_folders(source, "best")]
    if not candidates:
        raise RunError(f"{printable(source)} is neither a run with checkpoints nor a checkpoint")
    return candidates[-1]


def write_checkpoint(
    folder: Path, step: int, state: Mapping[str, Any], facts: Mapping[str, Any]
) -> None:
    """Writes a checkpoint in place of what was there.

    Args:
        folder: where it goes.
        step: updates done.
        state: tensors and plain Python values.
        facts: for the manifest: readable things on which nothing depends.

    Raises:
        OSError: naming the file that cannot be written; nothing is left of it then.
        TypeError: for what ``weights_only=True`` could not read back.
    """
    part = part_of(folder)
    shutil.rmtree(part, ignore_errors=True)
    try:
        with naming(folder):
            part.mkdir()
            manifest = {
                "format": FORMAT,
                "step": step,
                "sha256": {STATE: _write_state(part / STATE, state)},
                "facts": plain(facts),
                "environment": environment(),
            }
            write_atomically(part / MANIFEST, json.dumps(manifest, indent=2).encode())
            sync_folder(part)
            # Only a damaged checkpoint, or one of a run that went back, can be there already.
            discard(folder)
            publish(part, folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def discard(folder: Path) -> None:
    """Removes a checkpoint so that a kill leaves either all of it or a leftover, never a half."""
    if folder.exists():
        condemned = part_of(folder.with_name(f"{folder.name}-old"))
        shutil.rmtree(condemned, ignore_errors=True)
        os.replace(folder, condemned)
        shutil.rmtree(condemned, ignore_errors=True)


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """The state in a checkpoint folder, checked against its manifest.

    Raises:
        RunError: naming the file that is missing, damaged or of another format.
    """
    expected = digest_of(folder)
    path = folder / STATE
    regular_file(path, error=RunError)
    if file_sha256(path) != expected:
        raise RunError(f"{path} does not have the checksum in its {MANIFEST}: it is damaged")
    state = read_tensors(path)
    for name, (kind, fits) in _KINDS.items():
        if name in state and not fits(state[name]):
            raise RunError(f"{path}: {name} is not {kind}")
    return state


def digest_of(folder: Path) -> str:
    """SHA-256 of a checkpoint's state as its manifest says, which identifies it wherever it lies.

    Raises:
        RunError: if the manifest is missing, damaged or of another format.
    """
    return _read_manifest(folder).record("sha256").text(STATE)


def facts_of(folder: Path) -> dict[str, Any]:
    """What the manifest of a checkpoint says about it.

    Raises:
        RunError: if the manifest is missing, damaged or of another format.
    """
    facts = _read_manifest(folder).record("facts")
    if "model_config" in facts:
        facts.record("model_config")
    return facts.content


def read_tensors(path: Path) -> dict[str, Any]:
    """A file of tensors and plain values made by ``torch.save``; nothing in it is executed.

    Raises:
        RunError: if it cannot be read so.
    """
    size = regular_file(path, error=RunError).st_size
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        if any(m.compress_type != zipfile.ZIP_STORED for m in members):
            raise ValueError("it is compressed, which torch.save never does")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a file that is not a checkpoint
        reason = explain(error).split(". ")[0]
        raise RunError(f"{path} is not a checkpoint that can be read safely: {reason}") from error
    if not isinstance(state, dict):
        raise RunError(f"{path} holds a {type(state).__name__}, not a dict")
    _check_sizes(state, size, path)
    return state


def plain(value: Any) -> Any:
    """The same value in JSON's types."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def _is_step(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _is_weights(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items()
    )


def _is_validation(value: Any) -> bool:
    return value is None or (
        isinstance(value, dict)
        and _is_step(value.get("step"))
        and all(isinstance(k, str) and type(v) in (int, float) for k, v in value.items())
        and "loss" in value
    )


def _is_record(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(k, str) for k in value)


_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "step": ("a number of updates", _is_step),
    "model": ("tensors by name", _is_weights),
    "average": ("tensors by name", lambda value: value is None or _is_weights(value)),
    "model_config": ("values by name", _is_record),
    "kind": ("a name", lambda value: isinstance(value, str)),
    "optimizer": ("values by name", _is_record),
    "stream": ("values by name", _is_record),
    "best": ("a validation", _is_validation),
    "misses": ("a number of validations", _is_step),
    "skipped": ("a number of updates", _is_step),
    "owed": ("true or false", lambda value: type(value) is bool),
}


def _read_manifest(folder: Path) -> Document:
    if not folder.is_dir():
        raise RunError(f"{printable(folder)} is not a checkpoint folder")
    manifest = read_json(folder / MANIFEST, error=RunError)
    if (version := manifest.integer("format")) != FORMAT:
        manifest.fail("format", f"is {version}; this version reads {FORMAT}")
    return manifest


class _Writer:
    """Passes bytes on, and keeps the error of the system for which torch shows one of its own."""

    def __init__(self, file: AtomicFile) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise
        return len(data)

    def flush(self) -> None:
        """Left to the file."""


def _write_state(path: Path, state: Mapping[str, Any]) -> str:
    """Writes the tensors; returns the SHA-256 of the file."""
    value = _canonical(state)
    with AtomicFile(path) as file:
        writer = _Writer(file)
        try:
            torch.save(value, writer)  # type: ignore[arg-type]
        except Exception:
            if writer.error is not None:
                raise writer.error from None
            raise
        return file.sha256()


def _canonical(value: Any) -> Any:
    """The same value such that equal states become equal files.

    Pickles depend on which equal strings and tuples are the same object, which differs between a
    state that was computed and one that was read.

    Raises:
        TypeError: for what ``weights_only=True`` could not read back.
    """
    if isinstance(value, Mapping):
        return {_canonical(k): _canonical(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([_canonical(v) for v in value])
    if type(value) is str:
        return sys.intern(value)
    if isinstance(value, Tensor):
        return value.detach()
    if value is None or type(value) in (bool, int, float):
        return value
    raise TypeError(f"a checkpoint holds tensors and plain values, not {type(value).__name__}")


def _check_sizes(state: dict[str, Any], size: int, path: Path) -> None:
    """Raises for tensors that claim more bytes than their file has, by strides of zero."""
    waiting: list[tuple[str, Any]] = [("", state)]
    seen: set[int] = set()  # a damaged pickle may hold itself
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Tensor):
            if value.layout != torch.strided or value.numel() * value.element_size() > size:
                raise RunError(f"{path}: {printable(name)} claims to be larger than the file")
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            items = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += [(f"{name}.{key}" if name else str(key), item) for key, item in items]


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
