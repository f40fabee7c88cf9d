"""Files: written whole or not at all, in folders that one process uses at a time, read with bounds.

Nothing here needs more than the standard library.

Network file systems often lack locks (``flock``) or the syncing of folders. There everything works
all the same, and what is then not guaranteed is said once.

Whatever comes from a file is foreign: its sizes are bounded before memory is taken
(``regular_file``, ``read_bytes``, ``bounded``), its values are taken with their types
(``Document``), and its words are shown through ``printable``.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import json
import math
import multiprocessing
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LOCK = ".lock"
TEXT_LIMIT = 256 << 20  # bytes of a JSON or TOML file
MAX_INFLATION = 1032  # bytes that one byte of deflate, the tightest codec in use, can become

_WRITE_BACK = 8 << 20
_UNSUPPORTED = {
    getattr(errno, name)
    for name in ("ENOSYS", "ENOLCK", "EOPNOTSUPP", "ENOTSUP", "EINVAL", "EBADF", "ENOTTY")
}


class FileError(ValueError):
    """A file that cannot be used, and why."""


class FolderInUse(Exception):
    """Another process holds the lock of a folder."""


def part_of(path: Path) -> Path:
    """Where the bytes of ``path`` are written until they are complete."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def remove_leftovers(folder: Path) -> None:
    """Removes what a killed process left of files that it was writing in ``folder``."""
    for part in folder.glob(".*.part"):
        if part.is_dir() and not part.is_symlink():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Gives the name ``path`` to errors of the system that have none, or that of its ``.part``."""
    try:
        yield
    except OSError as error:
        name, part = os.fsdecode(error.filename or ""), str(part_of(path))
        if error.errno is None or not (name == "" or name.startswith(part)):
            raise
        name = f"{path}{name.removeprefix(part)}"
        raise OSError(error.errno, os.strerror(error.errno), name) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path that becomes ``path`` on success and vanishes otherwise.

    For libraries that write by name; ``AtomicFile`` for everything else.

    Raises:
        OSError: naming ``path``; what was there before is untouched.
    """
    part = part_of(path)
    try:
        with naming(path):
            yield part
            descriptor = os.open(part, os.O_RDONLY)
            try:
                sync(descriptor, path)
            finally:
                os.close(descriptor)
            publish(part, path)
    finally:
        _remove(part)


class AtomicFile:
    """A file that appears under its name only when it is complete and on the disk.

    Leaving the context flushes, syncs, renames and syncs the folder; an error removes everything.

    Args:
        path: of the file.
        durable: false does without the syncs and the SHA-256, for files that have checksums of
            their own.

    Raises:
        OSError: naming ``path``; what was there before is untouched.
    """

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        self.path, self.durable = path, durable
        self._part = part_of(path)

    def __enter__(self) -> AtomicFile:
        with naming(self.path):
            self._file = open(self._part, "wb", buffering=1 << 20)
        self._digest = hashlib.sha256()
        self._size = self._begun = 0
        return self

    def write(self, data: bytes | memoryview) -> None:
        """Appends bytes."""
        with naming(self.path):
            self._size += self._file.write(data)
            if self.durable:
                self._digest.update(data)
            size = self._size - self._begun
            if self.durable and size >= _WRITE_BACK:
                # Linux begins to write these pages to the disk, so that the sync finds little left.
                if hasattr(os, "posix_fadvise"):
                    number = self._file.fileno()
                    with suppress(OSError):
                        os.posix_fadvise(number, self._begun, size, os.POSIX_FADV_DONTNEED)
                self._begun = self._size

    def tell(self) -> int:
        """Bytes written so far."""
        return self._size

    def sha256(self) -> str:
        """Of what has been written so far, in hexadecimal."""
        return self._digest.hexdigest()

    def __exit__(self, kind: object, *error: object) -> None:
        try:
            if kind is not None:
                with suppress(OSError):  # the buffer may be what did not fit
                    self._file.close()
                return
            with naming(self.path):
                with self._file:
                    self._file.flush()
                    if self.durable:
                        sync(self._file.fileno(), self.path)
                if self.durable:
                    publish(self._part, self.path)
                else:
                    os.replace(self._part, self.path)
        finally:
            _remove(self._part)


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces ``path`` by a file with this content, or leaves it as it was.

    Raises:
        OSError: naming ``path``.
    """
    with AtomicFile(path) as file:
        file.write(content)


def publish(part: Path, path: Path) -> None:
    """Renames a complete file or folder to ``path`` so that a power cut does not undo it."""
    os.replace(part, path)
    sync_folder(path.parent)


def sync(descriptor: int, path: Path) -> None:
    """Returns when the bytes of an open file are on the disk; ``path`` is for messages."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        say(f"the file system of {path.parent} cannot sync: a power cut may lose files")


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with naming(folder):
            sync(descriptor, folder / "*")
    finally:
        os.close(descriptor)


