import json
import sys

import pytest

from bench import reproducibility


def cell(threads, batch=16, *, same=True, loss=1.0):
    return {
        "objective": "mpm", "threads": threads, "processes": 1, "batch": batch,
        "same": same, "losses": [["train", 1, loss]],
    }  # fmt: skip


def test_table():
    results = [cell(1), cell(1, 64), cell(2, loss=1.001), cell(2, 64, same=False)]
    rows = [
        [cell.strip() for cell in row.split("|")[1:-1]]
        for row in reproducibility.shown(results).splitlines()
    ]
    assert rows[0] == ["objective", "1 thread, 1 process", "2 threads, 1 process"]
    assert ["mpm", "same bits", "same bits in 1 of 2, 1e-03"] in rows
    assert ["generator", "not measured", "not measured"] in rows


@pytest.mark.parametrize("differs", [False, True])
def test_a_cell_is_three_runs(tmp_path, monkeypatch, differs):
    """One of them killed; what is done is not done again."""
    runs = []

    def train(data, out, cell, killed):
        runs.append(killed)
        last = out / "checkpoints" / f"step-{reproducibility.STEPS:08d}"
        last.mkdir(parents=True)
        digest = str(killed and differs)
        (last / "MANIFEST.json").write_text(json.dumps({"sha256": {"state.pt": digest}}))
        (out / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "loss": 2.0}\n')

    monkeypatch.setattr(reproducibility, "train", train)
    monkeypatch.setattr(reproducibility, "describe", lambda threads: {})
    monkeypatch.setattr(reproducibility.subprocess, "run", lambda *_, **__: None)
    path = tmp_path / "results.json"
    only = ["--objectives", "mpm", "--threads", "1", "--processes", "1", "--batches", "16"]
    monkeypatch.setattr(sys, "argv", ["bench/reproducibility.py", *only, "--json", str(path)])
    for _ in range(2):
        reproducibility.main()
        assert runs == [False, False, True]
        assert [r["same"] for r in json.loads(path.read_text())["results"]] == [not differs]
