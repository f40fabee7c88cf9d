"""Run folders: whole checkpoints or none, one clear error for anything else."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn

from jetkern import io
from jetkern.training import checkpoints as runs
from jetkern.training.checkpoints import RunError, read_checkpoint
from jetkern.training.runs import Run
from jetkern.training.signals import StopSignal
from jetkern.training.weights import load_matching, load_weights

IDENTITY = {"lr": 0.1, "model.dim": 32, "betas": (0.9, 0.99)}


def state(step, value=None):
    return {
        "step": step,
        "model": {"w": torch.full((3,), float(step if value is None else value))},
        "model_config": {"dim": 32},
    }


@pytest.fixture
def messages():
    return []


@pytest.fixture
def run(tmp_path, messages):
    run = Run(tmp_path / "run", keep_last=2, say=messages.append)
    run.open({"out": tmp_path}, IDENTITY)
    yield run
    run.close()


def reopen(run, **changes):
    run.close()
    again = Run(run.path, keep_last=2, say=run._say)
    again.open({}, IDENTITY | changes.pop("identity", {}), **changes)
    return again


def test_keeps_the_newest_checkpoints_and_returns_the_last(run):
    assert run.load_latest() is None
    for step in (5, 10, 100_000_000):
        run.save(step, state(step), {"loss": 1.0})
    names = [p.name for p in runs.checkpoint_folders(run.path, "step")]
    assert names == ["step-00000010", "step-100000000"]
    assert torch.equal(run.load_latest()["model"]["w"], torch.full((3,), 1e8))


def test_saving_a_step_again_replaces_it(run):
    run.save(5, state(5), {})
    run.save(5, state(5, value=-1), {})
    assert run.load_latest()["model"]["w"][0] == -1


@pytest.mark.parametrize("name", ["state.pt", "MANIFEST.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "remove"])
def test_damage_is_found_and_the_one_before_is_used(run, messages, name, damage):
    run.save(5, state(5), {})
    path = run.save(10, state(10), {}) / name
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        # In the manifest a flipped bit must hit what is read: the first digit of the checksum.
        place = content.index(b"state.pt") + 12 if name == "MANIFEST.json" else len(content) // 2
        content[place] ^= 4
        cut = {"flip": content, "cut": content[: len(content) // 3], "empty": b""}[damage]
        path.write_bytes(cut)
    assert run.load_latest()["step"] == 5
    assert len(messages) == 1
    assert "step-00000010" in messages[0]
    (run.path / "checkpoints" / "step-00000005" / "state.pt").write_bytes(b"")
    with pytest.raises(RunError, match="no usable checkpoint"):
        run.load_latest()


def test_every_single_byte_flip_is_found(run):
    folder = run.save(1, {"w": torch.zeros(2)}, {})
    good = (folder / "state.pt").read_bytes()
    for place in range(0, len(good), 7):
        bad = bytearray(good)
        bad[place] ^= 1
        (folder / "state.pt").write_bytes(bad)
        with pytest.raises(RunError, match="damaged"):
            read_checkpoint(folder)


def test_a_full_disk_leaves_the_checkpoint_before(run, monkeypatch):
    run.save(5, state(5), {})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(io, "sync", full)
    with pytest.raises(OSError, match="No space"):
        run.save(10, state(10), {})
    monkeypatch.undo()
    assert [p.name for p in run.checkpoints.iterdir()] == ["step-00000005"]
    assert run.load_latest()["step"] == 5


def test_leftovers_of_a_killed_save_are_removed(run):
    (run.checkpoints / ".step-00000007-123").mkdir()
    again = reopen(run)
    assert not list(again.checkpoints.iterdir())
    again.close()


def test_best_checkpoint_is_what_is_loaded(run):
    run.save_best(5, state(5), {})
    run.save_best(8, state(8), {})
    run.drop_other_bests(8)
    run.save(10, state(10), {})
    weights = load_weights(run.path)
    assert (weights.step, weights.config, weights.path.name) == (8, {"dim": 32}, "best-00000008")
    assert load_weights(run.checkpoints / "step-00000010").step == 10
    assert len(runs.checkpoint_folders(run.path, "best")) == 1


def test_averaged_weights_are_preferred(run):
    run.save(3, state(3) | {"average": {"w": torch.full((3,), 0.5)}}, {})
    assert load_weights(run.path).state["w"][0] == 0.5


def test_equal_states_are_equal_files(run):
    def save(step, value):
        return (run.save(step, value, {}) / "state.pt").read_bytes()

    shared = (0.9, 0.99)
    fresh = {"groups": [{"betas": shared}, {"betas": shared}], "name": "lr", "other": "lr"}
    first = save(1, fresh)
    assert save(2, read_checkpoint(run.checkpoints / "step-00000001")) == first


def test_what_could_not_be_read_back_is_not_saved(run):
    with pytest.raises(TypeError, match="not float64"):
        run.save(1, {"loss": np.float64(1.0)}, {})
    assert not list(run.checkpoints.iterdir())


def test_nothing_to_load(tmp_path):
    with pytest.raises(RunError, match="neither a run with checkpoints nor a checkpoint"):
        load_weights(tmp_path / "absent")


def test_code_in_a_checkpoint_is_not_run(run, tmp_path):
    class Attack:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "owned"),))

    torch.save({"w": Attack()}, tmp_path / "attack.pt")
    with pytest.raises(RunError, match="read safely"):
        runs.read_tensors(tmp_path / "attack.pt")
    assert not (tmp_path / "owned").exists()
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(RunError, match="holds a list"):
        runs.read_tensors(tmp_path / "list.pt")


def test_other_settings_are_refused_by_name(run, messages):
    with pytest.raises(RunError, match=r"lr: 0\.1 -> 0\.2; model\.dim: 32 -> 128") as caught:
        reopen(run, identity={"lr": 0.2, "model.dim": 128})
    assert "betas" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_setting_that_came_later_and_is_off_is_no_other_setting(run, messages):
    reopen(run, identity={"model.label_drop": 0.0, "model.later": ()}).close()
    with pytest.raises(RunError, match=r"model\.label_drop: None -> 0\.1"):
        reopen(run, identity={"model.label_drop": 0.1})


def test_other_settings_can_be_allowed(run, messages):
    again = reopen(run, identity={"lr": 0.2}, allow_mismatch=True)
    assert messages == ["continuing with changed settings: lr: 0.1 -> 0.2"]
    assert json.loads((again.path / "config.json").read_text())["identity"]["lr"] == 0.2
    again.close()


def test_config_records_settings_and_versions(run, tmp_path):
    record = json.loads((run.path / "config.json").read_text())
    assert record["settings"] == {"out": str(tmp_path)}
    assert record["environment"]["torch"] == torch.__version__


def test_damaged_config(run):
    (run.path / "config.json").write_text("{")
    with pytest.raises(RunError, match=r"config\.json is damaged"):
        reopen(run)


def test_foreign_folders_are_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match=r"not empty and not a run \(thesis\.tex\)"):
        Run(tmp_path)
    with pytest.raises(RunError, match="not a folder"):
        Run(tmp_path / "thesis.tex")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_two_processes_do_not_share_a_run(run):
    with pytest.raises(RunError, match="in use"):
        Run(run.path)


def test_finish(run):
    assert run.done is None
    run.finish(reason="all steps done", step=10)
    assert run.done == {"reason": "all steps done", "step": 10}


def test_load_matching_reports_what_happened():
    source = nn.ModuleDict({"body": nn.Linear(2, 3), "out": nn.Linear(3, 10), "gen": nn.ReLU()})
    source["gen"] = nn.Linear(1, 1)
    target = nn.ModuleDict({"body": nn.Linear(2, 3), "out": nn.Linear(3, 2)})
    before = target["out"].weight.clone()
    report = load_matching(target, source.state_dict(), reset=("out",))
    assert torch.equal(target["body"].weight, source["body"].weight)
    assert torch.equal(target["out"].weight, before)
    assert set(report.new) == {"out.weight", "out.bias"}
    assert set(report.unused) == {"gen.weight", "gen.bias", "out.weight", "out.bias"}
    lines = [line.split() for line in str(report).splitlines()[1:]]
    assert ["body.weight", "1", "6", "loaded"] in lines
    assert ["out.bias", "1", "2", "new"] in lines


def test_load_matching_refuses_another_model_without_changing_it():
    target = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    other = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 5))
    before = target[0].weight.clone()
    with pytest.raises(RunError, match=r"2 of 4 .* 1\.weight with \(5, 3\) instead of \(2, 3\)"):
        load_matching(target, other.state_dict())
    assert torch.equal(target[0].weight, before)
    with pytest.raises(RunError, match="no parameter of this model"):
        load_matching(target, {"x": torch.ones(1)})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_first_signal_is_remembered(number):
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested
        assert signal.getsignal(number) == signal.SIG_DFL
    assert signal.getsignal(number) == before


def test_second_signal_ends_the_process():
    code = (
        "import time; from jetkern.training.signals import StopSignal\n"
        "with StopSignal() as s:\n"
        "    print('ready', flush=True)\n"
        "    while not s.requested: time.sleep(0.01)\n"
        "    print('again', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.stdout.readline() == "again\n"
    time.sleep(0.05)
    process.terminate()
    assert process.wait(timeout=30) == -signal.SIGTERM