def user_path(text: str) -> Path:
    """A path as a user writes it: ``~`` is their home, also where no shell has seen it.

    Raises:
        ValueError: for a home that is not known.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError(f"{printable(text)}: this home folder is not known") from None


def prepare_folder(folder: Path) -> None:
    """Makes a folder and tries to write in it, before the work whose result goes there.

    Raises:
        OSError: naming it, if that fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    probe = part_of(folder / "probe")
    try:
        with naming(folder / "probe"), open(probe, "wb") as file:
            file.write(b"0")
    finally:
        _remove(probe)


@contextmanager
def locked(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Keeps other processes out of ``folder``; the lock goes with the process that holds it.

    Args:
        shared: keep only those out that want it for themselves.

    Raises:
        FolderInUse: if another process holds it.
        OSError: if nothing can be written in the folder.
    """
    descriptor = _lock(folder / LOCK, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    try:
        yield
    finally:
        # Removed while nobody else holds it: who waits for it sees that its file is gone.
        try:
            with suppress(OSError):
                if shared:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                (folder / LOCK).unlink()
        finally:
            os.close(descriptor)


def _lock(path: Path, kind: int) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
            os.close(descriptor)  # its holder removed the file just now
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                say(
                    f"the file system of {path.parent} has no locks: nothing keeps two processes "
                    "from using this folder at once"
                )
                return descriptor
            os.close(descriptor)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise FolderInUse(f"{path.parent} is in use by another process") from None
            raise OSError(error.errno, error.strerror, str(path)) from None


def regular_file(path: Path, *, error: type[Exception] = FileError) -> os.stat_result:
    """What ``stat`` says of a file that can be read to its end.

    Raises:
        error: naming it, if it is not there, or a folder, or a pipe or device, which could keep
            a reader waiting for ever.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError) as problem:  # ValueError: a name with a null byte
        raise error(f"{printable(path)} cannot be read: {_reason(problem)}") from None
    if not stat.S_ISREG(found.st_mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(found.st_mode), "a device")
        raise error(f"{printable(path)} is {kind}, not a file")
    return found


def read_bytes(path: Path, *, limit: int = TEXT_LIMIT, error: type[Exception] = FileError) -> bytes:
    """A whole file of at most ``limit`` bytes.

    Raises:
        error: naming it, if it cannot be read or is larger.
    """
    size = regular_file(path, error=error).st_size
    if size > limit:
        raise error(f"{printable(path)} has {size:,} bytes; at most {limit:,} are read")
    try:
        with open(path, "rb") as file:
            return file.read(limit)
    except OSError as problem:
        raise error(f"{printable(path)} cannot be read: {_reason(problem)}") from None


def read_text(path: Path, *, limit: int = TEXT_LIMIT, error: type[Exception] = FileError) -> str:
    """A text file in UTF-8, without the byte-order mark that some editors write.

    Raises:
        error: naming it, if it cannot be read.
    """
    try:
        return read_bytes(path, limit=limit, error=error).decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(f"{printable(path)} is not text: {problem}") from None


def read_json(path: Path, *, error: type[Exception] = FileError, what: str = "values") -> Document:
    """A JSON object.

    Raises:
        error: naming the file, if it cannot be read or is not one.
    """
    text = read_text(path, error=error)
    try:
        content = json.loads(text, parse_constant=_not_a_number)
    except (ValueError, RecursionError) as problem:
        raise error(f"{printable(path)} is damaged: {explain(problem)}") from None
    return Document(path, content, error, what=what)


