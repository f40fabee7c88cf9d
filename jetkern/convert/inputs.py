"""Which files are converted: the search through folders, and the splits that names tell of."""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from xxhash import xxh3_128

from jetkern.convert.readers import InputError
from jetkern.io import printable

SPLITS = ("train", "val", "test")
CHUNK = 4 << 20  # bytes that have a fingerprint of their own
_BUFFER = 1 << 18  # stays in the processor's cache

_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
# What programs leave beside the files that count: unfinished, replaced, or of the program itself.
_ENDINGS = r"part|partial|filepart|crdownload|download|tmp|temp|swp|swo|old|orig|bak|backup|lock"
_LEFTOVER = re.compile(
    rf"\..*|.*~|\#.*\#|.*\.({_ENDINGS})(\.\w+)?|__MACOSX|__pycache__|_temporary|lost\+found", re.I
)
_DASK = re.compile(r"part\.\d+\.\w+", re.I)  # numbered parts of a parquet folder are whole files


@dataclass(frozen=True)
class Found:
    """A file to convert.

    Attributes:
        name: its path below what the user named, which is its name in the manifest.
        named: the same behind the last folder that the user wrote, or the last two if that is a
            split's: what folders say of classes is found in it, and folders around are not asked.
        split: of which the names tell, None if of none.
    """

    path: Path
    name: str
    named: str
    split: str | None = None


@dataclass
class Search:
    """What was found, and what was passed over, in words."""

    found: list[Found] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)

    def notes(self) -> list[str]:
        """Lines that say what was not read."""
        lines = [f"not read: {printable(line)}" for line in sorted(self.passed)]
        if len(lines) > 20:
            lines[20:] = [f"not read: {len(lines) - 20} others like these"]
        if self.kinds:
            kinds = ", ".join(f"{n} {printable(k) or '(none)'}" for k, n in self.kinds.items())
            lines.append(f"not read, of other endings: {kinds}")
        return lines


def find(sources: Sequence[Path], endings: set[str], *, use_splits: bool = True) -> Search:
    """The files that are converted, sorted by name, so that the order of the sources is no matter.

    Folders are searched through links, too. Hidden files, and what editors, notebooks and
    downloads leave behind, are passed over; a file that was named is read in any case.

    Args:
        endings: of the files that are looked for in folders, in lower case.
        use_splits: false leaves the splits of all files open.

    Raises:
        InputError: if there is nothing to read, or a name can be read as that of two splits.
    """
    search = Search()
    seen: dict[tuple[int, int], Found] = {}
    for source in sources:
        if source.is_dir():
            before = len(search.found)
            inside = [
                Found(path, name.as_posix(), (_outer(source) / name).as_posix())
                for path, name in _walk(source, endings, search)
            ]
            if not inside:
                hint = f" that counts ({search.passed[0]})" if search.passed else ""
                raise InputError(
                    f"{source}: the folder has no file ending in {', '.join(sorted(endings))}{hint}"
                )
            outer = source.name
        else:
            before = len(search.found)
            inside = [Found(source, source.name, (_outer(source.parent) / source.name).as_posix())]
            outer = source.parent.name
        for entry in inside:
            try:
                entry.name.encode()
            except UnicodeEncodeError:
                raise InputError(f"{entry.path}: the name is not UTF-8; rename the file") from None
            status = _regular(entry.path)
            twin = seen.get((status.st_dev, status.st_ino))
            split = _split_of(entry) if use_splits else None
            if twin is not None:
                if use_splits and split != _split_of(twin):
                    raise InputError(
                        f"{entry.path} and {twin.path} are one file, but in different splits"
                    )
                if entry.path != twin.path:
                    search.passed.append(f"{entry.path}, which is {twin.path} by another name")
                continue
            seen[status.st_dev, status.st_ino] = entry
            search.found.append(replace(entry, split=split))
        if use_splits and all(entry.split is None for entry in search.found[before:]):
            # Names inside say nothing: what was named, or the folder of a named file, may.
            split = _judge([outer], source)
            search.found[before:] = [replace(e, split=split) for e in search.found[before:]]
    if len({e.split for e in search.found}) == 1 and all(
        e.split is None or e.path in sources or _split_of(e) is None for e in search.found
    ):
        # What was named is of one split or of none, and goes straight to the output folder.
        if use_splits:
            _ask_if_unclear(search.found)
        search.found = [replace(e, split=None) for e in search.found]
    search.found.sort(key=lambda entry: (entry.name, str(entry.path)))
    return search


