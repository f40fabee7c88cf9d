"""Energy flow polynomials against the sum that defines them, and EnergyFlow's values."""

from itertools import pairwise, permutations, product

import networkx
import numpy as np
import pytest

from jetkern.metrics.efp import (
    connected_multigraphs,
    energy_flow_polynomials,
    multigraphs,
    prime_multigraphs,
)
from tests.metrics.fixed_jets import pack, padded


def brute_force(graph, pt, eta, phi, normed=True):
    vertices = 1 + max((v for edge in graph for v in edge), default=-1)
    z = pt / pt.sum() if normed else pt
    wrapped = np.angle(np.exp(1j * (phi[:, None] - phi[None])))
    distance = np.hypot(eta[:, None] - eta[None], wrapped)
    return sum(
        np.prod(z[list(chosen)]) * np.prod([distance[chosen[a], chosen[b]] for a, b in graph])
        for chosen in product(range(len(pt)), repeat=vertices)
    )


def test_numbers_of_graphs():
    """Connected multigraphs without loops by edges: OEIS A076864."""
    assert [len(connected_multigraphs(d)) for d in range(6)] == [1, 1, 2, 5, 12, 33]
    assert len(multigraphs(4)) == 36
    assert len(prime_multigraphs(4, 4)) == 5


def test_no_graph_comes_twice():
    graphs = []
    for edges in multigraphs(4):
        graph = networkx.Graph()
        for a, b in edges:
            weight = graph[a][b]["weight"] + 1 if graph.has_edge(a, b) else 1
            graph.add_edge(a, b, weight=weight)
        graphs.append(graph)

    def equal(one, other):
        return networkx.is_isomorphic(one, other, edge_match=lambda p, q: p == q)

    assert not any(equal(a, b) for a, b in permutations(graphs, 2))


@pytest.mark.parametrize("normed", [True, False])
def test_all_graphs_of_up_to_four_edges_equal_brute_force(normed):
    draw = np.random.default_rng(0)
    counts = [0, 1, 2, 4]
    offsets = np.cumsum([0, *counts])
    pt, eta, phi = draw.random((3, offsets[-1])) * [[5], [1], [6.2]]
    graphs = [g for g in multigraphs(4) if 1 + max((v for e in g for v in e), default=0) <= 5]
    values = energy_flow_polynomials(pt, eta, phi, offsets, graphs, normed=normed)
    for jet, (first, last) in enumerate(pairwise(offsets)):
        rows = slice(first, last)
        for graph, value in zip(graphs, values[jet], strict=True):
            expected = 0.0
            if last > first:
                expected = brute_force(graph, pt[rows], eta[rows], phi[rows], normed)
            elif not graph:
                expected = 1.0
            assert value == pytest.approx(expected, rel=1e-10, abs=1e-14)


@pytest.mark.parametrize("graph", connected_multigraphs(5)[-4:])
def test_five_edges(graph):
    draw = np.random.default_rng(1)
    pt, eta, phi = draw.random((3, 3))
    value = energy_flow_polynomials(pt, eta, phi, np.array([0, 3]), [graph])
    assert value[0, 0] == pytest.approx(brute_force(graph, pt, eta, phi), rel=1e-10)


def test_energyflow_gives_the_same():
    """EnergyFlow 1.4.0 (NumPy 1.26), the jets of ``fixed_jets``."""
    (eta, phi, pt), offsets = pack(padded(300, 12, 3)[0])
    values = energy_flow_polynomials(pt, eta, phi, offsets, prime_multigraphs(4, 4))
    for row, expected in zip(values, ENERGYFLOW, strict=False):
        np.testing.assert_allclose(np.sort(row), expected, rtol=1e-9)


def test_scale_and_rotation_change_nothing():
    (eta, phi, pt), offsets = pack(padded(20, 9, 5)[0])
    graphs = multigraphs(3)
    values = energy_flow_polynomials(pt, eta, phi, offsets, graphs)
    angle = 0.7
    turned = np.cos(angle) * eta - np.sin(angle) * phi, np.sin(angle) * eta + np.cos(angle) * phi
    np.testing.assert_allclose(
        energy_flow_polynomials(700 * pt, *turned, offsets, graphs), values, rtol=1e-9
    )


def test_a_jet_without_energy_has_zeros():
    values = energy_flow_polynomials(
        np.zeros(2), np.arange(2.0), np.zeros(2), np.array([0, 2]), [((0, 1),)]
    )
    assert values[0, 0] == 0


def test_graphs_beyond_what_is_known():
    with pytest.raises(ValueError, match="0 to 5 edges"):
        connected_multigraphs(6)
    square = tuple((a, b) for a in range(4) for b in range(a))
    with pytest.raises(ValueError, match="at most two neighbours"):
        energy_flow_polynomials(np.ones(1), np.ones(1), np.ones(1), np.array([0, 1]), [square])


ENERGYFLOW = [
    [
        3.97608923883e-06,
        7.02436115757e-06,
        9.15131205127e-06,
        9.59243977489e-06,
        1.07444716591e-05,
    ],
    [
        4.13600739982e-06,
        7.00022841891e-06,
        9.15448992143e-06,
        9.63159830337e-06,
        1.03200908157e-05,
    ],
    [
        8.23278118793e-07,
        1.83141176906e-06,
        2.34683639167e-06,
        2.44717378109e-06,
        2.65805019347e-06,
    ],
]
