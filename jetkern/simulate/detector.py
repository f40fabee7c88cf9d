"""A parametric detector in numpy: tracks, calorimeter towers and particle flow.

The chain and its parameters are those of Delphes 3 (arXiv:1307.6346) with its CMS-like and
ATLAS-like cards; "CMS-JetClass" is the variant that made JetClass (arXiv:2202.03772).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jetkern.simulate.events import NEUTRINOS, delta_phi, direction

Array = NDArray[np.floating]

CURVATURE = 0.299792458  # pT [GeV] = CURVATURE * B [T] * radius [m]
PHOTON, ELECTRON, MUON = 22, 11, 13
LONG_LIVED = (310, 3122)  # K0S and Lambda reach the calorimeters
ECAL_FRACTION_LONG_LIVED = 0.3
MAX_TRACK_ETA = 2.5
MIN_TRACK_PT = 0.1

# Identity codes of constituents: the rank in the sorted list of PDG codes, from 1; 0 is none.
PDG_CODES = (-211, -13, -11, 11, 13, 22, 130, 211)
PID = {pdg: rank for rank, pdg in enumerate(PDG_CODES, start=1)}


@dataclass(frozen=True)
class Grid:
    """Towers in eta and phi: rows between ``eta_edges``, each of a number of ``phi_cells``."""

    eta_edges: Array
    phi_cells: NDArray[np.int64]

    @classmethod
    def symmetric(cls, *regions: tuple[Array, float]) -> Grid:
        """From regions (edges at eta > 0, cell width in phi in degrees), the first one from 0."""
        edges = np.concatenate([edges for edges, _ in regions])
        cells = np.concatenate(
            [np.full(len(edges), round(360 / degrees)) for edges, degrees in regions]
        )
        return cls(np.concatenate([-edges[::-1], [0], edges]), np.concatenate([cells[::-1], cells]))

    def tower(self, eta: Array, phi: Array) -> NDArray[np.int64]:
        """Tower of each position, -1 outside."""
        row = np.searchsorted(self.eta_edges, eta, side="right") - 1
        inside = (row >= 0) & (row < len(self.phi_cells))
        row = np.where(inside, row, 0)
        cells = self.phi_cells[row]
        column = np.floor((phi + np.pi) / (2 * np.pi) * cells).astype(np.int64) % cells
        return np.where(inside, row * self.phi_cells.max() + column, -1)

    @property
    def size(self) -> int:
        return int(len(self.phi_cells) * self.phi_cells.max())

    def place(self, tower: NDArray[np.int64], u: Array, v: Array) -> tuple[Array, Array]:
        """eta and phi at the fractions ``u`` and ``v`` (0 to 1) of the towers' extents."""
        row, column = np.divmod(tower, self.phi_cells.max())
        low, high = self.eta_edges[row], self.eta_edges[row + 1]
        phi = 2 * np.pi * (column + v) / self.phi_cells[row] - np.pi
        return low + u * (high - low), phi

    def center_eta(self, tower: NDArray[np.int64]) -> Array:
        row = tower // self.phi_cells.max()
        return (self.eta_edges[row] + self.eta_edges[row + 1]) / 2


@dataclass(frozen=True)
class Calorimeter:
    """One calorimeter.

    Attributes:
        resolution: energy resolution in GeV as a function of (abs(eta), E).
        threshold: lowest energy of a tower in GeV.
        significance: lowest energy of a tower in units of its resolution.
    """

    grid: Grid
    resolution: Callable[[Array, Array], Array]
    threshold: float
    significance: float


@dataclass(frozen=True)
class Card:
    """A detector.

    Attributes:
        solenoid_radius, half_length: metres. field: tesla, along +z.
        ecal, hcal: the calorimeters.
        tracks_have_weight: whether a tower's tracks enter the weighted mean of tracks and tower
            with their own resolution. JetClass's card gives them none, so the tower decides.
    """

    solenoid_radius: float
    half_length: float
    field: float
    ecal: Calorimeter
    hcal: Calorimeter
    tracks_have_weight: bool


@dataclass(frozen=True)
class Particles:
    """Final-state particles of a batch of events.

    Attributes:
        event: (T,) int64. id: (T,) PDG code. charge, mass: (T,), mass in GeV.
        p: (T, 4) px, py, pz, E in GeV. vertex: (T, 3) production point in mm.
    """

    event: NDArray[np.int64]
    id: NDArray[np.int64]
    charge: Array
    mass: Array
    p: Array
    vertex: Array

    def select(self, rows: NDArray) -> Particles:
        return Particles(**{name: values[rows] for name, values in vars(self).items()})


