"""Small shards of JetNet-like jets."""

import numpy as np

from jetkern.data.shards import make_fields, write_manifest, write_shard

CLASSES = ("g", "q", "t", "w", "z")


def write_jetnet_shards(folder, counts, *, types=None, masses=None, classes=CLASSES, seed=0):
    folder.mkdir(parents=True)
    draw = np.random.default_rng(seed)
    counts = np.asarray(counts)
    types = np.arange(len(counts)) % len(classes) if types is None else np.asarray(types)
    masses = draw.uniform(20, 200, len(counts)) if masses is None else np.asarray(masses)
    eta, phi = draw.normal(0, 0.15, (2, counts.sum()))
    log_pt = draw.normal(1.5, 1, counts.sum())
    log_energy = log_pt + np.log(np.cosh(eta + 0.4))
    block = {
        "offsets": np.concatenate([[0], np.cumsum(counts)]),
        "particles": np.stack([eta, phi, log_pt, log_energy], axis=1),
        "label": types,
        "condition": np.stack([np.full(len(counts), 1000.0), masses, counts / 100], axis=1),
    }
    fields = make_fields(condition=("jet_pt", "jet_mass", "multiplicity/100"))
    index, digest = write_shard(folder / "shard-00000.tar", 0, 0, [block], fields)
    size = (folder / "shard-00000.tar").stat().st_size
    entry = {"bytes": size, "sha256": digest, "blocks": 1, "jets": len(counts)}
    write_manifest(
        folder,
        index=index,
        multiplicity=counts.astype("u1"),
        fields=fields,
        classes=classes,
        counts=np.bincount(types, minlength=len(classes)),
        shards=[{"name": "shard-00000.tar", **entry}],
        extra={"source": {}, "report": {}},
    )
    return folder
