"""Explicit solvers of dx/dt = v(x, t) as tables of numbers.

Every explicit scheme on a fixed grid evaluates the velocity S times, each time at the start plus a
combination of the velocities before. So it is S times and a lower triangular (S, S) table: the
solvers below only fill it in, one loop runs them all, and ``jetkern.sampling.fitting`` learns
tables of its own. (Non-stationary solvers, Shaul et al., arXiv 2403.01329, see them so too.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]

# Butcher tables: the stages' weights row by row, then those of the step. RK4 is the 3/8 rule, which
# is also what torchdiffeq calls rk4.
TABLEAUS: dict[str, tuple[tuple[float, ...], ...]] = {
    "euler": ((1.0,),),
    "midpoint": ((1 / 2,), (0.0, 1.0)),
    "heun": ((1.0,), (1 / 2, 1 / 2)),
    "rk4": ((1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0), (1 / 8, 3 / 8, 3 / 8, 1 / 8)),
}
SOLVERS = (*TABLEAUS, "ab2")
FLOW_MAP = "flow-map"  # of a field that knows the mean velocity of a whole step


@dataclass(frozen=True)
class Scheme:
    """An explicit solver on a grid.

    Attributes:
        times: (S,) where the velocity is evaluated, the start first.
        weights: (S, S, F) with F = 1, or a table for each of F features. After evaluation k the
            position is start + sum over j <= k of ``weights[k, j]`` times velocity j; there the
            next evaluation takes place, and the last position is the result.
        name: for tables and records.
        ends: (S,) of the steps that begin at ``times``, for a field of mean velocities; it is asked
            with both. None for a field of velocities at one time.
    """

    times: Floats
    weights: Floats
    name: str = "custom"
    ends: Floats | None = None

    def __post_init__(self) -> None:
        times = np.asarray(self.times, np.float64)
        weights = np.asarray(self.weights, np.float64)
        steps = len(times)
        if times.ndim != 1 or not steps or weights.shape[:2] != (steps, steps):
            raise ValueError(
                f"a scheme needs times (S,) and weights (S, S, F), got {times.shape} and "
                f"{weights.shape}"
            )
        weights = weights.reshape(steps, steps, -1)
        if not (np.isfinite(times).all() and np.isfinite(weights).all()):
            raise ValueError(f"scheme {self.name} has times or weights that are not finite")
        if np.triu(np.abs(weights).max(2), 1).any():
            raise ValueError(f"scheme {self.name} uses velocities before they are known")
        object.__setattr__(self, "times", times)
        object.__setattr__(self, "weights", weights)
        if self.ends is not None:
            ends = np.asarray(self.ends, np.float64)
            if ends.shape != times.shape or not np.isfinite(ends).all():
                raise ValueError(f"scheme {self.name} needs {steps} finite ends of its steps")
            object.__setattr__(self, "ends", ends)

    @property
    def evaluations(self) -> int:
        """How often the velocity is evaluated."""
        return len(self.times)

    def as_json(self) -> dict[str, Any]:
        """Plain values that ``from_json`` reads back to the last bit."""
        record = {"name": self.name, "times": self.times.tolist(), "weights": self.weights.tolist()}
        return record if self.ends is None else {**record, "ends": self.ends.tolist()}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Scheme:
        """The scheme of ``as_json``.

        Raises:
            ValueError: if it is none.
        """
        try:
            ends = None if record.get("ends") is None else np.array(record["ends"])
            times, weights = np.array(record["times"]), np.array(record["weights"])
            return cls(times, weights, str(record["name"]), ends)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a sampling scheme: {error!r}") from error


def scheme(solver: str, grid: Sequence[float] | Floats) -> Scheme:
    """The scheme of a solver on a grid.

    Args:
        solver: "euler", "midpoint", "heun" and "rk4" (the 3/8 rule) take 1, 2, 2 and 4 evaluations
            a step, "ab2" (two-step Adams-Bashforth, whose first step is Euler's) one; "flow-map"
            takes one of a field that knows the mean velocity of a step.
        grid: (n + 1,) times, strictly in- or decreasing, the start first.

    Raises:
        ValueError: for an unknown solver or a grid that it cannot use.
    """
    nodes = check_grid(grid)
    if solver in TABLEAUS:
        return _runge_kutta(solver, nodes)
    if solver == "ab2":
        return _adams_bashforth(nodes)
    if solver == FLOW_MAP:
        euler = _runge_kutta("euler", nodes)
        return Scheme(euler.times, euler.weights, solver, nodes[1:])
    names = ", ".join((*SOLVERS, FLOW_MAP))
    raise ValueError(f"unknown solver {solver!r}: choose one of {names}")


def check_grid(grid: Sequence[float] | Floats) -> Floats:
    """The grid as an array.

    Raises:
        ValueError: unless it has two or more times, all finite, strictly in- or decreasing.
    """
    nodes = np.asarray(grid, np.float64)
    if nodes.ndim != 1 or len(nodes) < 2 or not np.isfinite(nodes).all():
        raise ValueError(f"a grid needs two or more finite times, got {nodes.tolist()}")
    steps = np.diff(nodes)
    if not ((steps > 0).all() or (steps < 0).all()):
        raise ValueError(f"a grid must strictly in- or decrease, got {nodes.tolist()}")
    return nodes


def uniform_grid(steps: int, start: float = 1.0, stop: float = 0.0) -> Floats:
    """(steps + 1,) equally spaced times from noise (t = 1) to data (t = 0).

    Raises:
        ValueError: without a step.
    """
    if steps < 1:
        raise ValueError(f"a grid needs at least one step, got {steps}")
    return np.linspace(start, stop, steps + 1)


def with_evaluations(solver: str, evaluations: int) -> Scheme:
    """The solver on the uniform grid from 1 to 0 that takes so many evaluations.

    Raises:
        ValueError: if they are no whole number of steps.
    """
    each = len(TABLEAUS[solver]) if solver in TABLEAUS else 1
    steps, rest = divmod(evaluations, each)
    if rest or not steps:
        raise ValueError(f"{solver} takes {each} evaluations a step: {evaluations} are no multiple")
    return scheme(solver, uniform_grid(steps))


def integrate(velocity: Callable[[Tensor, int], Tensor], start: Tensor, scheme: Scheme) -> Tensor:
    """Runs a scheme.

    Args:
        velocity: called as ``velocity(x, k)`` for evaluation k, at ``scheme.times[k]``.
        start: (..., F) position at ``scheme.times[0]``.

    Returns:
        The position at the end of the grid.
    """
    increments = np.diff(scheme.weights, axis=0, prepend=0.0)
    used = np.abs(increments).max(2) > 0
    x = start
    known: dict[int, Tensor] = {}
    for k in range(scheme.evaluations):
        known[k] = velocity(x, k)
        for j in np.flatnonzero(used[k]).tolist():
            weight = increments[k, j]
            factor = float(weight[0]) if len(weight) == 1 else x.new_tensor(weight)
            x = x + factor * known[j]
        known = {j: v for j, v in known.items() if used[k + 1 :, j].any()}
    return x


def _runge_kutta(name: str, nodes: Floats) -> Scheme:
    tableau = TABLEAUS[name]
    stages, steps = len(tableau), np.diff(nodes)
    total = stages * len(steps)
    weights = np.zeros((total, total))
    base = np.zeros(total)
    times = []
    for n, h in enumerate(steps):
        first = n * stages
        for i, row in enumerate(tableau):
            place = slice(first, first + len(row))
            weights[first + i] = base
            weights[first + i, place] += h * np.array(row)
            share = sum(tableau[i - 1]) if i else 0.0
            times.append(nodes[n] + h * share)
        base = weights[first + stages - 1]
    return Scheme(np.array(times), weights, name)


def _adams_bashforth(nodes: Floats) -> Scheme:
    """Velocities are extrapolated linearly from the last two; the first step is Euler's."""
    h = np.diff(nodes)
    increments = np.diag(h)
    for n in range(1, len(h)):
        ratio = h[n] / (2 * h[n - 1])
        increments[n, n - 1 : n + 1] = [-h[n] * ratio, h[n] * (1 + ratio)]
    return Scheme(nodes[:-1], np.cumsum(increments, axis=0), "ab2")
