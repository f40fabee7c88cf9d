"""Energy flow polynomials (arXiv 1712.07124) of packed jets.

The polynomial of a multigraph sums, over all choices of one particle for each vertex, the
particles' energy fractions times the distance of the two particles at each edge. A vertex with at
most two neighbours can be summed out by a matrix product, which leaves the polynomial of a smaller
graph; all graphs of up to five edges shrink to nothing so, at n^3 for n particles or less.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import combinations_with_replacement, permutations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jetkern.jets import unpack

Floats = NDArray[np.float64]
Edges = tuple[tuple[int, int], ...]
MAX_EDGES = 5
ELEMENTS = 4_000_000  # of a pair matrix, which bounds the memory of a pass


def connected_multigraphs(edges: int) -> tuple[Edges, ...]:
    """All connected multigraphs with that many edges, up to relabelling; none has loops.

    Raises:
        ValueError: for more than ``MAX_EDGES`` edges.
    """
    if not 0 <= edges <= MAX_EDGES:
        raise ValueError(f"graphs of 0 to {MAX_EDGES} edges are known, not {edges}")
    return _connected(edges)


@cache
def _connected(edges: int) -> tuple[Edges, ...]:
    found: set[Edges] = set() if edges else {()}
    for smaller in _connected(edges - 1) if edges else ():
        old = _vertices(smaller)
        for a, b in combinations_with_replacement(range(old + 1), 2):
            if a != b:
                found.add(_canonical((*smaller, (a, b))))
    return tuple(sorted(found, key=lambda g: (_vertices(g), g)))


def multigraphs(edges: int) -> tuple[Edges, ...]:
    """All multigraphs of up to ``edges`` edges without isolated vertices, connected or not.

    For 4 edges these are the 36 graphs on which FPD and KPD are defined (arXiv 2211.10295).
    """
    graphs: list[Edges] = [()]
    for total in range(1, edges + 1):
        for parts in _partitions(total):
            graphs += [_union(g) for g in _products(parts)]
    return tuple(graphs)


def prime_multigraphs(vertices: int, edges: int) -> tuple[Edges, ...]:
    """The connected multigraphs with these numbers of vertices and edges."""
    return tuple(g for g in connected_multigraphs(edges) if _vertices(g) == vertices)


def energy_flow_polynomials(
    pt: Floats,
    eta: Floats,
    phi: Floats,
    offsets: NDArray[np.int64],
    graphs: Sequence[Edges],
    *,
    normed: bool = True,
    beta: float = 1.0,
) -> Floats:
    """(B, len(graphs)) polynomials with energies pT and distances sqrt(d eta^2 + d phi^2)^beta.

    Args:
        pt, eta, phi: (T,) of the particles; phi need not be wrapped.
        offsets: (B + 1,) of the jets.
        graphs: lists of edges, of ``multigraphs`` or the like.
        normed: energies are fractions of the jet's sum of pT. A jet without pT has zeros.

    A jet without particles has 0 for every graph, 1 for the graph without edges if ``normed``.
    """
    bounds = torch.from_numpy(np.ascontiguousarray(offsets))
    rows = torch.from_numpy(np.stack([pt, eta, phi], axis=1).astype(np.float64))
    counts = bounds.diff()
    order = counts.argsort(stable=True)
    result = np.zeros((len(counts), len(graphs)))
    components = sorted({c for g in graphs for c in _components(g)}, key=lambda g: (len(g), g))
    for chosen in _chunks(counts[order]):
        jets = order[chosen]
        starts, lengths = bounds[:-1][jets], counts[jets]
        own = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
        shift = (starts - own[:-1]).repeat_interleave(lengths)
        padded, _ = unpack(rows[torch.arange(len(shift)) + shift], own)
        energy = padded[..., 0]
        if normed:
            total = energy.sum(1, keepdim=True)
            energy = torch.where(total > 0, energy / total.where(total > 0, 1.0), 0.0)
        distance = _distances(padded[..., 1], padded[..., 2]).pow(beta)
        values = {c: _polynomial(c, energy, distance) for c in components}
        for number, graph in enumerate(graphs):
            product = torch.ones(len(jets), dtype=torch.float64)
            for component in _components(graph):
                product = product * values[component]
            result[jets.numpy(), number] = product.numpy()
    return result


def _polynomial(edges: Edges, energy: Tensor, distance: Tensor) -> Tensor:
    """(B,) the polynomial of a connected graph, one vertex after the other summed out."""
    vertices = set(range(_vertices(edges)))
    unary = dict.fromkeys(vertices, energy)
    binary: dict[frozenset[int], Tensor] = {
        frozenset(pair): distance.pow(power) if power > 1 else distance
        for pair, power in Counter(edges).items()
    }
    while True:
        near = {v: [p for p in binary if v in p] for v in vertices}
        v = min(vertices, key=lambda v: len(near[v]))
        links = near[v]
        if not links:
            return unary[v].sum(1)
        matrices = [binary.pop(link) for link in links]
        others = [next(iter(link - {v})) for link in links]
        if len(links) == 1:
            summed = (matrices[0] @ unary[v][..., None])[..., 0]
            unary[others[0]] = unary[others[0]] * summed
        elif len(links) == 2:
            joined = (matrices[0] * unary[v][:, None, :]) @ matrices[1]
            pair = frozenset(others)
            binary[pair] = binary[pair] * joined if pair in binary else joined
        else:
            raise ValueError(f"the graph {edges} has no vertex with at most two neighbours")
        vertices.remove(v)


def _distances(eta: Tensor, phi: Tensor) -> Tensor:
    d_eta = eta[:, :, None] - eta[:, None, :]
    d_phi = phi[:, :, None] - phi[:, None, :]
    d_phi = torch.remainder(d_phi + torch.pi, 2 * torch.pi) - torch.pi
    return torch.hypot(d_eta, d_phi)


def _chunks(sorted_counts: Tensor) -> Iterator[slice]:
    """Runs of jets, in ascending multiplicity, of a bounded number of padded pairs."""
    first, total = 0, len(sorted_counts)
    counts = sorted_counts.tolist()
    for i in range(total):
        if i + 1 == total or (i + 2 - first) * counts[i + 1] ** 2 > ELEMENTS:
            yield slice(first, i + 1)
            first = i + 1


def _vertices(edges: Edges) -> int:
    return 1 + max((b for edge in edges for b in edge), default=0)


def _canonical(edges: Edges) -> Edges:
    names = range(_vertices(edges))
    return min(
        tuple(sorted((min(p[a], p[b]), max(p[a], p[b])) for a, b in edges))
        for p in permutations(names)
    )


def _components(edges: Edges) -> list[Edges]:
    """The connected components, each canonical; none for the graph without edges."""
    groups: list[set[int]] = []
    for edge in edges:
        touching = [g for g in groups if g & set(edge)]
        groups = [g for g in groups if g not in touching] + [set(edge).union(*touching)]
    found = []
    for group in groups:
        names = {v: i for i, v in enumerate(sorted(group))}
        found.append(_canonical(tuple((names[a], names[b]) for a, b in edges if a in group)))
    return found


def _union(graphs: Sequence[Edges]) -> Edges:
    edges: list[tuple[int, int]] = []
    shift = 0
    for graph in graphs:
        edges += [(a + shift, b + shift) for a, b in graph]
        shift += _vertices(graph)
    return tuple(edges)


def _partitions(total: int, largest: int | None = None) -> Iterator[tuple[int, ...]]:
    if not total:
        yield ()
    for first in range(min(total, largest or total), 0, -1):
        for rest in _partitions(total - first, first):
            yield (first, *rest)


def _products(parts: tuple[int, ...]) -> Iterator[tuple[Edges, ...]]:
    """Multisets of connected graphs with the given numbers of edges, in descending order."""
    if not parts:
        yield ()
        return
    size, count = parts[0], parts.count(parts[0])
    for chosen in combinations_with_replacement(connected_multigraphs(size), count):
        for rest in _products(parts[count:]):
            yield (*chosen, *rest)
