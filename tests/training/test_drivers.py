"""The drivers as a user runs them: pre-train, fine-tune, evaluate; and what goes wrong."""

import json
import os
import runpy
import shutil
import sys

import pytest
import torch
from drivers import FINETUNE, PRETRAIN, ROOT, flags
from sklearn.metrics import accuracy_score, roc_auc_score

from jetkern.data import Shards
from jetkern.evaluation import load_classifier, predict
from jetkern.training.log import read_metrics
from jetkern.training.weights import load_weights


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a driver in this process: (exit code, stdout, stderr)."""
    monkeypatch.delenv("JETKERN_DEBUG", raising=False)
    threads = torch.get_num_threads()

    def go(script, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / "train" / f"{script}.py"), run_name="__main__")
        return end.value.code, *capsys.readouterr()

    yield go
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pretrained(jetclass, tmp_path_factory):
    """A short classifier and masked-particle pre-training."""
    out = tmp_path_factory.mktemp("pretrained") / "run"
    argv, sys.argv = sys.argv, ["pretrain.py"]
    sys.argv += flags(PRETRAIN, data=jetclass, out=out, objective="classifier+mpm", steps=8)
    try:
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / "train" / "pretrain.py"), run_name="__main__")
    finally:
        sys.argv = argv
    assert end.value.code == 0
    return out


def test_fine_tuning_takes_the_checkpoint_but_for_the_last_layer(run, pretrained, toptag, tmp_path):
    out = tmp_path / "run"
    more = {"data": toptag, "out": out, "num_jets": 100, "steps": 1, "warmup_steps": 0}
    command = ["top", "--from", pretrained, *flags(FINETUNE, **more, lr=1e-9, weight_decay=0)]
    code, stdout, stderr = run("finetune", *command)
    assert code == 0, stderr
    rows = {tuple(line.split()[::3]) for line in stdout.splitlines() if line.startswith("c")}
    assert {("classifier.out", "new"), ("classifier.fc", "loaded")} <= rows
    assert "100 jets" in stdout
    before, after = load_weights(pretrained).state, load_weights(out)
    assert after.config["num_classes"] == 2
    assert (after.config["use_pid"], after.config["parts"]) == (False, ["classifier"])
    for name, value in after.state.items():
        if not name.startswith("classifier.out"):
            torch.testing.assert_close(value, before[name], rtol=0, atol=1e-8)
    code, stdout, _ = run("finetune", *command)
    assert code == 0
    assert "is finished" in stdout


def test_new_layers_learn_faster(run, pretrained, toptag, tmp_path):
    more = {"data": toptag, "steps": 1, "warmup_steps": 0, "weight_decay": 0, "lr": 1e-6}
    moved = []
    for factor in (1, 8):
        out = tmp_path / str(factor)
        command = flags(FINETUNE, **more, out=out, lr_factor=factor)
        code, _, stderr = run("finetune", "top", "--from", pretrained, *command)
        assert code == 0, stderr
        moved.append(load_weights(out).state)
    # Lion's first step is lr times the sign of the gradient.
    body = (moved[0]["body.tokens"] - moved[1]["body.tokens"]).abs().max()
    head = (moved[0]["classifier.out.weight"] - moved[1]["classifier.out.weight"]).abs()
    assert body == 0
    torch.testing.assert_close(head, torch.full_like(head, 7e-6), rtol=0, atol=1e-7)


def test_from_scratch_and_evaluate(run, pretrained, toptag, tmp_path):
    scratch, tuned = tmp_path / "scratch", tmp_path / "tuned"
    command = flags(FINETUNE, data=toptag, steps=16)
    code, _, stderr = run("finetune", "top", "--preset", "micro", "--out", scratch, *command)
    assert code == 0, stderr
    code, _, stderr = run("finetune", "top", "--from", pretrained, "--out", tuned, *command)
    assert code == 0, stderr
    out = tmp_path / "result"
    code, stdout, stderr = run("evaluate", scratch, tuned, "--data", toptag, "--out", out)
    assert code == 0, stderr
    table = (out / "table.md").read_text()
    assert table.strip() in stdout
    assert "| AUC" in table.splitlines()[0]
    for picture in ("roc.png", "training.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")
    record = json.loads((out / "report.json").read_text())
    assert record["jets"] == 512
    logits, labels = predict(load_classifier(scratch), Shards(toptag / "test"), batch_size=100)
    odds = logits[:, 1] - logits[:, 0]
    found = record["models"]["scratch"]
    assert found["auc"]["value"] == pytest.approx(roc_auc_score(labels, odds), abs=1e-6)
    assert found["accuracy"]["value"] == pytest.approx(accuracy_score(labels, odds > 0), abs=2e-3)
    assert found["auc"]["value"] > 0.7
    assert found["path"] == str(scratch)
    assert found["rejection_30"]["total"] == (labels == 0).sum()


def test_evaluation_of_several_classes(run, pretrained, jetclass, tmp_path):
    out = tmp_path / "result"
    command = [pretrained, "--data", jetclass, "--split", "val", "--out", out, "--num-jets", 200]
    code, stdout, stderr = run("evaluate", *command, "--bootstrap", 10)
    assert code == 0, stderr
    assert "200 jets of" in stdout
    assert "macro AUC" in stdout
    assert ": Hbb" in stdout
    assert (out / "roc-run.png").exists()


def test_scores_do_not_depend_on_the_batches(pretrained, jetclass):
    model = load_classifier(pretrained)
    shards = Shards(jetclass / "val")
    some, _ = predict(model, shards, batch_size=33)
    other, _ = predict(model, shards, batch_size=256)
    torch.testing.assert_close(torch.tensor(some), torch.tensor(other), rtol=1e-5, atol=1e-5)


def one_line(stderr):
    lines = stderr.strip().splitlines()
    assert len(lines) == 1, stderr
    return lines[0]


def test_a_checkpoint_of_another_size_is_refused(run, pretrained, toptag, tmp_path):
    command = flags(FINETUNE, data=toptag, out=tmp_path / "run", preset="small")
    code, _, stderr = run("finetune", "top", "--from", pretrained, *command)
    assert code == 1
    assert "the checkpoint is of another model" in one_line(stderr)
    assert "instead of" in stderr
    assert not (tmp_path / "run").exists()


def test_a_damaged_checkpoint_is_refused(run, pretrained, toptag, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(pretrained, copy)
    state = next((copy / "checkpoints").glob("best-*")) / "state.pt"
    content = bytearray(state.read_bytes())
    content[1000] ^= 1
    state.write_bytes(content)
    command = flags(FINETUNE, data=toptag, out=tmp_path / "run")
    code, _, stderr = run("finetune", "top", "--from", copy, *command)
    assert code == 1
    assert "state.pt does not have the checksum" in one_line(stderr)


def test_a_shard_with_a_flipped_byte_stops_the_training(run, jetclass, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(jetclass, data)
    shard = data / "train" / "shard-00000.tar"
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 16
    shard.write_bytes(content)
    command = flags(PRETRAIN, data=data, out=tmp_path / "run", objective="classifier")
    code, _, stderr = run("pretrain", *command)
    assert code == 1
    assert "shard-00000.tar is damaged" in one_line(stderr)


@pytest.mark.parametrize(
    ("script", "arguments", "code", "message"),
    [
        ("pretrain", ["--data", "{absent}", "--out", "{out}"], 1, "manifest"),
        ("pretrain", ["--data", "{data}", "--out", "{data}"], 1, "not empty and not a run"),
        ("pretrain", ["--data", "{data}", "--out", "{out}", "--objective", "x"], 1, "unknown obje"),
        ("pretrain", ["--data", "{data}", "--out", "{out}", "--stepz", "3"], 2, "--stepz"),
        ("pretrain", ["--data", "{data}", "--out", "{out}", "--device", "cuda:99"], 1, "cuda:99"),
        ("finetune", ["bottom"], 2, "unknown task 'bottom'"),
        ("finetune", ["top", "--data", "{data}", "--out", "{out}"], 1, "--num-classes is 2"),
        (
            "finetune",
            ["top", "--from", "{absent}", "--data", "{data}", "--out", "{out}"],
            1,
            "neither a run with checkpoints nor a checkpoint",
        ),
        (
            "evaluate",
            ["{absent}", "--data", "{data}", "--split", "val", "--out", "{out}"],
            1,
            "run",
        ),
        ("evaluate", ["--data", "{data}", "--out", "{out}"], 2, "arguments are required: RUNS"),
        ("evaluate", ["x", "--data", "{data}", "--out", "{out}", "--bootstrap", "0"], 2, "bootst"),
    ],
)
def test_what_is_wrong_is_said(run, jetclass, tmp_path, script, arguments, code, message):
    names = {"absent": tmp_path / "absent", "data": jetclass, "out": tmp_path / "out"}
    found, _, stderr = run(script, *(a.format(**names) for a in arguments))
    assert found == code
    assert message in stderr
    assert "Traceback" not in stderr
    if code == 1:
        one_line(stderr)


@pytest.mark.parametrize("script", ["pretrain", "finetune", "evaluate"])
def test_help(run, script):
    code, stdout, _ = run(script, "--help")
    assert code == 0
    assert "--data" in stdout


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(run, jetclass, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    command = flags(PRETRAIN, data=jetclass, out=tmp_path / "locked" / "run")
    code, _, stderr = run("pretrain", *command)
    assert code == 1
    assert "Permission denied" in one_line(stderr)


def test_settings_file_of_a_run_repeats_it(run, pretrained, tmp_path):
    out = tmp_path / "run"
    code, _, stderr = run("pretrain", "--config", pretrained / "config.json", "--out", out)
    assert code == 0, stderr
    first, second = (read_metrics(r / "metrics.jsonl") for r in (pretrained, out))
    assert [r["loss"] for r in first] == [r["loss"] for r in second]