@dataclass(frozen=True)
class Candidates:
    """Reconstructed particles.

    Attributes:
        event: (T,) int64. pid: (T,) identity code 1 to 8.
        p: (T, 4) px, py, pz, E in GeV.
        tracks: (T, 4) d0, d0 error, dz, dz error in mm; 0 for neutrals.
        source: (T,) row of the particle that made the track; -1 for neutrals.
    """

    event: NDArray[np.int64]
    pid: NDArray[np.int64]
    p: Array
    tracks: Array
    source: NDArray[np.int64]

    @classmethod
    def concat(cls, parts: list[Candidates]) -> Candidates:
        return cls(
            **{name: np.concatenate([vars(p)[name] for p in parts]) for name in vars(parts[0])}
        )


def detect(particles: Particles, card: Card, rng: np.random.Generator) -> Candidates:
    """What the detector reconstructs, sorted by event."""
    radius = np.hypot(particles.vertex[:, 0], particles.vertex[:, 1])
    inside = (radius < card.solenoid_radius * 1e3) & (
        np.abs(particles.vertex[:, 2]) < card.half_length * 1e3
    )
    invisible = np.isin(np.abs(particles.id), NEUTRINOS) | ~particles.p[:, :2].any(1)
    source = np.flatnonzero(inside & ~invisible)
    particles = particles.select(source)
    eta, phi = calorimeter_position(particles, card)
    code = np.abs(particles.id)

    is_track = rng.random(len(code)) < tracking_efficiency(particles)
    tracks = particles.select(is_track)
    resolution = track_resolution(tracks)
    pt = np.hypot(tracks.p[:, 0], tracks.p[:, 1])
    scale = log_normal(pt, resolution * pt, rng) / pt
    p = tracks.p[:, :3] * scale[:, None]
    energy = np.sqrt((p**2).sum(1) + tracks.mass**2)
    track_eta, track_phi = eta[is_track], phi[is_track]

    ecal_fraction = np.where((code == PHOTON) | (code == ELECTRON), 1.0, 0.0)
    ecal_fraction[np.isin(code, LONG_LIVED)] = ECAL_FRACTION_LONG_LIVED
    hcal_fraction = np.where(code == MUON, 0.0, 1 - ecal_fraction)
    track_code = np.abs(tracks.id)
    parts, factor = [], np.ones(len(energy))
    for calorimeter, fraction, members, neutral in (
        (card.ecal, ecal_fraction, track_code == ELECTRON, PHOTON),
        (card.hcal, hcal_fraction, (track_code != ELECTRON) & (track_code != MUON), 130),
    ):
        hit = fraction > 0
        excess, factor[members] = particle_flow(
            calorimeter,
            Hits(particles.event[hit], eta[hit], phi[hit], (particles.p[:, 3] * fraction)[hit]),
            Hits(tracks.event[members], track_eta[members], track_phi[members], energy[members]),
            (resolution * energy)[members] if card.tracks_have_weight else np.zeros(members.sum()),
            rng,
        )
        parts.append(_neutral_candidates(excess, PID[neutral]))

    identity = np.where(tracks.charge > 0, PID[211], PID[-211])
    for lepton in (ELECTRON, MUON):
        for pdg in (lepton, -lepton):
            identity[tracks.id == pdg] = PID[pdg]
    found = Candidates(
        tracks.event,
        identity,
        np.concatenate([p, energy[:, None]], axis=1) * factor[:, None],
        measured_impact(tracks, card.field, rng),
        source[is_track],
    )
    keep = np.hypot(found.p[:, 0], found.p[:, 1]) > 0
    parts.append(Candidates(**{name: values[keep] for name, values in vars(found).items()}))
    everything = Candidates.concat(parts)
    order = np.argsort(everything.event, kind="stable")
    return Candidates(**{name: values[order] for name, values in vars(everything).items()})


@dataclass(frozen=True)
class Hits:
    """(T,) energies in GeV at positions on the calorimeter."""

    event: NDArray[np.int64]
    eta: Array
    phi: Array
    energy: Array


