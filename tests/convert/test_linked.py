"""Jets of events: however a jet finds its constituents, the same jets arrive."""

import awkward as ak
import numpy as np
import pytest
from test_readers import everything, run

pytest.importorskip("uproot")
pytest.importorskip("pyarrow")

HEAD = """
format = "{format}"
{tree}
classes = ["light", "b"]
"""
PARTICLES = """
[particles]
pt = "part_pt"
eta = "part_eta"
phi = "part_phi"
mass = "part_mass"
pdg = "part_pdg"
"""
JETS = """
[jets]
label = "jet_flavour"
codes = [[0, 4], 5]
eta = "jet_eta"
phi = "jet_phi"
condition = ["jet_pt", "number"]
"""


class Events:
    """Random events: jets, and particles of which each jet has some, in any order."""

    def __init__(self, events=40, seed=0, others=6):
        rng = np.random.default_rng(seed)
        self.jets = rng.integers(0, 4, events)
        self.jets[0] = 3
        total = int(self.jets.sum())
        links = rng.integers(1, 9, total)
        self.particles = np.zeros(events, int)
        self.of_jet, row = [], 0
        for event, jets in enumerate(self.jets):
            mine = links[row : row + jets]
            self.particles[event] = mine.sum() + rng.integers(0, others)
            order = rng.permutation(self.particles[event])
            self.of_jet += np.split(order, np.cumsum(mine))[:jets]
            row += jets
        size = int(self.particles.sum())
        self.flat = {
            "part_pt": rng.exponential(9, size) + 0.1,
            "part_eta": rng.normal(0, 1, size),
            "part_phi": rng.uniform(-3.1, 3.1, size),
            "part_mass": np.full(size, 0.139),
            "part_pdg": rng.choice([211, -211, 22, 130], size),
        }
        self.of_jets = {
            "jet_flavour": rng.choice([0, 4, 5], total),
            "jet_eta": rng.normal(0, 1, total),
            "jet_phi": rng.uniform(-3.1, 3.1, total),
            "jet_pt": rng.uniform(20, 500, total),
        }
        self.number = np.arange(events)
        self.starts = np.cumsum(self.particles) - self.particles

    def columns(self):
        found = {k: ak.unflatten(v, self.particles) for k, v in self.flat.items()}
        found |= {k: ak.unflatten(v, self.jets) for k, v in self.of_jets.items()}
        return found | {"number": self.number}

    def events_of_jets(self):
        return np.repeat(np.arange(len(self.jets)), self.jets)

    def expected(self, keep=None):
        """(jet pT, label, particles, identities) of the jets, by their pT."""
        codes = {211: 8, -211: 1, 22: 6, 130: 7}
        found = []
        for jet, event in enumerate(self.events_of_jets()):
            if keep is not None and not keep[jet]:
                continue
            rows = self.starts[event] + self.of_jet[jet]
            pt, eta, phi, mass, pdg = (v[rows] for v in self.flat.values())
            delta = phi - self.of_jets["jet_phi"][jet]
            energy = np.sqrt((pt * np.cosh(eta)) ** 2 + mass**2)
            x = np.stack([eta - self.of_jets["jet_eta"][jet], np.angle(np.exp(1j * delta)),
                          np.log(pt), np.log(energy)], axis=1)  # fmt: skip
            order = np.argsort(-x[:, 2])
            label = int(self.of_jets["jet_flavour"][jet] == 5)
            pid = [codes[c] for c in pdg[order]]
            found.append((self.of_jets["jet_pt"][jet], label, x[order], pid, event))
        return sorted(found, key=lambda jet: jet[0])


