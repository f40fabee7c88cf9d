"""What the hard process put into a jet, and where its tracks come from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jetkern.simulate.events import NEUTRINOS, Events, delta_phi, direction

INTERMEDIATE = (23, 24)
HARD_OUTGOING = (22, 23)
LIGHT, CHARM, BOTTOM = 0, 1, 2  # flavours of jets
PRIMARY, OTHER, NO_TRUTH = 0, 3, 255  # origins of tracks, beside CHARM and BOTTOM
HADRON_PT = 5.0  # GeV, of a hadron that gives a jet its flavour
SAME_POINT = 0.01  # mm: eta and pi0 fly less, charm and bottom more


@dataclass(frozen=True)
class Targets:
    """Directions that a jet must contain: all T rows of one of G groups, in ascending order.

    Attributes:
        event, group: (T,) int64.
        eta, phi: (T,).
    """

    event: NDArray[np.int64]
    group: NDArray[np.int64]
    eta: NDArray[np.floating]
    phi: NDArray[np.floating]


def find_targets(events: Events, codes: tuple[int, ...], matching: str) -> Targets:
    """The directions to match, one group per target particle.

    Args:
        codes: absolute PDG codes of the target particles.
        matching: as in ``processes.DataSet``.
    """
    is_target = np.isin(np.abs(events.id), codes)
    if matching == "hard":
        rows = np.flatnonzero(is_target & np.isin(-events.status, HARD_OUTGOING))
        group = np.arange(len(rows))
    else:
        # A particle that recoils or radiates is entered again; the last entry decays.
        same_again = (events.id[events.daughter1] == events.id) | (
            events.id[events.daughter2] == events.id
        )
        targets = np.flatnonzero(is_target & (events.status < 0) & ~same_again)
        rows, group = _decay_products(events, targets)
        if matching == "decay+self":
            rows = np.concatenate([rows, targets])
            group = np.concatenate([group, np.arange(len(targets))])
        order = np.argsort(group, kind="stable")
        rows, group = rows[order], group[order]
    eta, phi = direction(events.p[rows])
    return Targets(events.event[rows], group, eta, phi)


def _decay_products(
    events: Events, rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the visible products of each of ``rows``, through W and Z, and whose they are."""
    owner = np.arange(len(rows))
    found, owners = [], []
    while len(rows):
        first, last = events.daughter1[rows], events.daughter2[rows]
        count = np.maximum(last - first, 0) + 1
        starts = np.repeat(np.cumsum(count) - count, count)
        rows = np.repeat(first, count) + np.arange(count.sum()) - starts
        owner = np.repeat(owner, count)
        code = np.abs(events.id[rows])
        again = np.isin(code, INTERMEDIATE)
        visible = ~again & ~np.isin(code, NEUTRINOS)
        found.append(rows[visible])
        owners.append(owner[visible])
        rows, owner = rows[again], owner[again]
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return np.concatenate(found), np.concatenate(owners)


def matched(
    targets: Targets,
    event: NDArray[np.int64],
    eta: NDArray[np.floating],
    phi: NDArray[np.floating],
    radius: float,
) -> NDArray[np.bool_]:
    """(M,) whether each jet, given its event and axis, contains all of some group."""
    if not len(targets.event):
        return np.zeros(len(event), bool)
    near = _near((event, eta, phi), (targets.event, targets.eta, targets.phi), radius)
    starts = np.flatnonzero(np.diff(targets.group, prepend=-1))
    return np.any(np.logical_and.reduceat(near, starts, axis=1), axis=1)


def _near(
    jets: tuple[NDArray, NDArray, NDArray],
    others: tuple[NDArray, NDArray, NDArray],
    radius: float,
) -> NDArray[np.bool_]:
    """(M, N) whether each jet and each other are of one event and within ``radius``; event, eta and
    phi are given of both."""
    (event, eta, phi), (of_event, of_eta, of_phi) = jets, others
    distance = np.hypot(eta[:, None] - of_eta, delta_phi(phi[:, None], of_phi))
    return (event[:, None] == of_event) & (distance < radius)


