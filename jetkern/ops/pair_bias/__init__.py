"""The interaction bias: an attention bias computed from the features of every particle pair."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from jetkern.ops.checks import check_float, check_mlp, check_offsets, check_shape
from jetkern.ops.dispatch import run, select
from jetkern.ops.parameters import MLPParameters
from jetkern.packed import Packed, check_rising, readable


def pair_bias(
    particles: Tensor,
    offsets: Tensor | Packed,
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
        offsets: (B + 1,) int64 or int32, or a ``Packed``, which knows the number of pairs.
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
    rows, num_pairs = _checked(particles, offsets, parameters, num_pairs)
    return run(
        "pair_bias",
        backend,
        particles,
        rows,
        parameters,
        num_pairs=num_pairs,
        dtype=dtype,
        precision=precision,
        values=functools.partial(_check_values, num_pairs),
    )


def shared_pair_bias(
    particles: Tensor,
    offsets: Tensor | Packed,
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
    rows, num_pairs = _checked(particles, offsets, parameters, num_pairs)
    if select("pair_bias", backend, particles, rows, parameters) == "triton":
        from jetkern.ops.pair_bias import triton

        return triton.shared_pair_bias(
            particles,
            rows,
            parameters,
            layers,
            num_pairs=num_pairs,
            dtype=dtype,
            precision=precision,
        )
    bias = pair_bias(
        particles, offsets, parameters,
        num_pairs=num_pairs, dtype=dtype, precision=precision, backend=backend,
    )  # fmt: skip
    return (bias,) * layers


def _checked(
    particles: Tensor, offsets: Tensor | Packed, parameters: MLPParameters, num_pairs: int | None
) -> tuple[Tensor, int | None]:
    """Offsets and the number of pairs, if it is known."""
    check_float("particles", particles)
    check_shape("particles", particles, None, 4)
    check_mlp("parameters", parameters, 3)
    if num_pairs is None and isinstance(offsets, Packed):
        # Counted once for a batch on a GPU; the C++ op counts by itself.
        waits = offsets.offsets.is_cuda and not torch.compiler.is_compiling()
        num_pairs = offsets.num_pairs if waits else offsets.known_pairs
    if num_pairs is not None and num_pairs < 0:
        raise ValueError(f"num_pairs must not be negative, got {num_pairs}")
    return check_offsets("offsets", offsets, particles), num_pairs


def _check_values(
    num_pairs: int | None, particles: Tensor, offsets: Tensor, parameters: MLPParameters
) -> None:
    check_rising("offsets", offsets, particles.shape[0])
    if num_pairs is not None and readable(offsets):
        pairs = Packed.trusted(offsets).num_pairs
        if num_pairs != pairs:
            raise ValueError(f"num_pairs is {num_pairs}, the jets have {pairs} pairs")
