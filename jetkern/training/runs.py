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

import fcntl
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

FORMAT = 1
STATE, MANIFEST = "state.pt", "MANIFEST.json"


class RunError(ValueError):
    """A run folder or checkpoint that cannot be used, and why."""


class Run:
    """The folder of one training.

    Args:
        path: the folder; made if it is not there.
        keep_last: checkpoints to keep besides the best one.
        say: called with each message for the user.

    Raises:
        RunError: if the folder belongs to something else, or another process is using it.
    """

    def __init__(
        self, path: Path | str, *, keep_last: int = 2, say: Callable[[str], None] = print
    ) -> None:
        if keep_last < 1:
            raise RunError(f"keep_last must be at least 1, got {keep_last}")
        self.path = Path(path)
        self.keep_last = keep_last
        self._say = say
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path} is not a folder")
        inside = {p.name for p in self.path.iterdir()} if self.path.exists() else set()
        if "config.json" not in inside and (strangers := inside - {"lock", "checkpoints"}):
            raise RunError(f"{self.path} is not empty and not a run ({min(strangers)})")
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.path)
        for leftover in self.checkpoints.glob(".*"):
            shutil.rmtree(leftover, ignore_errors=True)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def done(self) -> dict[str, Any] | None:
        """What ``finish`` recorded, or None while the training has not ended."""
        path = self.path / "DONE"
        return json.loads(path.read_text()) if path.exists() else None

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
        identity = _plain(identity)
        if path.exists():
            try:
                old = json.loads(path.read_text())["identity"]
            except (ValueError, KeyError) as error:
                raise RunError(f"{path} is damaged: {error}") from error
            changes = [
                f"{key}: {old.get(key)!r} -> {identity.get(key)!r}"
                for key in sorted(old.keys() | identity.keys())
                if old.get(key) != identity.get(key)
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
            "settings": _plain(settings),
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
        path = self._write(f"step-{step:08d}", step, state, facts)
        for old in self._folders("step")[: -self.keep_last]:
            shutil.rmtree(old, ignore_errors=True)
        return path

    def save_best(self, step: int, state: Mapping[str, Any], facts: Mapping[str, Any]) -> Path:
        """Writes the best checkpoint so far. ``drop_other_bests`` removes those before it."""
        return self._write(f"best-{step:08d}", step, state, facts)

    def drop_other_bests(self, step: int) -> None:
        """Removes best checkpoints of other steps, once a checkpoint refers to this one."""
        for old in self._folders("best"):
            if _step_of(old) != step:
                shutil.rmtree(old, ignore_errors=True)

    def load_latest(self) -> dict[str, Any] | None:
        """The state of the newest checkpoint that is whole, or None if there is no checkpoint.

        Raises:
            RunError: if there are checkpoints, but every one of them is damaged.
        """
        folders = self._folders("step")
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
        """Marks the training as ended."""
        write_atomically(self.path / "DONE", json.dumps(_plain(facts), indent=2).encode())

    def close(self) -> None:
        """Lets other processes use the folder."""
        self._lock.close()

    def _folders(self, kind: str) -> list[Path]:
        return checkpoint_folders(self.path, kind)

    def _write(
        self, name: str, step: int, state: Mapping[str, Any], facts: Mapping[str, Any]
    ) -> Path:
        final = self.checkpoints / name
        partial = self.checkpoints / f".{name}-{os.getpid()}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            with open(partial / STATE, "wb") as file:
                torch.save(_canonical(state), file)
                _sync(file)
            manifest = {
                "format": FORMAT,
                "step": step,
                "sha256": {STATE: _sha256(partial / STATE)},
                "facts": _plain(facts),
                "environment": environment(),
            }
            with open(partial / MANIFEST, "wb") as file:
                file.write(json.dumps(manifest, indent=2).encode())
                _sync(file)
            _sync_folder(partial)
            # Only a damaged checkpoint, or one of a run that went back, can be there already.
            shutil.rmtree(final, ignore_errors=True)
            os.replace(partial, final)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        _sync_folder(self.checkpoints)
        return final


def checkpoint_folders(run: Path, kind: str) -> list[Path]:
    """The checkpoints of a run of the given kind, "step" or "best", oldest first."""
    names = re.compile(rf"{kind}-\d{{8,}}")
    return sorted(
        (p for p in (run / "checkpoints").glob(f"{kind}-*") if names.fullmatch(p.name)),
        key=_step_of,
    )


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """The state in a checkpoint folder, checked against its manifest.

    Raises:
        RunError: naming the file that is missing, damaged or of another format.
    """
    expected = _read_manifest(folder)["sha256"][STATE]
    path = folder / STATE
    if not path.is_file():
        raise RunError(f"checkpoint {folder} has no {STATE}")
    if _sha256(path) != expected:
        raise RunError(f"{path} does not have the checksum in its {MANIFEST}: it is damaged")
    return read_tensors(path)


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        version = manifest["format"]
        manifest["sha256"][STATE], manifest["facts"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"checkpoint {folder} has no readable {MANIFEST} ({error})") from error
    if version != FORMAT:
        raise RunError(f"checkpoint {folder} has format {version}; this version reads {FORMAT}")
    return manifest


def read_tensors(path: Path) -> dict[str, Any]:
    """A file of tensors and plain values made by ``torch.save``; nothing in it is executed.

    Raises:
        RunError: if it cannot be read so.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a file that is not a checkpoint
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"{path} is not a checkpoint that can be read safely: {reason}") from error
    if not isinstance(state, dict):
        raise RunError(f"{path} holds a {type(state).__name__}, not a dict")
    return state


@dataclass(frozen=True)
class Weights:
    """Model weights from a checkpoint.

    Attributes:
        config: fields of the model's ``PETConfig``.
        state: tensors by name.
        step: updates that made them.
        path: the checkpoint folder.
        sha256: digest of its state, which identifies it wherever it lies.
    """

    config: dict[str, Any]
    state: dict[str, Tensor]
    step: int
    path: Path
    sha256: str


def load_weights(source: Path | str) -> Weights:
    """The weights of a run (its best checkpoint, else its newest) or of one checkpoint folder.

    If the training kept an average of the weights, that is what is returned.

    Raises:
        RunError: if there is none, or it is damaged.
    """
    folder = _find_checkpoint(Path(source))
    state = read_checkpoint(folder)
    try:
        average = state.get("average")
        weights = state["model"] if average is None else average
        digest = _read_manifest(folder)["sha256"][STATE]
        return Weights(dict(state["model_config"]), weights, state["step"], folder, digest)
    except KeyError as error:
        raise RunError(f"checkpoint {folder} has no {error.args[0]!r}") from error


def checkpoint_facts(source: Path | str) -> dict[str, Any]:
    """What the manifest of the checkpoint that ``load_weights`` would read says about it.

    Raises:
        RunError: if there is no checkpoint or its manifest is damaged.
    """
    return _read_manifest(_find_checkpoint(Path(source)))["facts"]


def _find_checkpoint(source: Path) -> Path:
    if (source / MANIFEST).exists():
        return source
    candidates = [*checkpoint_folders(source, "step"), *checkpoint_folders(source, "best")]
    if not candidates:
        raise RunError(f"{source} is neither a run with checkpoints nor a checkpoint")
    return candidates[-1]


@dataclass(frozen=True)
class LoadReport:
    """Which parameters and buffers came from a checkpoint."""

    loaded: dict[str, Tensor] = field(repr=False)
    new: dict[str, Tensor] = field(repr=False)
    """in the model, not taken from the checkpoint: freshly initialised"""
    unused: dict[str, Tensor] = field(repr=False)
    """in the checkpoint, not in the model"""

    def __str__(self) -> str:
        rows = []
        for status in ("loaded", "new", "unused"):
            parts: dict[str, list[int]] = {}
            for name, tensor in getattr(self, status).items():
                count = parts.setdefault(".".join(name.split(".")[:2]), [0, 0])
                count[0] += 1
                count[1] += tensor.numel()
            rows += [(part, n, values, status) for part, (n, values) in sorted(parts.items())]
        width = max([4, *(len(row[0]) for row in rows)])
        lines = [f"{'part':{width}}  tensors      values  status"]
        lines += [f"{part:{width}}  {n:7d}  {values:10,d}  {s}" for part, n, values, s in rows]
        return "\n".join(lines)


def load_matching(
    model: nn.Module, state: Mapping[str, Tensor], *, reset: Sequence[str] = ()
) -> LoadReport:
    """Copies the tensors that model and checkpoint share, except those under a ``reset`` prefix.

    Raises:
        RunError: if nothing matches, or a tensor that should be copied has another shape. The
            model is unchanged then.
    """
    own = model.state_dict()

    def is_reset(name: str) -> bool:
        return any(name == p or name.startswith(p + ".") for p in reset)

    shared = {n: t for n, t in state.items() if n in own and not is_reset(n)}
    if not shared:
        raise RunError("the checkpoint has no parameter of this model")
    wrong = [n for n, t in shared.items() if t.shape != own[n].shape]
    if wrong:
        n = wrong[0]
        raise RunError(
            f"the checkpoint is of another model: {len(wrong)} of {len(shared)} shared tensors "
            f"differ in shape, the first is {n} with {tuple(shared[n].shape)} instead of "
            f"{tuple(own[n].shape)}"
        )
    model.load_state_dict(shared, strict=False)
    return LoadReport(
        loaded=shared,
        new={n: t for n, t in own.items() if n not in shared},
        unused={n: t for n, t in state.items() if n not in shared},
    )


class StopSignal:
    """Remembers SIGTERM, SIGUSR1 and SIGINT (Ctrl-C), so that a training can end with a checkpoint.

    A second signal ends the process at once. Use as a context manager in the main thread.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            self._before[number] = signal.signal(number, self._remember)
        return self

    def _remember(self, number: int, frame: Any) -> None:
        self.requested = True
        for handled in self._before:
            signal.signal(handled, signal.SIG_DFL)

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


@functools.cache
def environment() -> dict[str, str]:
    """Versions and, in a git checkout, the commit that a result was made with."""
    return {
        "jetkern": _version("jetkern"),
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": _version("numpy"),
        "machine": f"{platform.system()} {platform.machine()}",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces ``path`` by a file with this content, or leaves it as it was."""
    partial = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            _sync(file)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return result.stdout.strip() or "unknown"


def _lock(path: Path) -> IO[str]:
    file = open(path / "lock", "w")  # noqa: SIM115 - held open for as long as the run lives
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise RunError(f"{path} is in use by another process") from error
    return file


def _plain(value: Any) -> Any:
    """The same value in JSON's types."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


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


def _step_of(folder: Path) -> int:
    return int(folder.name.rsplit("-", 1)[1])


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
