"""What the hard process put into a jet."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jetkern.simulate.events import NEUTRINOS, Events, delta_phi, direction

INTERMEDIATE = (23, 24)
HARD_OUTGOING = (22, 23)


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
    near = (event[:, None] == targets.event) & (
        np.hypot(eta[:, None] - targets.eta, delta_phi(phi[:, None], targets.phi)) < radius
    )
    starts = np.flatnonzero(np.diff(targets.group, prepend=-1))
    return np.any(np.logical_and.reduceat(near, starts, axis=1), axis=1)
