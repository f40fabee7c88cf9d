"""Each format, written by the library that made the originals, arrives with the right values."""

import numpy as np
import pytest
import torch
from make_inputs import (
    four_vectors,
    jetclass,
    jetnet,
    omnilearned,
    random_jets,
    top_frame,
    top_tagging,
)

from jetkern.cli import convert
from jetkern.data import Shards, Stream
from jetkern.jets import Jets

pytest.importorskip("uproot")
pytest.importorskip("tables")
pytest.importorskip("pyarrow")


def run(*arguments):
    return convert.main([str(a) for a in arguments] + ["--quiet"])


def everything(folder):
    """All jets of a folder, keyed by something that tells them apart."""
    jets = Jets.concat(list(Stream(Shards(folder), batch_size=100, shuffle=False, epochs=1)))
    return jets


def by_key(jets, column=0):
    """Jets in the order of a column of the condition."""
    return jets.select(jets.condition[:, column].argsort(stable=True))


def expected_top(vectors, counts):
    """Kinematics of the four-vectors, one jet at a time, in float64."""
    result = []
    for jet, n in enumerate(counts):
        e, x, y, z = (v[jet, :n].astype("f8") for v in vectors)
        pt = np.hypot(x, y)
        axis = x.sum(), y.sum(), z.sum()
        jet_pt = np.hypot(*axis[:2])
        deta = np.arcsinh(z / pt) - np.arcsinh(axis[2] / jet_pt)
        dphi = np.angle(np.exp(1j * (np.arctan2(y, x) - np.arctan2(axis[1], axis[0]))))
        order = np.argsort(-np.log(pt).astype("f4"), kind="stable")[:150]
        rows = np.stack([deta, dphi, np.log(pt), np.log(e)], axis=1)[order]
        mass = np.sqrt(max(e.sum() ** 2 - sum(a**2 for a in axis), 0))
        result.append((jet_pt, mass, rows))
    return sorted(result, key=lambda r: r[0])


def compare(jets, expected):
    jets = by_key(jets)
    assert len(jets) == len(expected)
    for b, (jet_pt, mass, rows) in enumerate(expected):
        of = slice(int(jets.offsets[b]), int(jets.offsets[b + 1]))
        np.testing.assert_allclose(jets.particles[of], rows, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(jets.condition[b, 0], jet_pt, rtol=1e-5)
        np.testing.assert_allclose(jets.condition[b, 3], mass, rtol=1e-3, atol=0.05)


@pytest.mark.parametrize("layout", ["table", "fixed", "parquet"])
def test_top_tagging(tmp_path, layout):
    if layout == "parquet":
        frame, vectors, counts = top_frame(120)
        source = tmp_path / "jets.parquet"
        frame.to_parquet(source, row_group_size=50)
    else:
        source = tmp_path / "jets.h5"
        frame, vectors, counts = top_tagging(source, 120, layout=layout)
    assert run(source, "--out", tmp_path / "out", "--jets-per-read", 32) == 0
    for number, split in enumerate(("train", "test", "val")):
        chosen = frame["ttv"].to_numpy() == number
        jets = everything(tmp_path / "out" / split)
        compare(jets, expected_top([v[chosen] for v in vectors], counts[chosen]))
        assert int(jets.label.sum()) == frame["is_signal_new"][chosen].sum()
        assert Shards(tmp_path / "out" / split).classes == ("QCD", "top")


def test_split_by_file_name_overrides_the_column(tmp_path):
    for split in ("train", "test"):
        top_tagging(tmp_path / "in" / f"{split}.h5", 30)
    assert run(tmp_path / "in", "--out", tmp_path / "out") == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"train", "test"}
    assert Shards(tmp_path / "out/train").num_jets == 30


