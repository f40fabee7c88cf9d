"""Faults of the disk: one line, nothing half-written, and the same bytes when run again."""

import os

import pytest
from make_inputs import omnilearned
from test_linked import PARTICLES, Events, compare, described, linked, write

from jetkern.cli import convert
from tests.faults import FAULTS, Faults, Killed, cases, inject


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


def command(source, out, *more):
    options = ["--jets-per-read", "16", "--jets-per-shard", "30", "--jets-per-block", "10"]
    return [str(source), "--out", str(out), "--quiet", *options, *map(str, more)]


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


@pytest.mark.parametrize(
    ("form", "kind"),
    [("pairs", "root"), ("ranges", "root"), ("refs", "parquet"), ("links", "parquet")],
)
def test_linked_constituents_go_on_after_a_kill(tmp_path, form, kind):
    events = Events(24)
    columns, text = linked(events, form)
    write(tmp_path / f"a.{kind}", columns)
    particles = PARTICLES + ('id = "unique"' if form == "refs" else "")
    schema = described(tmp_path, "[constituents]\n" + text, kind, particles=particles)

    def linked_to(out):
        return command(tmp_path / f"a.{kind}", out, "--schema", schema, "--jets-per-read", 5)

    whole = tmp_path / "whole"
    with inject(Faults(whole)) as counted:
        assert convert.main(linked_to(whole)) == 0
    compare(whole, events.expected())
    opened, written = counted.calls["open"], counted.calls["write"]
    for at in ("open", opened // 3), ("open", 2 * opened // 3), ("write", written // 2):
        out = tmp_path / f"{at[0]}-{at[1]}"
        with pytest.raises(Killed), inject(Faults(out, *at)):
            convert.main(linked_to(out))
        assert convert.main(linked_to(out)) == 0
        assert contents(out) == contents(whole), at
