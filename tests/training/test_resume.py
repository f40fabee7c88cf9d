"""Killed, stopped and split over processes, a training is the same training."""

import json
import time
from pathlib import Path

import pytest
import torch
from drivers import PRETRAIN, drive, flags, start

from jetkern.training.log import read_metrics

FINAL = "checkpoints/step-00000024"


@pytest.fixture(scope="module")
def uninterrupted(jetclass, tmp_path_factory):
    """A run to its end that nothing disturbed."""
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    code, stdout, stderr = drive("pretrain", *flags(PRETRAIN, data=jetclass, out=out))
    assert code == 0, stderr
    assert "all steps done, step 24" in stdout
    return out


def digest(run: Path, checkpoint: str = FINAL) -> str:
    return json.loads((run / checkpoint / "MANIFEST.json").read_text())["sha256"]["state.pt"]


def wait_for_step(run: Path, process, step: int) -> None:
    """Waits until the run has logged a step, but is not at its end."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        path = run / "metrics.jsonl"
        if path.exists() and any(r["step"] >= step for r in read_metrics(path)):
            return
        time.sleep(0.005)
    raise AssertionError(f"the run ended before step {step}: {process.communicate()}")


def test_a_killed_run_continues_to_the_same_bits(jetclass, uninterrupted, tmp_path):
    out = tmp_path / "run"
    command = flags(PRETRAIN, data=jetclass, out=out)
    for step in (1, 13):
        process = start("pretrain", *command)
        wait_for_step(out, process, step)
        process.kill()
        process.wait()
        assert not (out / "DONE").exists(), "killed too late to show anything"
    code, _, stderr = drive("pretrain", *command)
    assert code == 0, stderr
    assert digest(out) == digest(uninterrupted)
    best = sorted(p.name for p in (uninterrupted / "checkpoints").glob("best-*"))
    assert sorted(p.name for p in (out / "checkpoints").glob("best-*")) == best
    assert digest(out, f"checkpoints/{best[0]}") == digest(uninterrupted, f"checkpoints/{best[0]}")
    losses = [
        [(r["kind"], r["step"], r["loss"]) for r in read_metrics(run / "metrics.jsonl")]
        for run in (out, uninterrupted)
    ]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_a_signal_saves_and_ends_with_code_0(jetclass, uninterrupted, tmp_path):
    out = tmp_path / "run"
    command = flags(PRETRAIN, data=jetclass, out=out, save_every=1000)
    process = start("pretrain", *command)
    wait_for_step(out, process, 2)
    process.terminate()
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "stopped by a signal" in stdout
    assert not (out / "DONE").exists()
    saved = sorted(p.name for p in (out / "checkpoints").glob("step-*"))
    assert saved
    code, stdout, stderr = drive("pretrain", *command)
    assert code == 0, stderr
    assert f"from step {int(saved[-1][5:])}" in stdout
    assert digest(out) == digest(uninterrupted)


@pytest.mark.slow
def test_two_processes_train_as_one(jetclass, uninterrupted, tmp_path):
    out = tmp_path / "run"
    command = flags(PRETRAIN, data=jetclass, out=out, save_every=1000, micro_batch=8)
    process = start("pretrain", *command, processes=2)
    wait_for_step(out, process, 3)
    process.terminate()  # torchrun passes it on; both processes must stop after the same step
    stdout, stderr = process.communicate(timeout=60)
    assert "stopped by a signal" in stdout, stderr
    code, stdout, stderr = drive("pretrain", *command, processes=2)
    assert code == 0, stderr
    assert "2 x cpu, 2 passes of 8" in stdout
    one, two = (read_metrics(run / "metrics.jsonl") for run in (uninterrupted, out))
    assert [(r["kind"], r["step"]) for r in one] == [(r["kind"], r["step"]) for r in two]
    assert sum(r["kind"] == "train" for r in one) == 24
    for a, b in zip(one, two, strict=True):
        names = [n for n in a if n.startswith(("loss", "classifier", "generator", "mpm"))]
        # There also mpm_trivial and the generator's four features.
        assert len(names) == (11 if a["kind"] == "validation" else 6)
        for name in names:
            assert b[name] == pytest.approx(a[name], rel=2e-5), (a["kind"], a["step"], name)
    positions = [
        torch.load(run / FINAL / "state.pt", weights_only=True)["stream"]
        for run in (uninterrupted, out)
    ]
    assert positions[0] == positions[1]
    assert positions[0]["position"] == 24 * 32


@pytest.mark.slow
def test_an_error_of_the_run_folder_reaches_every_process(jetclass, uninterrupted):
    command = flags(PRETRAIN, data=jetclass, out=uninterrupted, lr="2e-3")
    code, _, stderr = drive("pretrain", *command, processes=2)
    assert code != 0
    assert "was started with other settings (lr: 0.001 -> 0.002)" in stderr
    assert "Traceback" not in stderr.split("ChildFailedError")[0].split("elastic")[0]
