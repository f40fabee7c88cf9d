"""The sampling benchmark at a toy's size, without its peer."""

import argparse
import re

import pytest

from bench import sampling
from tests.factories import write_jetnet_shards
from tests.sampling.test_generate import checkpoint


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    shards = write_jetnet_shards(folder / "test", [3, 5, 4, 6, 3, 7])
    run, few = checkpoint(folder / "run"), checkpoint(folder / "few", few_steps=(1, 2))
    options = argparse.Namespace(
        run=run, distilled=few, data=shards, jets=2, fit_jets=2, peer="", peer_jets=1
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "NODES", 3)
        patch.setattr(sampling, "EVALUATIONS", (1, 4))
        return sampling.measure(options)


def test_every_contender_has_a_row(result):
    rows = {(r["solver"], r["evaluations"]): r for r in result["rows"]}
    # The first row is the reference; midpoint and Heun take two evaluations a step, RK4 four.
    assert [(r["solver"], r["evaluations"]) for r in result["rows"]] == [
        ("midpoint", 4),
        ("flow-map", 1),
        ("flow-map", 2),
        ("fitted", 1),
        ("fitted", 4),
        ("ab2", 1),
        ("ab2", 4),
        ("ab2, chosen grid", 1),
        ("ab2, chosen grid", 4),
        ("midpoint", 4),
        ("heun", 4),
        ("rk4", 4),
        ("euler", 1),
        ("euler", 4),
    ]
    assert rows["midpoint", 4]["deviation"] == pytest.approx(0, abs=1e-6)
    assert rows["midpoint", 4]["same_w1"]
    assert rows["euler", 1]["deviation"] > 0
    assert re.search(r"\| fitted +\| +4 \| ", sampling.shown(result))
    assert all(row["ratio"] is None for row in result["rows"])  # without the peer


def test_the_same_w1_is_no_larger_than_both_errors_allow():
    def row(value, error):
        return {"w1": {"mass": [value, error], "pT": [1.0, 0.1]}}

    assert sampling.same(row(1.49, 0.3), row(1.0, 0.4))
    assert not sampling.same(row(1.51, 0.3), row(1.0, 0.4))
    assert sampling.same(row(0.2, 0.0), row(1.0, 0.0))


def test_the_figure_is_drawn(result, tmp_path):
    sampling.draw(result, tmp_path / "sampling.svg")
    assert (tmp_path / "sampling.svg").stat().st_size > 10_000
