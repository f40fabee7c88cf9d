"""A study of two objectives on toy jets, with a few updates for each run."""

import os
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path

import pytest

from jetkern.study import make_grid, read_study
from tests.factories import write_toy_shards

STUDY = """
name = "tiny"
metric = "auc"

[data.jetclass]
shards = "jetclass"

[data.toptag]
shards = "toptag"

[pretrain]
data = "jetclass"
objectives = ["classifier", "classifier+mpm"]
sizes = ["micro"]
jets = [64]
checkpoints = 2

[pretrain.settings]
optimizer = "lion"
lr = 1e-3
batch_size = 16
steps = 4
warmup_steps = 0
log_every = 2

[top]
data = "toptag"
jets = [32, 96]
seeds = [0, 1]
transfer = ["finetuned", "scratch"]
trajectory = [96]

[top.rates]
scratch = [1e-3, 3e-3]

[top.settings]
lr = 1e-3
batch_size = 16
steps = 4
warmup_steps = 0
val_every = 2
log_every = 2
"""


@pytest.fixture(scope="session")
def desk(tmp_path_factory):
    """A folder with shards and tiny.toml."""
    folder = tmp_path_factory.mktemp("study")
    for seed, split in enumerate(("train", "val", "test")):
        write_toy_shards(folder / "jetclass" / split, ["QCD", "Hbb"], jets=128, seed=seed)
        write_toy_shards(
            folder / "toptag" / split, ["QCD", "top"], jets=128, seed=seed, extras=False
        )
    (folder / "tiny.toml").write_text(STUDY)
    return folder


@pytest.fixture(scope="session")
def grid(desk):
    """The grid of tiny.toml."""
    return make_grid(read_study(desk / "tiny.toml"), Path("tiny.toml"), desk)


def run_job(job, out):
    """One job in this process, as Snakemake would run it in its own: 0 if it went well."""
    name, *words = job.words
    if name in ("pretrain", "finetune", "evaluate"):
        words += ["--threads", "1"]
    said, before = StringIO(), Path.cwd()
    os.chdir(out)
    try:
        with redirect_stdout(said), redirect_stderr(said):
            code = import_module(f"jetkern.cli.{name}").main(words)
    finally:
        os.chdir(before)
    assert code == 0, f"jetkern {' '.join(job.words)}\n{said.getvalue()}"


def run_all(grid, out):
    """All jobs whose output is not there."""
    for job in grid.jobs:
        if not (out / job.output).exists():
            run_job(job, out)


@pytest.fixture(scope="session")
def results(grid, tmp_path_factory):
    """The folder of the study, run to its end without a break."""
    out = tmp_path_factory.mktemp("results")
    run_all(grid, out)
    return out
