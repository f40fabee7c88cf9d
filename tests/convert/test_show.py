import pytest
from make_inputs import omnilearned

from jetkern.cli import convert, show


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("show")
    for label in range(3):
        omnilearned(path / "in" / f"{label}.h5", 40, label, seed=label)
    assert convert.main([str(path / "in"), "--out", str(path / "out"), "--quiet"]) == 0
    return path / "out"


def test_tables_say_what_is_there(folder, capsys):
    assert show.main([str(folder)]) == 0
    said = capsys.readouterr().out
    for text in ("120 jets", "QCD", "33.33%", "ln_pt", "multiplicity/100", "tanh_dz", "<f4"):
        assert text in said


def test_the_sheet_is_drawn(folder, tmp_path):
    assert show.main([str(folder), "--jets", "50", "--figure", str(tmp_path / "a.png")]) == 0
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "a.png").stat().st_size > 20_000


def test_an_error_is_one_line(tmp_path, capsys):
    assert show.main([str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("jetkern show: error: ")
    assert error.count("\n") == 1
