"""A run folder that survives being killed at any moment.

::

    OUT/config.json                     settings, what must not change, versions, command
    OUT/metrics.jsonl                   one JSON object per logged step (jetkern.training.log)
    OUT/checkpoints/step-00001000/      state.pt and MANIFEST.json with its SHA-256
    OUT/checkpoints/best-00000800/      the same for the best validation loss
    OUT/DONE                            written last, when the training has ended

A checkpoint is written under a temporary name, synced and then renamed, so it is there whole or
not at all; one whose checksum does not fit is passed over for the one before, and that is said.
Nothing is unpickled but tensors and plain Python values (``weights_only=True``).
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from jetkern.io import FolderInUse, locked, printable, read_json, remove_leftovers, write_atomically
from jetkern.machine import environment
from jetkern.training.checkpoints import (
    RunError,
    checkpoint_folders,
    discard,
    plain,
    read_checkpoint,
    step_of,
    write_checkpoint,
)

_OWN = {".lock", "lock", "checkpoints"}  # what a run killed at once may consist of


class Run:
    """The folder of one training.

    Args:
        path: the folder; made if it is not there.
        keep_last: checkpoints to keep besides the best one.
        keep_every: keep also those after each so many updates.
        say: called with each message for the user.

    Raises:
        RunError: if the folder belongs to something else, or another process is using it.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        keep_last: int = 2,
        keep_every: int | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        if keep_last < 1:
            raise RunError(f"keep_last must be at least 1, got {keep_last}")
        self.path = Path(path)
        self.keep_last, self.keep_every = keep_last, keep_every
        self._say = say
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path} is not a folder")
        inside = {p.name for p in self.path.iterdir()} if self.path.exists() else set()
        strangers = {n for n in inside - _OWN if not n.startswith(".config.json")}
        if "config.json" not in inside and strangers:
            raise RunError(f"{self.path} is not empty and not a run ({printable(min(strangers))})")
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self._stack = ExitStack()
        try:
            self._stack.enter_context(locked(self.path))
        except FolderInUse as error:
            raise RunError(str(error)) from None
        remove_leftovers(self.path)
        for leftover in self.checkpoints.glob(".*"):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink()

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def done(self) -> dict[str, Any] | None:
        """What ``finish`` recorded, or None while the training has not ended."""
        path = self.path / "DONE"
        if not path.exists():
            return None
        done = read_json(path, error=RunError)
        done.text("reason"), done.integer("step")
        return done.content

    def open(
        self,
        settings: Mapping[str, Any],
        identity: Mapping[str, Any],
        *,
        allow_mismatch: bool = False,
    ) -> None:
        """Records the settings of a new run, or checks those of one to be continued.

        Args:
            settings: everything, as given by the user and the presets.
            identity: flat; the values on which the result depends. A run continues only with the
                same ones.
            allow_mismatch: continue with other values all the same, and record them.

        Raises:
            RunError: naming each value that differs.
        """
        path = self.path / "config.json"
        identity = plain(identity)
        if path.exists():
            old = read_json(path, error=RunError).record("identity").content
            changes = [
                printable(f"{key}: {old.get(key)!r} -> {identity.get(key)!r}")
                for key in sorted(old.keys() | identity.keys())
                # What a version before did not know is as if it were off.
                if (old.get(key) or None) != (identity.get(key) or None)
            ]
            if not changes:
                return
            if not allow_mismatch:
                raise RunError(
                    f"{self.path} was started with other settings ({'; '.join(changes)}). "
                    "Use another --out, or --allow-mismatch to continue it all the same"
                )
            self._say(f"continuing with changed settings: {'; '.join(changes)}")
        record = {
            "settings": plain(settings),
            "identity": identity,
            "environment": environment(),
            "command": sys.argv,
        }
        write_atomically(path, json.dumps(record, indent=2).encode())

    def save(self, step: int, state: Mapping[str, Any], facts: Mapping[str, Any]) -> Path:
        """Writes the checkpoint of ``step``, then removes all but the newest ``keep_last``.

        Args:
            step: updates done.
            state: tensors and plain Python values.
            facts: for the manifest: readable things on which nothing depends.

        Raises:
            OSError: if it cannot be written; the checkpoints before it are untouched.
        """
        path = self.checkpoints / f"step-{step:08d}"
        write_checkpoint(path, step, state, facts)
        self._drop_old_steps()
        return path

    def save_best(self, step: int, state: Mapping[str, Any], facts: Mapping[str, Any]) -> Path:
        """Writes the best checkpoint so far. ``drop_other_bests`` removes those before it."""
        path = self.checkpoints / f"best-{step:08d}"
        write_checkpoint(path, step, state, facts)
        return path

    def drop_other_bests(self, step: int) -> None:
        """Removes best checkpoints of other steps, once a checkpoint refers to this one."""
        for old in checkpoint_folders(self.path, "best"):
            if step_of(old) != step:
                discard(old)

    def _drop_old_steps(self) -> None:
        for old in checkpoint_folders(self.path, "step")[: -self.keep_last]:
            if not self.keep_every or step_of(old) % self.keep_every:
                discard(old)

    def load_latest(self) -> dict[str, Any] | None:
        """The state of the newest checkpoint that is whole, or None if there is no checkpoint.

        Raises:
            RunError: if there are checkpoints, but every one of them is damaged.
        """
        folders = checkpoint_folders(self.path, "step")
        for folder in reversed(folders):
            if (state := self._try(folder)) is not None:
                return state
        if folders:
            raise RunError(f"no usable checkpoint in {self.checkpoints}: all are damaged")
        return None

    def _try(self, folder: Path) -> dict[str, Any] | None:
        try:
            return read_checkpoint(folder)
        except RunError as error:
            self._say(f"{error}; trying the one before")
            return None

    def finish(self, **facts: Any) -> None:
        """Marks the training as ended, after what a kill had left has been removed."""
        self._drop_old_steps()
        if best := facts.get("best"):
            self.drop_other_bests(best["step"])
        write_atomically(self.path / "DONE", json.dumps(plain(facts), indent=2).encode())

    def close(self) -> None:
        """Lets other processes use the folder."""
        self._stack.close()
