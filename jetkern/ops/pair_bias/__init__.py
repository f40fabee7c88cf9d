"""The interaction bias: an attention bias computed from the features of every particle pair."""

from __future__ import annotations

from torch import Tensor

from jetkern.ops.checks import check_float, check_offsets, check_shape
from jetkern.ops.dispatch import implementation
from jetkern.ops.parameters import MLPParameters


def pair_bias(
    particles: Tensor,
    offsets: Tensor,
    parameters: MLPParameters,
    *,
    precision: str = "ieee",
    backend: str = "auto",
) -> Tensor:
    """Perceptron 3 -> C -> H on [ln m^2, ln delta R, ln kT] of all pairs of a jet.

    Computed once for a pass and added to the attention logits of every body layer
    (arXiv 2606.14870, Eq. 6). The bias is symmetric; the diagonal is the perceptron of (0, 0, 0).

    Args:
        particles: (T, 4) delta eta, delta phi, ln pT, ln E.
        offsets: (B + 1,) int64.
        parameters: fc1 (C, 3) with bias, fc2 (H, C) with bias, no norm.
        precision: the products may be rounded to this: "ieee" float32, "tf32" or "bf16".

    Returns:
        (H, P) with P = sum n^2, jet by jet: entry ``[h, pair_offsets(offsets)[b] + i n + j]``.

    Raises:
        ValueError: for wrong shapes or dtypes.
    """
    check_float("particles", particles)
    check_shape("particles", particles, None, 4)
    check_offsets("offsets", offsets, particles.device)
    check_shape("fc1_weight", parameters.fc1_weight, None, 3)
    return implementation("pair_bias", backend, particles, precision)(
        particles, offsets, parameters
    )
