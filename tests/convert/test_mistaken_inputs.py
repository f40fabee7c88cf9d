"""Inputs that are nearly right: read as they are meant, counted, or refused in one clear line."""

import gzip
import json
import os
import random
import zipfile

import h5py
import numpy as np
import pytest
from make_inputs import omnilearned
from test_convert_bad_input import refuse
from test_layouts import FOUR, Toy, agree, convert, described, h5
from test_readers import everything, run

from jetkern.cli import show, verify
from jetkern.convert.readers import parquet as reader
from jetkern.convert.readers import root
from jetkern.data.shards import manifest_digest


@pytest.mark.parametrize("fill", [0.0, np.nan, -999.0])
def test_a_counter_that_is_too_small_is_noticed(tmp_path, capsys, fill):
    toy = Toy()
    counts = toy.counts.copy()
    counts[3] -= 1
    source = h5(tmp_path / "a.h5", **toy.four(fill), label=toy.label, n=counts)
    jets = convert(tmp_path, source, described(tmp_path, particles=FOUR + '\ncount = "n"'))
    assert len(jets.particles) == toy.counts.sum() - 1
    assert "jets with a particle behind their count, left out: 1" in capsys.readouterr().out


@pytest.mark.parametrize("names", [("0", "1"), ("QCD", "top")])
@pytest.mark.parametrize("codes", ["", "codes = [[0, 5], 1]"])
def test_a_label_that_only_folders_tell(tmp_path, names, codes):
    parts = [Toy(10, seed) for seed in (0, 1)]
    for name, toy in zip(names, parts, strict=True):
        (tmp_path / "in" / f"label={name}").mkdir(parents=True)
        h5(tmp_path / "in" / f"label={name}" / "a.h5", **toy.four())
    schema = described(tmp_path, jets=f'label = "label"\n{codes}')
    jets = convert(tmp_path, tmp_path / "in", schema)
    for label, toy in enumerate(parts):
        assert sorted(jets.counts[jets.label == label].tolist()) == sorted(toy.counts.tolist())


def test_a_column_counts_more_than_folders(tmp_path):
    toy = Toy()
    (tmp_path / "label=0").mkdir()
    source = h5(tmp_path / "label=0" / "a.h5", **toy.four(), label=toy.label)
    agree(convert(tmp_path, source, described(tmp_path)), toy)


def test_a_folder_of_no_class(tmp_path, capsys):
    (tmp_path / "label=W").mkdir()
    source = h5(tmp_path / "label=W" / "a.h5", **Toy().four())
    options = source, "--schema", described(tmp_path)
    refuse(capsys, tmp_path / "out", *options, says=["label is W, neither a class"])


def test_folders_of_jets_without_a_label(tmp_path):
    for value in ("1", "7", "__HIVE_DEFAULT_PARTITION__"):
        (tmp_path / "in" / f"label={value}").mkdir(parents=True)
        h5(tmp_path / "in" / f"label={value}" / "a.h5", **Toy().four())
    schema = described(tmp_path)
    jets = convert(tmp_path, tmp_path / "in", schema, "--unlabelled", "drop")
    assert jets.label.tolist() == [1] * 20


def test_names_that_may_tell_of_splits(tmp_path, capsys):
    for name in ("trainset", "testset"):
        omnilearned(tmp_path / "in" / f"{name}.h5", 5, slots=10)
    refuse(capsys, tmp_path / "out", tmp_path / "in", says=["several splits", "--one-set"])


@pytest.mark.parametrize("factor", [1e3, 1e-3])
def test_energies_in_another_unit_than_pt(tmp_path, capsys, factor):
    toy = Toy()
    toy.energy = toy.energy * factor
    source = h5(tmp_path / "a.h5", **toy.four(), label=toy.label)
    options = source, "--schema", described(tmp_path)
    refuse(capsys, tmp_path / "out", *options, says=["148 of 148 particles with E", "MeV"])


def test_angles_in_degrees(tmp_path, capsys):
    toy = Toy()
    relative = FOUR.replace("eta =", "delta_eta =").replace("phi =", "delta_phi =")
    axis = 'label = "label"\neta = "x"\nphi = "y"'
    more = {"x": np.zeros(20), "y": np.full(20, 120.0)}
    source = h5(tmp_path / "axis.h5", **toy.four(), label=toy.label, **more)
    options = source, "--schema", described(tmp_path, jets=axis)
    refuse(capsys, tmp_path / "out", *options, says=["jet 0: phi of the jet is 120", "degrees"])
    toy.phi = np.degrees(toy.phi)
    source = h5(tmp_path / "a.h5", **toy.four(), label=toy.label)
    options = source, "--schema", described(tmp_path)
    refuse(capsys, tmp_path / "out", *options, says=["jet 0: phi of a particle is", "degrees"])
    options = source, "--schema", described(tmp_path, particles=relative)
    refuse(capsys, tmp_path / "out", *options, says=["jet 0", "delta phi", "degrees"])


