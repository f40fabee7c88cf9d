"""Distances between real and generated jets: JetNet's values, closed forms, odd inputs."""

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.optimize import linprog

from jetkern.metrics import generation
from jetkern.metrics.efp import energy_flow_polynomials, multigraphs, prime_multigraphs
from jetkern.metrics.generation import (
    Sample,
    bootstrap_wasserstein,
    coverage_and_mmd,
    energy_movers_distance,
    frechet_distance,
    frechet_physics_distance,
    kernel_physics_distance,
    w1_efp,
    w1_particles,
    wasserstein,
)
from tests.metrics.fixed_jets import pack, padded

# jetnet 0.2.5 with NumPy 1.26.4 and EnergyFlow 1.4.0, on the jets below; 5 batches of 200 jets with
# numpy.random.default_rng(7) as its generator, FPD and KPD with its own seeds.
JETNET = {
    "w1m": [0.008349818404678393, 0.003543022366893116],
    "w1p": [
        [0.02661371272023132, 0.012431505470831031, 0.036150045950546605],
        [0.008249747256420855, 0.004865582427161078, 0.009038234996242704],
    ],
    "w1efp": [
        [
            0.0004568709091045496,
            0.00013272219694362704,
            0.0001322605543819003,
            3.625211072481639e-05,
            0.00013212121694240522,
        ],
        [
            6.723890012938922e-05,
            3.1698929519859426e-05,
            3.4516368374469444e-05,
            7.2550661752829565e-06,
            2.8648126912277587e-05,
        ],
    ],
    "fpd": [0.04697956294345075, 0.230194289740469],
    "kpd": [0.0020510233875550288, 0.0022269039895071964],
    "cov_mmd": [0.4833333333333334, 0.03631362367777802],
}


@pytest.fixture(scope="module")
def real():
    return pack(padded(300, 12, 3)[0])


@pytest.fixture(scope="module")
def generated():
    return pack(padded(250, 10, 11, 0.33)[0])


OPTIONS = {"batches": 5, "size": 200, "seed": 7}


def features(jets):
    columns, offsets = jets
    return [Sample(column, offsets) for column in columns]


def polynomials(jets, graphs):
    (eta, phi, pt), offsets = jets
    return energy_flow_polynomials(pt, eta, phi, offsets, graphs)


def single(jets):
    columns, offsets = jets
    return [columns[:, a:b].T for a, b in pairwise(offsets)]


def mass(jets):
    (eta, phi, pt), offsets = jets
    p = np.stack([pt * np.cosh(eta), pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)])
    e, x, y, z = np.add.reduceat(p, offsets[:-1], axis=1)
    return np.sqrt(np.clip(e**2 - x**2 - y**2 - z**2, 0, None))


def test_w1p_is_jetnets(real, generated):
    total, each = w1_particles(features(real), features(generated), **OPTIONS)
    np.testing.assert_allclose([e.value for e in each], JETNET["w1p"][0], rtol=1e-9)
    np.testing.assert_allclose([e.error for e in each], JETNET["w1p"][1], rtol=1e-9)
    assert total.value == pytest.approx(np.mean(JETNET["w1p"][0]))


def test_w1m_is_jetnets(real, generated):
    result = bootstrap_wasserstein(Sample(mass(real)), Sample(mass(generated)), **OPTIONS)
    np.testing.assert_allclose([result.value, result.error], JETNET["w1m"], rtol=1e-6)


def test_w1efp_is_jetnets(real, generated):
    prime = prime_multigraphs(4, 4)
    total, each = w1_efp(polynomials(real, prime), polynomials(generated, prime), **OPTIONS)
    expected = sorted(zip(*JETNET["w1efp"], strict=True))
    found = sorted((e.value, e.error) for e in each)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert total.value == pytest.approx(np.mean(JETNET["w1efp"][0]))


def test_fpd_and_kpd_are_jetnets(real, generated):
    pair = [polynomials(jets, multigraphs(4)) for jets in (real, generated)]
    fpd = frechet_physics_distance(*pair, least=100, most=250, batches=5, points=6)
    np.testing.assert_allclose([fpd.value, fpd.error], JETNET["fpd"], rtol=1e-5)
    kpd = kernel_physics_distance(*pair, batches=6, size=100)
    np.testing.assert_allclose([kpd.value, kpd.error], JETNET["kpd"], rtol=1e-6)


def test_coverage_and_mmd_are_jetnets(real, generated):
    coverage, matching = coverage_and_mmd(
        single(real), single(generated), batches=3, size=20, seed=7
    )
    np.testing.assert_allclose([coverage.value, matching.value], JETNET["cov_mmd"], rtol=1e-6)


def programme(one, other):
    """The energy mover's distance as a linear programme: moving f_ij at cost r_ij, and the excess
    at R = 1."""
    n, m = len(one), len(other)
    cost = np.hypot(*(one[:, None, k] - other[None, :, k] for k in (0, 1)))
    rows = np.repeat(np.eye(n), m, axis=1)
    columns = np.tile(np.eye(m), n)
    totals = one[:, 2].sum(), other[:, 2].sum()
    best = linprog(
        cost.ravel(),
        A_ub=np.concatenate([rows, columns]),
        b_ub=np.concatenate([one[:, 2], other[:, 2]]),
        A_eq=np.ones((1, n * m)),
        b_eq=[min(totals)],
    )
    return best.fun + abs(totals[0] - totals[1])


@pytest.mark.parametrize("scale", [0.4, 1.0, 2.5])
def test_energy_movers_distance_is_the_linear_programme(real, scale):
    one, other = single(real)[3], single(real)[4] * [1, 1, scale]
    expected = programme(one, other)
    assert energy_movers_distance(one, other) == pytest.approx(expected, abs=1e-9)
    assert energy_movers_distance(other, one) == pytest.approx(expected, abs=1e-9)


