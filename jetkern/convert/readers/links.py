"""How jets find their constituents, in files whose rows are events.

Everything comes down to pairs (jet, particle) of positions in the events' collections of jets and
of particles, see the table ``[constituents]`` of a schema:

    jet, particle      index pairs, a collection of its own (NanoAOD, PFNano)
    begin, end, index  ranges of each jet in a collection of indices (EDM4hep); without index, in
                       the particles themselves
    index              lists of indices of each jet (ntuples); with collection, the numbers of the
                       collections that they point into (ElementLink of PHYSLITE)
    refs               lists of each jet of the particles' unique numbers, which every collection
                       gives as id (TRef of Delphes)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jetkern.convert.readers import Column

KEYS = ("jet", "particle", "begin", "end", "index", "collection", "refs")
_UNIQUE = 0xFFFFFF  # ROOT's upper byte numbers the process that wrote, the others the object


class LinkError(ValueError):
    """Links that lead nowhere: the row of the range, and what is wrong there."""

    def __init__(self, row: int, message: str) -> None:
        super().__init__(message)
        self.row, self.message = row, message


@dataclass(frozen=True)
class Target:
    """A collection of particles.

    Attributes:
        counts: (R,) particles of each row.
        id: (T,) unique numbers, for ``refs``.
        number: what ``collection`` calls it.
    """

    counts: NDArray[np.int64]
    id: NDArray[Any] | None = None
    number: int | None = None


def pairs(
    links: dict[str, Column], jets: NDArray[np.int64], targets: Sequence[Target]
) -> tuple[list[tuple[NDArray[np.int64], NDArray[np.int64]]], int]:
    """Follows the links of R rows.

    Args:
        links: the columns of ``[constituents]`` that there are.
        jets: (R,) jets of each row.
        targets: the collections.

    Returns:
        for each collection, its pairs: jets (rising) and particles, both counted through all rows;
        and the number of links that lead to no particle (a negative index, a collection or number
        of 0).

    Raises:
        LinkError: for a link that leads outside of what there is.
    """
    if "jet" in links:
        jet, particle = links["jet"], links["particle"]
        _same(jet, particle, "constituents.jet and constituents.particle")
        row = np.repeat(np.arange(len(jets)), _lists(jet, 1, "constituents.jet"))
        linked, index = _whole(jet.values), _whole(particle.values)
        _inside(linked, jets[row], row, "a constituent belongs to jet", "jets")
        loose = linked < 0
        owner = np.where(loose, -1, _starts(jets)[row] + linked)
        order = np.argsort(owner, kind="stable")[int(loose.sum()) :]
        found, lost = _point(owner[order], index[order], row[order], None, targets)
        return found, lost + int(loose.sum())
    if "refs" in links:
        owner, row = _owners(links["refs"], jets, "constituents.refs")
        wanted = _whole(links["refs"].values) & _UNIQUE
        some = wanted != 0
        return _by_number(owner[some], row[some], wanted[some], targets), int((~some).sum())
    collection = _whole(links["collection"].values) if "collection" in links else None
    if "begin" in links:
        return _ranges(links, jets, collection, targets)
    owner, row = _owners(links["index"], jets, "constituents.index")
    if "collection" in links:
        _same(links["index"], links["collection"], "constituents.index and collection")
    return _point(owner, _whole(links["index"].values), row, collection, targets)


def _ranges(
    links: dict[str, Column],
    jets: NDArray[np.int64],
    collection: NDArray[np.int64] | None,
    targets: Sequence[Target],
) -> tuple[list[tuple[NDArray[np.int64], NDArray[np.int64]]], int]:
    _same(links["begin"], links["end"], "constituents.begin and constituents.end")
    row = np.repeat(np.arange(len(jets)), jets)
    begin, end = (_whole(links[key].values) for key in ("begin", "end"))
    if "index" in links:
        size = _lists(links["index"], 1, "constituents.index")
    else:
        size = targets[0].counts
    wrong = (begin < 0) | (end < begin) | (end > size[row])
    if wrong.any():
        worst = int(np.argmax(wrong))
        raise LinkError(
            int(row[worst]),
            f"the constituents of a jet are {begin[worst]} to {end[worst]} of {size[row[worst]]}",
        )
    length = end - begin
    owner = np.repeat(np.arange(len(begin)), length)
    position = np.arange(len(owner)) - np.repeat(_starts(length) - begin, length)
    row = row[owner]
    if "index" not in links:
        return _point(owner, position, row, None, targets)
    at = _starts(size)[row] + position
    if collection is not None:
        _same(links["index"], links["collection"], "constituents.index and collection")
        collection = collection[at]
    return _point(owner, _whole(links["index"].values)[at], row, collection, targets)


def _point(
    owner: NDArray[np.int64],
    index: NDArray[np.int64],
    row: NDArray[np.int64],
    collection: NDArray[np.int64] | None,
    targets: Sequence[Target],
) -> tuple[list[tuple[NDArray[np.int64], NDArray[np.int64]]], int]:
    """Pairs of indices into the rows' collections."""
    none = index < 0
    if collection is not None:
        none |= collection == 0
        known = np.array([t.number for t in targets if t.number is not None], np.int64)
        if not len(known):
            known = np.unique(collection[~none])[:1]
        strange = ~none & ~np.isin(collection, known)
        if strange.any():
            at = int(np.argmax(strange))
            raise LinkError(
                int(row[at]),
                f"a constituent is in the collection {collection[at]}, which no [[particles]] has "
                "as its number",
            )
    found = []
    for target in targets:
        mine = ~none
        if collection is not None and target.number is not None:
            mine &= collection == target.number
        _inside(index[mine], target.counts[row[mine]], row[mine], "a constituent is", "particles")
        found.append((owner[mine], _starts(target.counts)[row[mine]] + index[mine]))
    return found, int(none.sum())


