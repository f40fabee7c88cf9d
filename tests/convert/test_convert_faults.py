"""Faults of the disk: one line, nothing half-written, and the same bytes when run again."""

import os

import pytest
from faults import FAULTS, Faults, Killed, cases, inject
from make_inputs import omnilearned

from jetkern.cli import convert


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
    with inject(Faults(out)) as counted:
        assert convert.main(command(source, out)) == 0
    return contents(out), counted.calls


def test_faults_of_the_disk(source, expected, tmp_path, capsys):
    files, calls = expected
    assert all(calls[kind] for kind in ("open", "write", "fsync", "replace", "unlink", "mkdir"))
    for number, (kind, at, fault) in enumerate(cases(calls, 24)):
        out, case = tmp_path / str(number), (kind, at, fault)
        capsys.readouterr()
        try:
            with inject(Faults(out, kind, at, FAULTS[fault])):
                code = convert.main(command(source, out))
        except Killed:
            assert fault == "kill", case
        else:
            error = capsys.readouterr().err
            if code:  # what only tidies up may fail without a word
                assert code == 1, case
                assert error.count("\n") == 1, (case, error)
                assert os.strerror(FAULTS[fault]) in error, (case, error)
                assert str(out) in error, (case, error)
            assert not [p for p in out.rglob("*") if p.name.endswith(".part")], case
        assert convert.main(command(source, out)) == 0, case
        assert contents(out) == files, case
