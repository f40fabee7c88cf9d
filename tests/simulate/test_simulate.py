"""The simulation: detector and truth on made-up particles, then whole small data sets."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from jetkern.cli import simulate as command
from jetkern.simulate import SimulationError, detector
from jetkern.simulate.detector import (
    CARDS,
    CMS_HCAL_GRID,
    CURVATURE,
    ECAL_GRID,
    PID,
    Candidates,
    Hits,
    Particles,
    detect,
    impact_parameters,
)
from jetkern.simulate.events import Events, delta_phi, direction
from jetkern.simulate.files import replacing
from jetkern.simulate.run import Request
from jetkern.simulate.truth import find_targets, matched

ROOT = Path(__file__).parents[2]


def particles(*rows):
    """Each row: PDG code, charge, mass, (pT, eta, phi), vertex in mm, and optionally the event."""
    ids, charges, masses, kinematics, vertices, events = zip(
        *((*row, 0) if len(row) == 5 else row for row in rows), strict=True
    )
    pt, eta, phi = np.array(kinematics, float).T
    p3 = np.stack([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)], axis=1)
    mass = np.array(masses, float)
    energy = np.sqrt((p3**2).sum(1) + mass**2)
    return Particles(
        np.array(events, np.int64),
        np.array(ids, np.int64),
        np.array(charges, float),
        mass,
        np.column_stack([p3, energy]),
        np.array(vertices, float),
    )


def pion(kinematics, vertex=(0, 0, 0), charge=1):
    return (211 * charge, charge, 0.13957, kinematics, vertex)


def stepped(particle, field, step, steps):
    """Positions (steps + 1, 3) in mm of a charged particle by small rotations of its momentum."""
    pt = np.hypot(*particle.p[0, :2])
    turn = -particle.charge[0] * CURVATURE * field / pt * step * 1e-3
    rotation = np.exp(1j * turn)
    direction_now = complex(*particle.p[0, :2]) / pt
    position = complex(*particle.vertex[0, :2])
    z, path = particle.vertex[0, 2], [(position, particle.vertex[0, 2])]
    for _ in range(steps):
        position += direction_now * np.sqrt(rotation) * step
        direction_now *= rotation
        z += particle.p[0, 2] / pt * step
        path.append((position, z))
    return np.array([(p.real, p.imag, z) for p, z in path])


@pytest.mark.parametrize("charge", [1, -1])
@pytest.mark.parametrize("eta", [0.3, -2.0, 2.4])
@pytest.mark.parametrize("pt", [0.4, 0.9, 3.0])
def test_helix_reaches_the_calorimeter_where_small_steps_do(charge, eta, pt):
    card = CARDS["CMS"]
    track = particles(pion((pt, eta, 1.1), (3.0, -2.0, 5.0), charge))
    path = stepped(track, card.field, 0.2, 60_000)
    outside = (np.hypot(path[:, 0], path[:, 1]) > 1290) | (np.abs(path[:, 2]) > 3000)
    end = path[np.argmax(outside)]
    assert outside.any()
    found = np.array(detector.calorimeter_position(track, card)).ravel()
    expected = np.array(direction(end[None])).ravel()
    assert found[0] == pytest.approx(expected[0], abs=2e-3)
    assert delta_phi(found[1], expected[1]) == pytest.approx(0, abs=2e-3)


def test_positive_particles_turn_clockwise_and_neutral_ones_fly_straight():
    track = particles(pion((5, 0.2, 0.5)), pion((5, 0.2, 0.5), charge=-1), photon((5, 0.2, 0.5)))
    eta, phi = detector.calorimeter_position(track, CARDS["CMS"])
    bend = np.arcsin(CURVATURE * 3.8 * 1.29 / 2 / 5)
    np.testing.assert_allclose(phi, [0.5 - bend, 0.5 + bend, 0.5], atol=1e-9)
    assert eta[2] == pytest.approx(0.2)


def photon(kinematics, vertex=(0, 0, 0)):
    return (22, 0, 0.0, kinematics, vertex)


@pytest.mark.parametrize("charge", [1, -1])
def test_impact_parameters_agree_with_small_steps_backwards(charge):
    track = particles(pion((2.0, 0.7, 0.4), (20.0, 30.0, 10.0), charge))
    reverse = replace(
        track, p=track.p * [-1, -1, -1, 1], charge=-track.charge
    )  # the same circle, backwards
    path = stepped(reverse, 3.8, 0.01, 10_000)
    closest = path[np.argmin(np.hypot(path[:, 0], path[:, 1]))]
    d0, dz = impact_parameters(track, 3.8)
    assert abs(d0[0]) == pytest.approx(np.hypot(*closest[:2]), abs=0.01)
    assert dz[0] == pytest.approx(closest[2], abs=0.02)


def test_sign_of_d0_is_that_of_the_angular_momentum_about_the_beam():
    # Nearly straight, along +x, passing the axis at y = +1 and -1 mm: L_z = -y p.
    track = particles(
        *[pion((500, 0, 0), (0, y, 0), charge) for y in (1, -1) for charge in (1, -1)]
    )
    d0, dz = impact_parameters(track, 3.8)
    np.testing.assert_allclose(d0, [-1, -1, 1, 1], atol=1e-6)
    np.testing.assert_allclose(dz, 0, atol=1e-9)
    # From the axis itself, whatever the momentum.
    d0, dz = impact_parameters(particles(pion((0.3, 1, 2), (0, 0, 7))), 3.8)
    np.testing.assert_allclose([d0[0], dz[0]], [0, 7], atol=1e-9)


def test_measured_impact_parameters_have_the_stated_errors():
    track = particles(*[pion((5, eta, 0.3)) for eta in (0.2, 1.2, 2.0) for _ in range(4000)])
    measured = detector.measured_impact(track, 3.8, np.random.default_rng(0))
    pulls = measured[:, [0, 2]] / measured[:, [1, 3]]
    np.testing.assert_allclose(pulls.std(0), 1, atol=0.02)
    np.testing.assert_allclose(pulls.mean(0), 0, atol=0.02)
    # 4.4837 to 5.4772 GeV, in the three ranges of abs(eta).
    assert measured[::4000, 1].tolist() == [0.0283, 0.0313, 0.0425]
    assert measured[::4000, 3].tolist() == [0.0484, 0.0707, 0.1816]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (pion((0.05, 0, 0)), 0),
        (pion((0.5, 0, 0)), 0.70),
        (pion((5, 1.0, 0)), 0.95),
        (pion((5, 2.0, 0)), 0.85),
        (pion((5, 2.6, 0)), 0),
        ((11, -1, 0.000511, (150, 2.0, 0), (0, 0, 0)), 0.90),
        ((-13, 1, 0.105, (5, -2.0, 0), (0, 0, 0)), 0.98),
        (photon((5, 0, 0)), 0),
    ],
)
def test_tracking_efficiency(row, expected):
    assert detector.tracking_efficiency(particles(row))[0] == expected


def test_grid_places_a_tower_where_it_was_found():
    rng = np.random.default_rng(1)
    eta, phi = rng.uniform(-2.94, 2.94, 1000), rng.uniform(-np.pi, np.pi, 1000)
    for grid in (ECAL_GRID, CMS_HCAL_GRID):
        tower = grid.tower(eta, phi)
        assert tower.min() >= 0
        assert tower.max() < grid.size
        again = grid.tower(*grid.place(tower, rng.random(1000), rng.random(1000)))
        np.testing.assert_array_equal(again, tower)
        assert grid.tower(np.array([3.0, -2.951]), np.zeros(2)).tolist() == [-1, -1]
    assert np.diff(CMS_HCAL_GRID.eta_edges).min() > 0


def test_log_normal_has_the_mean_and_width_asked_for():
    values = detector.log_normal(np.full(200_000, 20.0), np.full(200_000, 5.0), _rng())
    assert values.mean() == pytest.approx(20, rel=0.005)
    assert values.std() == pytest.approx(5, rel=0.02)
    assert detector.log_normal(np.zeros(3), np.ones(3), _rng()).tolist() == [0, 0, 0]


def _rng():
    return np.random.default_rng(2)


PERFECT = detector.Calorimeter(CMS_HCAL_GRID, lambda eta, e: np.full_like(e, 1e-6), 1.0, 1.0)


def _hits(energies):
    zeros = np.zeros(len(energies))
    return Hits(np.zeros(len(energies), np.int64), zeros + 0.01, zeros + 0.01, np.array(energies))


def test_particle_flow_makes_a_neutral_of_an_excess_and_scales_tracks_otherwise():
    neutral, factor = detector.particle_flow(
        PERFECT, _hits([50.0, 30.0]), _hits([50.0]), np.array([1e-3]), _rng()
    )
    assert neutral.energy == pytest.approx([30], abs=1e-2)
    assert factor.tolist() == [1]

    # Equal errors: tracks and tower meet in the middle. Two tracks share the factor.
    poor = replace(PERFECT, resolution=lambda eta, e: np.where(e > 45, 1e-9, 3.0))
    neutral, factor = detector.particle_flow(
        poor, _hits([40.0]), _hits([30.0, 20.0]), np.array([3 / 2**0.5] * 2), _rng()
    )
    assert len(neutral.energy) == 0
    measured = factor * 50 * 2 - 50  # (50 + tower) / 2 = 50 factor
    assert measured[0] == measured[1]
    assert abs(measured[0] - 40) < 12

    # Without weight the tower alone decides, and a tower below the threshold leaves nothing.
    _, factor = detector.particle_flow(PERFECT, _hits([40.0]), _hits([50.0]), np.zeros(1), _rng())
    assert factor == pytest.approx([0.8])
    _, factor = detector.particle_flow(PERFECT, _hits([0.5]), _hits([0.5]), np.zeros(1), _rng())
    assert factor.tolist() == [0]


def test_towers_of_different_events_are_apart():
    hits = replace(_hits([5.0, 7.0]), event=np.array([0, 1]))
    neutral, _ = detector.particle_flow(PERFECT, hits, _hits([]), np.zeros(0), _rng())
    assert neutral.event.tolist() == [0, 1]
    assert neutral.energy == pytest.approx([5, 7], abs=1e-4)


def test_detector_response():
    rows = [
        pion((40, 0.3, 0.2)),
        photon((60, -0.5, 2.0)),
        (130, 0, 0.498, (80, 1.0, -1.0), (0, 0, 0)),
        (13, -1, 0.105, (30, 0.1, 1.0), (0, 0, 0)),
        (12, 0, 0.0, (90, 0, 0), (0, 0, 0)),
        photon((50, 0, 0), (2000, 0, 0)),  # produced outside
    ]
    copies = [(*row, event) for event in range(400) for row in rows]
    found = detect(particles(*copies), CARDS["CMS"], _rng())
    assert np.all(np.diff(found.event) >= 0)
    energy = {pid: found.p[found.pid == pid, 3] for pid in np.unique(found.pid)}
    cosh = np.cosh([0.3, -0.5, 1.0, 0.1])
    assert np.mean(energy[PID[22]]) == pytest.approx(60 * cosh[1], rel=0.01)
    assert np.mean(energy[PID[13]]) == pytest.approx(30 * cosh[3], rel=0.01)
    assert len(energy[PID[13]]) == pytest.approx(400 * 0.99, abs=12)
    assert len(energy[PID[211]]) == pytest.approx(400 * 0.95, abs=25)
    assert found.p[:, 3].sum() / 400 == pytest.approx(
        40 * cosh[0] + 60 * cosh[1] + 80 * cosh[2] + 30 * cosh[3], rel=0.02
    )
    neutral = np.isin(found.pid, [PID[22], PID[130]])
    assert not found.tracks[neutral].any()
    assert (found.tracks[~neutral][:, [1, 3]] > 0).all()
    mass2 = found.p[:, 3] ** 2 - (found.p[:, :3] ** 2).sum(1)
    np.testing.assert_allclose(mass2[neutral] / found.p[neutral, 3] ** 2, 0, atol=1e-9)


# A Higgs that recoils once and decays to two W, one to quarks, one to an electron and a neutrino.
DECAY = [
    # id, status, daughter1, daughter2, eta, phi
    (90, -11, 0, 0, 0.0, 0.0),
    (25, -22, 2, 2, 0.0, 0.0),
    (25, -62, 3, 4, 0.0, 0.0),
    (24, -22, 5, 6, 0.1, 0.1),
    (-24, -22, 7, 8, -0.1, -0.1),
    (2, -23, 0, 0, 0.3, 0.1),
    (-1, 1, 0, 0, -0.1, 0.2),
    (11, 1, 0, 0, 0.1, -0.3),
    (-12, 1, 0, 0, 3.0, 3.0),
]


def _events(copies=1):
    ids, status, first, last, eta, phi = (np.array(c) for c in zip(*DECAY * copies, strict=True))
    offsets = np.arange(copies + 1) * len(DECAY)
    start = np.repeat(offsets[:-1], len(DECAY))
    p = np.stack([np.cos(phi), np.sin(phi), np.sinh(eta), np.cosh(eta)], axis=1) * 100
    zeros = np.zeros(len(ids))
    vertex = np.zeros((len(ids), 3))
    first, last, mother = start + first, start + last, start
    return Events(offsets, ids, status, first, last, mother, p, zeros, vertex, zeros)


def test_targets_are_the_visible_products_of_the_last_copy():
    targets = find_targets(_events(3), (25,), "decay")
    assert targets.event.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert targets.group.tolist() == targets.event.tolist()
    np.testing.assert_allclose(np.sort(targets.eta[:3]), [-0.1, 0.1, 0.3])
    with_self = find_targets(_events(), (25,), "decay+self")
    assert sorted(with_self.eta.round(6)) == [-0.1, 0.0, 0.1, 0.3]
    hard = find_targets(_events(), (25,), "hard")
    assert len(hard.eta) == 1


def test_a_jet_matches_if_it_holds_all_products_of_one_target():
    targets = find_targets(_events(2), (25,), "decay")
    event, phi = np.array([0, 1, 2, 1]), np.array([0.0, 0.0, 0.0, 2.0])
    assert matched(targets, event, np.zeros(4), phi, 0.8).tolist() == [True, True, False, False]
    assert not matched(targets, event, np.full(4, 0.7), phi, 0.8).any()
    none = find_targets(_events(), (6,), "decay")
    assert not matched(none, event, np.zeros(4), phi, 0.8).any()


def test_clustering_recovers_made_up_jets():
    jets_module = pytest.importorskip("jetkern.simulate.jets", reason="FastJet is not installed")
    rng = _rng()
    count = 30
    event = np.repeat([0, 2], count)  # nothing in event 1
    eta = np.repeat([0.5, -1.0], count) + rng.uniform(-0.2, 0.2, 2 * count)
    phi = np.repeat([3.1, 0.0], count) + rng.uniform(-0.2, 0.2, 2 * count)  # across pi
    pt = rng.uniform(1, 50, 2 * count)
    p = np.stack([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta), pt * np.cosh(eta)], 1)
    tracks = rng.random((2 * count, 4))
    pid = rng.integers(1, 9, 2 * count)
    candidates = Candidates(event, pid, p, tracks, np.arange(2 * count))
    jets = jets_module.cluster(candidates, 3, 0.8, 100)
    assert jets.event.tolist() == [0, 2]
    np.testing.assert_allclose(jets.p, [p[:count].sum(0), p[count:].sum(0)])
    packed = jets_module.padded(jets, candidates, 20)
    assert packed.count.tolist() == [20, 20]
    assert packed.dropped.tolist() == [10, 10]
    order = np.argsort(-pt[:count])[:20]
    np.testing.assert_allclose(packed.features[0, :, 2], np.log(pt[order]))
    np.testing.assert_array_equal(packed.pid[0], pid[order])
    np.testing.assert_array_equal(packed.tracks[0], tracks[order])
    assert np.abs(packed.features[0, :, 1]).max() < 0.5
    assert jets_module.leading(jets).all()


def test_a_failed_write_leaves_nothing(tmp_path):
    def fail():
        with replacing(tmp_path / "file") as temporary:
            temporary.write_text("half")
            raise OSError(errno.ENOSPC, "in the words of HDF5")

    with pytest.raises(SimulationError, match="/file: No space left on device"):
        fail()
    assert list(tmp_path.iterdir()) == []


def request(out, **changes):
    values: dict[str, Any] = {
        "data_set": "jetclass",
        "jets_per_class": 2000,
        "jets_per_shard": 700,
        "splits": {"train": 0.9, "val": 0.1},
        "seed": 0,
        "mpi": None,
        "out": Path(out),
    }
    return Request(**(values | changes))


pythia = pytest.mark.skipif(
    any(command.find_spec(name) is None for name in command.LIBRARIES),
    reason="Pythia or FastJet is not installed",
)


@pythia
def test_units_share_the_jets_out_evenly():
    units = request("out").units()
    sizes = {split: [u.jets for u in units if u.split == split and u.kind == "Hbb"]
             for split in ("train", "val")}  # fmt: skip
    assert sizes == {"train": [600, 600, 600], "val": [200]}
    assert len({u.path for u in units}) == len(units) == 40
    assert sum(u.jets for u in units) == 20_000
    assert len({(u.kind, u.index) for u in units}) == 40
    odd = request("out", jets_per_class=7, splits={"train": 1 / 3, "val": 1 / 3, "test": 1 / 3})
    assert sum(u.jets for u in odd.units()) == 70


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"splits": {"train": 0.9}}, "sum to 1"),
        ({"splits": {"train": float("nan")}}, "sum to 1"),
        ({"splits": {"train": 1.5, "val": -0.5}}, "sum to 1"),
        ({"splits": {}}, "needs splits"),
        ({"data_set": "jetnet"}, "split when it is converted"),
        ({"jets_per_class": 0}, "jets_per_class must be at least 1"),
        ({"seed": -1}, "must not be negative"),
        ({"kinds": ("QCD", "top")}, "^jetclass has no top; there are QCD, Hbb, "),
    ],
)
def test_impossible_requests_are_refused(changes, message):
    with pytest.raises(SimulationError, match=message):
        request("out", **changes)


def test_missing_libraries_are_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(
        command, "find_spec", lambda name: None if name == "pythia8mc" else object()
    )
    assert command.main(["toptag", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error == (
        "jetkern simulate: error: pythia8mc missing: pip install 'jetkern[simulation]'\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("splits", ["train", "train=x", "other=1", "train=0.5,train=0.5"])
def test_malformed_splits_are_refused(splits, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        command.main(["toptag", "--splits", splits, "--out", str(tmp_path)])
    assert exit_.value.code == 2
    assert "--splits" in capsys.readouterr().err


JETS = 12


@pytest.fixture(scope="module")
def jetclass(tmp_path_factory):
    out = tmp_path_factory.mktemp("jetclass")
    code = command.main(
        f"jetclass --jets-per-class {JETS} --splits train=1 --no-mpi --jobs 2 --out {out}".split()
    )
    assert code == 0
    return out


@pythia
def test_jetclass_layout(jetclass):
    names = ["QCD", "Hbb", "Hcc", "Hgg", "H4q", "Hqql", "Zqq", "Wqq", "Tbqq", "Tbl"]
    for label, name in enumerate(names):
        with h5py.File(jetclass / "train" / f"jetclass_{name}_0000.h5") as file:
            data, count = file["data"][:], file["num_particles"][:]
            conditions = file["global"][:]
            assert data.shape == (JETS, 150, 9)
            assert (data.dtype, count.dtype) == (np.float32, np.int32)
            assert file["data"].compression is None
            assert file["pid"].dtype == np.int64
            assert file["pid"][:].tolist() == [label + 2] * JETS
            assert file.attrs["label_shift"] == 2
            assert list(file.attrs["classes"]) == names
            assert file.attrs["title"] == "JetClass-like, simulated with jetkern"
            columns = ["jet_pt", "jet_eta", "jet_phi", "jet_mass", "multiplicity/100"]
            assert list(file["global"].attrs["columns"]) == columns
            provenance = json.loads(file.attrs["provenance"])
        assert provenance["class"] == name
        assert provenance["jets_selected"] >= JETS
        assert "PartonLevel:MPI=off" in provenance["pythia_settings"][0]
        assert len(provenance["pythia_settings"]) == (2 if name == "Hqql" else 1)

        mask = np.arange(150) < count[:, None]
        assert (count > 0).all()
        assert not data[~mask].any()
        assert np.isfinite(data).all()
        np.testing.assert_allclose(conditions[:, 4], count / 100, rtol=1e-6)
        pt, eta, mass = conditions[:, 0], conditions[:, 1], conditions[:, 3]
        assert ((pt > 500) & (pt < 1000) & (np.abs(eta) < 2) & (mass > 0)).all()
        ln_pt = np.where(mask, data[..., 2], -np.inf)
        assert (ln_pt[:, :-1] >= ln_pt[:, 1:]).all()
        # FastJet measures in rapidity, which differs from eta for slow protons.
        assert np.mean(np.hypot(data[mask][:, 0], data[mask][:, 1]) < 0.9) > 0.98
        assert (data[mask][:, 3] >= data[mask][:, 2] - 1e-5).all()
        np.testing.assert_array_equal(np.isin(data[..., 4], range(1, 9)), mask)
        charged = mask & ~np.isin(data[..., 4], [PID[22], PID[130]])
        assert (data[charged][:, [6, 8]] > 0).all()
        assert not data[mask & ~charged][:, 5:].any()
        assert np.abs(data[..., [5, 7]]).max() <= 1


@pythia
def test_the_constituents_add_up_to_the_jet(jetclass):
    for path in jetclass.glob("train/*.h5"):
        with h5py.File(path) as file:
            data, jets = file["data"][:].astype(float), file["global"][:].astype(float)
            mask = np.arange(150) < file["num_particles"][:][:, None]
        pt, energy = (np.where(mask, np.exp(data[..., i]), 0) for i in (2, 3))
        phi = data[..., 1] + jets[:, 2, None]
        px, py = (pt * np.cos(phi)).sum(1), (pt * np.sin(phi)).sum(1)
        # Neutrals are massless, tracks are not: |pz| < E cannot be had from eta alone to float32.
        pz = (pt * np.sinh(data[..., 0] + jets[:, 1, None])).sum(1)
        np.testing.assert_allclose(np.hypot(px, py), jets[:, 0], rtol=1e-5)
        np.testing.assert_allclose(np.arcsinh(pz / jets[:, 0]), jets[:, 1], atol=1e-5)
        mass2 = energy.sum(1) ** 2 - px**2 - py**2 - pz**2
        np.testing.assert_allclose(np.sqrt(mass2), jets[:, 3], rtol=1e-3, atol=0.1)


@pythia
@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("Wqq", 65, 105), ("Zqq", 70, 115), ("Hbb", 90, 150), ("Tbqq", 135, 210)],
)
def test_resonances_have_their_masses(jetclass, name, low, high):
    with h5py.File(jetclass / "train" / f"jetclass_{name}_0000.h5") as file:
        assert low < np.median(file["global"][:, 3]) < high


def contents(out):
    """Bytes of every visible file."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


