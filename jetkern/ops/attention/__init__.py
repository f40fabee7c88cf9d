"""Softmax attention over packed sets of variable length, with an additive pair bias."""

from __future__ import annotations

from torch import Tensor

from jetkern.ops.checks import check_float, check_offsets, check_shape
from jetkern.ops.dispatch import implementation


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor,
    bias: Tensor | None = None,
    particle_offsets: Tensor | None = None,
    *,
    precision: str = "ieee",
    backend: str = "auto",
) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v, jet by jet.

    The particles are the last rows of a jet's segment; the rows before them (global, time and
    condition tokens) are a prefix without bias, whose length may differ from jet to jet.

    Args:
        q: (Tq, H, d); k, v: (Tk, H, d).
        query_offsets, key_offsets: (B + 1,) int64 rows of each jet in q and in k and v.
        bias: (H, P) as ``pair_bias`` returns it, or None.
        particle_offsets: (B + 1,) int64, needed with a bias: jet b has
            ``particle_offsets[b + 1] - particle_offsets[b]`` particles.
        precision: the products may be rounded to this: "ieee" float32, "tf32" or "bf16".

    Returns:
        (Tq, H, d); zero for the queries of a jet without keys.

    Raises:
        ValueError: for wrong shapes or dtypes, or a bias without ``particle_offsets``.
    """
    check_float("q", q)
    check_shape("q", q, None, None, None)
    check_shape("k", k, None, *q.shape[1:])
    check_shape("v", v, *k.shape)
    check_offsets("query_offsets", query_offsets, q.device)
    check_offsets("key_offsets", key_offsets, q.device)
    if bias is not None:
        check_shape("bias", bias, q.shape[1], None)
        if particle_offsets is None:
            raise ValueError("a bias needs particle_offsets")
        check_offsets("particle_offsets", particle_offsets, q.device)
    run = implementation("attention", backend, q, precision)
    return run(q, k, v, query_offsets, key_offsets, bias, particle_offsets)