def _walk(folder: Path, endings: set[str], search: Search) -> Iterator[tuple[Path, PurePosixPath]]:
    """Files below a folder and their names in it, links followed; loops of links are found."""
    ways: list[tuple[int, int]] = []

    def step(folder: Path, inside: PurePosixPath) -> Iterator[tuple[Path, PurePosixPath]]:
        here = folder.stat()
        if (here.st_dev, here.st_ino) in ways:
            search.passed.append(f"{folder}, a link to a folder around it")
            return
        ways.append((here.st_dev, here.st_ino))
        for entry in sorted(os.scandir(folder), key=lambda e: e.name):
            path, name = folder / entry.name, inside / entry.name
            if _LEFTOVER.fullmatch(entry.name) and not _DASK.fullmatch(entry.name):
                search.passed.append(f"{path}, hidden or left over")
            elif path.is_symlink() and not path.exists():
                raise InputError(f"{path}: a link to nothing")
            elif entry.is_dir():
                yield from step(path, name)
            elif path.suffix.lower() in endings:
                yield path, name
            else:
                search.kinds[path.suffix.lower()] += 1
        ways.pop()

    yield from step(folder, PurePosixPath())


def _outer(folder: Path) -> PurePosixPath:
    """The last folder of a path as it was written; the last two if the last is a split's."""
    first = max(0, len(folder.parts) - 1)
    while first and folder.parts[first].lower() in _WORDS:
        first -= 1
    return PurePosixPath(*(p for p in folder.parts[first:] if p != folder.anchor))


def _regular(path: Path) -> os.stat_result:
    """The status of a file that can be read to its end: of a pipe there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file or folder") from None
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is a pipe or a device, not a file")
    return status


def _split_of(entry: Found) -> str | None:
    """The split that the folders below what was named, or the file's name, tell of."""
    name = PurePosixPath(entry.name)
    return _judge([*name.parts[:-1], name.stem], entry.path)


def _judge(parts: list[str], path: Path) -> str | None:
    """The split that parts of a path tell of.

    A part that is a split's name and nothing else (``train``, ``split=train``) counts more than one
    that begins or ends with it (``val_5M``, ``top_train``).
    """
    whole, edge = set(), set()
    for part in parts:
        if found := re.fullmatch(r"split=(.*)", part, re.I):
            if found[1].lower() not in _WORDS:
                raise InputError(f"{path}: {part}: expected train, val or test")
            whole.add(_WORDS[found[1].lower()])
        elif part.lower() in _WORDS:
            whole.add(_WORDS[part.lower()])
        elif words := _words(part):
            edge |= {_WORDS[w] for w in (words[0], words[-1]) if w in _WORDS}
    told = whole or edge
    if len(told) > 1:
        raise InputError(
            f"{path}: its name tells of {' and '.join(sorted(told))}; name the folders of the "
            "splits train, val and test, or use --splits or --one-set"
        )
    return next(iter(told), None)


def _words(part: str) -> list[str]:
    """``JetsTrain_02`` is jets, train."""
    return [w.lower() for w in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", part)]


def _ask_if_unclear(found: list[Found]) -> None:
    """Asks about splits that names may or may not tell of, before they become one set.

    Raises:
        InputError: with the question.
    """
    inner: dict[str, Path] = {}
    for entry in found:
        for word in _words(entry.name):
            if hint := re.match("train|test|valid|val(?=s|$)", word):  # also trainset
                inner.setdefault(_WORDS[hint[0]], entry.path)
    if len(inner) > 1:
        examples = "; ".join(f"{path} of {split}?" for split, path in sorted(inner.items()))
        raise InputError(
            f"are these files of several splits ({examples})? If so, put them into folders train, "
            "val and test; if not, use --one-set, or --splits"
        )


def fingerprints(path: Path, size: int, start: int, stop: int, num_jets: int) -> list[str]:
    """XXH3-128 of the 4 MiB pieces of a file that belong to the jets ``start`` to ``stop - 1``.

    The pieces of all ranges of a file are the whole of it. Where they are read shortly before the
    jets, they cost no reading from the disk, and 0.1 s per GB.
    """
    chunks = -(-size // CHUNK)
    first, last = (chunks * jet // num_jets for jet in (start, stop))
    buffer = memoryview(bytearray(_BUFFER))
    prints = []
    with open(path, "rb", buffering=0) as file:
        file.seek(first * CHUNK)
        for _ in range(first, last):
            digest, left = xxh3_128(), CHUNK
            while left and (got := file.readinto(buffer[: min(left, _BUFFER)])):
                digest.update(buffer[:got])
                left -= got
            prints.append(digest.hexdigest())
    return prints


def fingerprint(prints: Iterable[str]) -> str:
    """One XXH3-128 for those of a file's pieces."""
    return xxh3_128("".join(prints).encode()).hexdigest()
