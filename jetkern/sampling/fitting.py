"""Few-step schemes made for one velocity field: its grid, then its weights.

Both come from a fine reference trajectory of some jets, without a gradient of the network:

1. the grid minimises the sum of the two-step Adams-Bashforth scheme's local errors against the
   reference, over all choices of nodes among those of the reference (dynamic programming; along
   the lines of arXiv 2503.21774). The errors are quadratic forms of the inner products of the
   reference's positions and velocities, so they cost no evaluation.
2. the weights are fitted node by node: the position there is regressed on the velocities that the
   scheme itself has met so far, one ridge regression for each feature, towards Adams-Bashforth
   (non-stationary solvers, arXiv 2403.01329, fitted in closed form instead of by gradients).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jetkern.jets import Jets
from jetkern.model.columns import joined
from jetkern.sampling.sampler import Velocity, steps_of
from jetkern.sampling.solvers import Floats, Scheme, integrate, scheme

FINE = 64  # steps of the reference
RIDGE = 1e-4  # of the mean square of a velocity


@dataclass(frozen=True)
class Trajectory:
    """Positions and velocities (M + 1, T, F) of jets at ``nodes`` (M + 1,), noise first."""

    jets: Jets
    nodes: Floats
    positions: Tensor
    velocities: Tensor


def fine_grid(steps: int = FINE) -> Floats:
    """(steps + 1,) times from 1 to 0, closer together towards both ends."""
    angle = np.linspace(0, np.pi, steps + 1)
    nodes = (1 + np.cos(angle)) / 2
    nodes[-1] = 0.0
    return nodes


@torch.no_grad()
def trajectory(velocity: Velocity, start: Jets, nodes: Floats | None = None) -> Trajectory:
    """A fine reference: the midpoint rule between ``nodes``, by default ``fine_grid()``.

    Args:
        velocity: the field.
        start: of ``noise_jets``; some hundred jets, with the labels and conditions to expect.
        nodes: (M + 1,) times, from 1 to 0.
    """
    nodes = fine_grid() if nodes is None else nodes
    fine = scheme("midpoint", nodes)
    velocity_at = steps_of(velocity, start, fine)
    positions, velocities = [], []

    def recorded(x: Tensor, k: int) -> Tensor:
        v = velocity_at(x, k)
        if k % 2 == 0:
            positions.append(x)
            velocities.append(v)
        return v

    end = integrate(recorded, joined(start), fine)
    last = steps_of(velocity, start, Scheme(nodes[-1:], np.zeros((1, 1))))
    positions.append(end)
    velocities.append(last(end, 0))
    return Trajectory(start, nodes, torch.stack(positions), torch.stack(velocities))


def best_grid(reference: Trajectory, steps: int) -> Floats:
    """(steps + 1,) nodes of the reference with the least sum of local errors."""
    size = len(reference.nodes)
    if not 1 <= steps < size:
        raise ValueError(f"a grid of 1 to {size - 1} steps can be chosen, not {steps}")
    error = _local_errors(reference)
    first, following = error[0, 0], error
    # best[a, b]: least error of a grid whose last step goes from node a to node b.
    best = np.full((size, size), np.inf)
    best[0] = first
    came: list[np.ndarray] = []
    for _ in range(steps - 1):
        total = best[:, :, None] + following
        came.append(total.argmin(0))
        best = total.min(0)
    chosen = [size - 1, int(best[:, -1].argmin())]
    for before in reversed(came):
        chosen.append(int(before[chosen[-1], chosen[-2]]))
    return reference.nodes[chosen[::-1]]


def fit_weights(
    velocity: Velocity, reference: Trajectory, grid: Floats, ridge: float = RIDGE
) -> Scheme:
    """The scheme on ``grid``, nodes of the reference, that stays closest to it."""
    places = [int(np.flatnonzero(reference.nodes == t)[0]) for t in grid]
    begin = scheme("ab2", grid)
    velocity_at = steps_of(velocity, reference.jets, begin)
    start = reference.positions[0]
    steps = len(grid) - 1
    columns = start.shape[1]
    weights = np.zeros((steps, steps, columns))
    known: list[Tensor] = []
    x = start
    with torch.no_grad():
        for k in range(steps):
            known.append(velocity_at(x, k))
            met = torch.stack(known).double()
            prior = torch.from_numpy(np.repeat(begin.weights[k, : k + 1], columns, axis=1))
            moved = (reference.positions[places[k + 1]] - start).double()
            rest = moved - torch.einsum("jf,jtf->tf", prior.to(met), met)
            gram = torch.einsum("itf,jtf->fij", met, met) / len(rest)
            target = torch.einsum("jtf,tf->fj", met, rest) / len(rest)
            scale = gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
            gram = gram + ridge * scale * torch.eye(k + 1, dtype=gram.dtype, device=gram.device)
            change = torch.linalg.solve(gram, target[..., None])[..., 0].T
            row = prior.to(change) + change
            weights[k, : k + 1] = row.cpu().numpy()
            x = start + torch.einsum("jf,jtf->tf", row.to(met), met).to(start.dtype)
    return Scheme(grid[:-1], weights, f"fitted{steps}")


def fit(velocity: Velocity, reference: Trajectory, evaluations: int) -> Scheme:
    """The scheme with so many evaluations for this field: best grid, then weights."""
    return fit_weights(velocity, reference, best_grid(reference, evaluations))


def _local_errors(reference: Trajectory) -> np.ndarray:
    """(M+1, M+1, M+1) error of the step from node b to c when the step before began at a.

    Euler's if a = b = 0; infinite where the nodes are not in order.
    """
    nodes, size = reference.nodes, len(reference.nodes)
    scale = reference.positions[-1].std(0).clamp(min=1e-6)
    rows = torch.cat([reference.positions - reference.positions[0], reference.velocities])
    rows = (rows / scale).flatten(1).double()
    gram = (rows @ rows.T / rows.shape[1]).cpu().numpy()
    error = np.full((size, size, size), np.inf)
    for b in range(size - 1):
        for c in range(b + 1, size):
            step = nodes[c] - nodes[b]
            for a in range(max(1, b)) if b else [0]:
                ratio = step / (2 * (nodes[b] - nodes[a])) if b else 0.0
                form = np.array([1.0, -1.0, -step * (1 + ratio), step * ratio])
                index = [c, b, size + b, size + a]
                error[a, b, c] = max(form @ gram[np.ix_(index, index)] @ form, 0.0) ** 0.5
    return error
