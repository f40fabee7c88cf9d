"""Storage that fails, or a kill, at any call: one line, nothing left over, and the same bytes."""

import json
import sys
from pathlib import Path

import pytest
import torch
from drivers import PRETRAIN, flags

sys.path.insert(0, str(Path(__file__).parents[1]))
from faults import FAULTS, Faults, Killed, cases, inject

from jetkern.cli import evaluate, pretrain

TINY = {
    "objective": "classifier", "steps": 4, "val_every": 2, "val_jets": 16, "save_every": 1,
    "batch_size": 8, "warmup_steps": 0, "prefetch": 0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _threads(monkeypatch):
    monkeypatch.delenv("JETKERN_DEBUG", raising=False)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def digests(run):
    """What the training made: the states of its checkpoints, and how it ended."""
    states = {
        p.parent.name: json.loads(p.read_text())["sha256"] for p in run.rglob("MANIFEST.json")
    }
    return states, json.loads((run / "DONE").read_text())


def hidden(folder):
    return list(folder.rglob(".*"))


def once(command, arguments, faults, capsys):
    """The exit code, None if it counts as killed; checks that an error is one line."""
    try:
        with inject(faults):
            code = command.main(arguments)
    except Killed:
        return None
    error = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(error) == (code != 0)
    return code


def test_pretraining(jetclass, tmp_path, capsys):
    def arguments(out):
        return flags(PRETRAIN, data=jetclass, out=out, **TINY)

    counted = Faults(tmp_path / "expected")
    assert once(pretrain, arguments(tmp_path / "expected"), counted, capsys) == 0
    expected = digests(tmp_path / "expected")
    failed = 0
    for number, (kind, call, fault) in enumerate(cases(counted.calls, 10)):
        out = tmp_path / str(number)
        faults = Faults(out, kind, call, FAULTS[fault])
        code = once(pretrain, arguments(out), faults, capsys)
        failed += code != 0
        if code is not None:
            assert not hidden(out), (kind, call, fault)
        assert pretrain.main(arguments(out)) == 0, (kind, call, fault, capsys.readouterr().err)
        assert digests(out) == expected, (kind, call, fault)
        assert not hidden(out), (kind, call, fault)
    assert failed > 12


def test_evaluation(jetclass, tmp_path, capsys):
    run = tmp_path / "run"
    assert pretrain.main(flags(PRETRAIN, data=jetclass, out=run, **TINY)) == 0

    def arguments(out):
        more = ["--split", "val", "--bootstrap", "2", "--num-jets", "64", "--threads", "1"]
        return [str(run), "--data", str(jetclass), "--out", str(out), *more]

    counted = Faults(tmp_path / "expected")
    assert once(evaluate, arguments(tmp_path / "expected"), counted, capsys) == 0
    expected = {p.name: p.read_bytes() for p in (tmp_path / "expected").iterdir()}
    for number, (kind, call, fault) in enumerate(cases(counted.calls, 4)):
        out = tmp_path / str(number)
        code = once(evaluate, arguments(out), Faults(out, kind, call, FAULTS[fault]), capsys)
        if code is not None and out.exists():
            assert not hidden(out), (kind, call, fault)
        assert evaluate.main(arguments(out)) == 0
        assert {p.name: p.read_bytes() for p in out.iterdir()} == expected, (kind, call, fault)
