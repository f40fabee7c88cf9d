"""Shards of toy jets that a classifier can tell apart: class c is a spray of width 0.1 (c + 1)."""

import numpy as np

from jetkern.data.shards import make_fields, write_manifest, write_shard


def write_toy_shards(folder, classes, *, jets=512, seed=0, extras=True, block=64, most=12):
    """Jets of 1 to ``most`` particles; with ``extras``, also identities and tracks."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    fields = make_fields(pid=extras, tracks=extras)
    blocks, counts_of_jets, labels = [], [], []
    for _ in range(jets // block):
        counts = generator.integers(1, most, block, endpoint=True)
        total = int(counts.sum())
        label = generator.integers(0, len(classes), block)
        width = np.repeat(0.1 * (label + 1), counts)
        jet = np.repeat(np.arange(block), counts)
        pt = generator.normal(2.0, 1.0, total)
        pt = pt[np.lexsort((-pt, jet))]
        angles = generator.normal(size=(2, total)) * width
        content = {
            "offsets": np.concatenate([[0], counts.cumsum()]),
            "particles": np.stack([*angles, pt, pt + 0.5], axis=1),
            "label": label,
        }
        if extras:
            content["pid"] = generator.integers(1, 9, total)
            content["tracks"] = generator.normal(size=(total, 4)) * 0.1
        blocks.append(content)
        counts_of_jets.append(counts)
        labels.append(label)
    index, digest = write_shard(folder / "shard-00000.tar", 0, 0, blocks, fields)
    write_manifest(
        folder,
        index=index,
        multiplicity=np.concatenate(counts_of_jets).astype("u1"),
        fields=fields,
        classes=classes,
        counts=np.bincount(np.concatenate(labels), minlength=len(classes)),
        shards=[
            {
                "name": "shard-00000.tar",
                "bytes": (folder / "shard-00000.tar").stat().st_size,
                "sha256": digest,
                "blocks": len(index),
                "jets": jets,
            }
        ],
        extra={"source": {}, "report": {}},
    )
