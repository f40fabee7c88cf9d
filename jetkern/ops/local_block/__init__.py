"""The local block: a small transformer over the nearest neighbours of every particle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from jetkern.ops.checks import check_block, check_float, check_mlp, check_shape
from jetkern.ops.dispatch import run
from jetkern.ops.parameters import BlockParameters, MLPParameters
from jetkern.packed import readable


def local_block(
    particles: Tensor,
    neighbours: Tensor,
    embed: MLPParameters,
    blocks: Sequence[BlockParameters],
    heads: int,
    *,
    precision: str = "ieee",
    backend: str = "auto",
) -> Tensor:
    """Mean over the K neighbours of a transformer that runs on them as a set of K tokens.

    Token (i, k) starts as the perceptron 7 -> C -> D of [x_i - x_j, ln m^2_ij, ln delta R_ij,
    ln kT_ij] with j the k-th neighbour of particle i (arXiv 2606.14870, section II: local
    embedding). The centre is no token; tokens attend only to those of the same centre. The mean
    divides by (number of neighbours + 1e-9 K) as the reference code does.

    Args:
        particles: (T, 4) delta eta, delta phi, ln pT (GeV), ln E.
        neighbours: (T, K) int64 or int32 rows as ``knn`` returns them, -1 for none.
        embed: perceptron 7 -> C -> D with norm.
        blocks: transformer blocks of width D; heads: number of heads.
        precision: the products may be rounded to this: "ieee" float32, "tf32" or "bf16".

    Returns:
        (T, D); exactly zero for a particle without neighbours.

    Raises:
        ValueError: for wrong shapes or dtypes, also of a weight, which is named, for heads that do
            not divide D, or no blocks; on a CPU also (RuntimeError from the C++ op) for a
            neighbour beyond the last particle.
    """
    check_float("particles", particles)
    check_shape("particles", particles, None, 4)
    check_shape("neighbours", neighbours, particles.shape[0], None)
    if neighbours.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"neighbours must be int64 or int32, got {neighbours.dtype}")
    if neighbours.device != particles.device:
        raise ValueError(f"neighbours is on {neighbours.device}, the data on {particles.device}")
    check_mlp("embed", embed, 7)
    if not blocks:
        raise ValueError("blocks is empty")
    for i, block in enumerate(blocks):
        check_block(f"blocks[{i}]", block, len(embed.fc2_weight), heads)
    return run(
        "local_block", backend, particles, neighbours.long(), embed, blocks, heads,
        precision=precision, values=_check_values,
    )  # fmt: skip


def _check_values(particles: Tensor, neighbours: Tensor, *others: Any) -> None:
    if readable(neighbours) and neighbours.numel() and neighbours.max() >= particles.shape[0]:
        raise ValueError("neighbours has a row beyond the last particle")
