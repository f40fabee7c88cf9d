"""What is wrong with an input is said in one line that names file, jet and field, or is counted."""

import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from make_inputs import jetclass, jetnet, omnilearned, random_jets, top_tagging

from jetkern.cli import convert
from jetkern.data import Shards, Stream
from jetkern.jets import Jets

ROOT = Path(__file__).parents[2]


def run(*arguments):
    return convert.main([str(a) for a in arguments] + ["--quiet"])


def refuse(capsys, out, *arguments, says):
    """The command fails with one line that says all of it, and leaves no shards."""
    assert run(*arguments, "--out", out) == 1
    error = capsys.readouterr().err
    assert error.startswith("jetkern convert: error: ")
    assert error.count("\n") == 1
    for text in says:
        assert text in error, error
    assert not list(out.glob("**/*.tar"))
    assert not list(out.glob("**/manifest.json"))


@pytest.fixture
def good(tmp_path):
    omnilearned(tmp_path / "a.h5", 40, 3)
    return tmp_path / "a.h5"


@pytest.mark.parametrize("kind", ["half", "one byte less", "empty", "garbage", "missing"])
@pytest.mark.parametrize("suffix", [".h5", ".root", ".parquet"])
def test_damaged_files(tmp_path, capsys, kind, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".h5":
        omnilearned(path, 40)
    elif suffix == ".root":
        pytest.importorskip("uproot")
        jetclass(path, 40)
    else:
        pytest.importorskip("pyarrow")
        from make_inputs import top_frame

        top_frame(40)[0].to_parquet(path)
    content = path.read_bytes()
    path.unlink()
    if kind != "missing":
        path.write_bytes(
            {
                "half": content[: len(content) // 2],
                "one byte less": content[:-1],
                "empty": b"",
                "garbage": b"garbage" * 1000,
            }[kind]
        )
    refuse(capsys, tmp_path / "out", path, says=[str(path)])


@pytest.mark.parametrize("name", ["data", "pid"])
def test_missing_dataset(good, tmp_path, capsys, name):
    with h5py.File(good, "a") as file:
        del file[name]
    refuse(capsys, tmp_path / "out", good, says=[str(good), f"no dataset {name}", "global"])


def replaced(path, **arrays):
    with h5py.File(path, "a") as file:
        for name, array in arrays.items():
            del file[name]
            file[name] = array


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda: {"data": np.zeros((40, 9), "f4")}, ["data", "(40, 9)", "3 dimensions"]),
        (lambda: {"data": np.zeros((40, 10, 7), "f4")}, ["data has 7 features", "expected 4"]),
        (lambda: {"data": np.zeros((39, 10, 9), "f4")}, ["data 39", "pid 40"]),
        (lambda: {"pid": np.full(40, 2.5)}, ["jet 0", "pid is 2.5"]),
        (lambda: {"pid": np.array([b"x"] * 40)}, ["pid has type"]),
        (lambda: {"num_particles": np.full(40, 151)}, ["jet 0", "num_particles is 151"]),
        (lambda: {"num_particles": np.full(40, -1)}, ["jet 0", "num_particles is -1"]),
        (lambda: {"pid": np.full(40, 1)}, ["jet 0", "label is -1", "10 classes"]),
        (lambda: {"pid": np.full(40, 12)}, ["jet 0", "label is 10", "10 classes"]),
    ],
)
def test_wrong_datasets(good, tmp_path, capsys, change, says):
    replaced(good, **change())
    refuse(capsys, tmp_path / "out", good, says=[str(good), *says])


@pytest.mark.parametrize("change", ["float label", "float64", "big endian"])
def test_other_number_types_are_read_as_they_are_meant(good, tmp_path, change):
    assert run(good, "--out", tmp_path / "a") == 0
    with h5py.File(good) as file:
        pid, data = file["pid"][:], file["data"][:]
    replaced(
        good,
        **{
            "float label": {"pid": pid.astype("f8")},
            "float64": {"data": data.astype("f8")},
            "big endian": {"data": data.astype(">f4"), "pid": pid.astype(">i8")},
        }[change],
    )
    assert run(good, "--out", tmp_path / "b") == 0
    a, b = ((tmp_path / x / "shard-00000.tar").read_bytes() for x in "ab")
    assert a == b


