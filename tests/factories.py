"""Shards of small jets: numbered ones, ones that can be told apart, ones like those of JetNet; runs
of models that were not trained, and a tokeniser that was not fitted."""

import numpy as np
import torch

from jetkern.clouds import Clouds
from jetkern.data.shards import make_fields, write_manifest, write_shard
from jetkern.simulate.showers import CALORIMETERS, simulate_showers
from jetkern.tokenizers import HITS, QuantileNormal, Tokenizer
from jetkern.training.checkpoints import write_checkpoint

NUMBERED = ("a", "b", "c")
JETNET = ("g", "q", "t", "w", "z")


def write_folder(folder, shards, fields, classes):
    """A folder with a manifest and one shard for each list of blocks in ``shards``."""
    folder.mkdir(parents=True, exist_ok=True)
    blocks = [block for shard in shards for block in shard]
    rows, entries, first = [], [], 0
    for number, content in enumerate(shards):
        path = folder / f"shard-{number:05d}.tar"
        index, digest = write_shard(path, number, first, content, fields)
        first += len(index)
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
    labels = np.concatenate([block["label"] for block in blocks])
    write_manifest(
        folder,
        index=np.concatenate(rows),
        multiplicity=np.concatenate([np.diff(b["offsets"]) for b in blocks]).astype("u1"),
        fields=fields,
        classes=classes,
        counts=np.bincount(labels, minlength=len(classes)),
        shards=entries,
        extra={"source": {}, "report": {}},
    )
    return folder


def write_shards(folder, *, blocks=30, per_shard=10, sizes=(20, 60), seed=0, dtype="float32"):
    """Jets that can be told apart: ln E of every particle is its jet's number."""
    rng = np.random.default_rng(seed)
    content, number = [], 0
    for _ in range(blocks):
        jets = int(rng.integers(*sizes, endpoint=True))
        counts = rng.integers(0, 30, jets, endpoint=True)
        total = int(counts.sum())
        names = np.arange(number, number + jets)
        number += jets
        particles = rng.normal(size=(total, 4)).astype("f4")
        particles[:, 3] = np.repeat(names, counts)
        order = np.lexsort((-particles[:, 2], particles[:, 3]))
        particles[:, 2] = particles[order, 2]
        content.append(
            {
                "offsets": np.concatenate([[0], counts.cumsum()]),
                "particles": particles,
                "label": rng.integers(0, len(NUMBERED), jets),
                "pid": rng.integers(1, 9, total),
                "tracks": rng.normal(size=(total, 4)),
                "condition": np.stack([rng.normal(size=jets), names], axis=1),
            }
        )
    shards = [content[start : start + per_shard] for start in range(0, blocks, per_shard)]
    fields = make_fields(pid=True, tracks=True, condition=("jet_pt", "number"), dtype=dtype)
    return write_folder(folder, shards, fields, NUMBERED)


def write_toy_shards(folder, classes, *, jets=512, seed=0, extras=True, block=64, most=12):
    """Jets of 1 to ``most`` particles that a classifier can tell apart.

    Class c is a spray of width 0.1 (c + 1); with ``extras``, also identities and tracks.
    """
    generator = np.random.default_rng(seed)
    blocks = []
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
    return write_folder(folder, [blocks], make_fields(pid=extras, tracks=extras), classes)


def write_jetnet_shards(
    folder, counts, *, types=None, masses=None, classes=JETNET, seed=0, extras=False
):
    """Jets of ``counts`` particles, with conditions and classes as JetNet's; with ``extras``, also
    identities and tracks, of which type 0 has photons more often and type 1 displaced ones."""
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
    if extras:
        owner = np.repeat(types, counts)
        pid = draw.integers(1, 9, len(owner))
        pid[(owner == 0) & (draw.uniform(size=len(owner)) < 0.5)] = 6
        d0 = draw.normal(0, np.where(owner == 1, 0.5, 0.05))
        tracks = np.stack([np.tanh(d0), np.full_like(d0, 0.02), np.tanh(-d0), abs(d0)], 1)
        block |= {"pid": pid, "tracks": tracks * ~np.isin(pid, (6, 7))[:, None]}
    names = ("jet_pt", "jet_mass", "multiplicity/100")
    fields = make_fields(pid=extras, tracks=extras, condition=names)
    return write_folder(folder, [[block]], fields, classes)


def write_untrained_run(folder, model, **more):
    """A run whose one checkpoint has the weights of ``model`` as they are.

    ``more`` goes into its state, such as the kind of a model that is no Point-Edge Transformer.
    """
    config = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(model.config).items()}
    state = {"step": 1, "model_config": config, "model": model.state_dict(), "average": None}
    (folder / "checkpoints").mkdir(parents=True)
    write_checkpoint(folder / "checkpoints" / "step-00000001", 1, state | more, {})
    return folder


def hit_codes(codes=64):
    """A tokeniser of small showers: its codes are hits of some of them."""
    showers = simulate_showers(CALORIMETERS["small"], range(40))
    hits = Clouds(points=torch.from_numpy(showers.hits), offsets=torch.from_numpy(showers.offsets))
    blank = Tokenizer.blank(HITS, 0)
    blank.scale = QuantileNormal.fit([column.numpy() for column in blank.values(hits)[0].T])
    every = blank.scaled(hits)[0]
    return Tokenizer(HITS, blank.scale, every[:: len(every) // codes][:codes])