def made_once(path: Path, make: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Numbers that are kept in a JSON file: made where it is missing, read where it is not.

    Raises:
        FileError: naming the file, if it cannot be read.
    """
    if not path.exists():
        write_atomically(path, json.dumps(make(), indent=1).encode())
    return dict(read_json(path).content)


def read_toml(path: Path, *, error: type[Exception] = FileError, what: str = "values") -> Document:
    """A TOML file.

    Raises:
        error: naming the file, if it cannot be read or is not one.
    """
    text = read_text(path, limit=1 << 20, error=error)
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as problem:
        raise error(f"{printable(path)} is not valid TOML: {explain(problem)}") from None
    return Document(path, content, error, what=what)


class Document:
    """The values of a JSON or TOML file, each taken with its type.

    Args:
        path: of the file, for messages.
        content: what it holds.
        error: raised for every value that is missing or not what it should be, naming file and
            field.
        where: the field that holds ``content``; "" for the whole file.
        what: the values are called.
    """

    def __init__(
        self,
        path: Path,
        content: Any,
        error: type[Exception] = FileError,
        where: str = "",
        what: str = "values",
    ) -> None:
        self.path, self.error, self.where = path, error, where
        if not isinstance(content, dict):
            raise error(f"{self._name()} must hold {what} by name, not {_shown(content)}")
        self.content: dict[str, Any] = content

    def __contains__(self, key: str) -> bool:
        return key in self.content

    def fail(self, key: str, problem: str) -> NoReturn:
        """Raises the error of this document for one of its values."""
        raise self.error(f"{self._name(key)} {printable(problem)}")

    def integer(self, key: str, low: int = 0, high: int = 2**63 - 1) -> int:
        """An integer from ``low`` to ``high``."""
        value = self._get(key)
        if type(value) is not int or not low <= value <= high:
            bounds = f"from {low} to {high}" if high < 2**63 - 1 else f"from {low}"
            self.fail(key, f"is {_shown(value)}, expected an integer {bounds}")
        return value

    def number(self, key: str) -> float:
        """A finite number."""
        value = self._get(key)
        if type(value) not in (int, float) or not math.isfinite(value):
            self.fail(key, f"is {_shown(value)}, expected a number")
        return float(value)

    def text(self, key: str) -> str:
        """A string."""
        value = self._get(key)
        if not isinstance(value, str):
            self.fail(key, f"is {_shown(value)}, expected a text")
        return value

    def texts(self, key: str) -> list[str]:
        """A list of strings; one string is not taken for a list of its letters."""
        values = self.items(key)
        for i, value in enumerate(values):
            if not isinstance(value, str):
                self.fail(f"{key}[{i}]", f"is {_shown(value)}, expected a text")
        return values

    def integers(self, key: str, low: int = 0) -> list[int]:
        """A list of integers from ``low``."""
        values = self.items(key)
        for i, value in enumerate(values):
            if type(value) is not int or value < low:
                self.fail(f"{key}[{i}]", f"is {_shown(value)}, expected an integer from {low}")
        return values

    def items(self, key: str) -> list[Any]:
        """A list of anything."""
        value = self._get(key)
        if not isinstance(value, list):
            self.fail(key, f"is {_shown(value)}, expected a list")
        return value

    def record(self, key: str) -> Document:
        """Values by name."""
        return Document(self.path, self._get(key), self.error, self._inner(key))

    def records(self, key: str) -> list[Document]:
        """A list of values by name."""
        return [
            Document(self.path, value, self.error, self._inner(f"{key}[{i}]"))
            for i, value in enumerate(self.items(key))
        ]

    def _get(self, key: str) -> Any:
        if key not in self.content:
            raise self.error(f"{self._name()} has no {key!r}")
        return self.content[key]

    def _inner(self, key: str) -> str:
        return f"{self.where}.{key}" if self.where else key

    def _name(self, key: str = "") -> str:
        field = self._inner(key) if key else self.where
        return f"{printable(self.path)}: {printable(field)}" if field else printable(self.path)


def bounded(
    nbytes: int,
    path: Path,
    what: str,
    *,
    limit: int | None = None,
    error: type[Exception] = FileError,
) -> int:
    """Passes a size that a header claims, if the file can hold so much.

    Args:
        nbytes: size in memory of what is about to be read.
        path: of the file, whose size times ``MAX_INFLATION`` is the bound.
        what: is about to be read, for the message.
        limit: another bound, in bytes.

    Raises:
        error: naming the file, if it claims more.
    """
    bound = regular_file(path, error=error).st_size * MAX_INFLATION
    if limit is not None:
        bound = min(bound, limit)
    if not 0 <= nbytes <= bound:
        raise error(
            f"{printable(path)}: {printable(what)} claims {nbytes:,} bytes; at most {bound:,} are "
            "believed"
        )
    return nbytes


def printable(text: object) -> str:
    """Text of foreign origin for a terminal: control characters are shown, not acted on."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def explain(error: BaseException) -> str:
    """An error as one line: for those of the system, file and reason instead of a number."""
    if isinstance(error, RecursionError):
        return "too deeply nested"
    if isinstance(error, OSError) and error.errno and error.strerror:
        line = _reason(error) if error.filename is None else f"{error.filename}: {_reason(error)}"
    else:
        line = str(error) or type(error).__name__
    return printable(" ".join(line.split()))


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _shown(value: Any, length: int = 60) -> str:
    shown = printable(repr(value))
    return shown if len(shown) <= length else f"{shown[:length]}..."


def _not_a_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")


@functools.cache
def say(message: str) -> None:
    """A note on stderr, once in a program, from its main process."""
    if multiprocessing.parent_process() is None:  # the main process writes there, too
        print(f"note: {message}", file=sys.stderr, flush=True)


def _remove(part: Path) -> None:
    with suppress(OSError):  # the error that led here is the one to tell
        part.unlink(missing_ok=True)