def test_object_types_are_refused(good, tmp_path, capsys):
    with h5py.File(good, "a") as file:
        del file["pid"]
        file.create_dataset("pid", (40,), h5py.vlen_dtype(np.int64))
    refuse(capsys, tmp_path / "out", good, says=[str(good), "pid has type object"])


@pytest.mark.parametrize("kind", ["external link", "virtual", "external storage", "loop"])
def test_links_to_other_files_are_refused(good, tmp_path, capsys, kind):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["pid"] = np.full(40, 2)
    with h5py.File(good, "a") as file:
        del file["pid"]
        if kind == "external link":
            file["pid"] = h5py.ExternalLink(str(secret), "/pid")
        elif kind == "virtual":
            layout = h5py.VirtualLayout((40,), "i8")
            layout[:] = h5py.VirtualSource(str(secret), "pid", (40,))
            file.create_virtual_dataset("pid", layout)
        elif kind == "external storage":
            raw = tmp_path / "raw"
            raw.write_bytes(bytes(320))
            file.create_dataset("pid", (40,), "i8", external=[(str(raw), 0, 320)])
        else:
            file["pid"] = h5py.SoftLink("/other")
            file["other"] = h5py.SoftLink("/pid")
    refuse(capsys, tmp_path / "out", good, says=[str(good), "pid"])


@pytest.mark.parametrize(
    ("column", "value", "field"),
    [
        (0, np.nan, "delta eta"),
        (1, np.inf, "delta phi"),
        (2, -np.inf, "ln pT"),
        (3, np.nan, "ln E"),
        (0, 11.0, "delta eta"),
        (4, np.nan, "identity"),
        (4, 9, "identity"),
        (4, -1, "identity"),
        (4, 1.5, "identity"),
        (6, np.nan, "impact parameter"),
    ],
)
def test_values_that_are_not_physical(good, tmp_path, capsys, column, value, field):
    with h5py.File(good, "a") as file:
        file["data"][7, 0, column] = value
    refuse(capsys, tmp_path / "out", good, says=[str(good), "jet 7:", field])


def test_bad_global(good, tmp_path, capsys):
    with h5py.File(good, "a") as file:
        file["global"][9, 1] = np.nan
    refuse(capsys, tmp_path / "out", good, says=[str(good), "jet 9:", "global"])


def test_dropping_is_counted_and_limited(good, tmp_path, capsys):
    with h5py.File(good, "a") as file:
        file["data"][7, 0, 2] = np.nan
        file["num_particles"][3] = 0
        file["data"][5, 0, 6] = np.nan
    drop = ["--bad-jets", "drop", "--bad-tracks", "drop"]
    says = ["3 jets were dropped", "no particles 1", "0.01"]
    refuse(capsys, tmp_path / "out", good, *drop, says=says)
    drop += ["--max-dropped", 0.1]
    assert run(good, "--out", tmp_path / "out", "--overwrite", *drop) == 0
    said = capsys.readouterr().out
    assert "40 jets read, 37 kept" in said
    for line in ("dropped: no particles: 1", "not finite: 1", "dropped: tracks not finite: 1"):
        assert line in said
    report = Shards(tmp_path / "out").manifest["report"]
    assert report["read"] == 40
    assert report["kept"] == 37


def test_tracks_set_to_zero_are_counted(good, tmp_path, capsys):
    with h5py.File(good, "a") as file:
        file["data"][5, 0, 6] = np.nan
    assert run(good, "--out", tmp_path / "out", "--bad-tracks", "zero") == 0
    assert "tracks set to zero: 1" in capsys.readouterr().out


