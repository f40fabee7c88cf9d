"""Manifests and indices that somebody forged, checksums and all: one error, and little memory."""

import copy
import hashlib
import json
import random
import shutil

import numpy as np
import pytest

from jetkern.cli import show, verify
from jetkern.data import ShardError, Shards, Stream
from jetkern.data.shards import INDEX, MANIFEST, manifest_digest

WRONG = [None, True, -1, 0, 1.5, 10**15, 2**70, "x", "\x1b[2J", [], [1], ["a", "a"], {}, {"a": 1}]


def paths_of(value, path=()):
    """Where the values of a document are."""
    yield path
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from paths_of(inner, (*path, key))


def forge(manifest, path, value):
    """The manifest with another value there, or without it, and the right checksum."""
    forged = copy.deepcopy(manifest)
    *outer, last = path
    place = forged
    for key in outer:
        place = place[key]
    if value is Ellipsis:
        del place[last]
    else:
        place[last] = value
    forged["sha256"] = manifest_digest(forged)
    return forged


def use(folder):
    """Opens, reads, shows and verifies."""
    shards = Shards(folder)
    shards.multiplicity()
    for _ in Stream(shards, batch_size=500, epochs=1, shuffle=False, prefetch=0):
        pass
    assert show.main([str(folder)]) in (0, 1)
    assert verify.main([str(folder), "--quiet"]) in (0, 1)


@pytest.fixture
def forged(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "forged")


def test_every_kind_of_value_in_every_place_of_a_manifest(forged, capfd):
    manifest = json.loads((forged / MANIFEST).read_text())
    places = [p for p in paths_of(manifest) if p and p[0] not in ("sha256", "source", "report")]
    cases = [(p, v) for p in places for v in (*WRONG, ...)]
    for path, value in random.Random(0).sample(cases, 150):
        (forged / MANIFEST).write_text(json.dumps(forge(manifest, path, value)))
        try:
            use(forged)
        except ShardError as error:
            text = str(error)
            assert str(forged) in text, (path, value)
            assert text.isprintable(), (path, value)
        said = capfd.readouterr()
        assert "\x1b" not in said.out + said.err, (path, value)
        assert "Traceback" not in said.err, (path, value)


@pytest.mark.parametrize("name", ["shard", "jets", "particles", "offset"])
@pytest.mark.parametrize("value", [-1, 10**6, 2**31 - 1])
def test_blocks_that_cannot_be_in_their_shard(forged, name, value):
    index = np.load(forged / INDEX)
    index[name][1] = value
    np.save(forged / INDEX, index)
    manifest = json.loads((forged / MANIFEST).read_text())
    manifest["files"][INDEX] = hashlib.sha256((forged / INDEX).read_bytes()).hexdigest()
    manifest["sha256"] = manifest_digest(manifest)
    (forged / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ShardError, match=r"index\.npy: block 1 cannot be in its shard"):
        Shards(forged)


def test_sizes_that_only_the_manifest_believes_in(forged):
    """A block of terabytes in a shard that is said to be as large."""
    index = np.load(forged / INDEX)
    index["jets"][1], index["particles"][1] = 2**30, 2**37
    np.save(forged / INDEX, index)
    manifest = json.loads((forged / MANIFEST).read_text())
    manifest["shards"][0]["bytes"] = 2**50
    manifest["files"][INDEX] = hashlib.sha256((forged / INDEX).read_bytes()).hexdigest()
    manifest["sha256"] = manifest_digest(manifest)
    (forged / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ShardError, match="bytes, expected 1125899906842624"):
        Shards(forged)
