"""Storage that fails, or a kill, at any call: one line, nothing left over, and the same bytes."""

import json

import pytest
import torch
from drivers import FINETUNE, PRETRAIN, flags

from jetkern.cli import evaluate, finetune, generate, pretrain, tokenize
from jetkern.evaluation import generate as generation
from tests.factories import write_jetnet_shards
from tests.faults import FAULTS, Faults, Killed, cases, inject

TINY = {
    "steps": 4, "val_every": 2, "val_jets": 16, "save_every": 1, "batch_size": 8,
    "warmup_steps": 0, "prefetch": 0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _threads(monkeypatch):
    monkeypatch.delenv("JETKERN_DEBUG", raising=False)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def digests(run):
    """What a training made: the states of its checkpoints, and how it ended."""
    states = {
        p.parent.name: json.loads(p.read_text())["sha256"] for p in run.rglob("MANIFEST.json")
    }
    reports = [p for p in (run / "report.json", run / "table.md") if p.exists()]
    return states, json.loads((run / "DONE").read_text()), [p.read_bytes() for p in reports]


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def hidden(folder):
    return list(folder.rglob(".*"))


def once(command, arguments, faults, capsys):
    """The exit code, None if it counts as killed; checks that an error is one line."""
    capsys.readouterr()
    try:
        with inject(faults):
            code = command.main(arguments)
    except Killed:
        return None
    error = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(error) == (code != 0), error
    return code


def same_after_faults(command, arguments, result, tmp_path, capsys, number, every=1):
    """A run without a fault, and one for each of a sample of faults, which is then run again."""
    whole = tmp_path / "expected"
    counted = Faults(whole)
    assert once(command, arguments(whole), counted, capsys) == 0
    expected = result(whole)
    failed = 0
    for case, (kind, call, fault) in enumerate(cases(counted.calls, number)[::every]):
        out = tmp_path / str(case)
        faults = Faults(out, kind, call, FAULTS[fault])
        code = once(command, arguments(out), faults, capsys)
        failed += code != 0
        if code is not None and out.exists():
            assert not hidden(out), (kind, call, fault)
        assert command.main(arguments(out)) == 0, (kind, call, fault, capsys.readouterr().err)
        assert result(out) == expected, (kind, call, fault)
        assert not hidden(out), (kind, call, fault)
    assert failed > 0.6 * (case + 1)  # what only tidies up may fail without a word


@pytest.mark.slow
def test_pretraining(jetclass, tmp_path, capsys):
    def arguments(out):
        return flags(PRETRAIN, data=jetclass, out=out, **TINY, objective="classifier")

    same_after_faults(pretrain, arguments, digests, tmp_path, capsys, 4)


def test_fine_tuning(jetclass, toptag, tmp_path, capsys):
    run = tmp_path / "run"
    tiny = TINY | {"steps": 2}
    assert pretrain.main(flags(PRETRAIN, data=jetclass, out=run, **tiny)) == 0

    def arguments(out):
        return ["top", *flags(FINETUNE, "--from", run, data=toptag, out=out, **tiny)]

    # The loop is that of pre-training: a few are enough.
    same_after_faults(finetune, arguments, digests, tmp_path, capsys, 2, every=3)


def test_tokenizing(jetclass, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("jetkern.training.tokenize.SAVE_SECONDS", 0.0)

    def arguments(out):
        small = ["--codes", "8", "--steps", "3", "--batch-size", "64", "--report-jets", "32"]
        return ["kmeans", "--data", str(jetclass), "--out", str(out), *small]

    same_after_faults(tokenize, arguments, digests, tmp_path, capsys, 6)


def test_generation(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(generation, "PART", 3)
    shards = write_jetnet_shards(tmp_path / "test", [3, 1, 5, 2, 4])
    data = tmp_path / "data"
    for split in ("train", "val"):
        write_jetnet_shards(data / split, [3, 2, 1, 4, 5, 2, 3, 4] * 2)
    tiny = TINY | {"steps": 1, "val_every": 1}
    run = tmp_path / "run"
    assert finetune.main(["jetnet", *flags(FINETUNE, data=data, out=run, **tiny)]) == 0

    def arguments(out):
        small = ["--solver", "euler", "--evaluations", "1", "--batch-size", "8"]
        return [str(run), "--conditions", str(shards), "--out", str(out), *small]

    same_after_faults(generate, arguments, contents, tmp_path, capsys, 6)


@pytest.mark.slow
def test_evaluation(jetclass, tmp_path, capsys):
    run = tmp_path / "run"
    assert pretrain.main(flags(PRETRAIN, data=jetclass, out=run, **TINY)) == 0

    def arguments(out):
        more = ["--split", "val", "--bootstrap", "2", "--num-jets", "64", "--threads", "1"]
        return [str(run), "--data", str(jetclass), "--out", str(out), *more]

    same_after_faults(evaluate, arguments, contents, tmp_path, capsys, 2, every=2)
