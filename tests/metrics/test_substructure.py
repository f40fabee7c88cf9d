"""Observables against FastJet, brute force and closed forms."""

from itertools import combinations, pairwise

import awkward
import fastjet
import numpy as np
import pytest
import torch

from jetkern import Jets
from jetkern.metrics.substructure import (
    JET,
    PARTICLE,
    d2,
    jet_eta,
    mass_and_pt,
    observables,
    subjettiness,
)


def draw(counts, seed=0):
    random = np.random.default_rng(seed)
    offsets = np.cumsum([0, *counts])
    eta, phi = random.normal(0, 0.2, (2, offsets[-1]))
    return random.exponential(20, offsets[-1]) + 0.5, eta, phi, offsets


COUNTS = [5, 0, 1, 30, 2, 3, 4, 12]


def vectors(pt, eta, phi):
    return [
        fastjet.PseudoJet(*map(float, p))
        for p in zip(
            pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta), pt * np.cosh(eta), strict=True
        )
    ]


def test_subjettiness_is_fastjets():
    """One jet at a time through FastJet's classes."""
    pt, eta, phi, offsets = draw(COUNTS)
    found = subjettiness(pt, eta, phi, offsets)
    kt = fastjet.JetDefinition(fastjet.kt_algorithm, 0.8)
    for jet, (first, last) in enumerate(pairwise(offsets)):
        particles = vectors(pt[first:last], eta[first:last], phi[first:last])
        for n in (1, 2, 3):
            if not particles:
                assert np.isnan(found[jet, n - 1])
                continue
            if len(particles) <= n:
                assert found[jet, n - 1] == 0
                continue
            axes = fastjet._swig.ClusterSequence(particles, kt).exclusive_jets(n)
            near = [
                min(np.hypot(p.eta() - a.eta(), p.delta_phi_to(a)) for a in axes) for p in particles
            ]
            expected = np.dot(pt[first:last], near) / (0.8 * pt[first:last].sum())
            assert found[jet, n - 1] == pytest.approx(expected, rel=1e-6)


def test_d2_is_the_sum_over_triples():
    pt, eta, phi, offsets = draw(COUNTS)
    found = d2(pt, eta, phi, offsets)
    for jet, (first, last) in enumerate(pairwise(offsets)):
        z = pt[first:last] / pt[first:last].sum()
        rows = range(last - first)

        def distance(i, j, a=first):
            return np.hypot(eta[a + i] - eta[a + j], phi[a + i] - phi[a + j])

        e2 = sum(z[i] * z[j] * distance(i, j) for i, j in combinations(rows, 2))
        e3 = sum(
            z[i] * z[j] * z[k] * distance(i, j) * distance(j, k) * distance(i, k)
            for i, j, k in combinations(rows, 3)
        )
        if last - first < 2:
            assert np.isnan(found[jet])
        else:
            assert found[jet] == pytest.approx(e3 / e2**3, rel=1e-9, abs=1e-15)


def test_d2_is_fastjets():
    pt, eta, phi, offsets = draw([12, 30])
    jets = awkward.zip(
        {
            k: awkward.unflatten(v, np.diff(offsets))
            for k, v in zip(
                ("px", "py", "pz", "E"),
                (pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta), pt * np.cosh(eta)),
                strict=True,
            )
        },
        with_name="Momentum4D",
    )
    cluster = fastjet.ClusterSequence(jets, fastjet.JetDefinition(fastjet.kt_algorithm, 10.0))
    expected = cluster.exclusive_jets_energy_correlator(njets=1, func="d2")
    np.testing.assert_allclose(d2(pt, eta, phi, offsets), expected, rtol=1e-4)


@pytest.mark.parametrize("truth", [-1.7, -0.9, -0.1, 0.0, 0.05, 0.8, 2.1])
def test_the_jets_eta_comes_back_with_its_sign(truth):
    pt, eta, _, offsets = draw([20, 40, 90])
    energy = pt * np.cosh(truth + eta)
    np.testing.assert_allclose(jet_eta(pt, energy, eta, offsets), truth, atol=1e-6)


def test_eta_of_one_particle_none_and_impossible_energies():
    pt, offsets = np.ones(3), np.array([0, 1, 1, 3])
    found = jet_eta(pt, np.array([np.cosh(0.7), 0.5, 0.5]), np.zeros(3), offsets)
    assert found[0] == pytest.approx(0.7)
    assert np.isnan(found[1])
    assert found[2] == 0


def test_mass_and_pt_of_two_particles():
    mass, pt = mass_and_pt(
        np.array([3.0, 4.0]), np.zeros(2), np.array([0, np.pi / 2]), np.array([0, 2, 2])
    )
    assert mass[0] == pytest.approx(np.sqrt(2 * 12))
    np.testing.assert_allclose(pt, [5, 0])


def test_all_observables_of_odd_jets():
    pt, eta, phi, offsets = draw(COUNTS)
    particles = np.stack([eta, phi, np.log(pt), np.log(pt * np.cosh(eta - 1.2))], 1)
    jets = Jets(
        particles=torch.tensor(particles, dtype=torch.float32), offsets=torch.tensor(offsets)
    )
    found = observables(jets)
    assert tuple(found) == PARTICLE + JET
    assert all(len(sample) == len(COUNTS) for sample in found.values())
    assert found["multiplicity"].values.tolist() == COUNTS
    np.testing.assert_allclose(found["eta"].values[3], -1.2, atol=1e-3)
    assert np.isnan(found["tau21"].values[[1, 2]]).all()
    assert found["tau21"].values[4] == 0
    empty = observables(
        Jets(particles=torch.zeros(0, 4), offsets=torch.zeros(1, dtype=torch.int64))
    )
    assert all(len(sample) == 0 for sample in empty.values())
