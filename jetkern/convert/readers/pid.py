"""Particle identities: 0 for unknown, 1 to 8 for the rank in the sorted list of PDG codes
-211, -13, -11, 11, 13, 22, 130, 211, which stand for hadrons, muons, electrons and photons."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

CODES = (-211, -13, -11, 11, 13, 22, 130, 211)
_RANK = {code: rank for rank, code in enumerate(CODES, 1)}
_LEPTONS_AND_PHOTON = (11, 13, 22)
_NEUTRAL = (130, 310, 311, 2112, 3122, 3212, 3322, 111, 221)
# Particles whose charge has the sign of their code, and those where it is the opposite.
_CHARGED = (211, 321, 2212, 3222, 411, 431, 521)
_OPPOSITE = (3112, 3312, 3334)


def from_flags(
    charge: NDArray[Any],
    charged_hadron: NDArray[Any],
    neutral_hadron: NDArray[Any],
    photon: NDArray[Any],
    electron: NDArray[Any],
    muon: NDArray[Any],
) -> NDArray[np.int64]:
    """(T,) identities of particles with flags; none of the flags gives 0."""
    positive = np.asarray(charge) > 0
    return np.select(
        [np.asarray(f) > 0 for f in (muon, electron, photon, charged_hadron, neutral_hadron)],
        [
            np.where(positive, _RANK[-13], _RANK[13]),
            np.where(positive, _RANK[-11], _RANK[11]),
            _RANK[22],
            np.where(positive, _RANK[211], _RANK[-211]),
            _RANK[130],
        ],
        default=0,
    )


def from_pdg(codes: NDArray[Any]) -> NDArray[np.int64]:
    """(T,) identities of PDG codes; -1 for a code that is not known here."""
    codes = np.asarray(codes, np.int64)
    size = np.abs(codes)
    sign = np.sign(codes)
    result = np.full(codes.shape, -1, np.int64)
    result[codes == 0] = 0
    for code in _LEPTONS_AND_PHOTON:
        for signed in {code, -code} & set(CODES):
            result[codes == signed] = _RANK[signed]
    result[np.isin(size, _NEUTRAL)] = _RANK[130]
    for group, factor in ((_CHARGED, 1), (_OPPOSITE, -1)):
        inside = np.isin(size, group)
        result[inside] = np.where(sign[inside] * factor > 0, _RANK[211], _RANK[-211])
    return result
