"""One pre-norm transformer block over packed sets."""

from __future__ import annotations

from torch import Tensor

from jetkern.ops.checks import (
    check_bias,
    check_bias_values,
    check_block,
    check_float,
    check_offsets,
    check_shape,
)
from jetkern.ops.dispatch import run
from jetkern.ops.parameters import BlockParameters
from jetkern.packed import Packed, check_rising


def attention_block(
    x: Tensor,
    offsets: Tensor | Packed,
    parameters: BlockParameters,
    heads: int,
    bias: Tensor | None = None,
    particle_offsets: Tensor | Packed | None = None,
    *,
    precision: str = "ieee",
    backend: str = "auto",
) -> Tensor:
    """x + MHA(DynamicTanh(x)), then x + MLP(DynamicTanh(x)), attention within each jet.

    Args:
        x: (T, D); offsets: (B + 1,) int64 or int32 rows of each jet, or a ``Packed``.
        parameters: weights, see ``BlockParameters``; heads: number of heads, divides D.
        bias: (heads, P) and particle_offsets: (B + 1,) int64, or None; these and precision: as for
            ``attention``.

    Returns:
        (T, D).

    Raises:
        ValueError: for wrong shapes or dtypes, also of a weight, which is named, for heads that do
            not divide D, or a bias without ``particle_offsets``; on a CPU also for offsets as in
            ``attention``.
    """
    check_float("x", x)
    check_shape("x", x, None, None)
    check_block("parameters", parameters, x.shape[1], heads)
    rows = check_offsets("offsets", offsets, x)
    particles = None
    if bias is not None:
        particles = check_bias(bias, particle_offsets, heads, x, rows.shape[0] - 1)
    return run(
        "attention_block", backend, x, rows, parameters, heads, bias, particles,
        precision=precision, values=_check_values,
    )  # fmt: skip


def _check_values(
    x: Tensor,
    offsets: Tensor,
    parameters: BlockParameters,
    heads: int,
    bias: Tensor | None,
    particles: Packed | None,
) -> None:
    check_rising("offsets", offsets, x.shape[0])
    check_bias_values(bias, particles, ("offsets", offsets))
