"""One pre-norm transformer block over packed sets."""

from __future__ import annotations

from torch import Tensor

from jetkern.ops.checks import check_block, check_float, check_offsets, check_shape
from jetkern.ops.dispatch import implementation
from jetkern.ops.parameters import BlockParameters


def attention_block(
    x: Tensor,
    offsets: Tensor,
    parameters: BlockParameters,
    heads: int,
    bias: Tensor | None = None,
    particle_offsets: Tensor | None = None,
    *,
    precision: str = "ieee",
    backend: str = "auto",
) -> Tensor:
    """x + MHA(DynamicTanh(x)), then x + MLP(DynamicTanh(x)), attention within each jet.

    Args:
        x: (T, D); offsets: (B + 1,) int64 rows of each jet.
        parameters: weights, see ``BlockParameters``; heads: number of heads, divides D.
        bias: (heads, P) and particle_offsets: (B + 1,) int64, or None; these and precision: as for
            ``attention``.

    Returns:
        (T, D).

    Raises:
        ValueError: for wrong shapes or dtypes, also of a weight, which is named, for heads that do
            not divide D, or a bias without ``particle_offsets``.
    """
    check_float("x", x)
    check_shape("x", x, None, None)
    check_block("parameters", parameters, x.shape[1], heads)
    check_offsets("offsets", offsets, x.device)
    if bias is not None:
        check_shape("bias", bias, heads, None)
        if particle_offsets is None:
            raise ValueError("a bias needs particle_offsets")
        check_offsets("particle_offsets", particle_offsets, x.device)
    run = implementation("attention_block", backend, x, precision)
    return run(x, offsets, parameters, heads, bias, particle_offsets)
