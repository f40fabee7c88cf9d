"""Layouts and values that people have: each is read rightly, or refused in one clear line."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from make_inputs import jetclass, omnilearned, random_jets, top_tagging
from test_convert_bad_input import refuse
from test_readers import everything, run

from jetkern.convert import readers
from jetkern.convert.readers import InputError, description
from jetkern.convert.readers.toptagging import strings_of_list
from jetkern.data import Shards

pytest.importorskip("uproot")
pytest.importorskip("pyarrow")

SCHEMA = """
format = "{format}"
{top}
classes = ["QCD", "top"]
[particles]
{particles}
[jets]
{jets}
"""
FOUR = "\n".join(f'{key} = "{key}"' for key in ("pt", "eta", "phi", "energy"))


class Toy:
    """A few jets of massless particles: arrays (T,), and padded ones (N, 12)."""

    def __init__(self, jets=20, seed=0):
        rng = np.random.default_rng(seed)
        self.counts = rng.integers(2, 13, jets)
        self.label = rng.integers(0, 2, jets)
        size = int(self.counts.sum())
        self.pt = rng.exponential(20, size) + 1
        self.eta, self.phi = rng.normal(0, 0.3, size), rng.normal(0, 0.3, size)
        self.energy = self.pt * np.cosh(self.eta)
        self.mask = np.arange(12) < self.counts[:, None]

    def padded(self, name, fill=0.0):
        found = np.full(self.mask.shape, fill, "f4")
        found[self.mask] = getattr(self, name)
        return found

    def four(self, fill=0.0):
        return {name: self.padded(name, fill) for name in ("pt", "eta", "phi", "energy")}


def h5(path, **arrays):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return path


def described(tmp_path, form="hdf5", particles=FOUR, jets='label = "label"', top=""):
    path = tmp_path / "mine.toml"
    path.write_text(SCHEMA.format(format=form, particles=particles, jets=jets, top=top))
    return path


def convert(tmp_path, source, schema, *more):
    assert run(source, "--schema", schema, "--out", tmp_path / "out", *more) == 0
    return everything(tmp_path / "out")


def agree(jets, toy, labels=True):
    """The jets are the toy's, in any order."""
    assert len(jets) == len(toy.counts)
    assert sorted(jets.counts.tolist()) == sorted(toy.counts.tolist())
    np.testing.assert_allclose(
        np.sort(jets.particles[:, 2].exp().numpy()), np.sort(toy.pt), rtol=1e-4
    )
    np.testing.assert_allclose(
        np.sort(jets.particles[:, 3].exp().numpy()), np.sort(toy.energy), rtol=1e-4
    )
    if labels:
        assert int(jets.label.sum()) == toy.label.sum()


@pytest.mark.parametrize("fill", [0.0, np.nan])
def test_padding_that_needs_no_word(tmp_path, fill):
    toy = Toy()
    source = h5(tmp_path / "a.h5", **toy.four(fill), label=toy.label)
    agree(convert(tmp_path, source, described(tmp_path)), toy)


@pytest.mark.parametrize("fill", [-999.0, -1.0])
@pytest.mark.parametrize("energy", [True, False])
def test_padding_with_a_value(tmp_path, capsys, fill, energy):
    toy = Toy()
    source = h5(tmp_path / "a.h5", **toy.four(fill), label=toy.label)
    keys = FOUR if energy else FOUR.replace('energy = "energy"', "")
    schema = described(tmp_path, particles=keys)
    refuse(capsys, tmp_path / "no", source, "--schema", schema, says=["jet", f"padding = {fill:g}"])
    schema = described(tmp_path, particles=f"{keys}\npadding = [{fill}, 0]")
    agree(convert(tmp_path, source, schema), toy)


def test_a_logarithm_as_pt_is_refused(tmp_path, capsys):
    toy = Toy()
    toy.pt = np.log(toy.pt / 40)
    source = h5(tmp_path / "a.h5", **toy.four(), label=toy.label)
    refuse(
        capsys, tmp_path / "o", source, "--schema", described(tmp_path), says=["below 0", "ln_pt"]
    )


