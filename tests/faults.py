"""Faults of the storage, injected: the n-th call of a kind fails, or ends the process.

``inject(Faults(folder))`` counts the calls that change or secure files below a folder: opening for
writing, write, fsync, replace, unlink, rmdir and mkdir. ``cases`` chooses among them, and
``inject(Faults(folder, kind, number, fault))`` lets one fail. Works in the process itself, so what
is tested must not start others.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

KINDS = ("open", "write", "fsync", "replace", "unlink", "rmdir", "mkdir")


class Killed(BaseException):
    """Stands in for SIGKILL: from here on nothing of the process reaches the disk."""


class Faults:
    """Counts calls of each kind, and lets one of them fail.

    Attributes:
        calls: so far, by kind.
        dead: whether the process counts as killed.
    """

    def __init__(self, folder: Path, kind: str = "", number: int = -1, fault: int | None = None):
        self.folder, self.kind, self.number, self.fault = str(folder), kind, number, fault
        self.calls = dict.fromkeys(KINDS, 0)
        self.dead = False

    def concerns(self, target: Any) -> bool:
        """Whether a path or descriptor is below the folder."""
        try:
            name = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else target
            return os.path.abspath(os.fsdecode(name)).startswith(self.folder)
        except (OSError, TypeError):
            return False

    def call(self, kind: str) -> None:
        """Counts a call, and is the fault if it is its turn."""
        if self.dead:
            raise Killed
        number = self.calls[kind]
        self.calls[kind] += 1
        if (kind, number) != (self.kind, self.number):
            return
        if self.fault is None:
            self.dead = True
            raise Killed
        raise OSError(self.fault, os.strerror(self.fault))


class _Raw(io.FileIO):
    """A file whose writes are counted."""

    faults: Faults

    def write(self, data: Any) -> int:
        if not self.faults.dead:  # Python flushes once more when a file is closed
            self.faults.call("write")
            return super().write(data)
        return memoryview(data).nbytes


@contextmanager
def inject(faults: Faults) -> Iterator[Faults]:
    """Counts and fails calls of this process for as long as the context lasts."""
    real = {name: getattr(os, name) for name in ("fsync", "replace", "unlink", "rmdir", "mkdir")}
    opened = builtins.open

    def wrapped(name: str) -> Any:
        def call(target: Any, *rest: Any, **options: Any) -> Any:
            below = options.get("dir_fd") is not None or faults.concerns(target)
            if below:
                faults.call(name)
            return real[name](target, *rest, **options)

        return call

    def open_(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **options: Any) -> Any:
        if isinstance(file, int) or not set(mode) & set("wax+") or not faults.concerns(file):
            return opened(file, mode, buffering, *rest, **options)
        faults.call("open")
        raw = _Raw(file, mode.replace("b", "").replace("t", ""))
        raw.faults = faults
        buffered = io.BufferedWriter(raw, io.DEFAULT_BUFFER_SIZE if buffering < 2 else buffering)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *rest, **options)

    try:
        builtins.open = io.open = open_
        for name in real:
            setattr(os, name, wrapped(name))
        yield faults
    finally:
        builtins.open = io.open = opened
        for name, function in real.items():
            setattr(os, name, function)


FAULTS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "kill": None}


def cases(calls: dict[str, int], number: int, seed: int = 0) -> list[tuple[str, int, str]]:
    """A sample of (kind, number of the call, fault), every kind and the last calls included."""
    drawn = random.Random(seed)
    every = [(kind, n, fault) for kind in KINDS for n in range(calls[kind]) for fault in FAULTS]
    last = [(kind, calls[kind] - 1, "kill") for kind in KINDS if calls[kind]]
    return [*last, *drawn.sample(every, min(number, len(every)))]