def test_empty_jets_as_a_killed_writer_leaves_them(good, tmp_path, capsys):
    replaced(good, data=np.zeros((40, 150, 9), "f4"), num_particles=np.zeros(40, int))
    refuse(capsys, tmp_path / "out", good, says=[str(good), "jet 0:", "no particles"])
    refuse(capsys, tmp_path / "x", good, "--bad-jets", "drop", says=["40 jets were dropped"])


def test_a_file_without_jets(tmp_path, capsys):
    omnilearned(tmp_path / "a.h5", 0)
    refuse(capsys, tmp_path / "out", tmp_path / "a.h5", says=["a.h5", "no jets"])


def test_repairs_are_made_and_counted(tmp_path, capsys):
    data, counts = random_jets(20, slots=200, features=4, low=5, high=60)
    rng = np.random.default_rng(0)
    rows = rng.normal(1, 1, (200, 4)).astype("f4")
    rows[:, :2] *= 0.1
    rows[:, 3] = rows[:, 2] + 0.1
    data[0] = rows  # 200 particles, not sorted
    counts[0] = 200
    data[1, 0, 1] += np.float32(2 * np.pi)
    data[2, 0, 3] = data[2, 0, 2] - 1
    data[3, 1] = data[3, 0]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"], file["pid"], file["num_particles"] = data, np.zeros(20, int), counts
    assert run(tmp_path / "a.h5", "--out", tmp_path / "out", "--classes", "QCD,top") == 0
    said = capsys.readouterr().out
    for line in (
        "jets sorted by pT: 1",
        "jets cut to the particle limit: 1",
        "particles cut: 50",
        "particles with delta phi wrapped: 1",
        "particles with E below pT: 1",
        "particles twice in a jet: 1",
    ):
        assert line in said
    jets = Jets.concat(
        list(Stream(Shards(tmp_path / "out"), batch_size=99, shuffle=False, epochs=1))
    )
    long = jets.select(jets.counts == 150)
    expected = rows[np.argsort(-rows[:, 2], kind="stable")][:150]
    np.testing.assert_array_equal(long.particles.numpy(), expected)
    assert jets.particles[:, 1].abs().max() < np.pi


def test_mev_is_noticed(tmp_path, capsys):
    data, counts = random_jets(20, features=4)
    real = np.arange(150) < counts[:, None]
    data[..., 2:][real] += np.log(1e6)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"], file["pid"], file["num_particles"] = data, np.zeros(20, int), counts
    assert run(tmp_path / "a.h5", "--out", tmp_path / "out", "--classes", "QCD,top") == 0
    assert "is the input in MeV?" in capsys.readouterr().out


def test_inputs_that_do_not_fit_each_other(good, tmp_path, capsys):
    omnilearned(tmp_path / "b.h5", 20, features=4)
    refuse(
        capsys, tmp_path / "out", good, tmp_path / "b.h5", says=["b.h5", "a.h5", "tracks", "pid"]
    )


def test_classes_must_be_known(tmp_path, capsys):
    omnilearned(tmp_path / "b.h5", 20, explicit=False)
    refuse(capsys, tmp_path / "out", tmp_path / "b.h5", says=["b.h5", "--classes"])


def test_unknown_formats(tmp_path, capsys):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = 1
    refuse(capsys, tmp_path / "out", tmp_path / "a.h5", says=["a.h5", "data (N, P, F)"])
    (tmp_path / "a.csv").write_text("1,2")
    refuse(capsys, tmp_path / "out", tmp_path / "a.csv", says=["a.csv", "not a format"])
    (tmp_path / "none").mkdir()
    refuse(capsys, tmp_path / "out", tmp_path / "none", says=["none", "no file ending in"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda b: b.pop("part_d0err"), ["lacks part_d0err"]),
        (lambda b: b.pop("label_Tbl"), ["lacks label_Tbl"]),
        (lambda b: b.update(label_QCD=np.ones(40, "f4")), ["exactly one label"]),
        (lambda b: b.update(label_QCD=np.full(40, 7, "f4")), ["jet 0:", "label_*"]),
    ],
)
def test_root_branches(tmp_path, capsys, change, says):
    pytest.importorskip("uproot")
    jetclass(tmp_path / "a.root", 40, change=change)
    refuse(
        capsys, tmp_path / "out", tmp_path / "a.root", "--from", "jetclass", says=["a.root", *says]
    )


