"""Small shards whose jets can be told apart: ln E of every particle is its jet's number."""

import numpy as np

from jetkern.data.shards import make_fields, write_manifest, write_shard

CLASSES = ("a", "b", "c")


def write_shards(folder, *, blocks=30, per_shard=10, sizes=(20, 60), seed=0, dtype="float32"):
    rng = np.random.default_rng(seed)
    fields = make_fields(pid=True, tracks=True, condition=("jet_pt", "number"), dtype=dtype)
    entries, rows, multiplicity, labels = [], [], [], []
    number = 0
    for shard in range(-(-blocks // per_shard)):
        content = []
        for _ in range(min(per_shard, blocks - shard * per_shard)):
            jets = int(rng.integers(*sizes, endpoint=True))
            counts = rng.integers(0, 30, jets, endpoint=True)
            total = int(counts.sum())
            names = np.arange(number, number + jets)
            number += jets
            particles = rng.normal(size=(total, 4)).astype("f4")
            particles[:, 3] = np.repeat(names, counts)
            order = np.lexsort((-particles[:, 2], particles[:, 3]))
            particles[:, 2] = particles[order, 2]
            label = rng.integers(0, len(CLASSES), jets)
            content.append(
                {
                    "offsets": np.concatenate([[0], counts.cumsum()]),
                    "particles": particles,
                    "pid": rng.integers(1, 9, total),
                    "tracks": rng.normal(size=(total, 4)),
                    "label": label,
                    "condition": np.stack([rng.normal(size=jets), names], axis=1),
                }
            )
            multiplicity.append(counts)
            labels.append(label)
        path = folder / f"shard-{shard:05d}.tar"
        index, digest = write_shard(path, shard, shard * per_shard, content, fields)
        rows.append(index)
        entries.append(
            {
                "name": path.name,
                "bytes": path.stat().st_size,
                "sha256": digest,
                "blocks": len(index),
                "jets": int(index["jets"].sum()),
            }
        )
    write_manifest(
        folder,
        index=np.concatenate(rows),
        multiplicity=np.concatenate(multiplicity).astype("u1"),
        fields=fields,
        classes=CLASSES,
        counts=np.bincount(np.concatenate(labels), minlength=len(CLASSES)),
        shards=entries,
        extra={"source": {}, "report": {}},
    )
    return folder
