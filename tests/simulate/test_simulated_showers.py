"""Simulated showers: functions of seed and number, with the figures of a sampling calorimeter."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from jetkern import cli
from jetkern.simulate import SimulationError
from jetkern.simulate.showers import CALORIMETERS, make_showers, simulate_showers

SMALL, FULL = CALORIMETERS["small"], CALORIMETERS["full"]


def sums(made):
    return np.add.reduceat(made.hits[:, 3].astype(float), made.offsets[:-1])


def test_a_shower_depends_on_seed_and_number_alone():
    whole, part = simulate_showers(SMALL, range(20)), simulate_showers(SMALL, range(7, 12))
    rows = slice(whole.offsets[7], whole.offsets[12])
    assert np.array_equal(whole.hits[rows], part.hits)
    assert np.array_equal(whole.offsets[7:13] - whole.offsets[7], part.offsets)
    assert np.array_equal(whole.energies[7:12], part.energies)
    assert not np.array_equal(simulate_showers(SMALL, range(20), seed=1).energies, whole.energies)
    none = simulate_showers(SMALL, range(0))
    assert none.offsets.tolist() == [0]
    assert none.hits.shape == (0, 4)


def test_small_showers_have_something_to_learn():
    made = simulate_showers(SMALL, range(800))
    x, y, layer, energy = made.hits.T.astype(float)
    counts = np.diff(made.offsets)
    assert counts.mean() == pytest.approx(65, abs=2)
    assert counts.max() < 150
    ln_e, r = np.log(energy), np.hypot(x - 6, y - 6)
    pairs = {(0, 1): (ln_e, r), (2, 3): (abs(x - 6), abs(y - 6)), (4, 5): (ln_e, layer)}
    found = [float(np.corrcoef(*pair)[0, 1]) for pair in pairs.values()]
    assert found == pytest.approx([-0.45, 0.29, -0.26], abs=0.06)
    within = np.repeat(np.arange(len(made)), counts)
    first = np.r_[True, np.diff(within) > 0]
    falls = (np.diff(layer) < 0) | ((np.diff(layer) == 0) & (np.diff(energy) > 0))
    assert first[1:][falls].all(), "by layer, then the most energetic first"
    places = ((within * 15 + layer) * 12 + y) * 12 + x
    assert len(np.unique(places)) == len(places), "one hit a cell"
    assert energy.min() >= SMALL.threshold


def test_response_is_linear_and_its_width_that_of_the_spots():
    made = {e: simulate_showers(SMALL, range(400), energy=e) for e in (2.0, 8.0)}
    share = {e: sums(m) / e for e, m in made.items()}
    assert share[2.0].mean() == pytest.approx(share[8.0].mean(), rel=0.02)
    for energy, values in share.items():
        spots = (1.5 * SMALL.spot / (20 * energy)) ** 0.5
        assert values.std() / values.mean() == pytest.approx(spots, rel=0.1)


def test_full_showers_have_the_hits_of_a_silicon_calorimeter():
    hits = [len(simulate_showers(FULL, range(12), energy=e).hits) / 12 for e in (15.0, 95.0)]
    assert hits == pytest.approx([400, 1340], rel=0.06)


def test_files_are_in_showerdatas_layout_and_made_once(tmp_path: Path, capsys):
    command = ["simulate", "showers", "--jets-per-class", "11", "--jets-per-shard", "4"]
    out = tmp_path / "s"
    for made in (11, 0):
        with pytest.raises(SystemExit) as end:
            cli.main([*command, "--splits", "train=0.8,val=0.2", "--out", str(out)])
        assert end.value.code == 0
        assert f"11 showers, {made} of them" in capsys.readouterr().out
    assert [p.name for p in sorted(out.glob("*/*.h5"))] == [
        *(f"showers_{i:04d}.h5" for i in range(3)), "showers_0000.h5"
    ]  # fmt: skip
    want = simulate_showers(SMALL, range(8, 9))
    with h5py.File(out / "train" / "showers_0002.h5") as file:
        assert np.array_equal(file["showers"][0].reshape(-1, 4), want.hits)
        assert file["shape"][:].tolist() == [1, len(want.hits), 4]
        assert file["energies"][:].tolist() == [want.energies.tolist()]
        assert file["shower_ids"][:].tolist() == [8]
        assert file["pdg"][:].tolist() == [22]
    with pytest.raises(SystemExit):
        cli.main([*command, "--out", str(out)])
    assert "holds jets or showers with splits" in capsys.readouterr().err


def test_processes_change_nothing(tmp_path: Path):
    for jobs in (1, 2):
        out = tmp_path / str(jobs)
        assert make_showers(out, "small", 120, {"train": 1.0}, per_file=110, jobs=jobs) == 120
    for name in ("showers_0000.h5", "showers_0001.h5"):
        with (
            h5py.File(tmp_path / "1/train" / name) as a,
            h5py.File(tmp_path / "2/train" / name) as b,
        ):
            assert all(np.array_equal(a[key][:], b[key][:]) for key in a if key != "showers")
            assert all(map(np.array_equal, a["showers"][:], b["showers"][:]))


def test_what_has_no_parametrisation_is_refused():
    with pytest.raises(SimulationError, match=r"0.1 GeV at least, got 0.05"):
        simulate_showers(SMALL, range(1), energy=0.05)
    with pytest.raises(SimulationError, match="negative"):
        simulate_showers(SMALL, range(1), seed=-1)
