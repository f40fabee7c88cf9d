"""Files of jets and showers that were made: shards, and JetNet's HDF5."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from jetkern.clouds import Clouds
from jetkern.data.shards import counts_dtype, make_fields, write_manifest, write_shard
from jetkern.hdf5 import writing
from jetkern.jets import Jets
from jetkern.metrics.substructure import jet_eta, mass_and_pt

PER_SHARD = 2000


class Made(NamedTuple):
    """Of some jets, on the CPU."""

    rows: torch.Tensor
    """(T, C) of their particles, all numbers of each"""
    counts: torch.Tensor
    """(B,) particles of each jet"""
    cut: torch.Tensor
    """(B,) bool, whether it was cut before its end"""


def write_sets(
    folder: Path,
    sets: Jets | Clouds,
    classes: Sequence[str],
    condition: Sequence[str] = (),
    source: Mapping[str, Any] | None = None,
    *,
    track_scale: str = "tanh",
    points: Sequence[str] = (),
    per_shard: int = PER_SHARD,
    per_block: int = PER_SHARD,
) -> None:
    """Writes jets, or clouds, as shards.

    Args:
        folder: for the shards.
        sets: their particles, identities, tracks, or points, labels and conditions are kept.
        classes, condition: names.
        source: where they come from, for the manifest.
        track_scale: of d0 and dz, as for ``make_fields``.
        points: names of the columns of clouds.
        per_shard, per_block: sets of a file, and of each block in it.
    """
    folder.mkdir(exist_ok=True)
    fields = make_fields(
        pid=isinstance(sets, Jets) and sets.pid is not None,
        tracks=isinstance(sets, Jets) and sets.tracks is not None,
        label=sets.label is not None,
        condition=tuple(condition),
        track_scale=track_scale,
        points=tuple(points),
    )
    rows: list[NDArray[Any]] = []
    entries: list[dict[str, Any]] = []
    for number, first in enumerate(range(0, len(sets), per_shard)):
        part = sets.select(slice(first, first + per_shard))
        blocks = [
            {f.name: getattr(some, f.name).numpy() for f in fields}
            for start in range(0, len(part), per_block)
            for some in [part.select(slice(start, start + per_block))]
        ]
        path = folder / f"shard-{number:05d}.tar"
        index, digest = write_shard(path, number, sum(map(len, rows)), blocks, fields)
        rows.append(index)
        entries.append(
            {
                "name": path.name,
                "bytes": path.stat().st_size,
                "sha256": digest,
                "blocks": len(index),
                "jets": len(part),
            }
        )
    labels = np.zeros(len(sets), np.int64) if sets.label is None else sets.label.numpy()
    write_manifest(
        folder,
        index=np.concatenate(rows),
        multiplicity=sets.counts.numpy().astype(counts_dtype(fields)),
        fields=fields,
        classes=tuple(classes),
        counts=np.bincount(labels, minlength=len(classes)) if classes else (),
        shards=entries,
        extra={"source": dict(source or {}), "report": {}},
    )


def write_jetnet(folder: Path, jets: Jets, classes: tuple[str, ...]) -> None:
    """Writes a file in JetNet's layout for each type, as <type><P>.hdf5 with P of 30 or 150."""
    folder.mkdir(exist_ok=True)
    width = 30 if int(jets.counts.max()) <= 30 else 150
    for name, particles, features in _jetnet(jets, classes, width):
        with writing(folder / f"{name}{width}.hdf5") as file:
            for key, value in (("particle_features", particles), ("jet_features", features)):
                file.create_dataset(key, data=value, track_times=False)


def _jetnet(
    jets: Jets, classes: tuple[str, ...], width: int
) -> Iterator[tuple[str, NDArray[np.float32], NDArray[np.float32]]]:
    """Name of the type, particle features (N, width, 4) and jet features (N, 4) of each type."""
    offsets = jets.offsets.numpy()
    eta, phi, log_pt, log_energy = jets.particles.double().numpy().T
    pt = np.exp(log_pt)
    mass, jet_pt = mass_and_pt(pt, eta, phi, offsets)
    direction = jet_eta(pt, np.exp(log_energy), eta, offsets)
    features = np.stack([jet_pt, direction, mass, np.diff(offsets)], axis=1).astype(np.float32)
    owner = jets.jet_of_particle.numpy()
    rows = np.stack([eta, phi, pt / jet_pt[owner], np.ones_like(pt)], axis=1)
    padded = np.zeros((len(jets), width, 4), np.float32)
    padded[owner, jets.rank_in_jet.numpy()] = rows
    labels = np.zeros(len(jets), np.int64) if jets.label is None else jets.label.numpy()
    for number, name in enumerate(classes):
        if (labels == number).any():
            yield name, padded[labels == number], features[labels == number]
