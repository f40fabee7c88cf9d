"""Boosted trees on jet variables, and the choice of a learning rate."""

import json

import numpy as np
import pytest
import torch

from jetkern.cli import baseline, choose
from jetkern.jets import Jets
from jetkern.study.plan import StudyError
from jetkern.study.trees import VARIABLES, variables

pytest.importorskip("fastjet", reason="fastjet is not installed: pip install 'jetkern[study]'")


def test_the_variables_of_two_jets():
    particles = torch.tensor([[0.3, 0.0, 2.0, 2.1], [0.0, 0.4, 1.0, 1.1], [0.0, 0.0, 0.0, 0.1]])
    found = variables(Jets(particles=particles, offsets=torch.tensor([0, 3, 3])))
    values = dict(zip(VARIABLES, found[0], strict=True))
    pt = np.exp([2.0, 1.0, 0.0])
    assert found.shape == (2, len(VARIABLES))
    assert values["multiplicity"] == 3
    assert values["share of particle 1"] == pytest.approx(pt[0] / pt.sum(), rel=1e-6)
    assert values["width"] == pytest.approx((0.3 * pt[0] + 0.4 * pt[1]) / pt.sum(), rel=1e-6)
    assert values["energy"] == pytest.approx(np.exp([2.1, 1.1, 0.1]).sum(), rel=1e-6)
    assert np.isnan(found[1][-1])  # no particles, no width


def test_trees_learn_and_are_judged_like_a_model(desk, tmp_path):
    words = ["--data", str(desk / "toptag"), "--num-jets", "120", "--threads", "1"]
    assert baseline.main([*words, "--bootstrap", "10", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "report.json").read_text())
    trees = record["models"]["trees"]
    assert record["jets"] == 128
    assert trees["auc"]["value"] > 0.7
    assert {"rejection_30", "r30", "r50", "accuracy", "cross_entropy"} <= trees.keys()
    again = tmp_path / "again"
    assert baseline.main([*words, "--bootstrap", "10", "--out", str(again)]) == 0
    assert json.loads((again / "report.json").read_text())["models"] == record["models"]


def test_the_rate_with_the_best_validation_is_taken(results, tmp_path):
    runs = sorted((results / "finetune").glob("top-96-scratch-*-lr*"))
    assert len(runs) == 2
    losses = {run: json.loads((run / "DONE").read_text())["best"]["loss"] for run in runs}
    best = min(runs, key=losses.__getitem__)
    out, copy = tmp_path / "rate.toml", tmp_path / "copy"
    assert choose.main([*map(str, runs), "--out", str(out), "--run", str(copy)]) == 0
    assert f"run {best.name}" in out.read_text()
    assert (copy / "DONE").read_bytes() == (best / "DONE").read_bytes()
    from jetkern.study.choice import choose as take

    other = next(iter(sorted((results / "finetune").glob("top-32-scratch-*-lr*"))))
    with pytest.raises(StudyError, match="num_jets"):
        take([runs[0], other], out)
    (tmp_path / "running").mkdir()
    with pytest.raises(StudyError, match=r"running/config\.json"):
        take([tmp_path / "running"], out)
