"""Softmax attention over packed sets of variable length, with an additive pair bias."""

from __future__ import annotations

import torch
from torch import Tensor

from jetkern.ops.checks import (
    check_bias,
    check_bias_values,
    check_float,
    check_offsets,
    check_shape,
)
from jetkern.ops.dispatch import run
from jetkern.ops.parameters import Dropout
from jetkern.packed import Packed, check_rising
from jetkern.random import random_bits

STREAM = 50  # of random numbers, apart from those of a training step


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_offsets: Tensor | Packed,
    key_offsets: Tensor | Packed,
    bias: Tensor | None = None,
    particle_offsets: Tensor | Packed | None = None,
    *,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor = 0,
    jet_numbers: Tensor | None = None,
    precision: str = "ieee",
    backend: str = "auto",
) -> Tensor:
    """softmax(scale q k^T + bias) v, jet by jet.

    The particles are the last rows of a jet's segment; the rows before them (global, time and
    condition tokens) are a prefix without bias, whose length may differ from jet to jet.

    Args:
        q: (Tq, H, d); k, v: (Tk, H, d).
        query_offsets, key_offsets: (B + 1,) int64 or int32 rows of each jet in q and in k and v, or
            a ``Packed``.
        bias: (H, P) as ``pair_bias`` returns it, or None.
        particle_offsets: (B + 1,), needed with a bias: jet b has
            ``particle_offsets[b + 1] - particle_offsets[b]`` particles. As a ``Packed`` what the
            backends derive from it is computed once, not in each layer.
        scale: of the products, 1 / sqrt(d) if None.
        dropout_p: probability with which a weight of the softmax is left out, in training; the
            others are multiplied by 1 / (1 - dropout_p). 0 costs nothing. Which are left out is a
            function of (seed, jet, head, query, key), the last two counted within the jet:
            the same on every backend and for any split of a batch, and nothing is kept for the
            backward.
        seed: another for each layer and step; an int64 tensor of one number where it changes
            inside a compiled or captured graph.
        jet_numbers: (B,) int64 of the jets, such as ``Jets.index``; 0 to B - 1 if None.
        precision: the products may be rounded to this: "ieee" float32, "tf32" or "bf16".

    Returns:
        (Tq, H, d); zero for the queries of a jet without keys.

    Raises:
        ValueError: for wrong shapes or dtypes, a probability outside [0, 1), or a bias without
            ``particle_offsets``; on a CPU also (RuntimeError from the C++ op) for offsets that do
            not rise from 0 to the number of rows or do not fit the bias.
    """
    check_float("q", q)
    check_shape("q", q, None, None, None)
    if scale is not None:  # the backends scale by 1 / sqrt(d)
        q = q * (scale * q.shape[2] ** 0.5)
    check_shape("k", k, None, *q.shape[1:])
    check_shape("v", v, *k.shape)
    queries = check_offsets("query_offsets", query_offsets, q)
    jets = queries.shape[0] - 1
    keys = check_offsets("key_offsets", key_offsets, q, jets)
    particles = None
    if bias is not None:
        particles = check_bias(bias, particle_offsets, q.shape[1], q, jets)
    dropout = _dropout(dropout_p, seed, jet_numbers, jets, q)
    return run(
        "attention", backend, q, k, v, queries, keys, bias, particles, dropout,
        precision=precision, values=_check_values,
    )  # fmt: skip


def _dropout(
    p: float, seed: int | Tensor, numbers: Tensor | None, jets: int, like: Tensor
) -> Dropout | None:
    if not 0 <= p < 1:
        raise ValueError(f"dropout_p must be at least 0 and below 1, got {p}")
    if p == 0:
        return None
    if numbers is None:
        numbers = torch.arange(jets, device=like.device)
    check_shape("jet_numbers", numbers, jets)
    if numbers.dtype != torch.int64 or numbers.device != like.device:
        raise ValueError(
            f"jet_numbers must be int64 on {like.device}, got {numbers.dtype} on {numbers.device}"
        )
    return Dropout(random_bits(seed, STREAM, numbers), p)


def _check_values(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor,
    bias: Tensor | None,
    particles: Packed | None,
    dropout: Dropout | None,
) -> None:
    check_rising("query_offsets", query_offsets, q.shape[0])
    check_rising("key_offsets", key_offsets, k.shape[0])
    check_bias_values(
        bias, particles, ("query_offsets", query_offsets), ("key_offsets", key_offsets)
    )
