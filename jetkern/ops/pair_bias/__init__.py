"""The interaction bias: an attention bias computed from the features of every particle pair."""

from __future__ import annotations

import torch
from torch import Tensor

from jetkern.ops.checks import check_float, check_mlp, check_offsets, check_shape
from jetkern.ops.dispatch import choose, implementation
from jetkern.ops.parameters import MLPParameters


def pair_bias(
    particles: Tensor,
    offsets: Tensor,
    parameters: MLPParameters,
    *,
    num_pairs: int | None = None,
    dtype: torch.dtype | None = None,
    precision: str = "ieee",
    backend: str = "auto",
) -> Tensor:
    """Perceptron 3 -> C -> H on [ln m^2, ln delta R, ln kT] of all pairs of a jet.

    Computed once for a pass and added to the attention logits of every body layer
    (arXiv 2606.14870, Eq. 6). The bias is symmetric; the diagonal is the perceptron of (0, 0, 0).

    Args:
        particles: (T, 4) delta eta, delta phi, ln pT (GeV), ln E.
        offsets: (B + 1,) int64.
        parameters: fc1 (C, 3) with bias, fc2 (H, C) with bias, no norm.
        num_pairs: P, if the caller knows it. Without it a GPU is waited for once, as P depends on
            the values of ``offsets``, and ``torch.compile`` has a size that it does not know. It
            must be right: on a GPU nothing is written outside, but the result is meaningless.
        dtype: of the result; None for that of ``particles``.
        precision: the products may be rounded to this: "ieee" float32, "tf32" or "bf16".

    Returns:
        (H, P) with P = sum n^2, jet by jet: entry ``[h, pair_offsets(offsets)[b] + i n + j]``.

    Raises:
        ValueError: for wrong shapes or dtypes.
        RuntimeError: on a CPU, if ``num_pairs`` is not the number of pairs.
    """
    _check(particles, offsets, parameters, num_pairs)
    return implementation("pair_bias", backend, particles, precision)(
        particles, offsets, parameters, num_pairs=num_pairs, dtype=dtype
    )


def shared_pair_bias(
    particles: Tensor,
    offsets: Tensor,
    parameters: MLPParameters,
    layers: int,
    *,
    num_pairs: int | None = None,
    dtype: torch.dtype | None = None,
    precision: str = "ieee",
    backend: str = "auto",
) -> tuple[Tensor, ...]:
    """``pair_bias`` for the attention of several layers: the same bias, once for each.

    The memory is one bias's. Where the backend is "triton" one kernel reads the gradients of all
    layers, so that autograd has not to add them one by one, each sum written and read again.

    Args:
        particles: (T, 4); offsets: (B + 1,); layers: number of layers; the other arguments are
            those of ``pair_bias``.

    Returns:
        ``layers`` tensors (H, P) that share their memory: not to be changed in place.

    Raises:
        ValueError: for wrong shapes or dtypes.
        RuntimeError: on a CPU, if ``num_pairs`` is not the number of pairs.
    """
    _check(particles, offsets, parameters, num_pairs)
    run = implementation("pair_bias", backend, particles, precision)
    if choose("pair_bias", backend, particles.device.type, particles.dtype) == "triton":
        from jetkern.ops.pair_bias import triton

        return triton.shared_pair_bias(
            particles,
            offsets,
            parameters,
            layers,
            num_pairs=num_pairs,
            dtype=dtype,
            precision=precision,
        )
    return (run(particles, offsets, parameters, num_pairs=num_pairs, dtype=dtype),) * layers


def _check(
    particles: Tensor, offsets: Tensor, parameters: MLPParameters, num_pairs: int | None
) -> None:
    check_float("particles", particles)
    check_shape("particles", particles, None, 4)
    check_offsets("offsets", offsets, particles.device)
    check_mlp("parameters", parameters, 3)
    if num_pairs is not None and num_pairs < 0:
        raise ValueError(f"num_pairs must not be negative, got {num_pairs}")
