"""OmniLearned HDF5 to shards: nothing lost, nothing changed, the same bytes every time."""

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from make_inputs import omnilearned

from jetkern.cli import convert, verify
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
    monkeypatch.setattr("jetkern.convert.run.JETS_WORTH_A_PROCESS", 1)
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


def test_classes_are_spread_evenly_over_blocks_and_jets_over_shards(tmp_path):
    for label in range(4):
        omnilearned(tmp_path / "in" / f"{label}.h5", 500, label, seed=label, slots=20)
    options = ["--jets-per-shard", 500, "--jets-per-block", 100, "--jets-per-read", 200]
    assert run(tmp_path / "in", "--out", tmp_path / "out", *options) == 0
    shards = Shards(tmp_path / "out")
    labels = everything(tmp_path / "out").label.numpy()
    assert len(shards.index) == 20
    for part in np.array_split(labels, 20):
        assert np.bincount(part, minlength=4)[:4].min() >= 20  # of 25; 4 sigma if it were random
        assert (np.diff(part) != 0).mean() > 0.5


def test_random_splits_are_disjoint_complete_and_of_the_right_size(source, tmp_path):
    splits = "train=0.5,val=0.2,test=0.3"
    assert run(source, "--out", tmp_path / "out", "--splits", splits) == 0
    parts = {s: everything(tmp_path / "out" / s) for s in ("train", "val", "test")}
    for split, fraction in (("train", 0.5), ("val", 0.2), ("test", 0.3)):
        assert abs(len(parts[split]) / 3400 - fraction) < 0.03
    assert run(source, "--out", tmp_path / "all", "--one-set") == 0
    together = sorted(row for part in parts.values() for row in as_rows(part))
    assert together == as_rows(everything(tmp_path / "all"))


def test_float16_shards_are_close_and_smaller(source, tmp_path):
    assert run(source / "val", "--out", tmp_path / "a") == 0
    assert run(source / "val", "--out", tmp_path / "b", "--dtype", "float16") == 0
    a, b = everything(tmp_path / "a"), everything(tmp_path / "b")
    assert torch.equal(a.offsets, b.offsets)
    torch.testing.assert_close(a.particles, b.particles, rtol=2**-11, atol=1e-7)
    assert sum(Shards(tmp_path / "b").bytes) < 0.6 * sum(Shards(tmp_path / "a").bytes)


def test_everything_passes_verify(source, tmp_path, capsys):
    assert run(source, "--out", tmp_path / "out") == 0
    assert verify.main([str(tmp_path / "out" / s) for s in ("train", "val")] + ["--quiet"]) == 0
    assert "no damage" in capsys.readouterr().out


def test_spaces_unicode_and_relative_paths(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(source / "val", "--out", "my shärds/α") == 0
    assert Shards("my shärds/α").num_jets == 400


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(1, 200), min_size=1, max_size=40),
    per_read=st.integers(1, 50),
    per_block=st.integers(1, 20),
    per_shard=st.integers(1, 60),
    explicit=st.booleans(),
)
def test_round_trip_of_any_lengths_and_chunks(
    tmp_path_factory, counts, per_read, per_block, per_shard, explicit
):
    tmp = tmp_path_factory.mktemp("trip")
    data = np.zeros((len(counts), 200, 4), "f4")
    for jet, n in enumerate(counts):
        data[jet, :n, 0] = jet + 1
        data[jet, :n, 2] = np.linspace(5, -1, n)
        data[jet, :n, 3] = 6
    data[..., 0] /= 100
    with h5py.File(tmp / "a.h5", "w") as file:
        file["data"], file["pid"] = data, np.arange(len(counts)) % 2
        if explicit:
            file["num_particles"] = np.array(counts)
    options = ["--jets-per-read", per_read, "--jets-per-block", per_block]
    options += ["--jets-per-shard", per_shard, "--classes", "a,b"]
    assert run(tmp / "a.h5", "--out", tmp / "out", *options) == 0
    jets = everything(tmp / "out")
    assert len(jets) == len(counts)
    firsts = jets.offsets[:-1]
    jet = (jets.particles[firsts, 0] * 100 - 1).round().long()
    assert sorted(jet.tolist()) == list(range(len(counts)))
    kept = np.minimum(counts, 150)
    assert jets.counts.tolist() == kept[jet.numpy()].tolist()
    for b, j in enumerate(jet.tolist()):
        of = slice(int(jets.offsets[b]), int(jets.offsets[b + 1]))
        assert np.array_equal(jets.particles[of].numpy(), data[j, : kept[j]])
        assert jets.label[b] == j % 2


def test_changed_inputs_and_classes_are_not_taken_for_done(tmp_path, capsys):
    source = tmp_path / "a.h5"
    omnilearned(source, 40, seed=1)
    assert run(source, "--out", tmp_path / "out") == 0
    omnilearned(source, 40, seed=2)  # the same size and number of jets
    assert run(source, "--out", tmp_path / "out") == 1
    assert "older than the inputs" in capsys.readouterr().err
    assert run(source, "--out", tmp_path / "out", "--overwrite") == 0
    names = ",".join("abcdefghij")
    assert run(source, "--out", tmp_path / "out", "--classes", names) == 1
    assert run(source, "--out", tmp_path / "out", "--classes", names, "--overwrite") == 0
    assert Shards(tmp_path / "out").classes == tuple("abcdefghij")
