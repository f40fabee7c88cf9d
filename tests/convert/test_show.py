import pytest
from make_inputs import omnilearned

from jetkern.cli import convert, show, verify


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


def test_verify_and_show_take_the_folder_that_convert_wrote(tmp_path, capsys):
    for seed, split in enumerate(("train", "val", "test")):
        omnilearned(tmp_path / "in" / split / "a.h5", 30, seed=seed)
    out = str(tmp_path / "out")
    assert convert.main([str(tmp_path / "in"), "--out", out, "--quiet"]) == 0
    capsys.readouterr()
    assert verify.main([out, "--quiet"]) == 0
    said = capsys.readouterr().out
    assert said.count("no damage") == 3
    assert said.index("/train:") < said.index("/val:") < said.index("/test:")
    assert show.main([out, "--figure", str(tmp_path / "a.png")]) == 0
    assert {p.name for p in tmp_path.glob("*.png")} == {"a-train.png", "a-val.png", "a-test.png"}


def test_verify_finds_splits_of_different_conversions(tmp_path, capsys):
    omnilearned(tmp_path / "a.h5", 60)
    for name, splits in (("a", "train=0.5,val=0.2,test=0.3"), ("b", "train=0.8,val=0.2")):
        command = [str(tmp_path / "a.h5"), "--out", str(tmp_path / name), "--splits", splits]
        assert convert.main([*command, "--quiet"]) == 0
    (tmp_path / "a/test").rename(tmp_path / "b/test")
    assert verify.main([str(tmp_path / "b"), "--quiet"]) == 1
    assert f"{tmp_path}/b/test: not of the same conversion" in capsys.readouterr().err
    assert verify.main([str(tmp_path / "b/test"), "--quiet"]) == 0