def hadron_flavour(codes: NDArray[np.integer]) -> NDArray[np.int64]:
    """(T,) BOTTOM or CHARM for hadrons with such a quark, bottom first; LIGHT for all else."""
    codes = np.abs(codes)
    digits = [codes // 10**power % 10 for power in (1, 2, 3)]
    hadron = (codes > 100) & (digits[0] > 0)  # diquarks have no tens
    flavour = np.zeros(len(codes), np.int64)
    for quark, value in ((4, CHARM), (5, BOTTOM)):
        flavour[hadron & ((digits[1] == quark) | (digits[2] == quark))] = value
    return flavour


def jet_flavour(
    events: Events,
    event: NDArray[np.int64],
    eta: NDArray[np.floating],
    phi: NDArray[np.floating],
    radius: float,
) -> NDArray[np.int64]:
    """(M,) flavour of jets, given their event and axis: BOTTOM or else CHARM if such a hadron of
    pT above 5 GeV lies within ``radius``, LIGHT otherwise."""
    heavy = np.flatnonzero(
        (hadron_flavour(events.id) > LIGHT) & (np.hypot(*events.p[:, :2].T) > HADRON_PT)
    )
    near = _near((event, eta, phi), (events.event[heavy], *direction(events.p[heavy])), radius)
    return np.where(near, hadron_flavour(events.id[heavy]), LIGHT).max(1, initial=LIGHT)


@dataclass(frozen=True)
class Origins:
    """Where T particles come from.

    Attributes:
        kind: (T,) PRIMARY, CHARM or BOTTOM by the hadron that decayed at the point, else OTHER
            (K0S, Lambda, conversions of strange particles, tau).
        point: (T, 3) x, y, z of the vertex in mm; zeros for PRIMARY.
        hadron: (T,) PDG code of what decayed there, 0 for PRIMARY.
        proper: (T,) c times its proper time in mm.
    """

    kind: NDArray[np.int64]
    point: NDArray[np.floating]
    hadron: NDArray[np.int64]
    proper: NDArray[np.floating]


def find_origins(events: Events, rows: NDArray[np.int64]) -> Origins:
    """The vertices of the particles in ``rows``.

    What decays within 0.01 mm of where it was made does not make a vertex of its own: its products
    belong to the one before. So a slow pion of a D* that a B made is from BOTTOM.
    """
    rows = rows.copy()
    while True:
        mother = events.mother[rows]
        away = np.linalg.norm(events.vertex[rows] - events.vertex[mother], axis=1)
        again = events.vertex[rows].any(1) & (away < SAME_POINT)
        if not again.any():
            break
        rows[again] = mother[again]
    point = events.vertex[rows]
    hadron = np.where(point.any(1), events.id[mother], 0)
    kind = hadron_flavour(hadron)
    kind[(kind == LIGHT) & point.any(1)] = OTHER
    with np.errstate(divide="ignore", invalid="ignore"):
        proper = away * events.mass[mother] / np.linalg.norm(events.p[mother, :3], axis=1)
    return Origins(kind, point, hadron, np.where(point.any(1), proper, 0.0))


def number_vertices(jet: NDArray[np.int64], point: NDArray[np.floating]) -> NDArray[np.int64]:
    """(T,) number of each track's vertex in its jet: 0 for the origin of coordinates, the others
    from 1 by their distance.

    Args:
        jet: (T,) owners; point: (T, 3) in mm, equal for tracks of one vertex.
    """
    distance = np.linalg.norm(point, axis=1)
    order = np.lexsort((*point.T, distance, jet))
    keys = np.column_stack([jet, point])[order]
    first = np.diff(jet[order], prepend=-1) != 0
    new = np.ones(len(order), bool)
    new[1:] = (keys[1:] != keys[:-1]).any(1)
    group = np.cumsum(new)
    starts = np.flatnonzero(first)
    before = np.repeat(
        group[starts] - (distance[order][starts] > 0), np.diff([*starts, len(order)])
    )
    number = np.empty(len(order), np.int64)
    number[order] = group - before
    return number
