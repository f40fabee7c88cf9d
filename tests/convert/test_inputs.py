"""Which files are read, what names say of splits and classes, and whether inputs have changed."""

import os
import shutil
from pathlib import Path

import pytest
from make_inputs import omnilearned

from jetkern.cli import convert
from jetkern.convert.inputs import CHUNK, find, fingerprint, fingerprints
from jetkern.convert.readers import InputError
from jetkern.data import Shards

ENDINGS = {".h5", ".root", ".parquet"}


def run(*arguments):
    return convert.main([str(a) for a in arguments] + ["--quiet"])


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def splits(*sources, **options):
    return {f.name: f.split for f in find(sources, ENDINGS, **options).found}


def test_leftovers_are_not_read_and_said(tmp_path):
    leftovers = [
        ".hidden.h5", "._a.h5", ".a/b.h5", ".ipynb_checkpoints/a-checkpoint.h5", "a.h5~", "#a.h5#",
        "a.h5.part", "a.root.old", "a.old.root", "a.tmp.h5", ".a.h5.swp", "a.h5.crdownload",
        "_temporary/0/part-0.parquet", "__MACOSX/a.h5",
    ]  # fmt: skip
    touch(tmp_path, "a.h5", "part.0.parquet", "sub/b.root", "c.H5", "notes.txt", *leftovers)
    search = find([tmp_path], ENDINGS)
    assert [f.name for f in search.found] == ["a.h5", "c.H5", "part.0.parquet", "sub/b.root"]
    said = "\n".join(search.notes())
    for name in {n.split("/")[0] for n in leftovers}:
        assert f"{tmp_path / name}, hidden or left over" in said
    assert "1 .txt" in said
    touch(tmp_path, ".hidden.h5")
    assert [f.name for f in find([tmp_path / ".hidden.h5"], ENDINGS).found] == [".hidden.h5"]


def test_links_are_followed_and_loops_found(tmp_path):
    touch(tmp_path, "disk/val/a.h5", "data/train/b.h5", "other/c.h5")
    (tmp_path / "data/val").symlink_to("../disk/val")
    (tmp_path / "data/train/loop").symlink_to("..")
    (tmp_path / "data/train/c.h5").symlink_to(tmp_path / "other/c.h5")
    search = find([tmp_path / "data"], ENDINGS)
    assert {f.name: f.split for f in search.found} == {
        "train/b.h5": "train", "train/c.h5": "train", "val/a.h5": "val",
    }  # fmt: skip
    assert "loop, a link to a folder around it" in "\n".join(search.notes())


def test_one_file_by_two_names_counts_once_and_never_in_two_splits(tmp_path):
    touch(tmp_path, "train/a.h5")
    os.link(tmp_path / "train/a.h5", tmp_path / "train/b.h5")
    search = find([tmp_path], ENDINGS)
    assert [f.name for f in search.found] == ["train/a.h5"]
    assert "by another name" in search.notes()[0]
    (tmp_path / "val").mkdir()
    (tmp_path / "val/a.h5").symlink_to(tmp_path / "train/a.h5")
    with pytest.raises(InputError, match="one file, but in different splits"):
        find([tmp_path], ENDINGS)


@pytest.mark.parametrize("name", ["gone.h5", "gone"])
def test_a_link_to_nothing_is_no_missing_split(tmp_path, name):
    touch(tmp_path, "train/a.h5")
    (tmp_path / name).symlink_to("nowhere")
    with pytest.raises(InputError, match=f"{name}: a link to nothing"):
        find([tmp_path], ENDINGS)


def test_a_pipe_does_not_wait_for_ever(tmp_path):
    os.mkfifo(tmp_path / "a.h5")
    with pytest.raises(InputError, match="a pipe"):
        find([tmp_path], ENDINGS)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["training/a.h5", "validation/a.h5"], ["train", "val"]),
        (["top_train.h5", "top_val.h5", "top_test.h5"], ["test", "train", "val"]),
        (["split=train/a.h5", "split=validation/a.h5"], ["train", "val"]),
        (["train_100M/x_000.root", "val_5M/x_100.root"], ["train", "val"]),
        (["Train.h5", "TEST.h5"], ["test", "train"]),
        (["jetsTrain01.h5", "jetsVal01.h5"], ["train", "val"]),
        (["test_beam/train.h5", "test_beam/val.h5"], ["train", "val"]),
        (["train/testing_0.h5", "val/training_1.h5"], ["train", "val"]),
        (["latest.h5", "contest.h5"], [None, None]),
    ],
)
def test_splits_by_name(tmp_path, names, expected):
    touch(tmp_path, *names)
    assert [s for _, s in sorted(splits(tmp_path).items())] == expected


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["train_val/a.h5"], "train and val"),
        (["train/test/a.h5"], "test and train"),
        (["qcd_train_run2.h5", "qcd_test_run2.h5"], "are these files of several splits"),
        (["split=holdout/a.h5"], "split=holdout: expected train, val or test"),
    ],
)
def test_an_unclear_split_is_one_question(tmp_path, names, says):
    touch(tmp_path, *names)
    with pytest.raises(InputError, match=says) as question:
        find([tmp_path], ENDINGS)
    assert "\n" not in str(question.value)
    assert set(splits(tmp_path, use_splits=False).values()) == {None}


