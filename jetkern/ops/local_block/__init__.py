"""The local block: a small transformer over the nearest neighbours of every particle."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jetkern.ops.checks import check_block, check_float, check_mlp, check_shape
from jetkern.ops.dispatch import implementation
from jetkern.ops.parameters import BlockParameters, MLPParameters


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
        neighbours: (T, K) int64 rows as ``knn`` returns them, -1 for none.
        embed: perceptron 7 -> C -> D with norm.
        blocks: transformer blocks of width D; heads: number of heads.
        precision: the products may be rounded to this: "ieee" float32, "tf32" or "bf16".

    Returns:
        (T, D); exactly zero for a particle without neighbours.

    Raises:
        ValueError: for wrong shapes or dtypes, also of a weight, which is named, for heads that do
            not divide D, or no blocks.
    """
    check_float("particles", particles)
    check_shape("particles", particles, None, 4)
    check_shape("neighbours", neighbours, len(particles), None)
    if neighbours.dtype != torch.int64:
        raise ValueError(f"neighbours must be int64, got {neighbours.dtype}")
    check_mlp("embed", embed, 7)
    if not blocks:
        raise ValueError("blocks is empty")
    for i, block in enumerate(blocks):
        check_block(f"blocks[{i}]", block, len(embed.fc2_weight), heads)
    run = implementation("local_block", backend, particles, precision)
    return run(particles, neighbours, embed, blocks, heads)