TOPTAG = "toptag --jets-per-class 24 --jets-per-shard 6 --splits train=0.5,test=0.5 --seed 3"


@pytest.fixture(scope="module")
def toptag(tmp_path_factory):
    out = tmp_path_factory.mktemp("toptag")
    assert command.main([*TOPTAG.split(), "--jobs", "1", "--out", str(out)]) == 0
    return out


@pythia
def test_toptag_layout(toptag):
    paths = sorted(toptag.glob("*/*.h5"))
    assert len(paths) == 8
    for path in paths:
        with h5py.File(path) as file:
            assert file["data"].shape == (6, 200, 4)
            assert set(file["pid"][:]) == {int("_top_" in path.name)}
            pt = file["global"][:, 0]
            assert ((pt > 550) & (pt < 650)).all()
            assert json.loads(file.attrs["provenance"])["selection"]["leading_only"]
    everything = [h5py.File(path)["data"][:, 0, 2] for path in paths]
    assert len(np.unique(np.concatenate(everything))) == 48  # no shard repeats another's jets


@pythia
def test_result_does_not_depend_on_the_number_of_processes_and_survives_a_kill(toptag, tmp_path):
    arguments = [sys.executable, str(ROOT / "data_tools/simulate.py"), *TOPTAG.split()]
    arguments += ["--jobs", "2", "--out", str(tmp_path)]
    with subprocess.Popen(arguments, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while len(list(tmp_path.glob("*/*.h5"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    survivors = contents(tmp_path)
    assert 2 < len(survivors) < 9
    stamps = {name: (tmp_path / name).stat().st_mtime_ns for name in survivors}

    assert command.main(arguments[2:]) == 0
    assert contents(tmp_path) == contents(toptag)
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in survivors} == stamps
    assert not list(tmp_path.rglob("*.tmp"))


@pythia
def test_classes_are_the_same_jets_alone_and_with_others(toptag, tmp_path):
    again = [*TOPTAG.split(), "--jobs", "1", "--out", str(tmp_path)]
    assert command.main([*again, "--classes", "top"]) == 0
    tops = contents(tmp_path)
    assert [name for name in tops if "_QCD_" in name] == []
    assert command.main([*again, "--classes", "QCD"]) == 0
    assert contents(tmp_path) == {**contents(toptag), **tops} == contents(toptag)


@pythia
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--seed", "4"], "seed = 3, not 4"),
        (["--jets-per-class", "30"], "jets_per_class = 24, not 30"),
        (["--mpi"], "mpi = False, not True"),
    ],
)
def test_another_configuration_is_refused(toptag, change, message, capsys):
    before = contents(toptag)
    assert command.main([*TOPTAG.split(), *change, "--out", str(toptag)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert contents(toptag) == before


@pythia
def test_two_simulations_do_not_write_to_one_directory(toptag, capsys):
    fcntl = pytest.importorskip("fcntl")
    with (toptag / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert command.main([*TOPTAG.split(), "--out", str(toptag)]) == 1
    assert "another simulation is writing there" in capsys.readouterr().err


@pythia
def test_a_process_that_dies_is_reported(tmp_path):
    arguments = [sys.executable, str(ROOT / "data_tools/simulate.py"), "toptag", "--jobs", "1"]
    arguments += ["--jets-per-class", "5000", "--out", str(tmp_path)]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        if not children.exists():
            process.kill()
            pytest.skip("no /proc")
        worker = None
        while worker is None and process.poll() is None:
            for pid in children.read_text().split():
                with suppress(OSError):  # a passing child of an import
                    if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        worker = int(pid)
        assert worker is not None
        os.kill(worker, signal.SIGKILL)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "the same command continues" in error
    assert "Traceback" not in error


@pythia
def test_a_full_disk_is_reported_and_leaves_no_part_of_a_file(tmp_path):
    resource = pytest.importorskip("resource")
    # A limit on the size of files stands in for the disk.
    run = subprocess.run(
        [
            sys.executable,
            "data_tools/simulate.py",
            *TOPTAG.split(),
            "--jobs=1",
            f"--out={tmp_path}",
        ],
        cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    progress, error = run.stderr.splitlines()
    assert progress.startswith("toptag:")
    assert error == f"jetkern simulate: error: {tmp_path}/train/toptag_top_0000.h5: File too large"
    assert list(contents(tmp_path)) == ["simulation.json"]
    assert not list(tmp_path.rglob("*.tmp"))


@pythia
def test_jetnet_layout_and_sanity_sheet(tmp_path, capsys):
    arguments = f"jetnet --jets-per-class 10 --jets-per-shard 6 --no-mpi --out {tmp_path}".split()
    assert command.main([*arguments, "--jobs", "2", "--plots"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [line.split()[1] for line in lines[2:]] == list("gqtwz")
    assert (tmp_path / "sanity.png").read_bytes().startswith(b"\x89PNG")
    first = contents(tmp_path)
    assert sorted(first) == sorted(
        ["sanity.png", "simulation.json", *(f"{kind}150.hdf5" for kind in "gqtwz")]
    )
    for kind in "gqtwz":
        with h5py.File(tmp_path / f"{kind}150.hdf5") as file:
            particles, jets = file["particle_features"][:], file["jet_features"][:]
            provenance = json.loads(file.attrs["provenance"])
        assert particles.shape == (10, 150, 4)
        assert (provenance["shards"], provenance["class"]) == (2, kind)
        assert provenance["jets_selected"] >= 10
        mask = particles[..., 3]
        assert set(np.unique(mask)) <= {0.0, 1.0}
        np.testing.assert_array_equal(mask.sum(1), jets[:, 3])
        assert not particles[mask == 0].any()
        assert (np.diff(particles[..., 2], axis=1) <= 0).all()
        assert ((jets[:, 0] > 800) & (jets[:, 0] < 1600)).all()
        px = (particles[..., 2] * np.cos(particles[..., 1])).sum(1)
        np.testing.assert_allclose(px, 1, atol=1e-4)
    # Nothing is made twice.
    stamp = (tmp_path / "g150.hdf5").stat().st_mtime_ns
    assert command.main(arguments) == 0
    assert capsys.readouterr().out == f"{tmp_path}: 50 jets, 0 of them made now\n"
    assert (tmp_path / "g150.hdf5").stat().st_mtime_ns == stamp


@pythia
def test_the_sheet_names_what_it_cannot_read(toptag, capsys):
    path = sorted(toptag.glob("*/*.h5"))[0]
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    try:
        assert command.main([*TOPTAG.split(), "--plots", "--out", str(toptag)]) == 1
        error = capsys.readouterr().err
        assert path.name in error
        assert error.count("\n") == 1
    finally:
        path.write_bytes(whole)


@pythia
def test_the_veto_keeps_events_that_could_give_a_jet():
    generator_module = pytest.importorskip("jetkern.simulate.generator")
    from jetkern.simulate.processes import TOPTAG as toptag_set

    settings = (*toptag_set.settings(mpi=False), *toptag_set.kinds[1].settings[0])
    # The hard process and its decays alone.
    settings += ("PartonLevel:ISR=off", "PartonLevel:FSR=off", "HadronLevel:all=off")

    def within(events):
        """Events with the three quarks of some top within 0.85 of their sum's axis."""
        targets = find_targets(events, (6,), "decay")
        tops = np.flatnonzero((np.abs(events.id) == 6) & (events.id[events.daughter1] != events.id))
        eta, phi = (values[targets.group] for values in direction(events.p[tops]))
        distance = np.hypot(targets.eta - eta, delta_phi(targets.phi, phi))
        return {
            int(targets.event[targets.group == group][0])
            for group in np.unique(targets.group)
            if distance[targets.group == group].max() < 0.85
        }

    generator = generator_module.Generator
    assert 50 < len(within(generator(settings, 1).next(100))) < 100
    veto = generator_module.HardProcessVeto((6,), 490, 2.3, 0.85)
    assert within(generator(settings, 1, veto).next(100)) == set(range(100))
    with pytest.raises(SimulationError, match="does not know the setting 'Nonsense:on=1'"):
        generator_module.Generator(("Nonsense:on=1",), 1)
