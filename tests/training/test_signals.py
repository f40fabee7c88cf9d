"""Signals as Slurm and torchrun send them: a checkpoint every time, and nothing left running."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from drivers import PRETRAIN, flags, start

from jetkern.cli import pretrain
from jetkern.training import signals
from jetkern.training.signals import StopSignal
from jetkern.training.trainer import Trainer
from tests.factories import write_toy_shards


def processes_of(pid):
    """A process and all below it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(p for child in children for p in processes_of(int(child)))]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["all at once", "validation", "launcher is killed"])
def test_below_torchrun(what, tmp_path):
    for split, jets in (("train", 256), ("val", 2048)):
        write_toy_shards(tmp_path / split, ("QCD", "top"), jets=jets)
    out = tmp_path / "run"
    more = {"steps": 100_000, "save_every": 100_000, "val_every": 100_000, "save_minutes": 1000}
    if what == "validation":
        more |= {"val_every": 1, "val_jets": 2048, "micro_batch": 1}
    command = flags(PRETRAIN, data=tmp_path, out=out, **more | {"objective": "classifier"})
    process = start("pretrain", *command, processes=2)
    log = out / "metrics.jsonl"
    wait_for(lambda: process.poll() is not None or (log.exists() and log.read_text()))
    everything = processes_of(process.pid)
    assert len(everything) == 3
    if what == "launcher is killed":
        process.kill()
    else:
        time.sleep(0.3 if what == "validation" else 0.0)
        for pid in reversed(everything):  # as Slurm does; the launcher then passes it on
            os.kill(pid, signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=60)
    wait_for(lambda: not any(map(alive, everything)), 30)
    assert "stopped by a signal" in stdout, stderr
    assert len(list((out / "checkpoints").glob("step-*"))) == 1


def test_a_signal_that_the_launcher_repeats_is_no_second_one(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    ended = []
    monkeypatch.setattr(signals.signal, "raise_signal", ended.append)
    clock = iter([0.0, 0.1, 4.9, 5.1])
    monkeypatch.setattr(signals.time, "monotonic", lambda: next(clock))
    stop = StopSignal()
    try:
        with stop:
            for number, count in ((signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGTERM, 0)):
                os.kill(os.getpid(), number)
                assert stop.requested
                assert len(ended) == count
            os.kill(os.getpid(), signal.SIGTERM)
            assert ended == [signal.SIGTERM]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("broken", [1, 2])
def test_a_validation_that_was_broken_off_is_made_up_for(jetclass, tmp_path, monkeypatch, broken):
    """Also the last one, after the last update."""
    small = {"objective": "classifier", "steps": 4, "val_every": 2, "batch_size": 8}

    def run(out):
        threads = torch.get_num_threads()
        more = flags(PRETRAIN, data=jetclass, out=out, warmup_steps=0, save_every=9, **small)
        try:
            assert pretrain.main(more) == 0
        finally:
            torch.set_num_threads(threads)
        manifests = (out / "checkpoints").glob("*/MANIFEST.json")
        return {p.parent.name: json.loads(p.read_text())["sha256"] for p in manifests}

    expected = run(tmp_path / "expected")
    validate, calls = Trainer.validate, []

    def interrupted(self):
        calls.append(self.step)
        if len(calls) == broken:
            self.stop.requested = True
        return validate(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "validate", interrupted)
        stopped = run(tmp_path / "run")
    assert f"step-{2 * broken:08d}" in stopped
    assert not (tmp_path / "run" / "DONE").exists()
    found = run(tmp_path / "run")
    assert {k: v for k, v in found.items() if k in expected} == expected
    done = [json.loads((tmp_path / r / "DONE").read_text()) for r in ("run", "expected")]
    assert done[0] == done[1]
