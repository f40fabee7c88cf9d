import io
import os
import shutil
import socket
import tarfile

import numpy as np
import pytest
import torch

from jetkern import Jets
from jetkern.data import ShardError, Shards, Stream
from jetkern.data.remote import remote_jets

pytest.importorskip("webdataset")


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_the_same_jets_as_the_stream(folder, batch_size):
    shards = Shards(folder)
    urls = [f"file:{path}" for path in shards.paths]
    batches = list(remote_jets(urls, batch_size=batch_size))
    assert all(len(jets) == batch_size for jets in batches[:-1])
    ours = Jets.concat(batches)
    theirs = Jets.concat(list(Stream(shards, batch_size=64, shuffle=False, epochs=1)))
    for name in ("particles", "offsets", "pid", "tracks", "label", "condition"):
        a, b = getattr(ours, name), getattr(theirs, name)
        assert (a is None) == (b is None), name
        if a is not None:
            assert a.dtype == b.dtype, name
            assert torch.equal(a, b), name


def tar_of(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return f"file:{path}"


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=array.dtype == object)  # one that is to be refused
    return buffer.getvalue()


KEY = "00000000."
GOOD = {
    f"{KEY}offsets.npy": npy(np.array([0, 1, 3], "<i4")),
    f"{KEY}particles.npy": npy(np.zeros((3, 4), "<f4")),
}


@pytest.mark.parametrize(
    ("member", "content", "message"),
    [
        ("extra.pkl", b"cos\nsystem\n(S'false'\ntR.", "extra.pkl is not a member"),
        ("label.npy", npy(np.array([object()] * 2)), "label.npy cannot be read: Object arrays"),
        ("label.npy", b"", "label.npy cannot be read"),
        ("label.npy", b"PK\3\4", "label.npy cannot be read"),
        (
            "label.npy",
            npy(np.zeros(2, "<i2")).replace(b"(2,)", b"(%d,)" % 10**15),
            "label.npy cannot be read",
        ),
        (
            "label.npy",
            npy(np.zeros(2, "<i2")).replace(b"False", b"Fals("),
            "label.npy cannot be read",
        ),
        ("label.npy", npy(np.zeros(3, "<i2")), r"label has shape \(3,\), expected \(2,\)"),
        ("label.npy", npy(np.array(["a", "b"])), "label is <U1, expected <i2"),
        ("label.npy", npy(np.zeros(2, "<f4")), "label is <f4, expected <i2"),
        ("offsets.npy", npy(np.array([0, 4, 3], "<i4")), "jet 1: offsets fall from 4 to 3"),
        ("offsets.npy", npy(np.array([1, 2, 4], "<i4")), "offsets begin at 1, expected 0"),
        ("offsets.npy", npy(np.array([0, 1, 2], "<i4")), r"particles has shape \(3, 4\), expect"),
        ("offsets.npy", npy(np.array([0, 1.5, 3], "<f4")), "offsets is <f4, expected <i4"),
        ("offsets.npy", npy(np.array(3, "<i4")), r"offsets has shape \(\), expected"),
        ("offsets.npy", npy(np.zeros(0, "<i4")), r"offsets has shape \(0,\), expected"),
        ("particles.npy", npy(np.zeros((3, 4), "<c8")), "particles is <c8, expected <f4 or <f2"),
        ("particles.npy", npy(np.zeros((3, 3), "<f4")), r"particles has shape \(3, 3\), expected"),
        ("tracks.npy", npy(np.zeros(3, "<f4")), r"tracks has shape \(3,\), expected \(3, 4\)"),
        ("condition.npy", npy(np.zeros(2, "<f4")), r"condition has shape \(2,\), expected \(2, 1"),
    ],
)
def test_what_is_damaged_or_not_ours_is_refused(tmp_path, member, content, message):
    url = tar_of(tmp_path / "a.tar", {**GOOD, KEY + member: content})
    with pytest.raises(ShardError, match=rf"a\.tar, block 00000000(: |, ){message}"):
        next(remote_jets(url, batch_size=1))