@pytest.mark.parametrize("form", ["root", "fixed parquet", "parquet"])
@pytest.mark.parametrize("count", [True, False])
def test_arrays_of_a_fixed_length(tmp_path, form, count):
    import pyarrow
    import pyarrow.parquet
    import uproot

    toy = Toy()
    columns = toy.four()
    if form == "root":
        source = tmp_path / "a.root"
        with uproot.recreate(source) as file:
            file.mktree("jets", {**columns, "n": toy.counts, "label": toy.label})
    else:
        source = tmp_path / "a.parquet"
        make = {
            "fixed parquet": lambda a: pyarrow.FixedSizeListArray.from_arrays(a.ravel(), 12),
            "parquet": lambda a: pyarrow.array(a.tolist(), pyarrow.list_(pyarrow.float32())),
        }[form]
        table = {name: make(array) for name, array in columns.items()}
        pyarrow.parquet.write_table(
            pyarrow.table({**table, "n": toy.counts, "label": toy.label}), source
        )
    particles = FOUR + ('\ncount = "n"' if count else "")
    schema = described(tmp_path, form.split()[-1], particles, top='tree = "jets"')
    agree(convert(tmp_path, source, schema), toy)


def test_lists_with_empty_values(tmp_path, capsys):
    import pyarrow
    import pyarrow.parquet

    toy = Toy()
    lists = {}
    for name, array in toy.four().items():
        lists[name] = [
            [float(v) if real else None for v, real in zip(row, mask, strict=True)]
            for row, mask in zip(array, toy.mask, strict=True)
        ]
    table = pyarrow.table({**lists, "label": toy.label})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    schema = described(tmp_path, "parquet")
    agree(convert(tmp_path, tmp_path / "a.parquet", schema), toy)
    for name in lists:
        value, lists[name][3][0] = lists[name][3][0], None
        table = pyarrow.table({**lists, "label": toy.label})
        pyarrow.parquet.write_table(table, tmp_path / f"{name}.parquet")
        lists[name][3][0] = value
        says = ["jet 3", f"{name} of a particle is nan, or empty"]
        source = tmp_path / f"{name}.parquet"
        refuse(capsys, tmp_path / name, source, "--schema", schema, says=says)
    kept = convert(tmp_path / "kept", source, schema, "--bad-jets", "drop", "--max-dropped", 1)
    assert len(kept) == len(toy.counts) - 1


def test_empty_identities_and_tracks(tmp_path, capsys):
    """An empty value is NaN: named as a missing one it is none, otherwise it is said which."""
    import pyarrow
    import pyarrow.parquet

    columns = {name: [[1.0, 2.0]] for name in ("pt", "eta", "phi", "dz", "dz_error")}
    empty = {"pdg": [[211, None]], "d0": [[0.5, None]], "d0_error": [[0.1, None]], "label": [1]}
    source = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns | empty), source)
    keys = "\n".join(f'{name} = "{name}"' for name in (*columns, "pdg", "d0", "d0_error"))
    schema = described(tmp_path, "parquet", keys)
    says = ["jet 0", "pid or pdg of a particle is nan"]
    refuse(capsys, tmp_path / "a", source, "--schema", schema, says=says)
    none = 'missing = { pdg = "nan", d0 = "nan", d0_error = "nan" }'
    schema = described(tmp_path, "parquet", f"{keys}\n{none}")
    found = convert(tmp_path, source, schema, "--tracks", "raw")
    assert found.pid.tolist() == [0, 8]
    np.testing.assert_allclose(found.tracks[:, :2], [[0, 0], [0.5, 0.1]])


def test_structured_fields(tmp_path):
    toy = Toy()
    names = ("pt", "eta", "phi", "energy", "valid")
    tracks = np.zeros(toy.mask.shape, [(n, "?" if n == "valid" else "f4") for n in names])
    for name, array in toy.four().items():
        tracks[name] = array * 1000 if name in ("pt", "energy") else array
    tracks["valid"] = toy.mask
    jets = np.zeros(20, [("flavour", "i4"), ("pt", "f4"), ("eta", "f4")])
    jets["flavour"], jets["pt"], jets["eta"] = toy.label * 5, 3000, 1.5
    source = h5(tmp_path / "a.h5", tracks=tracks, jets=jets)
    keys = "\n".join(f'{n} = "tracks.{n}"' for n in names[:4]) + '\nmask = "tracks.valid"'
    label = 'label = "jets.flavour"\ncodes = [0, 5]\ncondition = ["jets.pt", "jets.eta"]'
    schema = described(tmp_path, particles=keys, jets=label, top='unit = "MeV"')
    found = convert(tmp_path, source, schema)
    agree(found, toy)
    assert set(found.condition[:, 0].tolist()) == {3.0}  # in GeV
    assert set(found.condition[:, 1].tolist()) == {1.5}