def compare(folder, expected):
    jets = everything(folder)
    jets = jets.select(jets.condition[:, 0].argsort())
    assert len(jets) == len(expected)
    for b, (pt, label, x, pid, event) in enumerate(expected):
        of = slice(int(jets.offsets[b]), int(jets.offsets[b + 1]))
        np.testing.assert_allclose(jets.particles[of], x, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(jets.condition[b, 0], pt, rtol=1e-6)
        assert jets.label[b] == label
        assert jets.pid[of].tolist() == pid
        assert jets.condition[b, 1] == event


def write(path, columns, ntuple=False):
    if path.suffix == ".parquet":
        return ak.to_parquet(ak.Array(columns), path)
    import uproot

    with uproot.recreate(path) as file:
        (file.mkrntuple if ntuple else file.mktree)("events", columns)


def described(tmp_path, text, form="parquet", jets=JETS, particles=PARTICLES):
    tree = 'tree = "events"' if form == "root" else ""
    path = tmp_path / "mine.toml"
    path.write_text(HEAD.format(format=form, tree=tree) + particles + jets + text)
    return path


def linked(events, form):
    """The columns of a form of links, and what [constituents] says of them."""
    columns, event = events.columns(), events.events_of_jets()
    counts = np.array([len(j) for j in events.of_jet], int)
    flat = np.concatenate([*events.of_jet, np.empty(0, int)]).astype(int)
    in_event = np.bincount(event, counts, len(events.jets)).astype(int)
    if form == "pairs":
        rng = np.random.default_rng(1)
        first = np.cumsum(events.jets) - events.jets
        owner = np.repeat(np.arange(len(counts)) - first[event], counts)
        order = np.lexsort((rng.random(len(flat)), np.repeat(event, counts)))
        columns["link_jet"] = ak.unflatten(owner[order], in_event)
        columns["link_particle"] = ak.unflatten(flat[order], in_event)
        return columns, 'jet = "link_jet"\nparticle = "link_particle"'
    if form == "ranges":
        end = np.concatenate([np.cumsum(counts[event == e]) for e in range(len(events.jets))])
        columns["begin"] = ak.unflatten(end.astype(int) - counts, events.jets)
        columns["end"] = ak.unflatten(end.astype(int), events.jets)
        columns["index"] = ak.unflatten(flat, in_event)
        return columns, 'begin = "begin"\nend = "end"\nindex = "index"'
    if form == "lists":
        columns["index"] = ak.unflatten(ak.unflatten(flat, counts), events.jets)
        return columns, 'index = "index"'
    if form == "links":
        links = ak.zip({"key": np.full(len(flat), 77), "at": flat})
        columns["links"] = ak.unflatten(ak.unflatten(links, counts), events.jets)
        return columns, 'index = "links.at"\ncollection = "links.key"'
    unique = np.arange(len(events.flat["part_pt"])) % 1000 + 5 + (1 << 24)
    columns["unique"] = ak.unflatten(unique, events.particles)
    refs = unique[events.starts[np.repeat(event, counts)] + flat] & 0xFFFFFF
    columns["refs"] = ak.unflatten(ak.unflatten(refs, counts), events.jets)
    return columns, 'refs = "refs"'


FORMS = [(form, "parquet") for form in ("pairs", "ranges", "lists", "links", "refs")]
FORMS += [("pairs", "root"), ("ranges", "root")]  # uproot writes no lists of lists into trees


@pytest.mark.parametrize(("form", "kind"), FORMS)
def test_every_form_of_links(tmp_path, form, kind):
    events = Events()
    columns, text = linked(events, form)
    write(tmp_path / f"a.{kind}", columns)
    particles = PARTICLES + ('id = "unique"' if form == "refs" else "")
    schema = described(tmp_path, "[constituents]\n" + text, kind, particles=particles)
    out = tmp_path / "out"
    assert run(tmp_path / f"a.{kind}", "--schema", schema, "--out", out, "--jets-per-read", 7) == 0
    compare(out, events.expected())


def test_particles_that_all_belong_to_a_jet(tmp_path):
    events = Events(others=1)
    columns, text = linked(events, "lists")
    write(tmp_path / "a.parquet", columns)
    schema = described(tmp_path, "[constituents]\n" + text)
    assert run(tmp_path / "a.parquet", "--schema", schema, "--out", tmp_path / "out") == 0
    compare(tmp_path / "out", events.expected())


@pytest.mark.parametrize("form", ["lists", "links", "pairs"])
def test_links_in_an_ntuple(tmp_path, form):
    events = Events(20)
    columns, text = linked(events, form)
    write(tmp_path / "a.root", columns, ntuple=True)
    schema = described(tmp_path, "[constituents]\n" + text, "root")
    assert run(tmp_path / "a.root", "--schema", schema, "--out", tmp_path / "out") == 0
    compare(tmp_path / "out", events.expected())


def nested(events):
    columns = events.columns()
    rows = [
        events.starts[e] + j for e, j in zip(events.events_of_jets(), events.of_jet, strict=True)
    ]
    counts = [len(r) for r in rows]
    for name, values in events.flat.items():
        inside = ak.unflatten(values[np.concatenate(rows)], counts)
        columns[name] = ak.unflatten(inside, events.jets)
    return columns


def test_lists_of_lists_and_lists_of_records(tmp_path):
    events = Events()
    columns = nested(events)
    write(tmp_path / "a.parquet", columns)
    run(tmp_path / "a.parquet", "--schema", described(tmp_path, ""), "--out", tmp_path / "a")
    compare(tmp_path / "a", events.expected())
    short = {name: name.removeprefix("part_") for name in events.flat}
    columns["part"] = ak.zip({short[n]: columns.pop(n) for n in list(short)})
    write(tmp_path / "b.parquet", columns)
    particles = PARTICLES.replace('"part_', '"part.')
    schema = described(tmp_path, "", particles=particles)
    run(tmp_path / "b.parquet", "--schema", schema, "--out", tmp_path / "b", "--jets-per-read", 5)
    compare(tmp_path / "b", events.expected())


@pytest.mark.parametrize("form", ["pairs", "nested"])
def test_selected_jets_of_an_event(tmp_path, form):
    events = Events()
    columns, text = linked(events, "pairs") if form == "pairs" else (nested(events), "")
    write(tmp_path / "a.parquet", columns)
    text = "[constituents]\n" + text if text else ""
    select = 'select = "jet_pt > 100 and abs(jet_eta) < 2 and number != 3"\nfirst = 2\n'
    schema = described(tmp_path, text, jets=JETS + select)
    out = tmp_path / "out"
    assert run(tmp_path / "a.parquet", "--schema", schema, "--out", out, "--jets-per-read", 3) == 0
    of, event = events.of_jets, events.events_of_jets()
    keep = (of["jet_pt"] > 100) & (np.abs(of["jet_eta"]) < 2) & (event != 3)
    rank = np.array([keep[: i + 1][event[: i + 1] == e].sum() for i, e in enumerate(event)])
    assert (keep & (rank > 2)).any()
    compare(out, events.expected(keep & (rank <= 2)))


def test_a_selection_of_nothing(tmp_path, capsys):
    write(tmp_path / "a.parquet", nested(Events(5)))
    schema = described(tmp_path, "", jets=JETS + 'select = "jet_pt < 0"\n')
    assert run(tmp_path / "a.parquet", "--schema", schema, "--out", tmp_path / "out") == 1
    assert "no jets" in capsys.readouterr().err


def test_several_collections_are_joined(tmp_path):
    events = Events()
    columns, text = linked(events, "links")
    keys = ak.where(columns["links"]["at"] % 2 == 0, 7, 8)
    columns["links"] = ak.zip({"key": keys, "at": columns["links"]["at"] // 2})
    for name in events.flat:  # even and odd particles apart
        whole = columns.pop(name)
        columns |= {f"a_{name}": whole[:, 0::2], f"b_{name}": whole[:, 1::2]}
    write(tmp_path / "a.parquet", columns)
    tables = ""
    for letter, number in (("a", 7), ("b", 8)):
        table = PARTICLES.replace("[particles]", "[[particles]]").replace(
            '"part_', f'"{letter}_part_'
        )
        tables += table + f"number = {number}\n"
    schema = described(tmp_path, "[constituents]\n" + text, particles=tables)
    assert run(tmp_path / "a.parquet", "--schema", schema, "--out", tmp_path / "out") == 0
    compare(tmp_path / "out", events.expected())


def test_a_collection_without_tracks_or_codes(tmp_path):
    columns = {
        "t_pt": [[5.0, 4.0]], "t_eta": [[0.0, 0.1]], "t_phi": [[0.0, 0.1]], "t_pid": [[-11, 211]],
        "d0": [[1.0, 2.0]], "d0e": [[0.1, 0.2]], "dz": [[3.0, 4.0]], "dze": [[0.3, 0.4]],
        "t_id": [[1, 2]], "n_et": [[3.0]], "n_eta": [[0.2]], "n_phi": [[0.0]], "n_id": [[3]],
        "refs": [[[3, 1, 2, 0]]], "y": [[1]],
    }  # fmt: skip
    write(tmp_path / "a.parquet", columns)
    (tmp_path / "mine.toml").write_text(
        """format = "parquet"
        classes = ["no", "yes"]
        length = "cm"
        [[particles]]
        pt = "t_pt"
        eta = "t_eta"
        phi = "t_phi"
        pdg = "t_pid"
        d0 = "d0"
        d0_error = "d0e"
        dz = "dz"
        dz_error = "dze"
        id = "t_id"
        [[particles]]
        et = "n_et"
        eta = "n_eta"
        phi = "n_phi"
        pdg = 130
        id = "n_id"
        [jets]
        label = "y"
        [constituents]
        refs = "refs"
        """
    )
    command = [tmp_path / "a.parquet", "--schema", tmp_path / "mine.toml", "--out"]
    assert run(*command, tmp_path / "out", "--tracks", "raw") == 0
    jets = everything(tmp_path / "out")
    np.testing.assert_allclose(jets.particles[:, 2].exp(), [5, 4, 3], rtol=1e-6)
    np.testing.assert_allclose(
        jets.particles[:, 3].exp(), [5, 4 * np.cosh(0.1), 3 * np.cosh(0.2)], rtol=1e-6
    )
    assert jets.pid.tolist() == [3, 8, 7]
    np.testing.assert_allclose(
        jets.tracks, [[10, 1, 30, 3], [20, 2, 40, 4], [0, 0, 0, 0]], rtol=1e-6
    )


@pytest.mark.parametrize("form", ["lists", "nested"])
def test_columns_of_other_lists_are_taken_by_an_index(tmp_path, form):
    """Of particles, of jets, and in a selection; the lists stand in an order of their own."""
    events = Events()
    columns, text = linked(events, "lists") if form == "lists" else (nested(events), "")
    rng = np.random.default_rng(3)
    at = [rng.permutation(n) for n in events.jets]
    columns["flavours"] = ak.Array(
        [np.asarray(f)[np.argsort(p)] for f, p in zip(columns["jet_flavour"], at, strict=True)]
    )
    columns["flavour_at"] = ak.Array(at)
    columns["masses"] = ak.Array([[0.5, 0.139]] * len(events.jets))
    write(tmp_path / "a.parquet", columns)
    jets = JETS.replace('"jet_flavour"', '"= take(flavours, flavour_at)"')
    jets += 'select = "take(flavours, flavour_at) != 4"\n'
    particles = PARTICLES.replace('"part_mass"', '"= take(masses, 1 + 0 * part_pdg)"')
    text = f"[constituents]\n{text}" if text else ""
    schema = described(tmp_path, text, jets=jets, particles=particles)
    out = tmp_path / "out"
    assert run(tmp_path / "a.parquet", "--schema", schema, "--out", out, "--jets-per-read", 7) == 0
    compare(out, events.expected(events.of_jets["jet_flavour"] != 4))


@pytest.mark.parametrize(
    ("form", "change", "says"),
    [
        ("pairs", {"link_jet": lambda a: a + 9}, ["event 0", "belongs to jet 9 of", "jets"]),
        ("pairs", {"link_particle": lambda a: a + 99}, ["event 0", "of", "particles"]),
        ("pairs", {"link_particle": lambda a: a[:, :-1]}, ["event 0", "different lengths"]),
        ("ranges", {"end": lambda a: a + 99}, ["event 0", "the constituents of a jet are 0 to"]),
        ("ranges", {"begin": lambda a: a + 99}, ["event 0", "the constituents of a jet are 99 to"]),
        ("lists", {"index": lambda a: a + 99}, ["event 0", "particles"]),
        ("lists", {"index": lambda a: a[:, :, 0]}, ["holds a list in a row", "list of lists"]),
        ("refs", {"unique": lambda a: a + 1}, ["event 0", "in none of the collections"]),
        ("lists", {"jet_eta": lambda a: a[:, :-1]}, ["event 0", "jet_eta has"]),
        ("lists", {"part_eta": lambda a: a[:, :-1]}, ["part_eta has", "part_pt has"]),
    ],
)
def test_links_that_lead_nowhere(tmp_path, capsys, form, change, says):
    events = Events()
    columns, text = linked(events, form)
    for name, function in change.items():
        columns[name] = function(columns[name])
    write(tmp_path / "a.parquet", columns)
    particles = PARTICLES + ('id = "unique"' if form == "refs" else "")
    schema = described(tmp_path, "[constituents]\n" + text, particles=particles)
    assert run(tmp_path / "a.parquet", "--schema", schema, "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for part in ["a.parquet", *says]:
        assert part in error


def test_links_to_nothing_are_left_out_and_counted(tmp_path, capsys):
    events = Events()
    columns, text = linked(events, "pairs")
    columns["link_particle"] = ak.concatenate([columns["link_particle"], [[-1]] * 40], axis=1)
    columns["link_jet"] = ak.concatenate([columns["link_jet"], [[-1]] * 40], axis=1)
    write(tmp_path / "a.parquet", columns)
    schema = described(tmp_path, "[constituents]\n" + text)
    assert run(tmp_path / "a.parquet", "--schema", schema, "--out", tmp_path / "out") == 0
    assert "links to no particle: 40" in capsys.readouterr().out
    compare(tmp_path / "out", events.expected())


def test_rows_that_are_events_are_noticed(tmp_path, capsys):
    write(tmp_path / "a.parquet", Events().columns())
    schema = described(tmp_path, "")
    assert run(tmp_path / "a.parquet", "--schema", schema, "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "holds lists, expected" in error
    assert "[constituents]" in error
