"""Conversions that go on: damaged work, inputs that were replaced, parts, other settings."""

import json
import os
import random
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from make_inputs import omnilearned

from jetkern.cli import convert, verify
from jetkern.convert import plan as plan_module
from jetkern.convert import run as run_module
from jetkern.convert.clean import Policy
from jetkern.convert.run import WORK
from jetkern.data import Shards

OPTIONS = ["--jets-per-read", "16", "--jets-per-shard", "60", "--jets-per-block", "20"]


def run(*arguments):
    return convert.main([str(a) for a in arguments] + ["--quiet"])


def contents(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    for split in ("train", "val"):
        for label in range(3):
            omnilearned(folder / split / f"{label}.h5", 100, label, seed=label, slots=40)
    return folder


@pytest.fixture(scope="module")
def expected(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("expected") / "out"
    assert run(source, "--out", out, *OPTIONS) == 0
    return contents(out)


class Stopped(Exception):
    pass


def stop_before(name, *arguments):
    """Runs the command up to one of the steps of a conversion."""

    def stopped(*_):
        raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, name, stopped)
        patch.setenv("JETKERN_DEBUG", "1")
        with pytest.raises(Stopped):
            run(*arguments)


@pytest.mark.parametrize("step", ["_second_pass", "_finish"])
def test_a_bit_that_flipped_in_what_is_finished_is_found(source, expected, tmp_path, step):
    half = tmp_path / "half"
    stop_before(step, source, "--out", half, *OPTIONS)
    rng = random.Random(0)
    names = sorted(p.relative_to(half) for p in half.rglob("*") if p.is_file())
    chosen = rng.sample(names, 4)
    for kind in (".tar", ".record", ".jets", ".json"):
        chosen += [n for n in names if n.suffix == kind][:1]
    for name in chosen:
        out = tmp_path / "out"
        shutil.copytree(half, out)
        content = bytearray((out / name).read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        (out / name).write_bytes(content)
        if (code := run(source, "--out", out, *OPTIONS)) == 1:  # a damaged work file, found late
            code = run(source, "--out", out, *OPTIONS)
        assert code == 0, name
        assert contents(out) == expected, name
        shutil.rmtree(out)


@pytest.mark.parametrize("how", ["replaced", "taken out"])
def test_goes_on_without_the_damaged_input(tmp_path, capsys, monkeypatch, how):
    source, out = tmp_path / "in", tmp_path / "out"
    for number in range(4):
        omnilearned(source / f"{number}.h5", 40, number, seed=number, slots=40)
    with h5py.File(source / "2.h5", "a") as file:
        file["data"][20, 0, 1] = np.nan
    command = [source, "--out", out, "--jets-per-read", 16]
    assert run(*command) == 1
    error = capsys.readouterr().err
    assert f"{source}/2.h5: jet 20: delta phi of a particle is nan" in error
    assert error.count("\n") == 1
    (source / "2.h5").unlink()
    if how == "replaced":
        omnilearned(source / "2.h5", 40, 2, seed=2, slots=40)
    read = []
    scatter = run_module.scatter
    monkeypatch.setattr(run_module, "scatter", lambda p, u, w: read.append(u) or scatter(p, u, w))
    assert run(*command) == 0
    assert "ranges were read before" in capsys.readouterr().out
    again = {(p.input, p.start) for unit in read for p in unit.pieces}
    assert not again & {(0, 0), (0, 16), (1, 0), (1, 16)}
    assert run(source, "--out", tmp_path / "fresh", "--jets-per-read", 16) == 0
    assert contents(out) == contents(tmp_path / "fresh")
    capsys.readouterr()
    assert run(*command) == 0
    assert "nothing was done" in capsys.readouterr().out


def test_settings_may_change_while_nothing_is_read(tmp_path, capsys):
    omnilearned(tmp_path / "a.h5", 40, 1, shift=0)
    assert run(tmp_path / "a.h5", "--out", tmp_path / "out", "--label-shift", 200) == 1
    assert "the label is -199" in capsys.readouterr().err
    assert not (tmp_path / "out" / WORK).exists()
    assert run(tmp_path / "a.h5", "--out", tmp_path / "out") == 0


@pytest.mark.parametrize("before", ["train=0.5,val=0.2,test=0.3", "all=1", "one set"])
def test_nothing_of_another_conversion_stays(tmp_path, capsys, before):
    omnilearned(tmp_path / "a.h5", 60, slots=20)
    out = tmp_path / "out"
    first = ["--one-set"] if before == "one set" else ["--splits", before]
    command = [tmp_path / "a.h5", "--out", out]
    assert run(*command, *first) == 0
    (out / "mine.txt").write_text("mine")
    made = contents(out)
    second = [*command, "--splits", "train=0.8,val=0.2"]
    assert run(*second) == 1
    assert "replace all of them with --overwrite" in capsys.readouterr().err
    assert contents(out) == made
    assert run(*second, "--overwrite") == 0
    assert {p.name for p in out.iterdir()} == {"train", "val", "mine.txt"}
    assert run(*command, "--one-set", "--overwrite") == 0
    assert not [p for p in out.iterdir() if p.is_dir()]
    assert verify.main([str(out), "--quiet"]) == 0


def test_a_data_set_below_is_not_taken_for_a_split(tmp_path):
    omnilearned(tmp_path / "a.h5", 60, slots=20)
    out = tmp_path / "shards"
    assert run(tmp_path / "a.h5", "--out", out / "other", "--one-set") == 0
    before = contents(out / "other")
    assert run(tmp_path / "a.h5", "--out", out, "--splits", "train=0.8,val=0.2") == 0
    assert run(tmp_path / "a.h5", "--out", out, "--one-set", "--overwrite") == 0
    assert contents(out / "other") == before


def test_clearing_goes_on_after_a_kill(tmp_path, monkeypatch):
    omnilearned(tmp_path / "a.h5", 60, slots=20)
    out, command = tmp_path / "out", [tmp_path / "a.h5", "--out", tmp_path / "out"]
    assert run(*command, "--splits", "train=0.5,val=0.2,test=0.3") == 0
    unlink, calls = Path.unlink, iter(range(100))

    def killed(self, missing_ok=False):
        if "shard-" in self.name and next(calls) == 1:
            raise KeyboardInterrupt
        unlink(self, missing_ok=missing_ok)

    second = [*command, "--splits", "train=0.8,val=0.2"]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        assert run(*second, "--overwrite") == 130
    assert not list(out.rglob("manifest.json"))
    assert run(*second) == 0
    assert {p.name for p in out.iterdir()} == {"train", "val"}


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_parts_give_the_same_bytes(source, expected, tmp_path, capsys, order):
    out = tmp_path / "out"
    command = [source, "--out", out, *OPTIONS]
    for k in order[:2]:
        assert run(*command, "--part", f"{k}/3") == 0
        assert f"part {k} of 3 is read" in capsys.readouterr().out
    assert not list(out.rglob("*.tar"))
    assert run(*command, "--join") == 1
    assert "are not read yet" in capsys.readouterr().err
    assert run(*command, "--part", f"{order[2]}/3") == 0  # the last one that reads may write, too
    assert run(*command, "--part", f"{order[0]}/3") == 0
    assert 0 < len(list(out.rglob("*.tar"))) < sum(n.endswith(".tar") for n in expected)
    assert run(*command, "--join") == 0
    assert contents(out) == expected
    assert run(*command, "--part", "1/3") == 0
    assert contents(out) == expected


def test_parts_at_once_and_one_of_them_twice(source, tmp_path, capsys):
    with run_module._locked(tmp_path, (1, 2)), run_module._locked(tmp_path, (2, 2)):
        for options in (["--part", "1/2"], ["--join"], []):
            assert run(source, "--out", tmp_path, *options) == 1
            assert "another conversion is writing here" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    for wrong in (
        ["--part", "0/2"],
        ["--part", "3/2"],
        ["--part", "1"],
        ["--part", "1/2", "--join"],
    ):
        with pytest.raises(SystemExit) as exit_:
            run(source, "--out", tmp_path, *wrong)
        assert exit_.value.code == 2


def test_small_inputs_go_together(tmp_path):
    for i in range(60):
        omnilearned(tmp_path / "in" / f"{i:02d}.h5", 3, i % 3, seed=i, slots=10)
    options = {"jets_per_read": 30, "policy": Policy()}
    plan = plan_module.make_plan([tmp_path / "in"], **options)
    sizes = [sum(p.stop - p.start for p in unit.pieces) for unit in plan.units]
    assert sum(sizes) == 180
    assert max(sizes) <= 60
    assert 3 <= len(sizes) <= 18
    (tmp_path / "in/30.h5").unlink()
    fewer = plan_module.make_plan([tmp_path / "in"], **options)
    assert len({u.name for u in fewer.units} & {u.name for u in plan.units}) >= len(sizes) - 2
    assert run(tmp_path / "in", "--out", tmp_path / "out", "--jets-per-read", 30) == 0
    assert Shards(tmp_path / "out").counts[:3] == (57, 60, 60)


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".", "", "x y", ".hidden", "a\x1b[31m"])
def test_a_split_is_a_plain_word(source, tmp_path, capsys, name):
    with pytest.raises(SystemExit) as exit_:
        run(source, "--out", tmp_path / "out", "--splits", f"train=0.5,{name}=0.5")
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert "is not a plain word" in error
    assert "\x1b" not in error
    assert not list(tmp_path.iterdir())


