"""The K nearest neighbours of every particle in its own jet."""

from __future__ import annotations

from torch import Tensor

from jetkern.ops.checks import check_float, check_offsets, check_shape
from jetkern.ops.dispatch import implementation


def knn(coordinates: Tensor, offsets: Tensor, k: int, *, backend: str = "auto") -> Tensor:
    """Nearest neighbours in (delta eta, delta phi), each particle itself excluded.

    Distances are computed as (eta_i - eta_j)^2 + (phi_i - phi_j)^2, phi not wrapped since the
    inputs are relative to the jet axis (arXiv 2606.14870, section II: local embedding). Equal
    distances are ordered by row, so the result is deterministic.

    Args:
        coordinates: (T, 2) float; more columns are allowed and ignored.
        offsets: (B + 1,) int64 rows of each jet.
        k: number of neighbours, at least 1.

    Returns:
        (T, k) int64 row of each neighbour, nearest first; -1 where a jet has fewer than k + 1
        particles. Not differentiable.

    Raises:
        ValueError: for wrong shapes, dtypes or k.
    """
    check_float("coordinates", coordinates)
    if coordinates.ndim != 2 or coordinates.shape[1] < 2:
        check_shape("coordinates", coordinates, None, 2)
    check_offsets("offsets", offsets, coordinates.device)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return implementation("knn", backend, coordinates)(coordinates, offsets, k)