@pytest.mark.parametrize("form", ["hdf5", "npz"])
@pytest.mark.parametrize(
    ("make", "columns"),
    [
        (lambda f: np.stack(f, axis=2), "x[{}]"),  # (N, P, F)
        (lambda f: np.stack(f, axis=1), "x[{},:]"),  # (N, F, P)
        (lambda f: np.stack(f, axis=2).reshape(20, -1), "x[{}::4]"),  # pt eta phi E pt eta ...
        (lambda f: np.concatenate(f, axis=1), "x[{a}:{b}]"),  # pt pt ... eta eta ...
    ],
)
def test_parts_of_arrays(tmp_path, form, make, columns):
    toy = Toy()
    x = make(list(toy.four().values()))
    source = tmp_path / ("a.h5" if form == "hdf5" else "a.npz")
    if form == "hdf5":
        h5(source, x=x, y=toy.label[:, None])
    else:
        np.savez_compressed(source, x=x, y=toy.label > 0)
    keys = "\n".join(
        f'{key} = "{columns.format(i, a=12 * i, b=12 * i + 12)}"'
        for i, key in enumerate(("pt", "eta", "phi", "energy"))
    )
    schema = described(tmp_path, form, keys, 'label = "y"')
    agree(convert(tmp_path, source, schema, "--jets-per-read", 7), toy)


@pytest.mark.parametrize("column", ["x[4]", "x[0,99]", "x[1:1]", "x[a]", "x[0,0,0,0]", "x.pt", "z"])
def test_parts_that_are_not_there(tmp_path, capsys, column):
    toy = Toy()
    source = h5(tmp_path / "a.h5", x=np.stack(list(toy.four().values()), axis=2), label=toy.label)
    keys = f'pt = "{column}"\neta = "x[1]"\nphi = "x[2]"'
    schema = described(tmp_path, particles=keys)
    refuse(
        capsys, tmp_path / "out", source, "--schema", schema, says=["a.h5", column.split("[")[0]]
    )


@pytest.mark.parametrize(
    "keys",
    [
        'ln_pt = "ln_pt"\neta = "eta"\nphi = "phi"',
        'et = "pt"\neta = "eta"\nphi = "phi"',
        'pt = "pt"\nrapidity = "eta"\nphi = "phi"',
        'pt = "pt"\neta = "eta"\nphi = "phi"\nln_energy = "ln_energy"',
        'ln_pt = "ln_pt"\ndelta_eta = "delta_eta"\ndelta_phi = "delta_phi"',
        'relative_pt = "relative_pt"\neta = "eta"\nphi = "phi"',
        'pt = "= exp(ln_pt)"\neta = "eta"\nphi = "= 0 + phi"',
    ],
)
def test_other_ways_to_give_a_momentum(tmp_path, keys):
    toy = Toy()
    axis = np.linspace(-1, 1, 20).astype("f4")
    arrays = toy.four() | {
        "label": toy.label,
        "axis_eta": axis,
        "axis_phi": axis,
        "jet_pt": axis + 3,
    }
    with np.errstate(divide="ignore"):
        arrays["ln_pt"] = np.where(toy.mask, np.log(arrays["pt"]), 0)
        arrays["ln_energy"] = np.where(toy.mask, np.log(arrays["energy"]), 0)
    arrays["relative_pt"] = arrays["pt"] / (axis[:, None] + 3)
    arrays["delta_eta"] = arrays["eta"] - axis[:, None]
    arrays["delta_phi"] = arrays["phi"] - axis[:, None]
    source = h5(tmp_path / "a.h5", **arrays, n=toy.counts)
    jets = 'label = "label"\neta = "axis_eta"\nphi = "axis_phi"\npt = "jet_pt"'
    schema = described(tmp_path, particles=keys + '\ncount = "n"', jets=jets)
    found = convert(tmp_path, source, schema)
    agree(found, toy)
    expected = arrays["delta_eta"][toy.mask]
    np.testing.assert_allclose(np.sort(found.particles[:, 0]), np.sort(expected), atol=1e-5)


