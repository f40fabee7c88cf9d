"""Particle identities: 0 for unknown, 1 to 8 for the rank in the sorted list of PDG codes
-211, -13, -11, 11, 13, 22, 130, 211, which stand for hadrons, muons, electrons and photons."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

CODES = (-211, -13, -11, 11, 13, 22, 130, 211)
_RANK = {code: rank for rank, code in enumerate(CODES, 1)}
_LEPTONS_AND_PHOTON = (11, 13, 22)
# CMS's forward calorimeter: hadronic and electromagnetic deposits.
_FORWARD_HADRON, _FORWARD_PHOTON = 1, 2
_NEUTRAL_SPECIALS = (130, 310)  # K0L and K0S, which are no states of definite quark content
_QUARK_CHARGE = np.array([0, -1, 2, -1, 2, -1, 2, 0, 0, 0])  # of d, u, s, c, b, t; in thirds
_MASS = {  # GeV, of what detectors tell apart
    11: 0.000510999, 13: 0.105658, 22: 0.0, 211: 0.139570, 111: 0.134977, 130: 0.497611,
    310: 0.497611, 311: 0.497611, 321: 0.493677, 2212: 0.938272, 2112: 0.939565,
    3122: 1.115683, 3222: 1.18937, 3112: 1.19745, 3312: 1.32171, 3322: 1.31486, 3334: 1.67245,
}  # fmt: skip


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
    """(T,) identities of PDG codes; -1 for a code that stands for nothing that a detector sees.

    Hadrons are charged or neutral by their quarks, nuclei by their number of protons; 1 and 2 are
    the deposits in CMS's forward calorimeter, a neutral hadron and a photon.
    """
    codes = np.asarray(codes, np.int64)
    size = np.abs(codes)
    result = np.full(codes.shape, -1, np.int64)
    result[codes == 0] = 0
    for code in _LEPTONS_AND_PHOTON:
        for signed in {code, -code} & set(CODES):
            result[codes == signed] = _RANK[signed]
    result[codes == _FORWARD_HADRON] = _RANK[130]
    result[codes == _FORWARD_PHOTON] = _RANK[22]
    charge, hadron = hadron_charge(codes)
    of_hadrons = np.select([charge > 0, charge < 0], [_RANK[211], _RANK[-211]], _RANK[130])
    result[hadron] = of_hadrons[hadron]
    nucleus = size >= 1_000_000_000
    protons = (size // 10_000 % 1000) * np.sign(codes)
    nuclei = np.select([protons > 0, protons < 0], [_RANK[211], _RANK[-211]], _RANK[130])
    result[nucleus] = nuclei[nucleus]
    return result


def hadron_charge(codes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Charges (in units of e) by PDG codes' quarks, and whether a code is that of a hadron."""
    size = np.abs(codes)
    first, second, third = (size // power % 10 for power in (1000, 100, 10))
    hadron = (size > 100) & (size < 10_000_000) & (second > 0) & (third > 0)
    for quark in (first, second, third):
        hadron &= quark <= 5
    # A meson's code is positive if its heavier quark is up-like, or its antiquark down-like.
    meson = np.where(second % 2 == 0, 1, -1) * (_QUARK_CHARGE[second] - _QUARK_CHARGE[third])
    baryon = _QUARK_CHARGE[first] + _QUARK_CHARGE[second] + _QUARK_CHARGE[third]
    thirds = np.where(first == 0, meson, baryon) * np.sign(codes)
    special = np.isin(size, _NEUTRAL_SPECIALS)
    return np.where(special, 0, thirds) // 3, hadron | special


def pdg_mass(codes: NDArray[Any]) -> NDArray[np.float64]:
    """(T,) masses in GeV of particles by their PDG codes; NaN for one that is not known here."""
    size = np.abs(np.asarray(codes, np.float64))
    mass = np.full(size.shape, np.nan)
    mass[size == 0] = 0  # padding, and particles of unknown kind
    for code, value in _MASS.items():
        mass[size == code] = value
    return mass
