"""Flavour jets: vertices and origins of made-up decays, then a whole small data set."""

import h5py
import numpy as np
import pytest

from jetkern.cli import convert, simulate
from jetkern.data import Shards, Stream
from jetkern.jets import Jets
from jetkern.simulate.events import Events
from jetkern.simulate.truth import (
    BOTTOM,
    CHARM,
    LIGHT,
    OTHER,
    PRIMARY,
    find_origins,
    hadron_flavour,
    jet_flavour,
    number_vertices,
)

# id, mother, vertex in mm: b -> B0, and B0 -> D*- pi+, D*- -> D0bar pi-, D0bar -> K+ eta,
# eta -> pi+ pi- pi0, and a K0S from the primary vertex. Momenta are along x.
TREE = [
    (90, 0, 0.0), (5, 0, 0.0), (511, 1, 0.0),
    (-413, 2, 3.0), (211, 2, 3.0),
    (-421, 3, 3.0), (-211, 3, 3.0),
    (321, 5, 3.5), (221, 5, 3.5),
    (211, 8, 3.5 + 1e-6), (-211, 8, 3.5 + 1e-6),
    (310, 0, 0.0), (211, 11, 40.0), (-211, 11, 40.0),
    (22, 0, 0.0),
]  # fmt: skip


def tree():
    ids, mother, x = (np.array(column) for column in zip(*TREE, strict=True))
    rows = len(ids)
    p = np.tile([20.0, 0, 0, 21.0], (rows, 1))
    vertex = np.zeros((rows, 3))
    vertex[:, 0] = x
    none = np.zeros(rows, int)
    return Events(
        np.array([0, rows]), ids, none, none, none, mother, p, np.ones(rows), vertex, none
    )


@pytest.mark.parametrize(
    ("code", "flavour"),
    [
        (511, BOTTOM), (-521, BOTTOM), (541, BOTTOM), (5122, BOTTOM), (10511, BOTTOM),
        (20523, BOTTOM), (421, CHARM), (-431, CHARM), (4122, CHARM), (443, CHARM), (100443, CHARM),
        (5, LIGHT), (4, LIGHT), (5503, LIGHT), (4203, LIGHT), (211, LIGHT), (310, LIGHT),
        (2212, LIGHT), (15, LIGHT), (24, LIGHT),
    ],
)  # fmt: skip
def test_hadrons_have_the_flavour_of_their_heaviest_quark(code, flavour):
    assert hadron_flavour(np.array([code])).tolist() == [flavour]


def test_tracks_come_from_the_last_decay_that_was_far_enough():
    rows = np.array([4, 6, 7, 9, 10, 12, 13, 14])
    found = find_origins(tree(), rows)
    expected = [BOTTOM, BOTTOM, CHARM, CHARM, CHARM, OTHER, OTHER, PRIMARY]
    assert found.kind.tolist() == expected
    assert found.hadron.tolist() == [511, 511, -421, -421, -421, 310, 310, 0]
    assert found.point[:, 0].tolist() == [3.0, 3.0, 3.5, 3.5, 3.5, 40.0, 40.0, 0.0]
    np.testing.assert_allclose(found.proper[:3], [3 / 20, 3 / 20, 0.5 / 20])
    assert not find_origins(tree(), np.array([], int)).kind.size


def test_vertices_are_numbered_by_distance_and_the_primary_is_zero():
    jet = np.array([0, 0, 0, 0, 2, 2, 3])
    x = np.array([5.0, 0.0, 2.0, 5.0, 7.0, 7.0, 0.0])
    point = np.stack([x, 0 * x, 0 * x], axis=1)
    point[3, 1] = 1e-9  # another point, as near
    assert number_vertices(jet, point).tolist() == [2, 0, 1, 3, 1, 1, 0]
    order = np.array([3, 1, 0, 2, 6, 5, 4])
    shuffled = number_vertices(jet[order], point[order])
    assert shuffled.tolist() == number_vertices(jet, point)[order].tolist()
    assert number_vertices(jet[:0], point[:0]).tolist() == []


def test_a_jet_has_the_flavour_of_the_heaviest_hadron_near_it():
    events = tree()
    event, phi = np.array([0, 0, 1]), np.array([0.0, 1.0, 0.0])
    assert jet_flavour(events, event, np.zeros(3), phi, 0.4).tolist() == [BOTTOM, LIGHT, LIGHT]
    events.p[2] = [4.9, 0, 0, 5.0]  # too soft; its D0 is not
    assert jet_flavour(events, event, np.zeros(3), phi, 0.4).tolist() == [CHARM, LIGHT, LIGHT]


