"""Features of every edge, once for all that read them: no thread computes what another has."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from jetkern.ops.gpu.functions import pair_features
from jetkern.ops.gpu.launch import Settings, cdiv, launch

SETTINGS: Settings = {"ROWS": 256, "num_warps": 4, "num_stages": 1}
LANES = 8


class Edges(NamedTuple):
    """What the kernels read of a batch's edges, float32.

    Attributes:
        features: (E, 8) the seven inputs of the embedding, and a one for its bias; finite, too,
            where there is no neighbour.
        shares: (E,) what an edge counts in the mean, 1 / (number of neighbours + 1e-9 K), 0 for
            none.
    """

    features: Any
    shares: Any


@triton.jit(do_not_specialize=["edges", "limit"])
def local_features_kernel(
    centres, particles, neighbours, out, edges, limit, K: tl.constexpr, ROWS: tl.constexpr
):
    """``Edges`` of neighbours (T, K), rows of particles (limit, 4), of centres (T, 4)."""
    edge = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = edge < edges
    own = edge // K
    number = tl.zeros((ROWS,), tl.float32)
    for k in range(K):
        one = tl.load(neighbours + own * K + k, inside, -1)
        number += ((one >= 0) & (one < limit)).to(tl.float32)
    other = tl.load(neighbours + edge, inside, -1)
    exists = (other >= 0) & (other < limit)
    tl.store(out.shares + edge, tl.where(exists, 1.0 / (number + 1e-9 * K), 0.0), inside)
    p = centres + own * 4
    eta_i = tl.load(p, inside, 0.0).to(tl.float32)
    phi_i = tl.load(p + 1, inside, 0.0).to(tl.float32)
    pt_i = tl.load(p + 2, inside, 0.0).to(tl.float32)
    e_i = tl.load(p + 3, inside, 0.0).to(tl.float32)
    p = particles + other * 4
    eta_j = tl.load(p, exists, 0.0).to(tl.float32)
    phi_j = tl.load(p + 1, exists, 0.0).to(tl.float32)
    pt_j = tl.load(p + 2, exists, 0.0).to(tl.float32)
    e_j = tl.load(p + 3, exists, 0.0).to(tl.float32)
    m2, r, kt = pair_features(eta_i, phi_i, pt_i, eta_j, phi_j, pt_j)
    to = out.features + edge * 8
    tl.store(to, eta_i - eta_j, inside)
    tl.store(to + 1, phi_i - phi_j, inside)
    tl.store(to + 2, pt_i - pt_j, inside)
    tl.store(to + 3, e_i - e_j, inside)
    tl.store(to + 4, m2, inside)
    tl.store(to + 5, r, inside)
    tl.store(to + 6, kt, inside)
    tl.store(to + 7, edge.to(tl.float32) * 0.0 + 1.0, inside)


@triton.jit
def features_of(edges, first, edge, inside):
    """(ROWS, 16) float32: the features of a tile's edges, then zeros."""
    lane = tl.arange(0, 16)[None, :]
    at = edges.features + first * 8 + edge[:, None] * 8 + lane
    return tl.load(at, inside[:, None] & (lane < 8), 0.0)


def edge_features(centres: Tensor, particles: Tensor, neighbours: Tensor) -> Edges:
    """Of neighbours (T, K) of the centres (T, 4): rows of particles, others are none."""
    total, k = neighbours.shape
    made = Edges(
        particles.new_empty(total * k, LANES, dtype=torch.float32),
        particles.new_empty(total * k, dtype=torch.float32),
    )
    launch(
        local_features_kernel,
        (cdiv(total * k, SETTINGS["ROWS"]),),
        particles.device,
        SETTINGS,
        centres=centres,
        particles=particles,
        neighbours=neighbours,
        out=made,
        edges=total * k,
        limit=len(particles),
        K=k,
    )
    return made
