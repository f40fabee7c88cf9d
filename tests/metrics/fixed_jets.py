"""Jets made of integers, the same to the last bit with any library version."""

import numpy as np


def uniform(shape, seed):
    """Numbers in [0, 1) from a multiplicative hash."""
    count = np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64)
    mixed = (count * np.uint64(2654435761) + np.uint64(seed * 40503)) % np.uint64(2**32)
    mixed = (mixed * np.uint64(2246822519) + np.uint64(374761393)) % np.uint64(2**32)
    mixed = (mixed ^ (mixed >> np.uint64(15))) % np.uint64(2**32)
    return (mixed / 2.0**32).reshape(shape)


def padded(jets, particles, seed, width=0.3):
    """(jets, particles, 3) eta, phi and pT over the jet's, zeros where there is no particle."""
    u = uniform((jets, particles, 4), seed)
    counts = 1 + (uniform((jets,), seed + 1) * particles).astype(int)
    eta = width * (u[..., 0] + u[..., 1] - 1)
    phi = width * (u[..., 2] - 0.5)
    pt = (1 - u[..., 3]) ** 3 + 0.01
    mask = np.arange(particles) < counts[:, None]
    pt = pt / (pt * mask).sum(1, keepdims=True)
    return np.stack([eta, phi, pt], axis=2) * mask[..., None], counts


def pack(jets):
    """eta, phi and pT (T,) of the particles, and the jets' offsets."""
    mask = jets[..., 2] > 0
    return jets[mask].T, np.concatenate([[0], np.cumsum(mask.sum(1))])