def test_rapidity_of_massive_particles(tmp_path):
    toy = Toy()
    y = np.arcsinh(toy.pt * np.sinh(toy.eta) / np.hypot(toy.pt, 0.139570))
    x = np.zeros((20, 12, 4))
    for i, values in enumerate((toy.pt, y, toy.phi, np.full(len(y), -211))):
        x[..., i][toy.mask] = values
    np.savez(tmp_path / "a.npz", X=x, y=toy.label.astype(float))
    assert run(tmp_path / "a.npz", "--from", "energyflow", "--out", tmp_path / "out") == 0
    toy.energy = np.sqrt((toy.pt * np.cosh(toy.eta)) ** 2 + 0.139570**2)
    found = everything(tmp_path / "out")
    agree(found, toy)
    assert set(found.pid.tolist()) == {1}


TRACKS = '\nd0 = "d0"\nd0_error = "d0e"\ndz = "dz"\ndz_error = "dze"\n'
MISSING = "missing = { d0 = -1, d0_error = -1, dz = [-1, 'nan'], dz_error = -1 }"


@pytest.mark.parametrize("scale", ["tanh", "asinh", "raw"])
def test_missing_tracks_units_and_scales(tmp_path, capsys, scale):
    toy = Toy()
    values = {"d0": -1.0, "d0e": 0.02, "dz": 2.0, "dze": 0.3}  # cm; -1 is the value of this d0
    arrays = toy.four() | {k: np.where(toy.mask, v, 0) for k, v in values.items()}
    arrays["d0"][0, 0] = arrays["d0e"][0, 0] = -1
    arrays["dz"][0, 0] = np.nan
    arrays["dze"][0, 0] = -1
    arrays["d0"][1, 0] = arrays["d0e"][1, 0] = -1
    source = h5(tmp_path / "a.h5", **arrays, label=toy.label)
    keys = FOUR + TRACKS + MISSING
    schema = described(tmp_path, particles=keys, top='length = "cm"')
    jets = convert(tmp_path, source, schema, "--tracks", scale)
    said = capsys.readouterr().out
    assert "particles without a track: 1\n" in said
    assert ("where tanh is 1" in said) == (scale == "tanh")
    function = {"tanh": np.tanh, "asinh": np.arcsinh, "raw": lambda x: x}[scale]
    full, half, none = [-10, 0.2, 20, 3], [0, 0, 20, 3], [0, 0, 0, 0]
    expected = [full] * (len(toy.pt) - 2) + [half, none]
    expected = [[function(a), b, function(c), d] for a, b, c, d in expected]
    order = np.argsort(jets.tracks[:, 0].numpy() + 0.1 * jets.tracks[:, 2].numpy(), kind="stable")
    reference = sorted(expected, key=lambda t: t[0] + 0.1 * t[2])
    np.testing.assert_allclose(jets.tracks[order], reference, rtol=1e-6)
    columns = Shards(tmp_path / "out").field("tracks").columns
    prefix = "" if scale == "raw" else f"{scale}_"
    assert columns == (f"{prefix}d0", "d0_error", f"{prefix}dz", "dz_error")
    inverse = {"asinh": np.sinh, "raw": lambda x: x}.get(scale)
    if inverse is not None:
        back = np.unique(np.round(inverse(jets.tracks[:, 2].numpy()), 4))
        np.testing.assert_allclose(back, [0, 20], rtol=1e-5)


def test_negative_errors_are_never_converted(tmp_path, capsys):
    toy = Toy()
    arrays = toy.four() | {k: np.where(toy.mask, 0.5, 0) for k in ("d0", "d0e", "dz", "dze")}
    arrays["d0e"][7, 1] = -1
    source = h5(tmp_path / "a.h5", **arrays, label=toy.label)
    schema = described(tmp_path, particles=FOUR + TRACKS)
    says = ["jet 7", "error of an impact parameter is -1", "missing"]
    refuse(capsys, tmp_path / "no", source, "--schema", schema, says=says)
    jets = convert(tmp_path, source, schema, "--bad-tracks", "zero")
    assert "tracks with a negative error set to zero: 1" in capsys.readouterr().out
    np.testing.assert_allclose(
        sorted(jets.tracks.tolist())[0], [0, 0, np.tanh(0.5), 0.5], rtol=1e-6
    )
    assert (jets.tracks[:, 1] == 0).sum() == 1


