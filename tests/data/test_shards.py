"""Damage to shards is found when they are opened, when they are read, or by verify; never later."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jetkern import jets as jets_module
from jetkern.cli import verify
from jetkern.data import ShardError, Shards, Stream
from jetkern.data import shards as shards_module
from jetkern.data.shards import (
    INDEX,
    MANIFEST,
    MULTIPLICITY,
    AtomicFile,
    manifest_digest,
    write_manifest,
)
from tests.factories import write_shards

ROOT = Path(__file__).parents[2]


@pytest.fixture
def copy(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def read_all(folder):
    for _ in Stream(Shards(folder), batch_size=200, shuffle=False, epochs=1, prefetch=0):
        pass


def verified(folder, capsys):
    code = verify.main([str(folder), "--quiet"])
    return code, capsys.readouterr().err


def test_fields_per_particle_are_those_of_a_batch():
    assert shards_module.PER_PARTICLE == jets_module.STORED


def test_a_large_file_is_written_whole(tmp_path):
    """Beyond the size at which writing to the disk begins."""
    content = np.random.default_rng(0).bytes(19 << 20)
    with AtomicFile(tmp_path / "a") as file:
        for start in range(0, len(content), 1_000_001):
            file.write(content[start : start + 1_000_001])
        assert not (tmp_path / "a").exists()
        digest = file.sha256()
    assert (tmp_path / "a").read_bytes() == content
    assert digest == hashlib.sha256(content).hexdigest()
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_webdataset_reads_the_tars_in_three_lines(folder):
    webdataset = pytest.importorskip("webdataset")
    shards = Shards(folder)
    urls = [str(p) for p in shards.paths]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert len(samples) == len(shards.index)
    jets = []
    for sample in samples:
        # The three lines of jetkern/data/README.md.
        block = {k[:-4]: np.load(io.BytesIO(v)) for k, v in sample.items() if k.endswith(".npy")}
        particles = np.split(block["particles"], block["offsets"][1:-1])
        jets += zip(particles, block["label"], strict=True)
    ours = next(iter(Stream(shards, batch_size=shards.num_jets, shuffle=False)))
    assert len(jets) == shards.num_jets
    for b, (particles, label) in enumerate(jets):
        of = slice(int(ours.offsets[b]), int(ours.offsets[b + 1]))
        assert np.array_equal(particles, ours.particles[of].numpy())
        assert label == ours.label[b]


def test_tar_and_its_members_are_plain(folder):
    for path in Shards(folder).paths:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                assert member.isreg()
                assert member.mtime == 0
                number, field, ending = member.name.split(".")
                assert len(number) == 8
                assert ending == "npy"
                assert field in ("offsets", "particles", "pid", "tracks", "label", "condition")


def test_overhead_of_blocks_of_1024_jets_is_below_3_percent(tmp_path):
    shards = Shards(write_shards(tmp_path, blocks=2, sizes=(1024, 1024)))
    payload = sum(
        f.nbytes(int(row["jets"]), int(row["particles"]))
        for row in shards.index
        for f in shards.fields
    )
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) < 1.03 * payload


def test_undamaged_shards_pass(folder, capsys):
    assert verified(folder, capsys) == (0, "")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_flipped_bit_is_found(folder, tmp_path_factory, data):
    copy = tmp_path_factory.mktemp("flip") / "copy"
    shutil.copytree(folder, copy)
    path = copy / data.draw(st.sampled_from(sorted(p.name for p in copy.iterdir())))
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    harmless = path.name == MANIFEST and equal_json(copy, folder)  # a blank for another
    assert verify.main([str(copy), "--quiet"]) == (0 if harmless else 1)
    shutil.rmtree(copy)


def equal_json(a, b):
    try:
        return json.loads((a / MANIFEST).read_bytes()) == json.loads((b / MANIFEST).read_bytes())
    except ValueError:
        return False


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_of_an_array_stops_the_stream(folder, tmp_path_factory, data):
    copy = tmp_path_factory.mktemp("flip") / "copy"
    shutil.copytree(folder, copy)
    shards = Shards(copy)
    block = data.draw(st.integers(0, len(shards.index) - 1))
    row = shards.index[block]
    number = data.draw(st.integers(0, len(shards.fields) - 1))
    field = shards.fields[number]
    size = field.nbytes(int(row["jets"]), int(row["particles"]))
    path = shards.paths[int(row["shard"])]
    content = bytearray(path.read_bytes())
    content[int(row["offset"][number]) + data.draw(st.integers(0, size - 1))] ^= 1
    path.write_bytes(content)
    with pytest.raises(ShardError) as error:
        read_all(copy)
    for text in (path.name, f"block {block}, {field.name}", "checksum"):
        assert text in str(error.value)
    shutil.rmtree(copy)


def _cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def _edit_manifest(folder, change):
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    manifest["sha256"] = manifest_digest(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


SHARD = "shard-00001.tar"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: _cut(f / SHARD, 512), "512 bytes, expected"),
        (lambda f: _cut(f / SHARD, 700), "700 bytes, expected"),
        (lambda f: _cut(f / SHARD, -1024), "bytes, expected"),
        (lambda f: _cut(f / SHARD, 0), "0 bytes, expected"),
        (lambda f: (f / SHARD).unlink(), f"lacks 1 of its 3 shards: {SHARD}"),
        (lambda f: (f / INDEX).unlink(), "index.npy cannot be read"),
        (lambda f: _cut(f / INDEX, -1), "index.npy is damaged"),
        (lambda f: (f / MULTIPLICITY).unlink(), "multiplicity.npy cannot be read"),
        (lambda f: (f / MANIFEST).unlink(), "has no manifest.json"),
        (lambda f: _cut(f / MANIFEST, -20), "manifest.json is damaged"),
        (
            lambda f: (f / MANIFEST).write_text(
                (f / MANIFEST).read_text().replace('"jets": ', '"jets": 1', 1)
            ),
            "manifest.json is damaged: its SHA-256",
        ),
        (lambda f: (f / "extra.tar").write_bytes(b""), "extra.tar: not in the manifest"),
        (
            lambda f: _edit_manifest(f, lambda m: m.update(version=2)),
            "version 2, this reads jetkern-shards version 1",
        ),
        (lambda f: _edit_manifest(f, lambda m: m.pop("fields")), "manifest.json is damaged"),
        (lambda f: _edit_manifest(f, lambda m: m.update(jets=5)), "their counts differ"),
        (lambda f: _edit_manifest(f, lambda m: m["counts"].reverse()), "counts per class"),
        (
            lambda f: _edit_manifest(f, lambda m: m["shards"][0].update(name="../x.tar")),
            "'../x.tar' is not the name of a shard",
        ),
        (
            lambda f: _edit_manifest(f, lambda m: m["fields"][1].update(dtype="|O")),
            "unknown field particles of type |O",
        ),
        (lambda f: swap(f / "shard-00000.tar", f / SHARD), "shard-0000"),
    ],
)
def test_damage_is_found_by_verify(copy, capsys, damage, message):
    damage(copy)
    code, error = verified(copy, capsys)
    assert code == 1
    assert message in error
    assert "Traceback" not in error


def swap(a, b):
    content = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(content)


@pytest.mark.parametrize("size", [512, 700, -1024, 0])
def test_a_cut_shard_stops_the_stream(copy, size):
    _cut(copy / SHARD, size)
    with pytest.raises(ShardError, match=rf"{SHARD} has \d+ bytes, expected"):
        read_all(copy)


def test_a_shard_cut_while_it_is_open_stops_the_stream(copy):
    stream = Stream(Shards(copy), batch_size=20, shuffle=False, prefetch=0)
    iterator = iter(stream)
    next(iterator)
    os.truncate(copy / "shard-00000.tar", 5000)
    with pytest.raises(ShardError, match="ends too early"):
        list(islice(iterator, 40))


def test_hostile_members_are_never_looked_at(copy, tmp_path, capsys):
    """The reader goes by offsets; verify compares every header with the one expected."""
    path = copy / "shard-00000.tar"
    content = bytearray(path.read_bytes())
    for hostile in (b"../../x", b"/etc/passwd", b"00000000.x.pkl"):
        content[:100] = hostile.ljust(100, b"\0")
        path.write_bytes(content)
        read_all(copy)
        code, error = verified(copy, capsys)
        assert code == 1
        assert "block 0, offsets: the tar header is damaged" in error


def test_urls_and_pipes_are_not_opened(tmp_path):
    for url in ("pipe:touch /tmp/x", "http://example.org/shards", "s3://bucket/shards"):
        with pytest.raises(ShardError, match="local paths only"):
            Shards(url)
    with pytest.raises(ShardError, match="no manifest"):
        Shards(tmp_path / "nowhere")


def test_the_parent_of_splits_is_explained(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "train")
    with pytest.raises(ShardError, match="did you mean one of its folders: train"):
        Shards(tmp_path)


def test_a_hundred_million_jets_open_at_once_and_any_batch_is_near(tmp_path):
    """A manifest of 97,657 blocks that all lie in one real shard."""
    (tmp_path / "small").mkdir()
    small = Shards(write_shards(tmp_path / "small", blocks=10, sizes=(1024, 1024)))
    blocks = 97_657
    index = np.tile(small.index, -(-blocks // 10))[:blocks]
    huge = tmp_path / "huge"
    huge.mkdir()
    os.link(small.paths[0], huge / "shard-00000.tar")
    multiplicity = np.resize(small.multiplicity(), int(index["jets"].sum()))
    write_manifest(
        huge, index=index, multiplicity=multiplicity, fields=small.fields, classes=["a"],
        counts=[len(multiplicity)],
        shards=[{**small.manifest["shards"][0], "blocks": blocks}], extra={},
    )  # fmt: skip
    del index, multiplicity
    code = f"""
