"""The sampling benchmark at a toy's size, without its peer."""

import argparse

import pytest

from bench import sampling
from tests.factories import write_jetnet_shards
from tests.sampling.test_generate import checkpoint


def test_every_contender_has_a_row(tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "NODES", 3)
    monkeypatch.setattr(sampling, "EVALUATIONS", (1, 4))
    shards = write_jetnet_shards(tmp_path / "test", [3, 5, 4, 6])
    options = argparse.Namespace(
        run=checkpoint(tmp_path / "run"), data=shards, jets=2, fit_jets=2, peer="", peer_jets=1
    )
    result = sampling.measure(options)
    rows = {(r["solver"], r["evaluations"]): r for r in result["rows"]}
    # The first row is the reference; midpoint and Heun take two evaluations a step, RK4 four.
    assert [(r["solver"], r["evaluations"]) for r in result["rows"]] == [
        ("midpoint", 4),
        ("euler", 1),
        ("euler", 4),
        ("midpoint", 4),
        ("heun", 4),
        ("rk4", 4),
        ("ab2", 1),
        ("ab2", 4),
        ("fitted", 1),
        ("fitted", 4),
    ]
    assert rows["midpoint", 4]["deviation"] == pytest.approx(0, abs=1e-6)
    assert rows["euler", 1]["deviation"] > 0
    assert "| fitted | 4 |" in sampling.table(result)
