"""The jets of the benchmarks: simulated ones, or drawn ones with the same multiplicities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from jetkern.jets import Jets, offsets_from_counts

LENGTHS = ("10", "real", "150", "showers")


def load_jets(data: str, count: int) -> Jets:
    """``count`` jets: a few of each file below ``data``, or drawn where ``data`` is empty.

    Drawn jets have the multiplicities of simulated JetClass jets, roughly: a negative binomial
    of mean 41 and standard deviation 18, between 2 and 128; their particles are noise.
    """
    rng = np.random.default_rng(0)
    if not data:
        counts = np.clip(rng.negative_binomial(6, 6 / (6 + 41), count), 2, 128)
        particles = rng.normal([0, 0, 2, 2.5], [0.2, 0.2, 1, 1], (counts.sum(), 4))
        pid, tracks = rng.integers(1, 9, counts.sum()), rng.normal(0, 1, (counts.sum(), 4))
        label = rng.integers(0, 10, count)
    else:
        import h5py

        files = sorted(Path(data).rglob("*.h5"))
        if not files:
            raise SystemExit(f"bench: no *.h5 below {data}")
        rows, labels = [], []
        for i, file in enumerate(files):
            share = (count * (i + 1)) // len(files) - (count * i) // len(files)
            with h5py.File(file) as f:
                if share > len(f["data"]):
                    raise SystemExit(f"bench: {file} has fewer than {share} jets")
                for jet, n in zip(f["data"][:share], f["num_particles"][:share], strict=True):
                    rows.append(jet[:n])
                labels += list(f["pid"][:share] - f.attrs.get("label_shift", 0))
        order = rng.permutation(count)
        rows = [rows[i] for i in order]
        counts, label = np.array([len(r) for r in rows]), np.array(labels)[order]
        flat = np.concatenate(rows)
        particles, pid, tracks = flat[:, :4], flat[:, 4], flat[:, 5:9]
    return Jets(
        particles=torch.tensor(particles, dtype=torch.float32),
        offsets=offsets_from_counts(torch.tensor(counts)),
        pid=torch.tensor(pid, dtype=torch.int64),
        tracks=torch.tensor(tracks, dtype=torch.float32),
        label=torch.tensor(label, dtype=torch.int64),
        index=torch.arange(count),
    )


def batch(length: str, particles: int, data: str) -> Jets:
    """Jets of 10, 150 or the real number of particles, ``particles`` in all, roughly; or sets of
    100 to 1,700 points, as showers have, three times as many in all."""
    if length == "real":
        return load_jets(data, max(2, particles // 41))
    if length == "showers":
        counts = torch.linspace(100, 1700, max(4, particles // 300)).long()
        points = torch.randn(int(counts.sum()), 4)
        return Jets(particles=points, offsets=offsets_from_counts(counts))
    n, many = int(length), max(2, particles // int(length))
    torch.manual_seed(2)
    spread, centre = torch.tensor([0.2, 0.2, 1.0, 1.0]), torch.tensor([0.0, 0.0, 2.0, 2.5])
    return Jets(
        particles=torch.randn(n * many, 4) * spread + centre,
        offsets=offsets_from_counts(torch.full((many,), n)),
    )


def described(jets: Jets, data: str) -> str:
    """How many and how large they are, in words."""
    counts = jets.counts.double()
    return (
        f"{len(jets)} {'simulated' if data else 'drawn'} jets, multiplicity {counts.mean():.1f} +- "
        f"{counts.std():.1f}, {int(counts.min())} to {int(counts.max())}"
    )