def test_tracks_that_are_tanh_already(tmp_path, capsys):
    omnilearned(tmp_path / "a.h5", 20)
    refuse(capsys, tmp_path / "o", tmp_path / "a.h5", "--tracks", "asinh", says=["--tracks asinh"])
    jetclass(tmp_path / "a.root", 20)
    assert run(tmp_path / "a.root", "--tracks", "asinh", "--out", tmp_path / "b") == 0
    assert Shards(tmp_path / "b").field("tracks").columns[0] == "asinh_d0"


def test_a_particle_without_momentum_does_not_cost_the_jet(tmp_path, capsys):
    toy = Toy()
    arrays = toy.four()
    arrays["pt"][4, 1] = 0
    source = h5(tmp_path / "a.h5", **arrays, label=toy.label)
    jets = convert(tmp_path, source, described(tmp_path))
    assert "particles without momentum left out: 1" in capsys.readouterr().out
    assert len(jets) == 20
    assert len(jets.particles) == len(toy.pt) - 1


def test_unlabelled_jets(tmp_path, capsys):
    toy = Toy()
    label = toy.label * 5.0
    label[2], label[9] = 15, np.nan
    source = h5(tmp_path / "a.h5", **toy.four(), label=label)
    schema = described(tmp_path, jets='label = "label"\ncodes = [[0, 1], 5]')
    says = ["jet 2", "label is 15", "--unlabelled"]
    refuse(capsys, tmp_path / "no", source, "--schema", schema, says=says)
    jets = convert(tmp_path, source, schema, "--unlabelled", "drop")
    assert "left out: no label: 2" in capsys.readouterr().out  # and --max-dropped allows none
    assert len(jets) == 18
    assert int(jets.label.sum()) == np.delete(toy.label, [2, 9]).sum()


def test_unlabelled_jets_of_other_formats(tmp_path):
    data, counts = random_jets(30, features=4)
    pid = np.array([0, 1, -1] * 10)
    h5(tmp_path / "a.h5", data=data, pid=pid, num_particles=counts)
    command = [tmp_path / "a.h5", "--classes", "QCD,top", "--unlabelled", "drop", "--out"]
    assert run(*command, tmp_path / "out") == 0
    assert Shards(tmp_path / "out").num_jets == 20


@pytest.mark.parametrize("pid", [np.array([True, False] * 10), np.arange(20)[:, None] % 2])
def test_labels_that_are_true_or_in_a_column(tmp_path, pid):
    data, counts = random_jets(20, features=4)
    h5(tmp_path / "a.h5", data=data, pid=pid, num_particles=counts)
    assert run(tmp_path / "a.h5", "--classes", "QCD,top", "--out", tmp_path / "out") == 0
    assert Shards(tmp_path / "out").counts == (10, 10)


def test_labels_by_expression(tmp_path):
    toy = Toy()
    source = h5(tmp_path / "a.h5", **toy.four(), top=toy.label, w=1 - toy.label)
    schema = described(tmp_path, jets='label = ["= w == 1 and top == 0", "= top == 1"]')
    agree(convert(tmp_path, source, schema), toy)


