"""Logs that a kill cannot spoil."""

import json
import math

import pytest

from jetkern.training.log import TrainingLog, read_metrics


def report(log, step, loss=1.0):
    log.train(step, {"classifier": loss, "loss": loss}, lr=1e-3, grad_norm=2.0, waited=0.0)


def test_records_are_json_with_rate_and_waiting(tmp_path, capsys):
    log = TrainingLog(tmp_path / "m.jsonl", total_steps=20, batch_size=8)
    report(log, 10)
    log.validation(10, {"loss": 0.5}, {"part": 0.25}, best=True)
    report(log, 20, loss=math.nan)
    log.close()
    first, validation, last = read_metrics(tmp_path / "m.jsonl")
    assert (first["kind"], first["step"], first["classifier"], first["lr"]) == (
        "train",
        10,
        1.0,
        1e-3,
    )
    assert first["jets_per_s"] > 0
    assert 0 <= first["data_wait"] <= 1
    assert (validation["kind"], validation["loss"], validation["best"]) == ("validation", 0.5, True)
    assert validation["part"] == 0.25  # a detail, of the file alone
    assert last["loss"] is None
    assert "NaN" not in (tmp_path / "m.jsonl").read_text()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("step 10/20  loss 1.0000 lr 1.00e-03")
    assert "jets/s" in lines[0]
    assert lines[0].endswith("left")
    assert "validation: loss 0.5000 (best)" in lines[1]
    assert "part" not in lines[1]


def test_resuming_removes_what_came_after_the_checkpoint(tmp_path):
    path = tmp_path / "m.jsonl"
    log = TrainingLog(path, total_steps=9, batch_size=8)
    for step in (1, 2, 3, 4):
        report(log, step)
    log.close()
    with open(path, "a") as file:
        file.write('{"kind": "train", "st')
    log = TrainingLog(path, total_steps=9, step=2, batch_size=8)
    report(log, 3)
    log.close()
    assert [r["step"] for r in read_metrics(path)] == [1, 2, 3]


def test_other_ranks_are_silent(tmp_path, capsys):
    log = TrainingLog(None, total_steps=9, batch_size=8)
    report(log, 1)
    log.validation(1, {"loss": 1.0}, {}, best=False)
    log.say("hello")
    log.close()
    assert capsys.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


def test_damage_inside_is_an_error(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps({"step": 1}) + "\nrubbish\n" + json.dumps({"step": 2}) + "\n")
    with pytest.raises(ValueError, match=r"m\.jsonl, line 2"):
        read_metrics(path)
