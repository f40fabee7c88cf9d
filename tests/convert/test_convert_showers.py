"""Showers to shards: nothing lost, the same bytes every time, streams as those of jets."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from jetkern.cli import convert, show, verify
from jetkern.clouds import Clouds
from jetkern.data import ShardError, Shards, Stream
from jetkern.showers import Showers
from jetkern.simulate.showers import CALORIMETERS, simulate_showers, write_showers
from tests.faults import Faults, Killed, inject

OPTIONS = ("--jets-per-read", "16", "--jets-per-shard", "24", "--jets-per-block", "7")


def run(source, out, *more):
    words = [str(source), "--out", str(out), "--quiet", *OPTIONS, *map(str, more)]
    return convert.main(words)


def contents(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def everything(folder):
    return Clouds.concat(list(Stream(Shards(folder), batch_size=10, shuffle=False, epochs=1)))


def rows(showers: Showers):
    """Each shower as bytes, sorted, whatever the order of the showers."""
    parts = [showers.part(i, i + 1) for i in range(len(showers))]
    return sorted(part.energies.tobytes() + part.hits.tobytes() for part in parts)


def padded(path: Path, hits: list, energies: list) -> Path:
    """A file of lists of hits (x, y, layer, MeV)."""
    most = max([1, *map(len, hits)])
    data = np.zeros((len(hits), most, 4), np.float32)
    for i, own in enumerate(hits):
        data[i, : len(own)] = np.reshape(own, (-1, 4))
    with h5py.File(path, "w") as file:
        file["showers"], file["incident_energies"] = data, np.array(energies, np.float32)
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    for split, numbers in (("train", range(50)), ("val", range(50, 60))):
        (folder / split).mkdir()
        path = folder / split / "a.h5"
        write_showers(path, CALORIMETERS["small"], numbers, seed=0)
    return folder


@pytest.fixture(scope="module")
def shards(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("shards") / "out"
    assert run(source, out) == 0
    return out


def test_every_shower_arrives_unchanged(shards):
    for split, numbers in (("train", range(50)), ("val", range(50, 60))):
        found = Showers.of_clouds(everything(shards / split))
        assert rows(found) == rows(simulate_showers(CALORIMETERS["small"], numbers))
    opened = Shards(shards / "train")
    assert opened.points == ("x", "y", "layer", "energy")
    assert opened.condition == ("incident_energy",)
    assert opened.classes == ("shower",)
    assert opened.multiplicity().dtype == np.uint32


def test_bytes_do_not_depend_on_jobs_or_on_a_kill(source, shards, tmp_path):
    assert run(source, tmp_path / "jobs", "--jobs", 2) == 0
    assert contents(tmp_path / "jobs") == contents(shards)
    out = tmp_path / "killed"
    for number in (1, 3, 5):
        faults = Faults(out, "replace", number)
        with pytest.raises(Killed), inject(faults):
            run(source, out)
        assert faults.dead
    assert run(source, out) == 0
    assert contents(out) == contents(shards)


def test_verify_and_show_know_showers(shards, tmp_path, capsys):
    assert verify.main([str(shards), "--quiet"]) == 0
    said = capsys.readouterr().out
    assert said.count("no damage") == 2
    assert "showers" in said
    assert "hits" in said
    assert show.main([str(shards / "train"), "--figure", str(tmp_path / "a.png")]) == 0
    assert "50 showers" in capsys.readouterr().out
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_a_flipped_bit_is_found(source, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(source, out) == 0
    opened = Shards(out / "train")
    row = opened.index[0]
    path, place = opened.paths[0], int(row["offset"][1])
    content = bytearray(path.read_bytes())
    content[place + 5] ^= 1
    path.write_bytes(bytes(content))
    assert verify.main([str(out), "--quiet"]) == 1
    assert "block 0, points: the checksum is wrong" in capsys.readouterr().err
    with pytest.raises(ShardError, match="block 0, points: the checksum is wrong"):
        list(Stream(opened, batch_size=10, shuffle=False, epochs=1))


def same(a: Clouds, b: Clouds) -> bool:
    names = ("points", "offsets", "label", "condition", "index")
    return all(torch.equal(getattr(a, n), getattr(b, n)) for n in names)


def test_the_order_is_that_of_jets_and_starts_anywhere(shards):
    def stream(rank=0, world=1, **more):
        return Stream(
            Shards(shards / "train"), batch_size=8, seed=3, rank=rank, world_size=world, epochs=2,
            lanes=4, **more,
        )  # fmt: skip

    whole = list(stream())
    every = Clouds.concat(whole)
    assert every.index.tolist() == list(range(100))
    for epoch in (0, 50):
        part = Showers.of_clouds(every.select(slice(epoch, epoch + 50)))
        assert rows(part) == rows(simulate_showers(CALORIMETERS["small"], range(50)))
    begun = stream()
    taken = iter(begun)
    for _ in range(5):
        next(taken)
    state = begun.state()
    taken.close()
    again = stream()
    again.load_state(state)
    assert all(same(a, b) for a, b in zip(again, whole[5:], strict=True))
    ranks = Clouds.concat([b for rank in (0, 1) for b in stream(rank, 2)])
    assert same(ranks.select(ranks.index.argsort()), every)
    for more in ({"resident": "cpu"}, {"threads": 2, "prefetch": 0}):
        assert all(same(a, b) for a, b in zip(stream(**more), whole, strict=True))
    hits = int(Shards(shards / "train").multiplicity().max())
    budget = {"particles_per_batch": 4 * hits, "lanes": 4, "epochs": 1}
    batches = list(Stream(Shards(shards / "train"), **budget))
    assert Clouds.concat(batches).index.tolist() == list(range(50))
    assert max(b.total for b in batches) <= 4 * hits
    with pytest.raises(ValueError, match=f"at least lanes x {hits}"):
        Stream(Shards(shards / "train"), **budget | {"particles_per_batch": 4 * hits - 1})


def test_empty_and_long_showers_and_equal_energies(tmp_path, capsys):
    random = np.random.default_rng(0)
    long = np.stack([*random.integers(0, 30, (3, 5000)), random.uniform(0.1, 1, 5000)], 1)
    ties = [(5, 0, 1, 1.0), (4, 0, 0, 2.0), (3, 0, 1, 1.0), (2, 0, 1, 3.0)]
    path = padded(tmp_path / "a.h5", [[], long, [(0, 0, 0, 0.5)], ties], [1, 2, 3, 4])
    assert run(path, tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "showers without hits: 1" in said
    assert "hits put in order" in said
    found = everything(tmp_path / "out")
    found = found.select(found.condition[:, 0].argsort())
    assert found.counts.tolist() == [0, 5000, 1, 4]
    last = Showers.of_clouds(found).part(3, 4)
    assert last.hits[:, 0].tolist() == [4, 2, 5, 3]
    assert verify.main([str(tmp_path / "out"), "--quiet"]) == 0
    (tmp_path / "none").mkdir()
    path = padded(tmp_path / "none/a.h5", [[], []], [1, 2])
    assert run(path, tmp_path / "none/out") == 0
    assert everything(tmp_path / "none/out").points.shape == (0, 4)
    assert show.main([str(tmp_path / "none/out")]) == 0


@pytest.mark.parametrize(
    ("hits", "energies", "message"),
    [
        (
            [[(1, 2, 3, 1)], [(1, 2, 3, 1), (np.nan, 2, 3, 1)]],
            [1, 1],
            "shower 1: x of hit 1 is nan",
        ),
        ([[(1, 2, np.inf, 1)]], [1], "shower 0: layer of hit 0 is inf"),
        ([[], [], [(1, 2, 3, np.nan)]], [1, 1, 1], "shower 2: energy of hit 0 is nan"),
        ([[(1, 2, 3, 1)], []], [1, 0], "shower 1: the energy of the particle is 0.0 GeV"),
        ([[(1, 2, 3, 1)]], [np.nan], "shower 0: the energy of the particle is nan GeV"),
    ],
)
def test_bad_values_are_named_or_dropped(tmp_path, capsys, hits, energies, message):
    path = padded(tmp_path / "a.h5", [*hits, [(0, 0, 0, 1)]], [*energies, 5])
    assert run(path, tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert f"{path}: {message}" in error
    assert error.count("\n") == 1
    assert run(path, tmp_path / "out", "--bad-jets", "drop", "--max-dropped", "0.9") == 0
    assert "dropped: " in capsys.readouterr().out
    assert len(everything(tmp_path / "out")) == len(hits)


@pytest.mark.parametrize(
    "flags",
    [("--max-particles", "100"), ("--dtype", "float16"), ("--tracks", "raw"), ("--classes", "a,b")],
)
def test_settings_of_jets_are_refused(source, tmp_path, capsys, flags):
    assert run(source, tmp_path / "out", *flags) == 1
    assert f"{flags[0]} is for jets, and these are none" in capsys.readouterr().err


def test_the_layout_is_found_by_the_content(tmp_path, capsys):
    voxels = np.zeros((3, 368), np.float32)
    voxels[:, 10] = 2
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["showers"], file["incident_energies"] = voxels, np.full((3, 1), 2000.0)
    assert run(tmp_path / "a.h5", tmp_path / "out") == 0
    found = everything(tmp_path / "out")
    assert found.points.tolist() == [[2, 0, 1, 2]] * 3
    assert found.condition.tolist() == [[2]] * 3
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["showers"], file["incident_energies"] = voxels[:2], np.full((3, 1), 2000.0)
    assert run(tmp_path / "b.h5", tmp_path / "other") == 1
    assert "2 showers, but 3 energies of particles" in capsys.readouterr().err