def test_events_taken_for_jets(tmp_path, capsys):
    rng = np.random.default_rng(0)
    pt = rng.exponential(5, (3, 3000)) + 0.1
    eta, phi = rng.normal(0, 1, (2, 3, 3000))
    source = h5(
        tmp_path / "a.h5", pt=pt, eta=eta, phi=phi, energy=pt * np.cosh(eta), label=[0, 1, 0]
    )
    schema = described(tmp_path)
    says = ["8,550 of 9,000 particles", "--max-cut 0.25", "event"]
    refuse(capsys, tmp_path / "out", source, "--schema", schema, says=says)
    assert run(source, "--schema", schema, "--out", tmp_path / "ok", "--max-cut", 1) == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (('classes = ["QCD", "top"]', 'classes = "QCD"'), "classes must be a list"),
        (('classes = ["QCD", "top"]', "classes = [1, 2]"), "classes must be a list"),
        (('classes = ["QCD", "top"]', 'classes = ["QCD", "QCD"]'), "two classes have the name QCD"),
        (('classes = ["QCD", "top"]', 'classes = ["QCD", ""]'), "class name '' is empty"),
        (('classes = ["QCD", "top"]', 'classes = ["QCD", " top"]'), "class name ' top'"),
        (('classes = ["QCD", "top"]', 'classes = ["QCD", "\\u001b[1m"]'), "cannot be printed"),
        (('label = "label"', 'files = "r*"'), "jets.files must be a list"),
        (('label = "label"', "label = true"), "jets.label must be a column"),
        (('label = "label"', 'label = ""'), "jets.label must be a column"),
        (('label = "label"', 'label = "= 1 +"'), "is no expression"),
        (('label = "label"', 'label = "label"\ncodes = [0]'), "one entry per class"),
        (('label = "label"', 'label = "label"\ncodes = [0, 0]'), "a code twice"),
        (('label = "label"', 'label = "label"\ncondition = "pt"'), "condition must be a list"),
        (('label = "label"', 'label = "label"\nselect = "exit()"'), "is not allowed"),
        (('label = "label"', 'label = "label"\nfirst = 0'), "jets.first must be a number"),
        (('pt = "pt"', 'pt = "= take(pt)"'), "take without a column and an index"),
        (('pt = "pt"', "pt = []"), "particles.pt must be a column"),
        (('pt = "pt"', 'pt = "pt"\nln_pt = "x"'), "either pt, eta, phi or px, py, pz"),
        (('eta = "eta"', 'delta_eta = "eta"'), "both delta_eta and delta_phi"),
        (('pt = "pt"', 'pt = "pt"\nmissing = { d0 = -1 }'), "unknown key particles.missing.d0"),
        (('pt = "pt"', 'pt = "pt"\npadding = "x"'), "particles.padding must be a number"),
        (('format = "hdf5"', 'format = ["hdf5"]'), "format must be one of"),
        (('format = "hdf5"', 'format = "hdf5"\nlength = "km"'), "length must be one of"),
        (('format = "hdf5"', 'format = "hdf5"\nlike = "cdf"'), "like must be one of"),
        (("[jets]", "[[jets]]"), "no table [jets]"),
        (("[particles]", "particles = 1\n[p]"), "unknown key p"),
    ],
)
def test_schemas_that_mean_something_else(tmp_path, change, says):
    path = described(tmp_path)
    text = path.read_text()
    assert change[0] in text
    path.write_text(text.replace(*change, 1))
    with pytest.raises(InputError) as error:
        description.load(path)
    assert says in str(error.value)
    assert str(error.value).startswith(str(path))


def test_a_condition_in_mev_needs_to_be_known(tmp_path):
    jets = 'label = "label"\ncondition = ["jet_pt", "fjet_m", "jetEta", "n", {}]'
    for entry in ('"tau21"', '{ column = "tau21", unit = "keV" }', "{ name = 'x' }"):
        path = described(tmp_path, jets=jets.format(entry), top='unit = "MeV"')
        with pytest.raises(InputError, match="condition"):
            description.load(path)
    entry = '{ column = "tau21", unit = "1" }'
    path = described(tmp_path, jets=jets.format(entry), top='unit = "MeV"')
    found = description.load(path)["jets"]["condition"]
    assert [e["unit"] for e in found] == ["MeV", "MeV", "1", "1", "1"]


