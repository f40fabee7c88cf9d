"""OmniLearned HDF5 to shards: nothing lost, nothing changed, the same bytes every time."""

import convert
import numpy as np
import pytest
import torch
from make_inputs import omnilearned

from jetkern.data import Shards, Stream
from jetkern.jets import Jets


def run(*arguments):
    return convert.main([str(a) for a in arguments] + ["--quiet"])


def everything(folder):
    return Jets.concat(list(Stream(Shards(folder), batch_size=100, shuffle=False, epochs=1)))


def contents(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def as_rows(jets):
    """Each jet as one tuple, so that sets of jets can be compared whatever their order."""
    rows = []
    for b in range(len(jets)):
        of = slice(int(jets.offsets[b]), int(jets.offsets[b + 1]))
        rows.append(
            b"".join(
                t[of].numpy().tobytes()
                for t in (jets.particles, jets.pid, jets.tracks)
                if t is not None
            )
            + bytes([int(jets.label[b])])
        )
    return sorted(rows)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    for split, n in (("train", 300), ("val", 40)):
        for label in range(10):
            omnilearned(folder / split / f"jetclass_{label}_0.h5", n, label, seed=label)
    return folder


def test_every_jet_arrives_unchanged(source, tmp_path, capsys):
    out = tmp_path / "shards"
    assert run(source, "--out", out) == 0
    assert "3,400 jets read, 3,400 kept" in capsys.readouterr().out
    for split, n in (("train", 300), ("val", 40)):
        parts = []
        for label in range(10):
            data, counts, _ = omnilearned(tmp_path / "x.h5", n, label, seed=label)
            mask = torch.from_numpy(np.arange(data.shape[1]) < counts[:, None])
            rows = torch.from_numpy(data)
            parts.append(
                Jets.from_padded(
                    rows[..., :4],
                    mask,
                    pid=rows[..., 4].long(),
                    tracks=rows[..., 5:],
                    label=torch.full((n,), label),
                )
            )
        jets = everything(out / split)
        assert as_rows(jets) == as_rows(Jets.concat(parts))
        shards = Shards(out / split)
        assert shards.counts == (n,) * 10
        assert shards.classes[9] == "Tbl"
        assert shards.condition[-1] == "multiplicity/100"
        assert torch.allclose(jets.condition[:, -1] * 100, jets.counts.float())


def test_bytes_do_not_depend_on_processes_or_the_order_of_inputs(source, tmp_path, monkeypatch):
    monkeypatch.setattr("conversion.run.JETS_WORTH_A_PROCESS", 1)
    options = ["--jets-per-read", 64, "--jets-per-shard", 500, "--jets-per-block", 100]
    assert run(source, "--out", tmp_path / "a", *options) == 0
    assert run(source, "--out", tmp_path / "b", "--jobs", 2, *options) == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    files = sorted((source / "train").glob("*.h5"))
    assert run(*files, "--out", tmp_path / "c") == 0
    assert run(*files[::-1], "--out", tmp_path / "d") == 0
    assert contents(tmp_path / "c") == contents(tmp_path / "d")
    assert len(Shards(tmp_path / "a/train").paths) == 6


def test_the_same_command_again_does_nothing(source, tmp_path, capsys):
    assert run(source, "--out", tmp_path / "a") == 0
    before = contents(tmp_path / "a")
    assert run(source, "--out", tmp_path / "a") == 0
    assert "nothing was done" in capsys.readouterr().out
    assert contents(tmp_path / "a") == before
    assert run(source, "--out", tmp_path / "a", "--seed", 1) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert contents(tmp_path / "a") == before
    assert run(source, "--out", tmp_path / "a", "--seed", 1, "--overwrite") == 0
    assert contents(tmp_path / "a") != before
