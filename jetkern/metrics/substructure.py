"""Observables of packed jets: four-momentum, N-subjettiness, D2, direction.

Constituents are massless with momenta from (pT, delta eta, delta phi). What a jet has too few
particles for is NaN, which the distances of ``jetkern.metrics.generation`` leave out.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray

from jetkern.jets import Jets, unpack
from jetkern.metrics.generation import Sample

Floats = NDArray[np.float64]

RADIUS = 0.8  # of the jets of JetNet
CHUNK = 256  # jets of a pass through the n^3 products

PARTICLE = ("particle delta eta", "particle delta phi", "particle ln pT", "particle ln E")
JET = ("mass", "pT", "energy", "eta", "tau21", "tau32", "D2", "multiplicity")


def observables(jets: Jets) -> dict[str, Sample]:
    """The particle features and jet observables of arXiv 2606.14870 by name (GeV).

    Differences from its code: the sign of the jet's eta (see ``jet_eta``), and jets of fewer than
    three particles stay, with NaN for the ratios that they do not have.
    """
    offsets = jets.offsets.numpy()
    columns = jets.particles.double().numpy().T
    eta, phi, log_pt, log_energy = columns
    found = {n: Sample(c, offsets) for n, c in zip(PARTICLE, columns, strict=True)}
    pt, energy = np.exp(log_pt), np.exp(log_energy)
    mass, jet_pt = mass_and_pt(pt, eta, phi, offsets)
    tau = subjettiness(pt, eta, phi, offsets)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(tau[:, :2] > 0, tau[:, 1:] / tau[:, :2], np.nan)
    values = (
        mass,
        jet_pt,
        _sums(energy, offsets),
        jet_eta(pt, energy, eta, offsets),
        ratios[:, 0],
        ratios[:, 1],
        d2(pt, eta, phi, offsets),
        np.diff(offsets),
    )
    return found | {n: Sample(v) for n, v in zip(JET, values, strict=True)}


def mass_and_pt(
    pt: Floats, eta: Floats, phi: Floats, offsets: NDArray[np.int64]
) -> tuple[Floats, Floats]:
    """(B,) mass and pT of the sum of the particles (T,), both 0 for a jet without particles."""
    x, y = _sums(pt * np.cos(phi), offsets), _sums(pt * np.sin(phi), offsets)
    e, z = _sums(pt * np.cosh(eta), offsets), _sums(pt * np.sinh(eta), offsets)
    return np.sqrt(np.clip(e**2 - x**2 - y**2 - z**2, 0, None)), np.hypot(x, y)


def subjettiness(pt: Floats, eta: Floats, phi: Floats, offsets: NDArray[np.int64]) -> Floats:
    """(B, 3) tau_1, tau_2, tau_3 with beta = 1 about exclusive kT axes, E-scheme, R = 0.8.

    tau_N = sum pT min_a dR / (R sum pT) over the N exclusive jets a (arXiv 1011.2268; the axes of
    arXiv 2606.14870, not minimised). A jet of N particles or fewer has 0, one without any NaN.
    """
    import awkward
    import fastjet

    counts = np.diff(offsets)
    result = np.where(counts[:, None] > 0, 0.0, np.full((1, 3), np.nan))
    definition = fastjet.JetDefinition(fastjet.kt_algorithm, RADIUS)
    momenta = {
        "px": pt * np.cos(phi),
        "py": pt * np.sin(phi),
        "pz": pt * np.sinh(eta),
        "E": pt * np.cosh(eta),
    }
    every = awkward.Array({k: awkward.unflatten(v, counts) for k, v in momenta.items()})
    every = awkward.zip({k: every[k] for k in momenta}, with_name="Momentum4D")
    for n in (1, 2, 3):
        chosen = np.flatnonzero(counts > n)
        if not len(chosen):
            continue
        cluster = fastjet.ClusterSequence(every[chosen], definition)
        with warnings.catch_warnings():  # that it is meant for kT, which this is
            warnings.filterwarnings("ignore", message="dcut and exclusive jets")
            axes = cluster.exclusive_jets(n_jets=n)
        axis = {k: awkward.to_numpy(axes[k]).astype(np.float64) for k in momenta}
        transverse = np.hypot(axis["px"], axis["py"])
        axis_eta = np.arcsinh(axis["pz"] / np.where(transverse > 0, transverse, 1.0))
        axis_phi = np.arctan2(axis["py"], axis["px"])
        owner = np.repeat(np.arange(len(chosen)), counts[chosen])
        rows = np.concatenate([np.arange(offsets[j], offsets[j + 1]) for j in chosen])
        d_phi = phi[rows, None] - axis_phi[owner]
        d_phi = (d_phi + np.pi) % (2 * np.pi) - np.pi
        nearest = np.hypot(eta[rows, None] - axis_eta[owner], d_phi).min(1)
        own = np.concatenate([[0], np.cumsum(counts[chosen])])
        scale = RADIUS * _sums(pt[rows], own)
        result[chosen, n - 1] = _sums(pt[rows] * nearest, own) / scale
    return result


def d2(pt: Floats, eta: Floats, phi: Floats, offsets: NDArray[np.int64]) -> Floats:
    """(B,) D2 = e3 / e2^3 with beta = 1 (arXiv 1409.6298); NaN where e2 is 0.

    e2 and e3 are the sums over pairs and triples of pT fractions times the distances between them.
    With M_ij = z_j dR_ij they are sums over M and the trace of M^3.
    """
    rows = torch.from_numpy(np.stack([pt, eta, phi], axis=1))
    result = []
    for first in range(0, len(offsets) - 1, CHUNK):
        bounds = torch.from_numpy(offsets[first : first + CHUNK + 1])
        padded, _ = unpack(rows[bounds[0] : bounds[-1]], bounds - bounds[0])
        z = padded[..., 0]
        z = z / z.sum(1, keepdim=True).clamp(min=1e-300)
        difference = padded[:, :, None, 1:] - padded[:, None, :, 1:]
        wrapped = torch.remainder(difference[..., 1] + torch.pi, 2 * torch.pi) - torch.pi
        weighted = torch.hypot(difference[..., 0], wrapped) * z[:, None, :]
        e2 = (weighted * z[:, :, None]).sum((1, 2)) / 2
        e3 = ((weighted @ weighted) * weighted.mT).sum((1, 2)) / 6
        result.append(torch.where(e2 > 0, e3 / e2**3, torch.nan).numpy())
    return np.concatenate(result) if result else np.zeros(0)


def jet_eta(pt: Floats, energy: Floats, delta_eta: Floats, offsets: NDArray[np.int64]) -> Floats:
    """(B,) pseudorapidity of the jets, from their particles' E / pT = cosh(eta).

    A particle tells |eta| only. The study's code takes |eta| - delta eta, which is wrong where eta
    is negative, that is for half the jets. Here the sign of a particle is that of the jet's eta
    plus delta eta, and of the two solutions that begin on either side the one is taken in which the
    particles agree better. One particle cannot tell: it has the positive solution.
    """
    size = np.arccosh(np.maximum(energy / pt, 1.0))
    counts = np.diff(offsets)
    owner = np.repeat(np.arange(len(counts)), counts)

    def mean(values: Floats) -> Floats:
        return _sums(values, offsets) / np.maximum(counts, 1)

    solutions, spreads = [], []
    for side in (1.0, -1.0):
        eta = mean(side * size - delta_eta)
        for _ in range(4):
            estimate = np.where(eta[owner] + delta_eta >= 0, size, -size) - delta_eta
            eta = mean(estimate)
        solutions.append(eta)
        spreads.append(mean((estimate - eta[owner]) ** 2))
    # Equal spreads differ by rounding.
    positive = spreads[0] <= spreads[1] * (1 + 1e-9) + 1e-12
    return np.where(counts > 0, np.where(positive, *solutions), np.nan)


def _sums(values: Floats, offsets: NDArray[np.int64]) -> Floats:
    """(B,) sums of packed values (T,)."""
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    return np.bincount(owner, values, minlength=len(offsets) - 1).astype(np.float64)