def test_a_byte_order_mark(tmp_path):
    path = described(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert description.load(path)["classes"] == ["QCD", "top"]


@pytest.mark.parametrize("names", ["QCD,QCD", "QCD,", "QCD, top"])
def test_class_names_of_the_command_line(tmp_path, capsys, names):
    omnilearned(tmp_path / "a.h5", 10)
    refuse(capsys, tmp_path / "o", tmp_path / "a.h5", "--classes", names, says=["a.h5", "class"])


@pytest.mark.parametrize("name", readers.SHIPPED)
def test_the_descriptions_that_come_with_it(tmp_path, name):
    schema = description.load(None, name)
    assert schema["classes"]
    path = tmp_path / "mine.toml"
    path.write_text(f'like = "{name}"\nclasses = ["all"]\n[jets]\nfiles = ["*"]\n')
    own = description.load(path)
    assert own["classes"] == ["all"]
    assert own["particles"] == schema["particles"]
    assert "label" not in own["jets"]


def test_particles_of_numbers_alone_are_none(tmp_path):
    path = described(tmp_path, particles="pt = 1\neta = 0\nphi = 0")
    with pytest.raises(InputError, match="particles needs a column"):
        description.load(path)


def test_the_description_in_the_documents_is_valid(tmp_path):
    text = (Path(__file__).parents[2] / "docs/data.md").read_text()
    path = tmp_path / "mine.toml"
    path.write_text(text.split("```toml\n")[1].split("```")[0])
    assert description.load(path)["jets"]["first"] == 2
    assert all(f"`--from {name}`" in text for name in readers.SHIPPED)


def test_a_description_that_fits_is_proposed(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", X=np.ones((2, 3, 4)), y=np.zeros(2))
    refuse(capsys, tmp_path / "out", tmp_path / "a.npz", says=["--from energyflow"])


def test_a_claim_of_more_jets_than_fit(tmp_path, capsys):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", (10**12, 150, 4), "f4", chunks=(64, 150, 4))
        file.create_dataset("pid", (10**12,), "i8", chunks=(1024,))
    says = ["claims 1,000,000,000,000 jets"]
    refuse(capsys, tmp_path / "o", tmp_path / "a.h5", "--classes", "a", says=says)


def test_a_chunk_that_takes_too_much_memory(tmp_path, capsys):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", (10**5, 150, 9), "f4", chunks=(10**5, 150, 9))
        file["pid"] = np.zeros(10**5, int)
    says = ["a chunk of data takes 540,000,000 bytes"]
    refuse(capsys, tmp_path / "o", tmp_path / "a.h5", "--classes", "a", says=says)


def test_a_jet_that_takes_too_much_memory(tmp_path, capsys):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", (10, 10**7, 4), "f4", chunks=(1, 1000, 4))
        file["pid"] = np.zeros(10, int)
    refuse(
        capsys, tmp_path / "o", tmp_path / "a.h5", "--classes", "a", says=["a jet of data takes"]
    )


def test_a_damaged_chunk_is_called_so(tmp_path, capsys):
    data, _ = random_jets(40, features=4)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", data=data, chunks=(10, 150, 4), fletcher32=True)
        file["pid"] = np.zeros(40, int)
        where = file["data"].id.get_chunk_info(3)
    content = bytearray((tmp_path / "a.h5").read_bytes())
    content[where.byte_offset + where.size // 2] ^= 255
    (tmp_path / "a.h5").write_bytes(content)
    says = ["data: jets 0 to 39", "damaged"]
    refuse(capsys, tmp_path / "o", tmp_path / "a.h5", "--classes", "a", says=says)


def test_a_virtual_dataset_of_the_file_itself(tmp_path):
    data, counts = random_jets(20, features=4)
    h5(tmp_path / "a.h5", base=data, pid=np.zeros(20, int), num_particles=counts)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        layout = h5py.VirtualLayout(data.shape, "f4")
        layout[:] = h5py.VirtualSource(".", "base", data.shape)
        file.create_virtual_dataset("data", layout)
    assert run(tmp_path / "a.h5", "--classes", "a", "--out", tmp_path / "out") == 0


def test_a_table_of_pandas_without_jets(tmp_path, capsys):
    pytest.importorskip("tables")
    frame, *_ = top_tagging(tmp_path / "a.h5", 10)
    frame[frame["E_0"] < 0].to_hdf(tmp_path / "a.h5", key="table", mode="w", format="fixed")
    refuse(capsys, tmp_path / "out", tmp_path / "a.h5", says=["a.h5", "no jets"])


def test_another_key_of_pandas(tmp_path, capsys):
    pytest.importorskip("tables")
    frame, *_ = top_tagging(tmp_path / "a.h5", 10)
    frame.to_hdf(tmp_path / "a.h5", key="jets", mode="w", format="fixed")
    says = ["no key table", "jets"]
    refuse(capsys, tmp_path / "o", tmp_path / "a.h5", "--from", "toptagging", says=says)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"<!DOCTYPE html><html>404", "web page"),
        (b"", "empty file"),
        (b"PK\3\4zip", "not a complete"),
    ],
)
def test_downloads_that_failed(tmp_path, capsys, content, says):
    (tmp_path / "a.root").write_bytes(content)
    refuse(capsys, tmp_path / "out", tmp_path / "a.root", says=["a.root", says])


