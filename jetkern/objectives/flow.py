"""The flow-matching path between jets (t = 0) and noise (t = 1) of arXiv 2606.14870.

Of kinematics as in the study, or of any columns (``jetkern.model.columns``) with noise whose means
and widths come with the model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jetkern.jets import Jets
from jetkern.kernels import kernel
from jetkern.model.columns import joined, parted
from jetkern.packed import constant
from jetkern.random import normal, starts

# Means and widths of delta eta, delta phi, ln pT, ln E of the noise: the study's own, close to
# those of CMS Open Data jets, so that the path starts near the data.
NOISE_MEAN = (0.0, 0.0, 1.11398, 1.43384)
NOISE_WIDTH = (0.270949, 0.27426, 1.30273, 1.33559)

Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and width of each column
STUDY: Statistics = (NOISE_MEAN, NOISE_WIDTH)


def noise(
    jets: Jets, index: Tensor, seed: int, stream: int, statistics: Statistics | None = None
) -> Tensor:
    """(T, F) Gaussian noise, a pure function of (seed, stream, index of the jet, rank).

    Args:
        jets: whose noise it is; index: (B,) int64 of each; seed, stream: of the random numbers.
        statistics: mean and width of the F columns, kinematics first; None for the study's, of
            kinematics alone.
    """
    dtype, device = jets.particles.dtype, jets.particles.device
    mean, width = STUDY if statistics is None else statistics
    feature = torch.arange(len(mean), device=device)
    rank = jets.rank_in_jet[:, None]
    draw = normal(seed, stream, index[jets.jet_of_particle][:, None], rank, feature)
    return draw.to(dtype) * constant(width, dtype, device) + constant(mean, dtype, device)


def on_path(
    jets: Jets,
    index: Tensor,
    seed: int,
    stream: int,
    time: Tensor,
    statistics: Statistics | None = None,
) -> tuple[Jets, Tensor]:
    """``noised`` with ``noise``: the jets at ``time`` (B,) and the velocity (T, F)."""
    x = joined(jets)
    path = kernel("noise_path", x)
    if path is None or x.dtype != torch.float32:
        return noised(jets, noise(jets, index, seed, stream, statistics), time)
    mean, width = (constant(s, x.dtype, x.device) for s in statistics or STUDY)
    own, rank = jets.jet_of_particle, jets.rank_in_jet
    start = starts(seed, (stream,), x.device)
    moved, velocity = path(x, time, own, rank, index, start, mean, width)
    return parted(jets, moved), velocity


def noised(jets: Jets, noise: Tensor, time: Tensor) -> tuple[Jets, Tensor]:
    """The jets at ``time`` (B,) on the straight path, and the velocity (T, F) to predict.

    z = (1 - t) x + t noise, velocity = noise - x, of kinematics and columns x.
    """
    t = time[jets.jet_of_particle][:, None]
    x = joined(jets)
    return parted(jets, (1 - t) * x + t * noise), noise - x