@pytest.mark.parametrize("names", [("QCD", "qcd"), ("t t", "tt"), ("\u212b", "\xc5")])
def test_class_names_that_look_alike(tmp_path, capsys, names):
    omnilearned(tmp_path / "a.h5", 5, slots=10, shift=0, classes=names)
    refuse(capsys, tmp_path / "out", tmp_path / "a.h5", says=[*names, "differ in capitals"])


def test_all_jets_without_a_label(tmp_path, capsys):
    toy = Toy()
    source = h5(tmp_path / "a.h5", **toy.four(), label=np.full(20, -1))
    options = source, "--schema", described(tmp_path), "--unlabelled", "drop"
    refuse(capsys, tmp_path / "out", *options, says=["none of the 20 jets", "no label 20"])


@pytest.mark.parametrize("way", ["group", "soft link", "virtual"])
def test_ways_round_to_another_file_are_refused(tmp_path, capsys, way):
    toy = Toy()
    other = h5(tmp_path / "other.h5", **toy.four())
    prefix = "in/" if way == "group" else ""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["label"] = toy.label
        if way == "group":
            file["in"] = h5py.ExternalLink(other.name, "/")
        for name in () if way == "group" else toy.four():
            if way == "soft link":
                file[f"x_{name}"] = h5py.ExternalLink(other.name, name)
                file[name] = h5py.SoftLink(f"/x_{name}")
            else:
                for new, (where, old) in {
                    f"x_{name}": (other.name, name), name: (".", f"x_{name}")
                }.items():  # fmt: skip
                    layout = h5py.VirtualLayout((20, 12), "f4")
                    layout[:] = h5py.VirtualSource(where, old, (20, 12))
                    file.create_virtual_dataset(new, layout)
    particles = "\n".join(f'{name} = "{prefix}{name}"' for name in toy.four())
    options = tmp_path / "a.h5", "--schema", described(tmp_path, particles=particles)
    refuse(capsys, tmp_path / "out", *options, says=[f"{prefix}pt", "another file"])


def test_a_link_to_nothing(tmp_path, capsys):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name in ("data", "pid"):
            file[name] = h5py.SoftLink("/nowhere")
    refuse(capsys, tmp_path / "out", tmp_path / "a.h5", says=["data: broken link (to /nowhere)"])