def test_a_block_needs_offsets_particles_and_the_fields_of_the_others(tmp_path):
    assert len(next(remote_jets(tar_of(tmp_path / "a.tar", GOOD), batch_size=2))) == 2
    for name, content in GOOD.items():
        url = tar_of(tmp_path / "b.tar", {name: content})
        with pytest.raises(
            ShardError, match=r"b\.tar, block 00000000: has no (offsets|particles)$"
        ):
            next(remote_jets(url, batch_size=1))
    second = {name.replace("0.", "1."): content for name, content in GOOD.items()}
    extra = {"00000001.label.npy": npy(np.zeros(2, "<i2"))}
    url = tar_of(tmp_path / "c.tar", {**GOOD, **second, **extra})
    with pytest.raises(
        ShardError, match=r"c\.tar, block 00000001: has label, .*before it have off"
    ):
        list(remote_jets(url, batch_size=1))


@pytest.mark.parametrize("bytes_left", [100, 600, 1536])
def test_a_cut_file_is_named(tmp_path, bytes_left):
    url = tar_of(tmp_path / "a.tar", GOOD)
    path = tmp_path / "a.tar"
    path.write_bytes(path.read_bytes()[:bytes_left])
    with pytest.raises(ShardError, match=r"a\.tar"):
        list(remote_jets(url, batch_size=1))


def test_a_file_without_blocks_is_named(tmp_path):
    with pytest.raises(ShardError, match=r"a\.tar: No samples"):
        list(remote_jets(tar_of(tmp_path / "a.tar", {}), batch_size=1))


def test_braces_are_expanded(folder):
    shards = Shards(folder)
    last = len(shards.paths) - 1
    pattern = f"file:{folder}/shard-{{00000..{last:05d}}}.tar"
    for urls in (pattern, [pattern]):
        assert sum(len(jets) for jets in remote_jets(urls, batch_size=64)) == shards.num_jets
    with pytest.raises(ValueError, match="Unbalanced braces"):
        remote_jets("file:{a.tar", batch_size=1)
    with pytest.raises(ValueError, match="no URLs"):
        remote_jets([], batch_size=1)


@pytest.mark.parametrize(
    "url", ["pipe:touch x", "{pipe,file}:touch x", "pi\\pe:x", "PIPE:x", " pipe:x"]
)
def test_urls_that_run_commands_are_refused(url):
    with pytest.raises(ValueError, match="would run a shell command"):
        remote_jets(["file:a.tar", url], batch_size=1)


def test_rewritten_urls_are_refused(monkeypatch):
    monkeypatch.setenv("GOPEN_REWRITE", "http=pipe:")
    with pytest.raises(ValueError, match="GOPEN_REWRITE is set"):
        remote_jets("http://localhost/x.tar", batch_size=1)


def fake_curl(tmp_path, monkeypatch, content, code):
    """A curl that closes its output some time before it exits."""
    (tmp_path / "sent").write_bytes(content)
    program = tmp_path / "bin" / "curl"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncat {tmp_path}/sent\nexec >&-\nsleep 0.3\nexit {code}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return "http://localhost/exit%203/shard-00000.tar"


@pytest.mark.parametrize(
    ("sent", "code", "message"),
    [
        (0, 7, "the host cannot be reached"),
        (0, 22, "the server answers with an error"),
        (600, 18, "the transfer ended before the whole file was here"),  # amid an array
        (1024, 56, "the connection broke"),  # between two members: tar's own end is no more missed
        (1100, 99, "curl ended with code 99"),  # amid a header
    ],
)
def test_what_was_not_fetched_is_no_damaged_file(tmp_path, monkeypatch, sent, code, message):
    tar_of(tmp_path / "a.tar", GOOD)
    url = fake_curl(tmp_path, monkeypatch, (tmp_path / "a.tar").read_bytes()[:sent], code)
    with pytest.raises(OSError, match=f"^{url}: cannot be fetched: {message}$"):
        list(remote_jets(url, batch_size=1))


def test_a_fetched_file_that_is_cut_is_damaged(tmp_path, monkeypatch):
    tar_of(tmp_path / "a.tar", GOOD)
    content = (tmp_path / "a.tar").read_bytes()
    url = fake_curl(tmp_path, monkeypatch, content[:600], 0)
    with pytest.raises(ShardError, match=f"^{url}: unexpected end of data$"):
        list(remote_jets(url, batch_size=1))
    (tmp_path / "sent").write_bytes(content)
    assert len(next(remote_jets(url, batch_size=2))) == 2


def test_a_host_that_cannot_be_reached_is_no_empty_file():
    if shutil.which("curl") is None:
        pytest.skip("webdataset fetches with curl, which is not installed")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/shard-00000.tar"
    with pytest.raises(OSError, match=f"^{url}: cannot be fetched: the host cannot be reached$"):
        next(remote_jets(url, batch_size=1))