def test_coverage_and_mmd_by_every_pair(real, generated):
    """By the definitions (arXiv 2106.11535): generated jets choose their nearest real one, real
    jets are as far as their nearest generated one."""
    one, other = single(real)[:6], single(generated)[6:11]
    coverage, matching = coverage_and_mmd(one, other, batches=2, size=4, seed=3)
    draws = np.random.default_rng(3)
    expected = []
    for _ in range(2):
        a, b = ([jets[i] for i in draws.choice(len(jets), 4)] for jets in (one, other))
        distances = [[programme(x, y) for y in b] for x in a]
        chosen = {min(range(4), key=lambda i, j=j: distances[i][j]) for j in range(4)}
        expected.append([len(chosen) / 4, sum(map(min, distances)) / 4])
    np.testing.assert_allclose([coverage.value, matching.value], np.mean(expected, 0), rtol=1e-9)
    np.testing.assert_allclose([coverage.error, matching.error], np.std(expected, 0), atol=1e-9)


def test_coverage_and_mmd_of_the_same_jets_and_of_one(real):
    jets = single(real)[:1]
    for of in (jets, jets * 3):
        coverage, matching = coverage_and_mmd(of, of, batches=2, size=1)
        assert (coverage.value, coverage.error) == (1, 0)
        assert matching.value == pytest.approx(0, abs=1e-12)
    coverage, matching = coverage_and_mmd([], jets, batches=2, size=1)
    assert math.isnan(coverage.value)
    assert math.isnan(matching.value)


def test_w1_of_shifted_and_scaled_numbers():
    values = np.linspace(-1, 1, 2001)
    assert wasserstein(values, values) == 0
    assert wasserstein(values, values + 0.3) == pytest.approx(0.3)
    assert wasserstein(values, 3 * values) == pytest.approx(1.0, rel=1e-3)


def test_w1_of_unequal_sizes_and_constants():
    assert wasserstein([1.0], [2.0, 4.0]) == pytest.approx(2.0)
    assert wasserstein([5.0, 5.0], [5.0]) == 0
    assert math.isnan(wasserstein([], [1.0]))
    assert math.isnan(wasserstein([np.nan], [1.0]))
    assert wasserstein([np.nan, 1.0, np.inf], [2.0]) == pytest.approx(1.0)


def test_frechet_distance_of_known_gaussians():
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(400, 3)), draw.normal(2, 3, size=(500, 3)) @ draw.normal(size=(3, 3))
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    difference = x.mean(0) - y.mean(0)
    expected = difference @ difference + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_features_that_do_not_vary():
    x = np.ones((5, 4))
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(x, x + np.array([3, 0, 0, 0])) == pytest.approx(9)


def test_jets_not_particles_are_resampled():
    """A jet's particles stay together: two jets, one of zeros, one of ones."""
    sample = Sample(np.array([0.0] * 3 + [1.0] * 5), np.array([0, 3, 8]))
    assert sample.take(np.array([1, 0, 1])).tolist() == [1.0] * 5 + [0.0] * 3 + [1.0] * 5
    assert sample.take(np.array([], np.int64)).size == 0


def test_the_same_seed_gives_the_same_numbers():
    draw = np.random.default_rng(0)
    a, b = Sample(draw.normal(size=50)), Sample(draw.normal(size=70))
    assert bootstrap_wasserstein(a, b, seed=3) == bootstrap_wasserstein(a, b, seed=3)
    assert bootstrap_wasserstein(a, b, seed=3) != bootstrap_wasserstein(a, b, seed=4)


@pytest.mark.parametrize("which", ["real", "generated", "both"])
def test_no_jets_have_no_distance(which):
    full = Sample(np.arange(5.0))
    empty = Sample(np.array([]))
    pair = (empty if which != "generated" else full, empty if which != "real" else full)
    result = bootstrap_wasserstein(*pair)
    assert math.isnan(result.value)
    assert math.isnan(result.error)
    none = [np.zeros((len(s), 36)) for s in pair]
    assert math.isnan(frechet_physics_distance(*none).value)
    assert math.isnan(kernel_physics_distance(*none).value)
    total, each = w1_efp(np.zeros((len(pair[0]), 5)), np.zeros((len(pair[1]), 5)))
    assert math.isnan(total.value)
    assert len(each) == 5


def test_jets_of_one_particle_and_of_none():
    offsets = np.array([0, 1, 1, 2])
    sample = Sample(np.array([1.0, 3.0]), offsets)
    assert sample.take(np.arange(3)).tolist() == [1.0, 3.0]
    assert bootstrap_wasserstein(sample, sample, size=3000).value < 0.1
    only_empty = Sample(np.array([]), np.array([0, 0]))
    assert math.isnan(bootstrap_wasserstein(only_empty, sample).value)


def test_constant_features_have_no_distance():
    constant = np.full((40, 36), 2.0)
    options = {"least": 10, "most": 30, "batches": 2, "points": 4}
    assert frechet_physics_distance(constant, constant, **options).value == pytest.approx(
        0, abs=1e-9
    )
    assert kernel_physics_distance(constant, constant, size=10).value == pytest.approx(0, abs=1e-9)


def test_values_that_do_not_fit_the_offsets():
    with pytest.raises(ValueError, match="do not fit"):
        Sample(np.arange(3.0), np.array([0, 2]))
    with pytest.raises(ValueError, match="above 0"):
        generation.bootstrap_wasserstein(Sample(np.ones(1)), Sample(np.ones(1)), size=0)
