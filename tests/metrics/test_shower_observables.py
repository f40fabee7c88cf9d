"""Observables of showers, against sums by hand."""

import numpy as np
import pytest

from jetkern.metrics.showers import distances, observables, oddities
from jetkern.showers import Showers
from jetkern.simulate.showers import CALORIMETERS, simulate_showers


def showers(hits, offsets, energies) -> Showers:
    hits = np.array(hits, np.float32).reshape(-1, 4)
    return Showers(hits, np.array(offsets), np.array(energies, np.float32))


def test_observables_are_sums_over_hits():
    found = observables(showers([[0, 1, 2, 1], [4, 1, 6, 3]], [0, 2, 2], [2, 1]))
    assert {name: float(values[0]) for name, values in found.items()} == {
        "hits": 2, "response": 2, "depth": 5, "x": 3, "y": 1,
        "sigma_z": pytest.approx(3**0.5), "sigma_r": pytest.approx(3**0.5),
    }  # fmt: skip
    assert found["hits"][1] == found["response"][1] == 0
    assert np.isnan(found["depth"][1])


def test_distances_of_a_shift_and_their_floor():
    made = simulate_showers(CALORIMETERS["small"], range(40))
    moved = Showers(made.hits + np.float32([0, 0, 2, 0]), made.offsets, made.energies)
    found = {d.name: d for d in distances(made, made, moved)}
    assert found["depth"].distance == pytest.approx(2, rel=1e-5)
    assert max(d.floor for d in found.values()) == found["hits"].distance == 0
    assert set(oddities(made).values()) == {0}
    odd = showers([[0, 0, 3, 1], [0, 0, 2, 1], [0, 0, 2, 1], [1, 0, 1, 1]], [0, 3, 4], [1, 1])
    assert oddities(odd) == {"backward": 0.25, "taken": 0.25}
