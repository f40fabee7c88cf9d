"""The grid of a study, its workflow with two executors, and a report that kills do not change."""

import random
import re
import shutil
import subprocess
from collections import Counter
from contextlib import suppress
from importlib.util import find_spec

import pytest

from jetkern.study import StudyError, make_grid, read_study
from jetkern.study.collect import collect
from jetkern.study.workflow import arguments
from tests.faults import Faults, Killed, inject
from tests.study.conftest import STUDY, run_all, run_job


def test_the_grid_is_the_product_of_its_lists(grid):
    assert Counter(job.rule for job in grid.jobs) == {
        "pretrain": 2,
        "finetune": 2 * 2 * 2 + 2 * 2 + 2 * 3,  # tuned, from checkpoints, from scratch
        "choose": 2,
        "evaluate": 2 * 2 * 2 + 2 * 2 + 2 * 2,
        "report": 1,
    }
    outputs = [job.output for job in grid.jobs]
    assert len(set(outputs)) == len(outputs)
    for job in grid.jobs:  # each waits for what comes before it
        before = set(outputs[: outputs.index(job.output)])
        assert all(need in before or need.startswith("/") for need in job.inputs), job


def report_of(out):
    return {p.name: p.read_bytes() for p in sorted((out / "report").iterdir())}


@pytest.mark.slow
def test_a_study_that_was_killed_gives_the_same_report(grid, results, tmp_path):
    whole = report_of(results)
    assert {
        "report.md",
        "runs.csv",
        "verdicts.tex",
        "top-jets.png",
        "trajectories.png",
    } <= whole.keys()
    assert all(row.there or not row.run.report for row in collect(grid, results))
    kept = [job for job in grid.jobs if job.rule in ("pretrain", "choose")]
    out = tmp_path / "killed"
    shutil.copytree(results, out)
    draw = random.Random(0)
    for job in draw.sample(grid.jobs[:-1], 6):
        forget(job, grid, out)
        kind, number = draw.choice(["fsync", "replace", "write"]), draw.randrange(4)
        with suppress(Killed), inject(Faults(out, kind, number)):
            run_job(job, out)
    shutil.rmtree(out / "report")
    run_all(grid, out)
    assert report_of(out) == whole
    assert all((out / job.output).exists() for job in kept)


def forget(job, grid, out):
    """Removes what a job made, all of it, as if it had not begun."""
    folder = (out / job.output).parent
    if job.rule == "choose":
        (out / job.output).unlink()
    else:
        shutil.rmtree(folder)


def test_the_report_of_a_study_without_results(grid, tmp_path):
    from jetkern.study.report import write_report

    rows = collect(grid, tmp_path)
    said = write_report(grid.study, rows, tmp_path / "report")
    assert "not in this study" in said
    text = (tmp_path / "report" / "report.md").read_text()
    assert f"0 of {len(rows)} runs are there" in text
    assert "0/2" in text


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"micro"', '"mikro"', "did you mean micro"),
        ('"classifier", ', '"classifer", ', "did you mean classifier"),
        ("seeds = [0, 1]", "seeds = []", "at least one number"),
        ("seeds = [0, 1]", 'seeds = ["0"]', "expected an integer"),
        ("metric", "metrik", "unknown"),
        ('metric = "auc"', 'metric = "aux"', "no figure of merit"),
        ('transfer = ["finetuned"', 'transfer = ["finetune"', "did you mean finetuned"),
        ("scratch = [1e-3, 3e-3]", "scratch = []", "no list of learning rates"),
        ("checkpoints = 2", "checkpoints = 0", "trajectory"),
        ('data = "toptag"', 'data = "top"', "not below"),
    ],
)
def test_a_wrong_study_file_is_said(tmp_path, old, new, message):
    path = tmp_path / "study.toml"
    path.write_text(STUDY.replace(old, new))
    with pytest.raises(StudyError, match=message):
        read_study(path)


@pytest.mark.parametrize("executor", ["local", "slurm"])
def test_snakemake_plans_three_seeds_of_a_model(desk, executor, tmp_path, monkeypatch):
    """One objective and one size, here and through the executor for Slurm."""
    needed = {"local": "snakemake", "slurm": "snakemake_executor_plugin_slurm"}[executor]
    if find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed: pip install 'jetkern[study]'")
    monkeypatch.chdir(desk)
    more = [] if executor == "local" else ["--executor", "slurm", "--jobs", "10"]
    more += ["--dry-run"]
    path = tmp_path / "three.toml"
    text = STUDY.replace('["classifier", "classifier+mpm"]', '["classifier"]')
    path.write_text(text.replace("seeds = [0, 1]", "seeds = [0, 1, 2]"))
    grid = make_grid(read_study(path), path, tmp_path / "out")
    words = arguments(path, tmp_path / "out", cores=2, jobs=2, further=more)
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    for rule, number in Counter(job.rule for job in grid.jobs).items():
        assert any(line.split() == [rule, str(number)] for line in said.splitlines()), said


def test_the_files_that_are_shipped_are_studies(tmp_path):
    from tests.training.drivers import ROOT

    for file in sorted((ROOT / "studies").glob("*.toml")):
        assert len(make_grid(read_study(file), file, tmp_path).jobs) > 20, file


def test_a_wrong_flag_is_said_before_the_first_run(desk, tmp_path, capsys):
    from jetkern.cli.study import main

    path = tmp_path / "study.toml"
    path.write_text(STUDY.replace("warmup_steps = 0", "warm_steps = 0", 1))
    with pytest.raises(SystemExit):
        main([str(path), "--out", str(tmp_path / "out"), "--dry-run"])
    assert "--warm-steps" in capsys.readouterr().err


def test_a_dry_run_shows_the_grid_and_its_time(desk, tmp_path, capsys, monkeypatch):
    from jetkern.cli.study import main
    from jetkern.study import estimate

    monkeypatch.setattr(estimate, "SECONDS", 0.0)
    monkeypatch.setattr(estimate, "start_up", lambda: 1.0)
    monkeypatch.chdir(desk)
    assert main(["tiny.toml", "--out", str(tmp_path), "--dry-run", "--cores", "2"]) == 0
    said = capsys.readouterr().out
    assert "top       finetuned, trajectory  micro  96       4" in said
    assert re.search(r"finetune +18 +18 +0:0", said)
    assert "2 commands at a time, 1 thread each" in said


def test_a_schema_is_looked_for_where_the_command_is_typed(tmp_path):
    own = 'source = "jets"\nconvert = ["--from", "schema", "--schema", "own.toml", "--one-set"]'
    (tmp_path / "tiny.toml").write_text(
        STUDY.replace('shards = "toptag"', f'shards = "toptag"\n{own}')
    )
    grid = make_grid(read_study(tmp_path / "tiny.toml"), tmp_path / "tiny.toml", tmp_path)
    words = grid.of("convert", "toptag").words
    assert words[-3:] == ("--schema", str(tmp_path / "own.toml"), "--one-set")