def particle_flow(
    calorimeter: Calorimeter,
    deposits: Hits,
    tracks: Hits,
    track_sigma: Array,
    rng: np.random.Generator,
) -> tuple[Hits, Array]:
    """Neutral energy that the tracks do not explain, and the factor on each track's momentum.

    In a tower where the excess over the tracks is significant, it becomes a neutral particle and
    the tracks stay. Elsewhere the tracks are scaled to the weighted mean of tracks and tower.

    Args:
        track_sigma: (T,) uncertainty in GeV of each track's energy in that mean; where a tower's
            sum is zero, its tracks have no weight.
    """
    grid = calorimeter.grid
    hit_tower = grid.tower(deposits.eta, deposits.phi)
    track_tower = grid.tower(tracks.eta, tracks.phi)
    seen, covered = hit_tower >= 0, track_tower >= 0
    keys = np.concatenate(
        [
            (deposits.event * grid.size + hit_tower)[seen],
            (tracks.event * grid.size + track_tower)[covered],
        ]
    )
    towers, where = np.unique(keys, return_inverse=True)
    of_hit, of_track = np.split(where, [seen.sum()])

    def total(tower: NDArray[np.int64], values: Array) -> Array:
        return np.bincount(tower, values, len(towers)).astype(float)

    true_energy = total(of_hit, deposits.energy[seen])
    track_energy = total(of_track, tracks.energy[covered])
    track_variance = total(of_track, track_sigma[covered] ** 2)

    event, tower = np.divmod(towers, grid.size)
    abs_eta = np.abs(grid.center_eta(tower))
    energy = log_normal(true_energy, calorimeter.resolution(abs_eta, true_energy), rng)
    sigma = calorimeter.resolution(abs_eta, energy)
    energy[(energy < calorimeter.threshold) | (energy < calorimeter.significance * sigma)] = 0
    eta, phi = grid.place(tower, rng.random(len(towers)), rng.random(len(towers)))

    excess = np.maximum(energy - track_energy, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        significance = np.nan_to_num(excess / np.sqrt(track_variance + sigma**2))
        neutral = (excess > calorimeter.threshold) & (significance > calorimeter.significance)
        weight = np.where(track_variance > 0, 1 / track_variance, 0.0)
        tower_weight = np.where(sigma > 0, 1 / sigma**2, 0.0)
        best = (weight * track_energy + tower_weight * energy) / (weight + tower_weight)
        scale = np.where(neutral | ~np.isfinite(best), 1.0, best / track_energy)
    factor = np.ones(len(tracks.energy))
    factor[covered] = scale[of_track]
    return Hits(event[neutral], eta[neutral], phi[neutral], excess[neutral]), factor


def _neutral_candidates(hits: Hits, pid: int) -> Candidates:
    pt = hits.energy / np.cosh(hits.eta)
    p = np.stack(
        [pt * np.cos(hits.phi), pt * np.sin(hits.phi), pt * np.sinh(hits.eta), hits.energy], axis=1
    )
    count = len(hits.energy)
    return Candidates(hits.event, np.full(count, pid), p, np.zeros((count, 4)), np.full(count, -1))


def log_normal(mean: Array, sigma: Array, rng: np.random.Generator) -> Array:
    """Log-normal numbers of the given mean and standard deviation, 0 where the mean is 0."""
    z = rng.standard_normal(len(mean))
    with np.errstate(divide="ignore", invalid="ignore"):
        width = np.sqrt(np.log1p((sigma / mean) ** 2))
        return np.where(mean > 0, np.exp(np.log(mean) + width * (z - width / 2)), 0.0)


def helix(particles: Particles, field: float) -> tuple[Array, Array, Array]:
    """Centre (T, 2) and radius (T,) in mm of charged particles' circles, and the sense (T,).

    The sense is +1 for counter-clockwise. In a field along +z positive particles turn clockwise.
    """
    pt = np.hypot(particles.p[:, 0], particles.p[:, 1])
    radius = pt / (CURVATURE * field * np.abs(particles.charge)) * 1e3
    sense = -np.sign(particles.charge)
    unit = particles.p[:, :2] / pt[:, None]
    to_left = np.stack([-unit[:, 1], unit[:, 0]], axis=1)
    center = particles.vertex[:, :2] + (sense * radius)[:, None] * to_left
    return center, radius, sense


def calorimeter_position(particles: Particles, card: Card) -> tuple[Array, Array]:
    """eta and phi (T,), seen from the origin, of where each particle leaves the solenoid."""
    limit, half_length = card.solenoid_radius * 1e3, card.half_length * 1e3
    end = np.empty((len(particles.id), 3))
    pz, z = particles.p[:, 2], particles.vertex[:, 2]
    with np.errstate(divide="ignore"):
        # Both in units of path per momentum, mm / GeV.
        to_endcap = (np.copysign(half_length, pz) - z) / pz

    neutral = particles.charge == 0
    v, p = particles.vertex[neutral], particles.p[neutral, :3]
    pt2 = p[:, 0] ** 2 + p[:, 1] ** 2
    along = v[:, 0] * p[:, 0] + v[:, 1] * p[:, 1]
    gap = limit**2 - v[:, 0] ** 2 - v[:, 1] ** 2
    to_barrel = (np.sqrt(along**2 + pt2 * gap) - along) / pt2
    end[neutral] = v + np.minimum(to_barrel, to_endcap[neutral])[:, None] * p

    charged = particles.select(~neutral)
    center, radius, sense = helix(charged, card.field)
    distance = np.hypot(center[:, 0], center[:, 1])
    toward = np.arctan2(center[:, 1], center[:, 0])
    start = np.arctan2(charged.vertex[:, 1] - center[:, 1], charged.vertex[:, 0] - center[:, 0])
    cosine = (limit**2 - distance**2 - radius**2) / (2 * distance * radius)
    with np.errstate(invalid="ignore"):
        opening = np.where(distance + radius > limit, np.arccos(cosine), np.nan)
    turns = np.stack(
        [(sense * (toward + side * opening - start)) % (2 * np.pi) for side in (1, -1)]
    )
    turn_barrel = np.fmin(*turns)
    pt = np.hypot(charged.p[:, 0], charged.p[:, 1])
    turn = np.fmin(turn_barrel, to_endcap[~neutral] * pt / radius)
    angle = start + sense * turn
    end[~neutral, 0] = center[:, 0] + radius * np.cos(angle)
    end[~neutral, 1] = center[:, 1] + radius * np.sin(angle)
    end[~neutral, 2] = charged.vertex[:, 2] + turn * radius * charged.p[:, 2] / pt
    return direction(end)


def impact_parameters(particles: Particles, field: float) -> tuple[Array, Array]:
    """d0 and dz (T,) in mm of charged particles at their closest approach to the z axis.

    d0 = (x py - y px) / pT with the position and the momentum there, as in Delphes: d0 pT is the
    angular momentum about the beam. dz is the z of that point.
    """
    center, radius, sense = helix(particles, field)
    distance = np.hypot(center[:, 0], center[:, 1])
    # A circle larger than its centre's distance has the axis inside, on the centre's side.
    d0 = sense * (radius - distance)
    approach = np.arctan2(-center[:, 1], -center[:, 0])
    start = np.arctan2(particles.vertex[:, 1] - center[:, 1], particles.vertex[:, 0] - center[:, 0])
    back = sense * delta_phi(start, approach)
    pt = np.hypot(particles.p[:, 0], particles.p[:, 1])
    return d0, particles.vertex[:, 2] - back * radius * particles.p[:, 2] / pt


def _resolution_table() -> tuple[Array, Array, Array]:
    """pT edges in GeV, and the widths (quantity, abs(eta) range, pT bin) in mm of d0 and dz."""
    table = json.loads(Path(__file__).with_name("resolution.json").read_text())
    widths = [list(table[name].values()) for name in ("d0_mm", "dz_mm")]
    eta_edges = [float(key.split("-")[1]) for key in table["d0_mm"]]
    return np.array(table["pt_edges_GeV"]), np.array(widths), np.array(eta_edges)


IMPACT_PT_EDGES, IMPACT_WIDTHS, IMPACT_ETA_EDGES = _resolution_table()


def measured_impact(particles: Particles, field: float, rng: np.random.Generator) -> Array:
    """(T, 4) d0, its error, dz, its error in mm, with Gaussian measurement errors."""
    eta, _ = direction(particles.p)
    pt = np.hypot(particles.p[:, 0], particles.p[:, 1])
    region = np.minimum(np.searchsorted(IMPACT_ETA_EDGES, np.abs(eta)), len(IMPACT_ETA_EDGES) - 1)
    column = np.maximum(np.searchsorted(IMPACT_PT_EDGES, pt, side="right") - 1, 0)
    error = IMPACT_WIDTHS[:, region, column]
    value = np.stack(impact_parameters(particles, field)) + error * rng.standard_normal(error.shape)
    return np.stack([value[0], error[0], value[1], error[1]], axis=1)


def tracking_efficiency(particles: Particles) -> Array:
    """(T,) probability of a track, 0 for neutrals."""
    eta, _ = direction(particles.p)
    pt = np.hypot(particles.p[:, 0], particles.p[:, 1])
    code = np.abs(particles.id)
    barrel = np.abs(eta) < 1.5
    soft = pt < 1

    def by_region(central: Array | float, forward: Array | float) -> Array:
        return np.where(barrel, central, forward)

    hadron = by_region(np.where(soft, 0.70, 0.95), np.where(soft, 0.60, 0.85))
    electron = np.where(
        soft,
        by_region(0.73, 0.50),
        np.where(pt < 100, by_region(0.95, 0.83), by_region(0.99, 0.90)),
    )
    muon = by_region(np.where(soft, 0.75, 0.99), np.where(soft, 0.70, 0.98))
    efficiency = np.where(code == ELECTRON, electron, np.where(code == MUON, muon, hadron))
    visible = (particles.charge != 0) & (np.abs(eta) < MAX_TRACK_ETA) & (pt > MIN_TRACK_PT)
    return np.where(visible, efficiency, 0.0)


# Relative pT resolution sqrt(a^2 + (b pT)^2), (a, b) for abs(eta) < 0.5, 1.5, 2.5.
TRACK_ETA_EDGES = np.array([0.5, 1.5])
HADRON_RESOLUTION = np.array([[0.06, 1.3e-3], [0.10, 1.7e-3], [0.25, 3.1e-3]])
ELECTRON_RESOLUTION = np.array([[0.03, 1.3e-3], [0.05, 1.7e-3], [0.15, 3.1e-3]])
MUON_RESOLUTION = np.array([[0.01, 1.0e-4], [0.015, 1.5e-4], [0.025, 3.5e-4]])


def track_resolution(particles: Particles) -> Array:
    """(T,) relative resolution of the transverse momentum."""
    eta, _ = direction(particles.p)
    region = np.searchsorted(TRACK_ETA_EDGES, np.abs(eta), side="right")
    code = np.abs(particles.id)[:, None]
    a, b = np.where(
        code == ELECTRON,
        ELECTRON_RESOLUTION[region],
        np.where(code == MUON, MUON_RESOLUTION[region], HADRON_RESOLUTION[region]),
    ).T
    return np.hypot(a, b * np.hypot(particles.p[:, 0], particles.p[:, 1]))


def _cms_ecal(eta: Array, energy: Array) -> Array:
    central = np.sqrt((0.008 * energy) ** 2 + 0.11**2 * energy + 0.40**2)
    return np.where(
        eta <= 1.5,
        (1 + 0.64 * eta**2) * central,
        np.where(
            eta <= 2.5,
            (2.16 + 5.6 * (eta - 2) ** 2) * central,
            np.sqrt((0.107 * energy) ** 2 + 2.08**2 * energy),
        ),
    )


def _cms_hcal(eta: Array, energy: Array) -> Array:
    return np.sqrt((0.05 * energy) ** 2 + 1.5**2 * energy)


def _atlas_ecal(eta: Array, energy: Array) -> Array:
    return np.sqrt((0.0017 * energy) ** 2 + 0.101**2 * energy)


def _atlas_hcal(eta: Array, energy: Array) -> Array:
    return np.where(
        eta <= 1.7,
        np.sqrt((0.0302 * energy) ** 2 + 0.5205**2 * energy + 1.59**2),
        np.sqrt((0.05 * energy) ** 2 + 0.706**2 * energy),
    )


MAX_ETA = 2.95  # jets need no more
ECAL_GRID = Grid.symmetric((np.append(np.arange(1, 170) * 0.0174, MAX_ETA), 1))
CMS_HCAL_GRID = Grid.symmetric(
    (np.arange(1, 20) * 0.087, 5),
    (np.array([1.74, 1.83, 1.93, 2.043, 2.172, 2.322, 2.5, 2.65, 2.868, MAX_ETA]), 10),
)
ATLAS_HCAL_GRID = Grid.symmetric((np.append(np.arange(1, 30) * 0.1, MAX_ETA), 10))


def _cms(hcal_significance: float, tracks_have_weight: bool) -> Card:
    return Card(
        solenoid_radius=1.29,
        half_length=3.0,
        field=3.8,
        ecal=Calorimeter(ECAL_GRID, _cms_ecal, 0.5, 2.0),
        hcal=Calorimeter(CMS_HCAL_GRID, _cms_hcal, 1.0, hcal_significance),
        tracks_have_weight=tracks_have_weight,
    )


CARDS = {
    "CMS-JetClass": _cms(hcal_significance=1.0, tracks_have_weight=False),
    "CMS": _cms(hcal_significance=2.0, tracks_have_weight=True),
    "ATLAS": Card(
        solenoid_radius=1.15,
        half_length=3.51,
        field=2.0,
        ecal=Calorimeter(ECAL_GRID, _atlas_ecal, 0.5, 2.0),
        hcal=Calorimeter(ATLAS_HCAL_GRID, _atlas_hcal, 1.0, 2.0),
        tracks_have_weight=True,
    ),
}
