"""Clustering with FastJet and the features of the constituents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import awkward as ak
import fastjet
import numpy as np
import vector
from numpy.typing import NDArray

from jetkern.simulate.detector import Candidates
from jetkern.simulate.events import delta_phi, direction

vector.register_awkward()
fastjet._swig.ClusterSequence.set_fastjet_banner_stream(None)


@dataclass(frozen=True)
class ClusteredJets:
    """M jets.

    Attributes:
        event: (M,) int64. p: (M, 4) px, py, pz, E in GeV.
        offsets: (M + 1,) int64; jet j's constituents are ``rows[offsets[j]:offsets[j + 1]]``.
        rows: (T,) int64 rows of the candidates.
    """

    event: NDArray[np.int64]
    p: NDArray[np.floating]
    offsets: NDArray[np.int64]
    rows: NDArray[np.int64]

    @property
    def pt(self) -> NDArray[np.floating]:
        return np.hypot(self.p[:, 0], self.p[:, 1])

    def select(self, keep: NDArray) -> ClusteredJets:
        """The jets of a mask or of indices."""
        jets = np.arange(len(self.event))[keep]
        count = np.diff(self.offsets)[jets]
        offsets = np.concatenate([[0], np.cumsum(count)])
        rows = self.rows[
            np.arange(offsets[-1]) + np.repeat(self.offsets[jets] - offsets[:-1], count)
        ]
        return ClusteredJets(self.event[jets], self.p[jets], offsets, rows)


def only(jets: ClusteredJets, keep: NDArray[np.bool_]) -> ClusteredJets:
    """The same jets with those constituents that are kept, by a mask (T,) of the candidates."""
    kept = keep[jets.rows]
    offsets = np.concatenate([[0], np.cumsum(kept)])[jets.offsets]
    return ClusteredJets(jets.event, jets.p, offsets, jets.rows[kept])


def cluster(candidates: Candidates, events: int, radius: float, min_pt: float) -> ClusteredJets:
    """Anti-kT jets above ``min_pt`` GeV of candidates that are sorted by event."""
    per_event = np.bincount(candidates.event, minlength=events)
    definition = fastjet.JetDefinition(fastjet.antikt_algorithm, radius)
    sequence = fastjet.ClusterSequence(fastjet_input(candidates.p, per_event), definition)
    jets = sequence.inclusive_jets(min_pt=min_pt)
    members = sequence.constituent_index(min_pt=min_pt)
    event = np.repeat(np.arange(events), ak.to_numpy(ak.num(jets)))
    flat = ak.flatten(jets)
    members = ak.flatten(members)
    first = (np.cumsum(per_event) - per_event)[event]
    count = ak.to_numpy(ak.num(members))
    rows = ak.to_numpy(ak.flatten(members)).astype(np.int64) + np.repeat(first, count)
    p = np.stack([ak.to_numpy(flat[name]) for name in ("px", "py", "pz", "E")], axis=1)
    return ClusteredJets(event, p, np.concatenate([[0], np.cumsum(count)]), rows)


def fastjet_input(p: NDArray[np.floating], counts: NDArray[np.integer]) -> ak.Array:
    """(T, 4) momenta px, py, pz, E as lists of the given lengths."""
    fields = dict(zip(("px", "py", "pz", "E"), p.T, strict=True))
    return ak.unflatten(ak.zip(fields, with_name="Momentum4D"), counts)


def leading(jets: ClusteredJets) -> NDArray[np.bool_]:
    """(M,) whether each jet is the hardest of its event."""
    order = np.lexsort((-jets.pt, jets.event))
    first = np.ones(len(order), bool)
    first[1:] = np.diff(jets.event[order]) > 0
    result = np.zeros(len(order), bool)
    result[order[first]] = True
    return result


def jet_features(jets: ClusteredJets) -> NDArray[np.floating]:
    """(M, 4) pT, eta, phi and mass, in GeV."""
    eta, phi = direction(jets.p)
    mass2 = jets.p[:, 3] ** 2 - (jets.p[:, :3] ** 2).sum(1)
    return np.stack([jets.pt, eta, phi, np.sqrt(np.maximum(mass2, 0))], axis=1)


@dataclass(frozen=True)
class PaddedJets:
    """M jets of up to P constituents, highest pT first, zeros behind.

    Attributes:
        features: (M, P, 4) delta eta, delta phi, ln pT, ln E; GeV.
        pid: (M, P) identity codes. tracks: (M, P, 4) d0, d0 error, dz, dz error in mm.
        jets: (M, 4) pT, eta, phi, mass of the whole jet.
        count: (M,) constituents kept. dropped: (M,) constituents beyond P.
        source: (M, P) rows of the particles that made the tracks, -1 for none.
        truth: further arrays (M, ...) by the name of their dataset.
    """

    features: NDArray[np.floating]
    pid: NDArray[np.int64]
    tracks: NDArray[np.floating]
    jets: NDArray[np.floating]
    count: NDArray[np.int64]
    dropped: NDArray[np.int64]
    source: NDArray[np.int64]
    truth: dict[str, NDArray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.jets)

    @property
    def mask(self) -> NDArray[np.bool_]:
        return np.arange(self.features.shape[1]) < self.count[:, None]

    def __getitem__(self, rows: slice) -> PaddedJets:
        return self._map(lambda name: vars(self)[name][rows], lambda name: self.truth[name][rows])

    @classmethod
    def concat(cls, parts: list[PaddedJets]) -> PaddedJets:
        return parts[0]._map(
            lambda name: np.concatenate([vars(p)[name] for p in parts]),
            lambda name: np.concatenate([p.truth[name] for p in parts]),
        )

    def _map(self, values: Callable[[str], NDArray], truth: Callable[[str], NDArray]) -> PaddedJets:
        arrays = {name: values(name) for name in vars(self) if name != "truth"}
        return PaddedJets(**arrays, truth={name: truth(name) for name in self.truth})


def padded(jets: ClusteredJets, candidates: Candidates, length: int) -> PaddedJets:
    """The jets' constituents as padded arrays."""
    summary = jet_features(jets)
    total = np.diff(jets.offsets)
    jet = np.repeat(np.arange(len(total)), total)
    p = candidates.p[jets.rows]
    pt = np.hypot(p[:, 0], p[:, 1])
    order = np.lexsort((-pt, jet))
    rank = np.arange(len(order)) - jets.offsets[:-1][jet]
    order, rank = order[rank < length], rank[rank < length]
    jet, p, pt, rows = jet[order], p[order], pt[order], jets.rows[order]
    eta, phi = direction(p)
    place = (jet, rank)
    features = np.zeros((len(total), length, 4))
    features[place] = np.stack(
        [
            eta - summary[jet, 1],
            delta_phi(phi, summary[jet, 2]),
            np.log(pt),
            np.log(p[:, 3]),
        ],
        axis=1,
    )
    pid = np.zeros((len(total), length), np.int64)
    pid[place] = candidates.pid[rows]
    tracks = np.zeros((len(total), length, 4))
    tracks[place] = candidates.tracks[rows]
    source = np.full((len(total), length), -1)
    source[place] = candidates.source[rows]
    count = np.minimum(total, length)
    return PaddedJets(features, pid, tracks, summary, count, total - count, source)
