import io
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
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def test_what_is_not_ours_is_refused(tmp_path):
    good = {
        "00000000.offsets.npy": npy(np.array([0, 2], "<i4")),
        "00000000.particles.npy": npy(np.zeros((2, 4), "<f4")),
    }
    assert len(next(remote_jets(tar_of(tmp_path / "a.tar", good), batch_size=1))) == 1
    for name, content, message in (
        ("00000000.extra.pkl", b"cos\nsystem\n(S'false'\ntR.", "extra.pkl is not a member"),
        ("00000000.label.npy", npy(np.array([object()])), "label.npy cannot be read"),
        ("00000000.label.npy", npy(np.zeros(3, "<i2")), "label has 3 rows, expected 1"),
    ):
        url = tar_of(tmp_path / "b.tar", {**good, name: content})
        with pytest.raises(ShardError, match=message):
            next(remote_jets(url, batch_size=1))
    url = tar_of(tmp_path / "c.tar", {"00000000.offsets.npy": good["00000000.offsets.npy"]})
    with pytest.raises(ShardError, match="particles"):
        next(remote_jets(url, batch_size=1))


def test_urls_that_run_commands_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="would run a shell command"):
        next(remote_jets("pipe:touch /tmp/no", batch_size=1))
    monkeypatch.setenv("GOPEN_REWRITE", "http=pipe:")
    with pytest.raises(ValueError, match="GOPEN_REWRITE is set"):
        next(remote_jets("http://localhost/x.tar", batch_size=1))