JETS = 20
FLAVOUR = f"flavour --jets-per-class {JETS} --splits train=0.5,val=0.5 --no-mpi --jobs 1"


@pytest.fixture(scope="module")
def flavour(tmp_path_factory):
    if any(simulate.find_spec(name) is None for name in simulate.LIBRARIES):
        pytest.skip("Pythia or FastJet is not installed")
    out = tmp_path_factory.mktemp("flavour")
    assert simulate.main([*FLAVOUR.split(), "--out", str(out / "jets"), "--figure"]) == 0
    return out


def test_a_small_data_set_holds_its_truth(flavour):
    assert (flavour / "jets" / "sanity.png").read_bytes().startswith(b"\x89PNG")
    for label, name in enumerate(("light", "charm", "bottom")):
        with h5py.File(flavour / "jets" / "train" / f"flavour_{name}_0000.h5") as file:
            content = {key: values[:] for key, values in file.items()}
        count, vertex, origin = (content[k] for k in ("num_particles", "vertex", "origin"))
        real = np.arange(15) < count[:, None]
        assert (content["pid"] == label).all()
        assert count.min() >= 1
        np.testing.assert_array_equal(real, vertex != 255)
        np.testing.assert_array_equal(real, origin != 255)
        np.testing.assert_array_equal(real, content["data"][..., 6] > 0)  # all are tracks
        np.testing.assert_array_equal(real & (vertex == 0), origin == PRIMARY)
        distance = np.linalg.norm(content["vertices"], axis=2)
        for jet in range(len(count)):
            number = content["hadron"][jet].astype(bool).sum()
            assert set(vertex[jet][real[jet]]) - {0} == set(range(1, number + 1))
            assert (np.diff(distance[jet, : number + 1]) > 0).all()
            assert not distance[jet, number + 1 :].any()
        kinds = hadron_flavour(content["hadron"].ravel()).reshape(content["hadron"].shape)
        heavy = np.take_along_axis(kinds, np.where(real, vertex, 0).astype(int), axis=1)
        for kind in (CHARM, BOTTOM):
            np.testing.assert_array_equal(real & (heavy == kind), origin == kind)
        if name == "bottom":
            assert (kinds == BOTTOM).any()
        else:
            assert not (kinds == BOTTOM).any()


def test_the_truth_goes_with_the_jets_into_shards_and_batches(flavour):
    out = flavour / "shards"
    assert convert.main([str(flavour / "jets"), "--out", str(out), "--quiet"]) == 0
    shards = Shards(out / "train")
    batch = next(iter(Stream(shards, batch_size=len(shards), epochs=1)))
    assert batch.vertex is not None
    assert batch.origin is not None
    stored = {}
    for name in ("light", "charm", "bottom"):
        with h5py.File(flavour / "jets" / "train" / f"flavour_{name}_0000.h5") as file:
            real = file["vertex"][:] != 255
            rows = (file["data"][:][real][:, 2], file["vertex"][:][real], file["origin"][:][real])
        stored |= {float(pt): (int(v), int(o)) for pt, v, o in zip(*rows, strict=True)}
    found = zip(batch.particles[:, 2].tolist(), batch.vertex.tolist(), batch.origin.tolist(),
                strict=True)  # fmt: skip
    assert {pt: (v, o) for pt, v, o in found} == stored
    some = batch.keep_particles(batch.origin == PRIMARY)
    assert isinstance(some, Jets)
    assert not some.vertex.any()
    without = next(iter(Stream(shards, batch_size=4, fields=("pid",), epochs=1)))
    assert without.vertex is None


@pytest.mark.parametrize("fault", ["shape", "type", "counts"])
def test_truth_that_does_not_fit_is_refused(flavour, tmp_path, capsys, fault):
    path = tmp_path / "flavour_light_0000.h5"
    path.write_bytes((flavour / "jets" / "train" / path.name).read_bytes())
    with h5py.File(path, "r+") as file:
        vertex = file["vertex"][:]
        del file["num_particles" if fault == "counts" else "vertex"]
        if fault != "counts":
            file["vertex"] = vertex[:, :9] if fault == "shape" else vertex.astype(np.int64)
    assert convert.main([str(path), "--out", str(tmp_path / "out"), "--quiet"]) == 1
    error = capsys.readouterr().err
    assert path.name in error
    assert ("need num_particles" if fault == "counts" else "vertex is ") in error
    assert error.count("\n") == 1
