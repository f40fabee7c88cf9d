"""The K nearest neighbours of every particle in its own jet."""

from __future__ import annotations

from torch import Tensor

from jetkern.ops.checks import check_float, check_offsets, check_shape
from jetkern.ops.dispatch import run
from jetkern.packed import Packed, check_rising

PARTICLE, PLANE = 4, 2  # columns of particles, and those of them that are coordinates


def knn(
    coordinates: Tensor,
    offsets: Tensor | Packed,
    k: int,
    *,
    columns: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """Nearest neighbours by Euclidean distance, each particle itself excluded.

    For particles the plane is (delta eta, delta phi), phi not wrapped since the inputs are
    relative to the jet axis (arXiv 2606.14870, section II: local embedding). Distances are sums
    of (x_i - x_j)^2, column by column. Equal distances are ordered by row, so the result is
    deterministic.

    Args:
        coordinates: (T, C) float.
        offsets: (B + 1,) int64 or int32 rows of each jet, or a ``Packed``.
        k: number of neighbours, at least 1.
        columns: how many columns, from the first on, are coordinates: ``columns=C`` for points in
            any space, such as the features of a dynamic graph (arXiv 1902.08570). It may be left
            out for (T, 2) points in the plane and for (T, 4) particles, of which the first two
            are taken.

    Returns:
        (T, k) int64 row of each neighbour, nearest first; -1 where a jet has fewer than k + 1
        particles. Not differentiable.

    Raises:
        ValueError: for wrong shapes, dtypes, k or columns, or if ``columns`` is left out for
            another number of columns than 2 or 4; on a CPU also (RuntimeError from the C++ op)
            for offsets that do not rise from 0 to T.
    """
    check_float("coordinates", coordinates)
    width = coordinates.shape[-1] if coordinates.ndim == 2 else 0
    if columns is None:
        if width < PLANE:
            check_shape("coordinates", coordinates, None, PLANE)
        if width not in (PLANE, PARTICLE):
            raise ValueError(
                f"coordinates has {width} columns: say how many of them, from the first on, are "
                f"coordinates (columns={width} for all)"
            )
        columns = PLANE
    elif not 1 <= columns <= width:
        raise ValueError(
            f"columns must be 1 to the number of columns of (T, C) coordinates, got {columns} for "
            f"{tuple(coordinates.shape)}"
        )
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    rows = check_offsets("offsets", offsets, coordinates)
    return run("knn", backend, coordinates, rows, k, columns, values=_check_values)


def _check_values(coordinates: Tensor, offsets: Tensor, *others: int) -> None:
    check_rising("offsets", offsets, coordinates.shape[0])