def test_all_jets_dropped(tmp_path, capsys):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"], file["pid"] = np.full((5, 4, 4), np.nan, "f4"), np.zeros(5, int)
    options = ["--classes", "a,b", "--bad-jets", "drop", "--max-dropped", 1]
    assert run(tmp_path / "a.h5", "--out", tmp_path / "out", *options) == 1
    error = capsys.readouterr().err
    assert "none of the 5 jets is left: not finite 5" in error
    assert error.count("\n") == 1


def test_small_data_say_what_is_missing(tmp_path, capsys):
    for i, (split, jets) in enumerate((("train", 4), ("val", 1))):
        with h5py.File(tmp_path / f"{split}.h5", "w") as file:
            data = np.zeros((jets, 2, 4), "f4")
            data[:, 0] = 0.1 + i
            file["data"], file["pid"] = data, np.arange(jets) % 2
    with h5py.File(tmp_path / "train_2.h5", "w") as file:
        file["data"], file["pid"] = np.zeros((0, 2, 4), "f4"), np.zeros(0, int)
    assert run(tmp_path, "--out", tmp_path / "out", "--classes", "a,b,c") == 0
    said = capsys.readouterr().out
    assert f"{tmp_path}/train_2.h5: there are no jets in it" in said
    assert "WARNING: val has no jets of b" in said
    assert "WARNING: there are no jets of c" in said
    splits = ["--splits", "train=0.999999,val=0.000001", "--classes", "a,b,c"]
    assert run(tmp_path / "train.h5", "--out", tmp_path / "few", *splits) == 0
    assert "WARNING: no jet fell to val" in capsys.readouterr().out
    assert run(tmp_path / "train.h5", "--out", tmp_path / "few", *splits) == 0
    assert "nothing was done" in capsys.readouterr().out


def test_the_home_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    omnilearned(tmp_path / "a.h5", 20)
    assert run("~/a.h5", "--out=~/x") == 0
    assert Shards(tmp_path / "x").num_jets == 20
    assert json.loads((tmp_path / "x/manifest.json").read_text())["split"] == ""
    assert os.listdir(tmp_path / "x").count(".lock") == 0