def test_root_values_and_trees(tmp_path, capsys):
    awkward, uproot = pytest.importorskip("awkward"), pytest.importorskip("uproot")

    def poison(branches):
        values = awkward.to_numpy(awkward.flatten(branches["part_d0err"])).copy()
        values[0] = np.nan
        branches["part_d0err"] = awkward.unflatten(values, awkward.num(branches["part_d0err"]))

    path = tmp_path / "a.root"
    jetclass(path, 40, change=poison)
    refuse(capsys, tmp_path / "out", path, says=["a.root", "jet 0:", "impact parameter"])
    assert run(path, "--out", tmp_path / "ok", "--bad-tracks", "zero") == 0
    assert "tracks set to zero: 1" in capsys.readouterr().out
    with uproot.recreate(path) as file:
        file["other"] = {"x": np.arange(3)}
    refuse(capsys, tmp_path / "x", path, "--from", "jetclass", says=["no tree tree", "other"])
    jetclass(path, 1, change=lambda b: b.update({k: v[:0] for k, v in b.items()}))
    refuse(capsys, tmp_path / "y", path, says=["a.root", "no jets"])


def test_blosc_without_its_plugin(tmp_path):
    pytest.importorskip("tables")
    top_tagging(tmp_path / "a.h5", 20)
    code = (
        "import sys; sys.modules['hdf5plugin'] = None; sys.path[:0] = ['.']; "
        "from jetkern.cli import convert; "
        f"sys.exit(convert.main([{str(tmp_path / 'a.h5')!r}, '--out', "
        f"{str(tmp_path / 'out')!r}, '--quiet']))"
    )
    environment = {**os.environ, "HDF5_PLUGIN_PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "pip install hdf5plugin" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_pickle_in_a_pandas_file_is_not_run(tmp_path):
    tables = pytest.importorskip("tables")
    top_tagging(tmp_path / "a.h5", 20)
    marker = tmp_path / "executed"
    code = f"cposix\nsystem\n(Vtouch {marker}\ntR.".encode()
    with tables.open_file(str(tmp_path / "a.h5"), "a") as file:
        file.set_node_attr("/table", "non_index_axes", code)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["table"].attrs["info"] = np.bytes_(code)
    assert run(tmp_path / "a.h5", "--out", tmp_path / "out") == 0
    assert not marker.exists()


def test_jetnet_names_and_shapes(tmp_path, capsys):
    jetnet(tmp_path / "x150.hdf5", 20)
    refuse(capsys, tmp_path / "out", tmp_path / "x150.hdf5", says=["x150.hdf5", "g, q, t, w, z"])
    jetnet(tmp_path / "g150.hdf5", 20)
    replaced(tmp_path / "g150.hdf5", jet_features=np.zeros((19, 4), "f4"))
    refuse(capsys, tmp_path / "out", tmp_path / "g150.hdf5", says=["jet_features 19"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--unknown"],
        ["--splits", "train=0.5"],
        ["--splits", "train"],
        ["--jobs", "0"],
        ["--max-particles", "151"],
        ["--dtype", "float8"],
        ["--from", "csv"],
    ],
)
def test_a_wrong_command_line_ends_with_code_2(good, tmp_path, capsys, arguments):
    with pytest.raises(SystemExit) as exit_:
        run(good, "--out", tmp_path / "out", *arguments)
    assert exit_.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("jetkern convert: error: ")
    assert line.count("\n") == 1