def test_root_branches_that_are_no_numbers(tmp_path, capsys):
    import awkward as ak
    import uproot

    toy = Toy(2)
    columns = {n: ak.unflatten(getattr(toy, n), toy.counts) for n in ("pt", "eta", "phi", "energy")}
    twice = ak.Array([[[1.0, 2.0], [3.0]], [[4.0]]])
    odd = {"deep": twice, "deeper": [[[[1]]]] * 2, "text": ["a", "b"]}
    with uproot.recreate(tmp_path / "a.root") as file:
        file.mkrntuple("jets", {**columns, "label": toy.label, **odd})
    for name in odd:
        for kind, keys, jets in (
            ("particles", FOUR.replace('"energy"', f'"{name}"'), 'label = "label"'),
            ("jets", FOUR, f'label = "{name}"'),
        ):
            schema = described(tmp_path, "root", keys, jets, 'tree = "jets"')
            out = tmp_path / f"{name} {kind}"
            refuse(capsys, out, tmp_path / "a.root", "--schema", schema, says=["a.root", name])


def test_members_of_an_ntuple(tmp_path):
    import awkward as ak
    import uproot

    toy = Toy()
    columns = {n: ak.unflatten(getattr(toy, n), toy.counts) for n in ("pt", "eta", "phi", "energy")}
    with uproot.recreate(tmp_path / "a.root") as file:
        file.mkrntuple("jets", {"c": ak.zip(columns), "is/top": toy.label, "label.2": toy.label})
    keys = FOUR.replace(' = "', ' = "c.')
    for name in ("is/top", "label.2"):
        schema = described(tmp_path, "root", keys, f'label = "{name}"', 'tree = "jets"')
        agree(convert(tmp_path, tmp_path / "a.root", schema, "--overwrite"), toy)


@pytest.mark.parametrize("kind", ["root", "npz", "parquet"])
def test_flipped_bytes_end_in_one_line(tmp_path, kind):
    toy = Toy(10)
    if kind == "root":
        jetclass(tmp_path / "a.root", 10)
        module, options = readers.module("jetclass"), readers.Options()
    else:
        module = readers.module("schema")
        path = described(tmp_path, kind)
        options = readers.Options(schema=description.load(path))
        columns = toy.four()
        if kind == "npz":
            np.savez_compressed(tmp_path / "a.npz", **columns, label=toy.label)
        else:
            import awkward as ak

            ak.to_parquet(ak.Array({**columns, "label": toy.label}), tmp_path / "a.parquet")
    path = tmp_path / f"a.{kind}"
    content, rng = path.read_bytes(), np.random.default_rng(0)
    said = []
    for at in rng.integers(0, len(content), 60):
        damaged = bytearray(content)
        damaged[at] ^= 0xFF
        path.write_bytes(damaged)
        try:
            source = module.open_source(path, options)
            source.read(0, source.num_jets)
            source.close()
        except InputError as error:
            said.append(str(error))
    assert said
    for error in said:
        assert error.startswith(str(path))
        assert "\n" not in error


@pytest.mark.parametrize(
    ("kept", "found"),
    [
        (b"(lp0\nVE_0\np1\naVPX_0\np2\na.", ("E_0", "PX_0")),
        (b"(lp1\nS'E_0'\np2\naS'PX_0'\np3\na.", ("E_0", "PX_0")),  # of Python 2
        (b"\x80\x02]q\x00X\x03\x00\x00\x00E_0q\x01a.", ()),
    ],
)
def test_names_of_pandas_columns_are_read_as_text(kept, found):
    assert strings_of_list(np.bytes_(kept)) == found