import json
import torch
from jetkern.data import Shards, Stream
def memory(kind):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(kind))
base = memory("VmRSS")
shards = Shards({str(huge)!r})
stream = Stream(shards, batch_size=1024, seed=1)
stream.seek(50_000_000 * 1024)
reads = 0
from jetkern.data.blocks import BlockReader
original = BlockReader.read
def counting(self, block, field, into):
    global reads
    reads += 1
    original(self, block, field, into)
BlockReader.read = counting
stream.prefetch = 0
jets = next(iter(stream))
grown = memory("VmHWM") - base
print(json.dumps([shards.num_jets, int(jets.index[0]), len(jets), reads, grown]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    jets, first, batch, reads, megabytes = json.loads(done.stdout)
    assert jets == 97_657 * 1024
    assert first == 50_000_000 * 1024
    assert batch == 1024
    assert reads <= 2 * 64 * 6  # the fields of at most two blocks for each lane
    assert 1 < megabytes < 300


def test_workers_share_nothing(folder):
    """Two streams of one Shards at the same time do not disturb each other."""
    shards = Shards(folder)
    a = iter(Stream(shards, batch_size=40, seed=1))
    b = iter(Stream(shards, batch_size=40, seed=2))
    mixed = [(next(a), next(b)) for _ in range(10)]
    alone = iter(Stream(shards, batch_size=40, seed=1))
    for first, _ in mixed:
        assert torch.equal(first.particles, next(alone).particles)
