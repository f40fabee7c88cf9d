"""Verdicts, scores and tables of made-up runs."""

import math

import numpy as np
import pytest

from jetkern.study import StudyError, read_study
from jetkern.study.analysis import far_off, published, scores, slopes
from jetkern.study.collect import CLASSIFIER, GENERATOR, Row
from jetkern.study.grid import Run
from jetkern.study.report import _latex, _merits
from jetkern.study.verdicts import CG, CLAIMS, CM, SCRATCH, C, G, log_error, verdicts

PART = """
name = "part"
data = { jetclass = { shards = "a" }, jetnet = { shards = "b" } }

[pretrain]
data = "jetclass"
objectives = ["classifier", "generator", "mpm", "classifier+generator"]
sizes = ["micro"]
jets = [1000]

[jetnet]
data = "jetnet"
jets = [1000]
seeds = [0, 1]
transfer = ["finetuned", "scratch"]
objectives = ["classifier", "classifier+generator"]
"""


def made(objective, jets, seed, r30, *, task="top", total=200_000, pretrain_jets=1000):
    """A run with that rejection; infinite for no background jet left."""
    way = "scratch" if objective == SCRATCH else "finetuned"
    start = 0 if objective == SCRATCH else pretrain_jets
    run = Run(task, way, "micro", objective, start, jets, seed, report="x")
    if task == "jetnet":
        return Row(run, dict.fromkeys(GENERATOR, r30))
    kept = 0 if math.isinf(r30) else round(total / r30)
    value = total / kept if kept else math.inf
    values = dict.fromkeys(CLASSIFIER, 0.9) | {"r30": value, "r50": value}
    errors = dict.fromkeys(CLASSIFIER, 0.001) | {"r30": 5.0, "r50": 5.0}
    count = {"r30": (kept, total), "r50": (kept, total)}
    return Row(run, values, errors, {"r30": 1.0, "r50": 1.0}, {"r30": 2.0, "r50": 2.0}, count)


def runs(level, *, seeds=5, noise=0.05, task="top", labels=(1000, 10_000), seed=0):
    """Rows of all objectives with mean rejections ``level[objective]`` and lognormal seeds."""
    draw = np.random.default_rng(seed)
    return [
        made(objective, jets, s, mean * math.exp(noise * draw.normal()), task=task)
        for objective, mean in level.items()
        for jets in labels
        for s in range(seeds)
    ]


def test_clear_runs_are_judged_and_noisy_ones_are_not():
    level = {C: 900.0, G: 105.0, "mpm": 500.0, "classifier+generator": 600.0, CM: 700.0}
    level |= {"generator+mpm": 400.0, "classifier+generator+mpm": 650.0, SCRATCH: 100.0}
    found = {v.claim.name: v for v in verdicts(runs(level))}
    assert found["pre-training helps"].word == "supported"
    assert found["classifier, many labels"].word == "supported"
    assert found["C+M, few labels"].word == "refuted"  # C is better with few labels, too
    assert found["generation needs flow matching, yes"].word == "undecided"
    assert found["generation needs flow matching, yes"].why == "not in this study"
    noisy = {v.claim.name: v.word for v in verdicts(runs(level, seeds=2, noise=2.0))}
    assert noisy["classifier, many labels"] == "undecided"
    alone = verdicts(runs(level, seeds=1, labels=(1000,)))
    assert {v.word for v in alone} == {"undecided"}
    assert all(v.why for v in alone)


@pytest.mark.parametrize(
    ("rejection", "word"), [(100.0, "supported"), (102.0, "supported"), (150.0, "refuted")]
)
def test_little_is_less_than_a_tenth(rejection, word):
    rows = runs({G: rejection, SCRATCH: 100.0}, seeds=8, noise=0.02)
    claim = next(c for c in CLAIMS if c.name == "generator for classification")
    assert verdicts(rows, claims=[claim])[0].word == word