@pytest.mark.parametrize("name", ["a.h5.gz", "a.h5", "a.zip"])
def test_packed_files(tmp_path, capsys, name):
    omnilearned(tmp_path / "in.h5", 5, slots=10)
    if name.endswith("zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as file:
            file.write(tmp_path / "in.h5")
    else:
        (tmp_path / name).write_bytes(gzip.compress((tmp_path / "in.h5").read_bytes()))
    refuse(capsys, tmp_path / "out", tmp_path / name, says=[name, "unpack it first"])


def test_a_name_that_is_not_utf_8(tmp_path, capsys):
    omnilearned(tmp_path / "a.h5", 5, slots=10)
    try:
        os.rename(tmp_path / "a.h5", tmp_path / "\udcff.h5")
    except (OSError, UnicodeError):
        pytest.skip("the file system allows no such names")
    refuse(capsys, tmp_path / "out", tmp_path / "\udcff.h5", says=["not UTF-8"])


@pytest.fixture
def shards(tmp_path):
    omnilearned(tmp_path / "a.h5", 60, slots=12)
    sizes = "--jets-per-shard", "30", "--jets-per-block", "10"
    assert run(tmp_path / "a.h5", "--out", tmp_path / "shards", *sizes) == 0
    return tmp_path / "shards"


def check(folder, capsys):
    """Exit codes of verify and show, which say errors in lines of their own."""
    capsys.readouterr()
    codes = verify.main([str(folder), "--quiet"]), show.main([str(folder)])
    lines = capsys.readouterr().err.splitlines()
    assert all(
        line.startswith(("jetkern verify: error: ", "jetkern show: error: ")) for line in lines
    )
    return codes


def places(value, way=()):
    """Everything in a manifest, by the keys that lead to it."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, found in inner:
        yield (*way, key)
        if isinstance(found, dict | list):
            yield from places(found, (*way, key))


VALUES = [None, True, -1, 0, 10**30, 1.5, float("nan"), "", "../x", [], {}, [None], [[]], {"a": 1}]


def test_forged_manifests_are_found(shards, capsys):
    path = shards / "manifest.json"
    good = path.read_text()
    content = json.loads(good)
    told = [
        p for p in places(content) if p[0] not in ("sha256", "source", "report", "split", "splits")
    ]
    free = [p for p in places(content) if p[0] in ("source", "report")]
    drawn = random.Random(0)
    for way in drawn.choices(told, k=50) + drawn.choices(free, k=20):
        forged, value = json.loads(good), drawn.choice(VALUES)
        inner = forged
        for key in way[:-1]:
            inner = inner[key]
        name = (way[0] == "classes" and len(way) == 2) or "columns" in way
        if inner[way[-1]] == value or (name and isinstance(value, str)):  # names may be any
            continue
        inner[way[-1]] = value
        forged["sha256"] = manifest_digest(forged)
        path.write_text(json.dumps(forged))
        found, _ = check(shards, capsys)
        assert found == 1 or way in free, (way, value)


def test_flipped_bytes_of_shards_are_found(shards, capsys):
    drawn = random.Random(0)
    files = sorted(p for p in shards.iterdir())
    for _ in range(40):
        path = drawn.choice(files)
        good = path.read_bytes()
        bad = bytearray(good)
        bad[drawn.randrange(len(bad))] ^= 1 << drawn.randrange(8)
        path.write_bytes(bad)
        assert check(shards, capsys)[0] == 1, path
        path.write_bytes(good)
    assert check(shards, capsys) == (0, 0)


def test_counts_of_classes_that_do_not_fit(shards, capsys):
    path = shards / "manifest.json"
    forged = json.loads(path.read_text())
    forged["counts"][:2] = [forged["counts"][0] - 1, forged["counts"][1] + 1]
    forged["sha256"] = manifest_digest(forged)
    path.write_text(json.dumps(forged))
    assert verify.main([str(shards), "--quiet"]) == 1
    assert "counts per class are" in capsys.readouterr().err


def test_one_file_by_two_names_is_read_once(tmp_path, capsys):
    omnilearned(tmp_path / "a.h5", 5, slots=10)
    (tmp_path / "b.h5").symlink_to(tmp_path / "a.h5")
    assert run(tmp_path / "a.h5", tmp_path / "b.h5", "--out", tmp_path / "out") == 0
    assert "by another name" in capsys.readouterr().out
    assert len(everything(tmp_path / "out")) == 5


@pytest.mark.parametrize(
    ("limit", "value", "says"),
    [("_VALUES", 9, "claims 1,000 values in 1 rows"), ("_CHUNK", 99, "inflated at a time")],
)
def test_parquet_that_becomes_larger(tmp_path, capsys, monkeypatch, limit, value, says):
    """An event of many equal particles takes a few bytes, whatever their number."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(reader, limit, value)
    monkeypatch.setattr(reader, "MAX_INFLATION", 1)
    row = pyarrow.array([np.ones(1000)])
    names = ("pt", "eta", "phi", "energy")
    path = tmp_path / "a.parquet"
    columns = dict.fromkeys(names, row) | {"label": pyarrow.array([0])}
    parquet.write_table(pyarrow.table(columns), path, use_dictionary=False, compression="zstd")
    options = path, "--schema", described(tmp_path, form="parquet")
    refuse(capsys, tmp_path / "out", *options, says=["a.parquet: row group 0 of pt", says])


def test_baskets_that_become_much_larger_in_memory(tmp_path, capsys, monkeypatch):
    uproot = pytest.importorskip("uproot")
    awkward = pytest.importorskip("awkward")
    monkeypatch.setattr(root, "MAX_BASKET", 1000)
    ones = awkward.Array([np.ones(1000)])
    kinds = dict.fromkeys(("pt", "eta", "phi", "energy"), "var * float64") | {"label": "int64"}
    with uproot.recreate(tmp_path / "a.root") as file:
        file.mktree("jets", kinds)
        file["jets"].extend({k: ones if k != "label" else np.zeros(1, int) for k in kinds})
    schema = described(tmp_path, form="root", top='tree = "jets"')
    options = tmp_path / "a.root", "--schema", schema
    refuse(capsys, tmp_path / "out", *options, says=["a.root: jets: a basket of pt takes"])
