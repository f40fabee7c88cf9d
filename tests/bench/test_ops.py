import json
import sys
from pathlib import Path

import pytest
import torch

from bench import ops as bench_ops


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(bench_ops, "describe", lambda threads: {"threads": threads})
    monkeypatch.setattr(bench_ops, "PARTICLES", {"cpu": {"micro": 60}})
    common = ["--sizes", "micro", "--lengths", "10", "--repeats", "1", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["bench.ops", *common, "--no-compile", *arguments])
    bench_ops.main()


def test_every_op_is_timed_beside_its_reference(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.use_deterministic_algorithms(False)
    run(monkeypatch, "--json", str(tmp_path / "results" / "ops.json"))
    document = json.loads((tmp_path / "results" / "ops.json").read_text(encoding="utf-8"))
    assert [r["op"] for r in document["results"]] == list(bench_ops.OPS)
    assert document["machine"] == {"threads": 1}
    for result in document["results"]:
        assert result["jets"] == 6
        padded = {"sdpa", "sdpa 128"} if result["op"] == "causal_attention" else set()
        assert set(result["seconds"]) == {"ours", "eager"} | padded
        assert all(t > 0 for t in result["seconds"]["ours"].values())
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(bench_ops.OPS)


def test_what_was_measured_before_it_was_stopped_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measure = bench_ops.measure

    def stopped(op, *arguments):
        if op == "mlp":
            raise KeyboardInterrupt
        return measure(op, *arguments)

    monkeypatch.setattr(bench_ops, "measure", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, "--ops", "knn", "mlp", "--json", str(tmp_path / "ops.json"))
    document = json.loads((tmp_path / "ops.json").read_text(encoding="utf-8"))
    assert [r["op"] for r in document["results"]] == ["knn"]


def test_an_op_that_is_wrong_is_not_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = bench_ops.make

    def broken(*arguments):
        case = made(*arguments)
        off = 1 + 1e-4
        return case._replace(
            run=lambda m, t, b, p: case.run(m, t, b, p) * (off if b == "cpu" else 1.0)
        )

    monkeypatch.setattr(bench_ops, "make", broken)
    with pytest.raises(
        SystemExit, match=r"not reported, wrong:\nmlp micro n = 10 \(cpu\): output 0"
    ):
        run(monkeypatch, "--ops", "mlp")
    assert "| mlp" not in capsys.readouterr().out