def test_generation_is_judged_by_its_distances():
    level = dict.fromkeys(("generator", "classifier+generator"), 0.01)
    level |= dict.fromkeys(("generator+mpm", "classifier+generator+mpm"), 0.012)
    level |= {"classifier": 0.03, "mpm": 0.031, CM: 0.0305, SCRATCH: 0.03}
    found = {v.claim.name: v.word for v in verdicts(runs(level, task="jetnet", noise=0.02))}
    assert found["generation needs flow matching, yes"] == "supported"
    assert found["generation needs flow matching, no"] == "supported"


def test_objectives_that_a_task_leaves_out_are_named(tmp_path):
    (tmp_path / "part.toml").write_text(PART)
    study = read_study(tmp_path / "part.toml")
    rows = runs({CG: 0.01, C: 0.03, SCRATCH: 0.03}, task="jetnet", noise=0.02)
    judged = verdicts(rows, claims=[claim.asked_by(study) for claim in CLAIMS])
    found = {v.claim.name: v for v in judged}
    assert found["generation needs flow matching, yes"].word == "supported"
    without = found["generation needs flow matching, yes"].why
    assert without == "without generator, generator+mpm, classifier+generator+mpm"
    assert found["generation needs flow matching, no"].why == "without mpm, classifier+mpm"
    assert found["C+M, few labels"].word == "undecided"
    (tmp_path / "part.toml").write_text(PART.replace('"classifier", "generator", ', ""))
    with pytest.raises(StudyError, match=r"part.toml.*objectives.*classifier"):
        read_study(tmp_path / "part.toml")


def test_no_false_alarms_without_a_difference():
    level = dict.fromkeys((C, G, "mpm", "classifier+generator", CM, SCRATCH), 100.0)
    level |= {"generator+mpm": 100.0, "classifier+generator+mpm": 100.0}
    alarms = 0
    for seed in range(25):
        rows = runs(level, seeds=3, noise=0.3, seed=seed)
        alarms += any(v.word != "undecided" for v in verdicts(rows))
    assert alarms <= 4  # 5 % of 25 is 1.25


def test_no_background_left_is_finite_for_the_test_and_infinite_in_the_table():
    row = made(C, 1000, 0, math.inf)
    assert log_error(row, "r30") == pytest.approx(math.log(0.5 / 200_001))
    rows = [row, made(C, 1000, 1, 500.0), made(SCRATCH, 1000, 0, 100.0)]
    text = str(_merits(rows, "top"))
    assert "∞ (1 of 2)" in text
    assert r"$\infty$ (1 of 2)" in _latex(_merits(rows, "top"))
    assert next(iter(scores(rows))).same.value == math.inf


def test_scores_are_the_three_readings():
    level = {1000: (400.0, 100.0), 10_000: (900.0, 600.0)}
    rows = [
        row
        for jets, (tuned, scratch) in level.items()
        for row in (made(C, jets, 0, tuned), made(SCRATCH, jets, 0, scratch))
    ]
    few = next(s for s in scores(rows) if s.jets == 1000)
    assert few.same.value == pytest.approx(4, rel=1e-2)
    assert few.all.value == pytest.approx(400 / 600, rel=1e-2)
    assert few.relative.value == pytest.approx((400 / 900) / (100 / 600), rel=1e-2)
    most = next(s for s in scores(rows) if s.jets == 10_000)
    assert math.isnan(most.relative.value)  # it is 1 by definition, and says nothing
    assert {s.against for s in slopes(rows)} == {"labels"}


def test_outliers_and_published_numbers():
    rows = [made(C, 1000, s, r) for s, r in enumerate((762.0, 109.0, 121.0))]
    found = [(row.run.seed, name) for row, name, _ in far_off(rows)]
    assert (0, "r30") in found
    assert published("top", "micro", SCRATCH, 0, 1000) == "33 ± 30"
    assert published("top", "micro", CM, 100_000, 90_000) == "939 ± 138"
    assert published("top", "micro", CM, 300_000, 90_000) == "-"