@pytest.mark.parametrize("slots", [30, 150])
def test_jetnet(tmp_path, slots):
    made = {
        k: jetnet(tmp_path / f"in/{k}{slots}.hdf5", 100, slots=slots, seed=ord(k)) for k in "gt"
    }
    assert run(tmp_path / "in", "--out", tmp_path / "out") == 0
    sizes = [len(everything(tmp_path / "out" / s)) for s in ("train", "val", "test")]
    assert sizes == [126, 14, 60]
    jets = everything(tmp_path / "out/train")
    for kind, label in (("g", 0), ("t", 2)):
        features, quantities = made[kind]
        mine = by_key(jets.select(jets.label == label))
        order = np.argsort(quantities[:63, 0], kind="stable")
        for b, jet in enumerate(order):
            of = slice(int(mine.offsets[b]), int(mine.offsets[b + 1]))
            rows = features[jet][features[jet, :, 3] > 0].astype("f8")
            pt, eta, mass, count = quantities[jet].astype("f8")
            expected = np.stack(
                [
                    rows[:, 0],
                    rows[:, 1],
                    np.log(rows[:, 2] * pt),
                    np.log(rows[:, 2] * pt * np.cosh(eta + rows[:, 0])),
                ],
                axis=1,
            )
            np.testing.assert_allclose(mine.particles[of], expected, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(mine.condition[b], [pt, mass, count / 100], rtol=1e-6)


def test_jetclass(tmp_path):
    flat, counts, label, quantities = jetclass(tmp_path / "jets.root", 150)
    assert run(tmp_path / "jets.root", "--out", tmp_path / "out", "--jets-per-read", 40) == 0
    jets = by_key(everything(tmp_path / "out"))
    vectors, _ = four_vectors(150, slots=120)
    compare(jets, expected_top(vectors, counts))
    order = np.argsort(quantities["jet_pt"].astype("f4"), kind="stable")
    assert jets.label.tolist() == label[order].tolist()
    ends = np.cumsum(counts)
    rows = np.concatenate([np.arange(ends[j] - counts[j], ends[j]) for j in order])
    flags = {"isChargedHadron": {1: 8, -1: 1}, "isNeutralHadron": {0: 7}, "isPhoton": {0: 6},
             "isElectron": {1: 3, -1: 4}, "isMuon": {1: 2, -1: 5}}  # fmt: skip
    pid = np.zeros(len(rows), int)
    for name, codes in flags.items():
        for charge, code in codes.items():
            pid[(flat[f"part_{name}"] > 0) & (flat["part_charge"] == charge)] = code
    assert (pid > 0).all()
    assert jets.pid.tolist() == pid[rows].tolist()
    tracks = np.stack(
        [np.tanh(flat["part_d0val"]), flat["part_d0err"], np.tanh(flat["part_dzval"]),
         flat["part_dzerr"]], axis=1)  # fmt: skip
    np.testing.assert_allclose(jets.tracks, tracks[rows], rtol=1e-6)


def test_omnilearned_without_a_count_keeps_a_particle_of_1_gev(tmp_path):
    data, _ = random_jets(4, features=4)
    data[0, 0] = [0.1, 0.2, 0.0, 0.3]  # ln pT = 0, which the original takes for padding
    data[0, 1:] = 0
    import h5py

    with h5py.File(tmp_path / "top.h5", "w") as file:
        file["data"], file["pid"] = data, np.array([0, 1, 0, 1])
    assert run(tmp_path / "top.h5", "--out", tmp_path / "out", "--classes", "QCD,top") == 0
    jets = everything(tmp_path / "out")
    single = jets.select(jets.counts == 1)
    assert torch.allclose(single.particles, torch.tensor([[0.1, 0.2, 0.0, 0.3]]))


@pytest.mark.parametrize(("features", "pid", "tracks"), [(5, True, False), (8, False, True)])
def test_omnilearned_feature_counts(tmp_path, features, pid, tracks):
    omnilearned(tmp_path / "a.h5", 20, features=features)
    assert run(tmp_path / "a.h5", "--out", tmp_path / "out") == 0
    shards = Shards(tmp_path / "out")
    assert (shards.field("pid") is not None, shards.field("tracks") is not None) == (pid, tracks)


@pytest.mark.parametrize(
    ("folder", "label", "expected"), [("jetclass", 5, 3), ("top", 1, 1), ("toptag", 0, 0)]
)
def test_label_shift_by_data_set(tmp_path, folder, label, expected):
    omnilearned(tmp_path / folder / "a.h5", 10, label, shift=0, explicit=False)
    assert run(tmp_path / folder / "a.h5", "--out", tmp_path / "out") == 0
    assert set(everything(tmp_path / "out").label.tolist()) == {expected}


SCHEMA = """
format = "{format}"
{tree}
unit = "MeV"
classes = ["background", "signal"]
[particles]
px = "{px}"
py = "{py}"
pz = "{pz}"
energy = "{energy}"
pdg = "pdg"
d0 = "d0"
d0_error = "d0_err"
dz = "dz"
dz_error = "dz_err"
{count}
[jets]
label = "signal"
eta = "eta"
phi = "phi"
condition = ["pt"]
"""


@pytest.mark.parametrize("kind", ["hdf5", "root", "parquet"])
def test_your_own_format(tmp_path, kind):
    vectors, counts = four_vectors(60, slots=120)
    rng = np.random.default_rng(0)
    mask = np.arange(120) < counts[:, None]
    pdg = rng.choice([211, -211, 321, 2112, 22, 11, -13], mask.shape) * mask
    tracks = rng.normal(size=(4, *mask.shape)).astype("f4") * mask
    tracks[1::2] = np.abs(tracks[1::2])  # errors
    x, y, z = (v.astype("f8").sum(axis=1) for v in vectors[1:])
    pt = np.hypot(x, y)
    jets = {"pt": 1000 * pt, "eta": np.arcsinh(z / pt), "phi": np.arctan2(y, x),
            "signal": rng.integers(0, 2, 60)}  # fmt: skip
    padded = {"pdg": pdg, **dict(zip(("d0", "d0_err", "dz", "dz_err"), tracks, strict=True))}
    names = {"px": "px", "py": "py", "pz": "pz", "energy": "e", "count": "", "tree": ""}
    if kind == "hdf5":
        import h5py

        source = tmp_path / "mine.h5"
        names = {"energy": "cand[0]", "px": "cand[1]", "py": "cand[2]", "pz": "cand[3]",
                 "count": 'count = "n"', "tree": ""}  # fmt: skip
        with h5py.File(source, "w") as file:
            file["cand"] = np.stack(vectors, axis=2) * 1000
            file["n"] = counts
            for name, values in (padded | jets).items():
                file[name] = values
    else:
        import awkward

        padded |= {n: v * 1000 for n, v in zip(("e", "px", "py", "pz"), vectors, strict=True)}
        ragged = {n: awkward.unflatten(v[mask], counts) for n, v in padded.items()}
        if kind == "root":
            import uproot

            source = tmp_path / "mine.root"
            names["tree"] = 'tree = "events"'
            with uproot.recreate(source) as file:
                file["events"] = ragged | jets
        else:
            source = tmp_path / "mine.parquet"
            awkward.to_parquet(awkward.Array(ragged | jets), source)
    schema = tmp_path / "mine.toml"
    schema.write_text(SCHEMA.format(format=kind, **names))
    assert run(source, "--out", tmp_path / "out", "--schema", schema) == 0
    got = by_key(everything(tmp_path / "out"))
    order = np.argsort(pt.astype("f4"), kind="stable")
    assert got.label.tolist() == jets["signal"][order].tolist()
    expected = expected_top(vectors, counts)
    code = {211: 8, -211: 1, 321: 8, 2112: 7, 22: 6, 11: 4, -13: 2}
    for b, (jet_pt, _, rows) in enumerate(expected):
        of = slice(int(got.offsets[b]), int(got.offsets[b + 1]))
        np.testing.assert_allclose(got.particles[of], rows, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(got.condition[b], [jet_pt, counts[order[b]] / 100], rtol=1e-5)
        assert got.pid[of].tolist() == [code[c] for c in pdg[order[b], : counts[order[b]]]]
        np.testing.assert_allclose(
            got.tracks[of, 2], np.tanh(tracks[2, order[b], : counts[order[b]]]), rtol=1e-5
        )


def test_the_documented_schema_is_valid(tmp_path):
    from jetkern.convert.readers import schema

    text = schema.__doc__.split("everything:\n")[1].split("\nIn ROOT")[0]
    path = tmp_path / "example.toml"
    path.write_text(text)
    assert schema.load(path)["classes"] == ["background", "signal"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("unit =", "units ="), "unknown key units"),
        (('"MeV"', '"keV"'), "unit must be one of"),
        (('px = "', 'pt = "'), "either pt, eta, phi or px, py, pz"),
        (("d0_error", "#"), "all of d0"),
        (('label = "signal"', ""), "either label or files"),
        (('label = "signal"', 'label = ["a"]'), "one entry per class"),
        (('eta = "eta"', ""), "both eta and phi"),
        (("[jets]", "[jet]"), "unknown key jet"),
        (('format = "hdf5"', 'format = "csv"'), "format must be one of"),
        (("classes", "= ="), "Invalid"),
    ],
)
def test_a_wrong_schema_is_refused(tmp_path, capsys, change, message):
    text = SCHEMA.format(format="hdf5", tree="", px="x", py="y", pz="z", energy="e", count="")
    assert change[0] in text
    path = tmp_path / "mine.toml"
    path.write_text(text.replace(*change))
    (tmp_path / "x.h5").touch()
    assert run(tmp_path / "x.h5", "--out", tmp_path / "out", "--schema", path) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "mine.toml" in error
    assert not (tmp_path / "out").exists()