def test_the_folders_that_are_named_are_the_splits(tmp_path, monkeypatch):
    touch(tmp_path, "test/train/a.h5", "test/val/b.h5")
    inside = tmp_path / "test"
    assert splits(inside / "train", inside / "val") == {"a.h5": "train", "b.h5": "val"}
    assert splits(inside / "train/a.h5", inside / "val/b.h5") == {"a.h5": "train", "b.h5": "val"}
    assert splits(inside / "train") == {"a.h5": None}
    assert splits(inside) == {"train/a.h5": "train", "val/b.h5": "val"}
    monkeypatch.chdir(inside / "train")
    assert splits(Path()) == {"a.h5": None}


def test_a_folder_around_does_not_decide_the_classes(tmp_path, capsys):
    source = tmp_path / "qg" / "mine"
    omnilearned(source / "a.h5", 20, 1, shift=0, explicit=False)
    assert run(source, "--out", tmp_path / "a") == 1
    assert "does not say what its classes are" in capsys.readouterr().err
    assert run(tmp_path / "qg", "--out", tmp_path / "b") == 0
    assert Shards(tmp_path / "b").classes == ("gluon", "quark")


def test_the_report_says_what_was_not_read(tmp_path, capsys):
    omnilearned(tmp_path / "in" / "a.h5", 20)
    shutil.copy(tmp_path / "in/a.h5", tmp_path / "in/b.h5")
    touch(tmp_path, "in/a.h5.part")
    assert run(tmp_path / "in", "--out", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "a.h5.part, hidden or left over" in said
    assert f"{tmp_path}/in/b.h5 and {tmp_path}/in/a.h5 have the same contents" in said


def test_fingerprints_of_ranges_are_those_of_the_file(tmp_path):
    path = tmp_path / "a"
    content = os.urandom(2 * CHUNK + 77)
    path.write_bytes(content)
    whole = fingerprints(path, len(content), 0, 100, 100)
    assert len(whole) == 3
    parts = [fingerprints(path, len(content), a, a + 10, 100) for a in range(0, 100, 10)]
    assert [digest for part in parts for digest in part] == whole
    for at in (0, CHUNK - 1, CHUNK, len(content) - 1):
        changed = bytearray(content)
        changed[at] ^= 1
        path.write_bytes(changed)
        assert fingerprint(fingerprints(path, len(content), 0, 1, 1)) != fingerprint(whole)


@pytest.mark.parametrize("how", ["copied", "folder exchanged", "written to"])
def test_an_input_of_the_same_size_and_time_is_noticed(tmp_path, capsys, how):
    time = (1_700_000_000, 1_700_000_000)
    for version, seed in (("v1", 1), ("v2", 2)):
        omnilearned(tmp_path / version / "a.h5", 40, seed=seed)
        os.utime(tmp_path / version / "a.h5", time)
    data = tmp_path / "data"
    shutil.copytree(tmp_path / "v1", data)
    assert run(data, "--out", tmp_path / "out") == 0
    before = (tmp_path / "out/manifest.json").read_bytes()
    if how == "copied":
        shutil.copy2(tmp_path / "v2/a.h5", data / "a.h5")
    elif how == "folder exchanged":  # the files' own times are all older than the shards
        shutil.rmtree(data)
        (tmp_path / "v2").rename(data)
    else:
        (data / "a.h5").write_bytes((tmp_path / "v2/a.h5").read_bytes())
        os.utime(data / "a.h5", time)
    capsys.readouterr()
    assert run(data, "--out", tmp_path / "out") == 1
    assert "holds shards of other inputs" in capsys.readouterr().err
    assert (tmp_path / "out/manifest.json").read_bytes() == before
    shutil.rmtree(data)
    shutil.copytree(tmp_path / "v1", data)  # the same contents at another place and time
    (data / "a.h5").touch()
    assert run(data, "--out", tmp_path / "out") == 0
    assert "nothing was done" in capsys.readouterr().out


def test_an_input_that_is_written_to_while_it_is_read_is_noticed(tmp_path, capsys, monkeypatch):
    from jetkern.convert.readers.omnilearned import OmniLearned

    path = tmp_path / "a.h5"
    omnilearned(path, 40)
    status, read = path.stat(), OmniLearned.read

    def changing(self, start, stop):
        with open(path, "r+b") as file:
            file.write(path.read_bytes()[:1])
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        return read(self, start, stop)

    monkeypatch.setattr(OmniLearned, "read", changing)
    assert run(path, "--out", tmp_path / "out") == 1
    assert f"{path}: the file changed while it was being converted" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.json"))
