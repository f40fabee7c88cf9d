"""Showers: their order, and the public layouts that they are read from."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from jetkern.convert.readers.showers import read_showers
from jetkern.showers import Showers
from jetkern.simulate.showers import CALORIMETERS, simulate_showers, write_showers


def write(path: Path, **data) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in data.items():
            file[name] = values
    return path


def test_simulated_showers_come_back(tmp_path: Path):
    path, made = tmp_path / "a.h5", simulate_showers(CALORIMETERS["small"], range(4))
    write_showers(path, CALORIMETERS["small"], range(4), seed=0)
    for part in (slice(0, 4), slice(1, 3), slice(4, 9)):
        found, start, stop = (
            read_showers(path, part.start, part.stop),
            part.start,
            min(part.stop, 4),
        )
        assert np.array_equal(found.hits, made.hits[made.offsets[start] : made.offsets[stop]])
        assert np.array_equal(found.energies, made.energies[start:stop])
    assert np.array_equal(made.part(1, 3).hits, read_showers(path, 1, 3).hits)
    back = Showers.of_points(made.points(), made.offsets, made.energies)
    assert np.array_equal(back.hits[:, :3], made.hits[:, :3])
    np.testing.assert_allclose(back.hits[:, 3], made.hits[:, 3], rtol=1e-6)
    assert np.array_equal(made.ordered().hits, made.hits)


def test_equal_energies_keep_their_order():
    hits = np.array([[1, 0, 2, 5], [2, 0, 1, 3], [3, 0, 1, 3], [4, 0, 1, 9]], np.float32)
    ordered = Showers(hits, np.array([0, 4]), np.ones(1, np.float32)).ordered()
    assert ordered.hits[:, 0].tolist() == [4, 2, 3, 1]


def test_padding_is_left_out_wherever_it_is(tmp_path: Path):
    hits = np.zeros((2, 3, 4))
    hits[0, 2], hits[1, :2] = (1, 2, 3, 0.5), [(4, 5, 6, 1), (7, 8, 9, 2)]
    want = [[1, 2, 3, 0.5], [4, 5, 6, 1], [7, 8, 9, 2]]
    columns = dict(zip(("x", "y", "z", "energy"), np.moveaxis(hits, 2, 0), strict=True))
    for name, data in (
        ("padded", {"showers": hits, "genE": [[20.0], [30.0]]}),
        ("apart", {**columns, "incident_energy": [20.0, 30.0]}),
    ):
        found = read_showers(write(tmp_path / f"{name}.h5", **data))
        assert found.hits.tolist() == want
        assert found.offsets.tolist() == [0, 1, 3]
        assert found.energies.tolist() == [20, 30]


def test_calochallenges_radius_is_fastest_and_its_energies_are_mev(tmp_path: Path):
    voxels = np.zeros((2, 6480))
    layer, angle, radius = 7, 11, 5
    voxels[1, (layer * 16 + angle) * 9 + radius] = 0.25
    path = write(tmp_path / "c.h5", showers=voxels, incident_energies=[[1000.0], [2500.0]])
    found = read_showers(path)
    assert found.hits.tolist() == [[radius, angle, layer, 0.25]]
    assert found.offsets.tolist() == [0, 0, 1]
    assert found.energies.tolist() == [1, 2.5]


@pytest.mark.parametrize(
    ("voxels", "cells"),
    [
        (368, {0: (0, 0, 0), 7: (7, 0, 0), 8: (0, 0, 1), 8 + 16 * 9 + 15: (15, 9, 1),
               168 + 19 * 3 + 2: (2, 3, 2), 358: (0, 0, 3), 367: (4, 0, 4)}),
        (533, {8 + 10 * 2 + 3: (3, 2, 1), 208: (0, 0, 3), 213 + 15 * 9 + 14: (14, 9, 4),
               363 + 16 * 4 + 1: (1, 4, 5), 523: (0, 0, 6), 532: (9, 0, 6)}),
    ],
)  # fmt: skip
def test_layers_of_data_set_1_have_their_own_bins(tmp_path: Path, voxels, cells):
    showers = np.zeros((len(cells), voxels))
    showers[np.arange(len(cells)), list(cells)] = 0.5
    path = write(
        tmp_path / "1.h5", showers=showers, incident_energies=np.full((len(cells), 1), 256)
    )
    found = read_showers(path)
    assert [tuple(hit) for hit in found.hits[:, :3]] == list(cells.values())
    assert found.energies.tolist() == [np.float32(0.256)] * len(cells)


@pytest.mark.parametrize("columns", [4, 5])
def test_caloclouds_has_its_padding_in_front_and_layers_second(tmp_path: Path, columns):
    events = np.zeros((2, columns, 3))
    events[0, :4, 2], events[1, :4, 1], events[1, :4, 2] = (
        (-3.5, 7, 40.0, 0.002), (1, 0, 2, 0.001), (5, 29, -6, 0.5)
    )  # fmt: skip
    path = write(tmp_path / "c.h5", events=events, energy=[[10.0], [90.0]], n_points=[1, 2])
    found = read_showers(path)
    assert found.hits.tolist() == [[-3.5, 40, 7, 2], [1, 2, 0, 1], [5, -6, 29, 500]]
    assert found.offsets.tolist() == [0, 1, 3]
    assert found.energies.tolist() == [10, 90]


def test_what_is_no_file_of_showers_is_named(tmp_path: Path):
    energies = {"energies": [1.0, 2.0]}
    rows = h5py.vlen_dtype(np.float32)
    for data, message in (
        ({"showers": np.zeros((2, 3, 4))}, "no energies of the particles"),
        ({"showers": np.zeros((2, 369)), **energies}, r"\(2, 369\).*data sets 1"),
        ({"showers": np.zeros((1, 3, 4)), **energies}, "1 showers, but 2 energies of particles"),
        ({"shape": [2, 3, 4], "showers": np.zeros(2), **energies}, "no rows of float32"),
        ({"hits": np.zeros(3), **energies}, "no layout of showers.*hits"),
    ):
        with pytest.raises(ValueError, match=message):
            read_showers(write(tmp_path / "bad.h5", **data))
    path = write(tmp_path / "bad.h5", shape=[2, 3, 4], **energies)
    with h5py.File(path, "a") as file:
        file.create_dataset("showers", (2,), rows)
        file["showers"][1] = np.zeros(6, np.float32)
    with pytest.raises(ValueError, match="shower 1 has 6 numbers, not 4 a hit"):
        read_showers(path)
    with pytest.raises(ValueError, match="rise from 0"):
        Showers(np.zeros((3, 4), np.float32), np.array([0, 2]), np.ones(1, np.float32))
