"""The flow-matching path between jets (t = 0) and noise (t = 1) of arXiv 2606.14870."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from jetkern.jets import Jets
from jetkern.random import normal

# Means and widths of delta eta, delta phi, ln pT, ln E of the noise: the study's own, close to
# those of CMS Open Data jets, so that the path starts near the data.
NOISE_MEAN = (0.0, 0.0, 1.11398, 1.43384)
NOISE_WIDTH = (0.270949, 0.27426, 1.30273, 1.33559)


def noise(jets: Jets, index: Tensor, seed: int, stream: int) -> Tensor:
    """(T, 4) Gaussian noise, a pure function of (seed, stream, index of the jet, rank)."""
    particles = jets.particles
    feature = torch.arange(4, device=particles.device)
    rank = jets.rank_in_jet[:, None]
    draw = normal(seed, stream, index[jets.jet_of_particle][:, None], rank, feature)
    mean, width = _columns(particles.dtype, particles.device)
    return draw.to(particles.dtype) * width + mean


@functools.lru_cache(maxsize=8)
def _columns(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Means and widths, kept, so that a GPU is not waited for in every step."""
    with torch.inference_mode(False):  # whoever asks next may want gradients
        return torch.tensor([NOISE_MEAN, NOISE_WIDTH], dtype=dtype, device=device)


def noised(jets: Jets, noise: Tensor, time: Tensor) -> tuple[Jets, Tensor]:
    """The jets at ``time`` (B,) on the straight path, and the velocity (T, 4) to predict.

    z = (1 - t) x + t noise, velocity = noise - x.
    """
    t = time[jets.jet_of_particle][:, None]
    z = (1 - t) * jets.particles + t * noise
    return jets.replace(particles=z), noise - jets.particles
