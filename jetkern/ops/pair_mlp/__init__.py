"""A perceptron of any depth on features of symmetric pairs: an attention bias."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from torch import Tensor

from jetkern.ops.checks import check_float, check_offsets, check_shape
from jetkern.ops.dispatch import run
from jetkern.ops.parameters import LinearParameters
from jetkern.packed import Packed, check_rising, readable


def pair_mlp(
    features: Tensor,
    offsets: Tensor | Packed,
    layers: Sequence[LinearParameters],
    *,
    num_pairs: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """Perceptron F -> ... -> H, GELU between its layers, on features of all pairs i <= j of a jet.

    Each pair is computed once and written as (i, j) and (j, i): the pair embedding of Particle
    Transformer (arXiv 2202.03772, section 3) in the layout of ``attention``. Its batch norms are
    made part of the layers by ``fold_batch_norms``.

    Args:
        features: (S, F) with S = sum n (n + 1) / 2, in the order of ``unordered_pairs``: any
            symmetric quantities, such as ``pair_features`` of both particles.
        offsets: (B + 1,) int64 or int32 of the particles, or a ``Packed``.
        layers: weight (C, D) and bias (C,) or None of each layer; there is no GELU after the last.
        num_pairs: P = sum n^2, if known; see ``pair_bias``.

    Returns:
        (H, P), jet by jet: entry ``[h, pair_offsets(offsets)[b] + i n + j]``; in the dtype of the
        weights.

    Raises:
        ValueError: for wrong shapes or dtypes, or, on a CPU, a wrong number of rows or of
            ``num_pairs`` (RuntimeError from the C++ op).
    """
    check_float("features", features)
    check_shape("features", features, None, None)
    if not layers:
        raise ValueError("layers must have at least one")
    width = features.shape[1]
    for i, (weight, bias) in enumerate(layers):
        check_shape(f"layers[{i}].weight", weight, None, width)
        width = weight.shape[0]
        if bias is not None:
            check_shape(f"layers[{i}].bias", bias, width)
    if num_pairs is None and isinstance(offsets, Packed):
        num_pairs = offsets.known_pairs
    if num_pairs is not None and num_pairs < 0:
        raise ValueError(f"num_pairs must not be negative, got {num_pairs}")
    return run(
        "pair_mlp",
        backend,
        features,
        check_offsets("offsets", offsets, features),
        tuple(layers),
        num_pairs=num_pairs,
        values=functools.partial(_check_values, num_pairs),
    )


def _check_values(
    num_pairs: int | None, features: Tensor, offsets: Tensor, layers: Sequence[LinearParameters]
) -> None:
    check_rising("offsets", offsets)
    if not readable(offsets):
        return
    pairs = Packed.trusted(offsets).num_pairs
    rows = (pairs + int(offsets[-1])) // 2
    if features.shape[0] != rows:
        raise ValueError(
            f"features must have one row for each of the {rows} pairs i <= j of the "
            f"jets, got {features.shape[0]}"
        )
    if num_pairs is not None and num_pairs != pairs:
        raise ValueError(f"num_pairs is {num_pairs}, the jets have {pairs} pairs")
