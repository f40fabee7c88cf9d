"""Faults of the disk: one line, nothing half-written, and the same bytes when run again."""

import errno
import os
import random

import pytest
from make_inputs import omnilearned

from jetkern.cli import convert
from jetkern.io import AtomicFile

CALLS = {
    "replace": (os, "replace"),
    "fsync": (os, "fsync"),
    "unlink": (os, "unlink"),
    "mkdir": (os, "mkdir"),
    "write": (AtomicFile, "write"),
    "open": (AtomicFile, "__enter__"),
}


def contents(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    for split in ("train", "val"):
        omnilearned(folder / split / "a.h5", 60, slots=20)
    return folder


def command(source, out):
    options = ["--jets-per-read", "16", "--jets-per-shard", "30", "--jets-per-block", "10"]
    return [str(source), "--out", str(out), "--quiet", *options]


@pytest.fixture(scope="module")
def expected(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("expected") / "out"
    assert convert.main(command(source, out)) == 0
    return contents(out)


def counted(patch, call, at=None, number=None):
    """Counts a kind of call, and lets the one at ``at`` fail."""
    owner, name = CALLS[call]
    original, calls = getattr(owner, name), [0]

    def wrapped(*arguments, **options):
        calls[0] += 1
        if calls[0] - 1 == at:
            raise OSError(number, os.strerror(number))
        return original(*arguments, **options)

    patch.setattr(owner, name, wrapped)
    return calls


@pytest.mark.parametrize("call", CALLS)
def test_a_fault_of_the_disk(source, expected, tmp_path, capsys, call):
    with pytest.MonkeyPatch.context() as patch:
        calls = counted(patch, call)
        assert convert.main(command(source, tmp_path / "all")) == 0
    chosen = random.Random(0).sample(range(calls[0]), min(2, calls[0]))
    for at in {0, calls[0] - 1, *chosen}:
        number = (errno.ENOSPC, errno.EIO)[at % 2]
        out = tmp_path / f"{at}-{number}"
        capsys.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            counted(patch, call, at, number)
            code = convert.main(command(source, out))
        error = capsys.readouterr().err
        if code:  # what only tidies up may fail without a word
            assert code == 1
            assert error.count("\n") == 1, error
            assert os.strerror(number) in error
            assert str(out) in error
        assert not [p for p in out.rglob("*") if p.name.endswith(".part")]
        assert convert.main(command(source, out)) == 0, (at, number)
        assert contents(out) == expected, (at, number)
