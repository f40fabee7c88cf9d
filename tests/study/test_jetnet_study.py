"""A study whose task is generation: jets are made once, judged, and come into the report."""

from pathlib import Path

import pytest

from jetkern.study import make_grid, read_study
from tests.factories import write_jetnet_shards, write_toy_shards
from tests.study.conftest import run_all

pytest.importorskip("fastjet", reason="fastjet is not installed: pip install 'jetkern[evaluation]'")

STUDY = """
name = "made"

[data.jetclass]
shards = "jetclass"

[data.jetnet]
shards = "jetnet"

[pretrain]
data = "jetclass"
objectives = ["generator"]
sizes = ["micro"]
jets = [64]

[pretrain.settings]
batch_size = 16
steps = 2
warmup_steps = 0

[jetnet]
data = "jetnet"
jets = [40]
seeds = [0]
transfer = ["finetuned", "scratch"]
test_jets = 40

[jetnet.settings]
batch_size = 16
steps = 2
warmup_steps = 0
"""


@pytest.mark.slow
def test_generation_goes_through_a_study(tmp_path):
    for seed, split in enumerate(("train", "val", "test")):
        write_toy_shards(tmp_path / "jetclass" / split, ["QCD", "Hbb"], jets=64, seed=seed)
        write_jetnet_shards(tmp_path / "jetnet" / split, [12] * 60, seed=seed)
    (tmp_path / "made.toml").write_text(STUDY)
    grid = make_grid(read_study(tmp_path / "made.toml"), tmp_path / "made.toml", tmp_path)
    assert [job.rule for job in grid.jobs].count("generate") == 2
    out = Path(tmp_path / "out")
    out.mkdir()
    run_all(grid, out)
    for job in grid.jobs:
        assert (out / job.output).is_file(), job.output
    for job in grid.jobs:
        if job.rule == "evaluate":
            assert job.words[1].startswith("generated/")
    report = (out / "report" / "report.md").read_text()
    assert "W1(mass), GeV" in report
