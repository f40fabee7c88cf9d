"""Softmax attention within packed ordered sets: no row sees a later one."""

from __future__ import annotations

from torch import Tensor

from jetkern.ops.checks import check_float, check_offsets, check_shape
from jetkern.ops.dispatch import run
from jetkern.packed import Packed, check_rising


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor | Packed,
    *,
    scale: float | None = None,
    precision: str = "ieee",
    backend: str = "auto",
) -> Tensor:
    """softmax(scale q k^T) v over the rows of a set up to and with the query's own.

    Sets may have any number of rows: no score matrix is kept.

    Args:
        q: (T, H, d); k, v: (T, G, d) with G a divisor of H: query head h uses head h // (H / G),
            so G = H is multi-head, G = 1 multi-query attention (Shazeer, arXiv:1911.02150), what
            lies between grouped-query attention (Ainslie et al., arXiv:2305.13245).
        offsets: (B + 1,) int64 or int32 rows of each set, or a ``Packed``.
        scale: of the products, 1 / sqrt(d) if None.
        precision: the products may be rounded to this: "ieee" float32, "tf32" or "bf16".

    Returns:
        (T, H, d).

    Raises:
        ValueError: for wrong shapes or dtypes; on a CPU also (RuntimeError from the C++ op) for
            offsets that do not rise from 0 to the number of rows.
    """
    check_float("q", q)
    check_shape("q", q, None, None, None)
    rows, heads, width = q.shape
    check_shape("k", k, rows, None, width)
    check_shape("v", v, *k.shape)
    if not k.shape[1] or heads % k.shape[1]:
        raise ValueError(f"the {k.shape[1]} heads of k must divide the {heads} of q")
    if scale is not None:  # the backends scale by 1 / sqrt(d)
        q = q * (scale * width**0.5)
    starts = check_offsets("offsets", offsets, q)
    return run(
        "causal_attention", backend, q, k, v, starts, precision=precision, values=_check_values
    )


def _check_values(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> None:
    check_rising("offsets", offsets, q.shape[0])