def _by_number(
    owner: NDArray[np.int64],
    row: NDArray[np.int64],
    wanted: NDArray[np.int64],
    targets: Sequence[Target],
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs of unique numbers, which hold within a row."""
    key = (row << 24) | wanted
    lost = np.ones(len(key), bool)
    found = []
    for target in targets:
        there = np.repeat(np.arange(len(target.counts)), target.counts)
        have = (there << 24) | (_whole(target.id) & _UNIQUE)
        order = np.argsort(have, kind="stable")
        have = have[order]
        at = np.minimum(np.searchsorted(have, key), max(len(have) - 1, 0))
        hit = (have[at] == key) & lost if len(have) else np.zeros(len(key), bool)
        found.append((owner[hit], order[at[hit]] if len(have) else np.empty(0, np.int64)))
        lost &= ~hit
    if lost.any():
        worst = int(np.argmax(lost))
        raise LinkError(
            int(row[worst]),
            f"the constituent of unique number {wanted[worst]} is in none of the collections of "
            "[[particles]]: is one missing?",
        )
    return found


def _owners(
    column: Column, jets: NDArray[np.int64], name: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The jet (through all rows) and the row of every entry of lists of jets."""
    _lists(column, 2, name)
    if (column.counts[0] != jets).any():
        row = int(np.argmax(column.counts[0] != jets))
        raise LinkError(row, f"{name} has {column.counts[0][row]} lists for {jets[row]} jets")
    owner = np.repeat(np.arange(len(column.counts[1])), column.counts[1])
    return owner, np.repeat(np.arange(len(jets)), jets)[owner]


def _lists(column: Column, depth: int, name: str) -> NDArray[np.int64]:
    if len(column.counts) != depth:
        kinds = ("a number", "a list", "a list of lists")
        have = kinds[len(column.counts)]
        raise LinkError(0, f"{name} holds {have} in a row, expected {kinds[depth]}")
    return column.counts[0]


def _same(a: Column, b: Column, names: str) -> None:
    if len(a.counts) != len(b.counts):
        raise LinkError(0, f"{names} hold lists of different depth")
    for one, other in zip(a.counts, b.counts, strict=True):
        if len(one) != len(other) or (one != other).any():
            row = int(np.argmax(one != other)) if len(one) == len(other) else 0
            raise LinkError(row, f"{names} have different lengths")


def _inside(
    index: NDArray[np.int64],
    size: NDArray[np.int64],
    row: NDArray[np.int64],
    what: str,
    of: str,
) -> None:
    wrong = index >= size
    if wrong.any():
        at = int(np.argmax(wrong))
        raise LinkError(int(row[at]), f"{what} {index[at]} of {size[at]} {of}")


def _starts(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.cumsum(counts) - counts


def _whole(values: Any) -> NDArray[np.int64]:
    if values.dtype.kind == "f" and (values != np.floor(values)).any():
        raise LinkError(0, "a link is not a whole number")
    return values.astype(np.int64)
