"""The training loop in this process, on models small enough to be quick."""

import dataclasses
import json
import math

import pytest
import torch

from jetkern.data import Shards, Stream
from jetkern.model.config import PETConfig
from jetkern.model.pet import PET
from jetkern.objectives import Objective, parse_objective
from jetkern.training.checkpoints import RunError, read_checkpoint
from jetkern.training.config import OptimSettings, RunSettings, TrainSettings, ValidationSettings
from jetkern.training.distributed import World, join_world
from jetkern.training.log import read_metrics
from jetkern.training.schedule import lr_at
from jetkern.training.trainer import MAX_SKIPPED, Trainer, TrainingError, open_splits
from jetkern.training.weights import load_weights
from tests.factories import write_toy_shards

ALONE = World(0, 1, torch.device("cpu"))


def settings(data, out, **changes):
    sections = {
        "optim": OptimSettings(batch_size=16, steps=6, lr=1e-3),
        "validation": ValidationSettings(val_every=3, val_jets=64),
        "run": RunSettings(log_every=1, save_every=2, prefetch=0),
    }
    for name, section in sections.items():
        own = {f.name for f in dataclasses.fields(section)}
        chosen = {k: changes.pop(k) for k in list(changes) if k in own}
        sections[name] = dataclasses.replace(section, **chosen)
    return TrainSettings(data=data, out=out, **sections, **changes)


def trainer(data, out, objective="classifier+mpm", *, val=True, identity=None, **changes):
    chosen = settings(data, out, **changes)
    train, validation = open_splits(data)
    torch.manual_seed(chosen.seed)
    config = PETConfig(
        dim=8, layers=1, heads=2, neighbours=3, num_classes=3, parts=parse_objective(objective)
    )
    return Trainer(
        chosen,
        Objective(PET(config), chosen.seed),
        ALONE,
        train,
        validation if val else None,
        identity=identity,
    )


def weights(trained):
    return torch.cat([p.detach().flatten() for p in trained.model.parameters()])


def losses(out, kind="train"):
    return [r["loss"] for r in read_metrics(out / "metrics.jsonl") if r["kind"] == kind]


def test_training_lowers_every_loss(jetclass, tmp_path):
    out = tmp_path / "run"
    trained = trainer(
        jetclass, out, "pretrain", steps=60, lr=5e-3, val_every=60, batch_size=64, save_every=60
    )
    before = trained.validate()
    assert trained.fit()["reason"] == "all steps done"
    after = trained.validate()
    assert all(after[name] < before[name] for name in before), (before, after)


def test_same_seed_same_weights_other_seed_other_weights(jetclass, tmp_path):
    trained = [trainer(jetclass, tmp_path / str(i), seed=s) for i, s in enumerate((1, 1, 2))]
    for one in trained:
        one.fit()
    assert torch.equal(weights(trained[0]), weights(trained[1]))
    assert not torch.equal(weights(trained[0]), weights(trained[2]))


@pytest.mark.parametrize("size", [1, 5, 8])
def test_passes_add_up_to_the_same_step(jetclass, tmp_path, size):
    whole = trainer(jetclass, tmp_path / "a", objective="pretrain", lr=1e-4)
    parts = trainer(jetclass, tmp_path / "b", objective="pretrain", lr=1e-4, micro_batch=size)
    whole.fit()
    parts.fit()
    assert losses(tmp_path / "b") == pytest.approx(losses(tmp_path / "a"), rel=1e-5)
    for kind in ("train", "validation"):
        a, b = (losses(tmp_path / name, kind) for name in "ab")
        assert b == pytest.approx(a, rel=1e-5)


def test_continues_where_it_was(jetclass, tmp_path):
    whole = trainer(jetclass, tmp_path / "a", ema_decay=0.9)
    whole.fit()
    out = tmp_path / "b"
    trainer(jetclass, out, ema_decay=0.9).fit()
    # As if it had been killed after step 4: the checkpoint of step 6 and DONE were not written.
    (out / "DONE").unlink()
    for file in sorted((out / "checkpoints" / "step-00000006").iterdir()):
        file.unlink()
    (out / "checkpoints" / "step-00000006").rmdir()
    again = trainer(jetclass, out, ema_decay=0.9)
    again.fit()
    assert torch.equal(weights(again), weights(whole))
    states = [
        read_checkpoint(tmp_path / run / "checkpoints" / "step-00000006")["average"] for run in "ab"
    ]
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])
    assert losses(out) == losses(tmp_path / "a")


def test_a_finished_run_is_not_trained_again(jetclass, tmp_path, capsys):
    first = trainer(jetclass, tmp_path / "run")
    result = first.fit()
    assert result["step"] == 6
    again = trainer(jetclass, tmp_path / "run")
    before = weights(again)
    assert again.fit() == json.loads((tmp_path / "run" / "DONE").read_text())
    assert torch.equal(weights(again), before)
    assert "is finished: all steps done, step 6" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 1e-2}, r"lr: 0\.001 -> 0\.01"),
        ({"seed": 5}, "seed: 0 -> 5"),
        ({"num_jets": 100}, "num_jets: None -> 100"),
        ({"objective": "classifier"}, r"model\.parts: \['classifier', 'mpm'\] -> \['classifier'\]"),
        ({"identity": {"source": "abc"}}, "source: None -> 'abc'"),
    ],
)
def test_another_training_in_the_folder_is_refused(jetclass, tmp_path, change, message):
    trainer(jetclass, tmp_path / "run").fit()
    with pytest.raises(RunError, match=message):
        trainer(jetclass, tmp_path / "run", **change).fit()


def test_other_data_is_refused(jetclass, toptag, tmp_path):
    trainer(jetclass, tmp_path / "run").fit()
    other = trainer(jetclass, tmp_path / "run")
    other.identity["train_data"] = Shards(toptag / "train").fingerprint
    with pytest.raises(RunError, match="train_data: "):
        other.fit()


def test_where_it_runs_may_change(jetclass, tmp_path):
    trainer(jetclass, tmp_path / "run").fit()
    changed = trainer(jetclass, tmp_path / "run", micro_batch=4, log_every=3, keep_last=1)
    assert changed.fit()["reason"] == "all steps done"


def test_allowed_changes_continue_from_the_position(jetclass, tmp_path):
    trainer(jetclass, tmp_path / "run").fit()
    (tmp_path / "run" / "DONE").unlink()
    more = trainer(jetclass, tmp_path / "run", steps=8, batch_size=32, allow_mismatch=True)
    assert more.fit()["step"] == 8
    state = read_checkpoint(tmp_path / "run" / "checkpoints" / "step-00000008")
    assert state["stream"]["position"] == 6 * 16 + 2 * 32


def test_stops_early_and_keeps_the_best(jetclass, tmp_path, monkeypatch):
    sequence = iter([1.0, 0.5, 0.7, 0.6, 0.4])
    monkeypatch.setattr(Trainer, "validate", lambda self: {"loss": next(sequence)})
    changes = {"val_every": 1, "patience": 2, "steps": 20}
    stopped = trainer(jetclass, tmp_path / "run", **changes)
    result = stopped.fit()
    assert result == {
        "reason": "out of patience",
        "step": 4,
        "best": {"step": 2, "loss": 0.5},
    }
    assert load_weights(tmp_path / "run").step == 2
    # Killed between the last checkpoint and DONE: nothing more is trained.
    (tmp_path / "run" / "DONE").unlink()
    again = trainer(jetclass, tmp_path / "run", **changes)
    assert again.fit() == result


def test_validation_is_repeatable_and_takes_the_average(jetclass, tmp_path):
    trained = trainer(jetclass, tmp_path / "run", objective="pretrain", ema_decay=0.5)
    trained.fit()
    assert trained.validate() == trained.validate()
    averaged = trained.validate()
    trained.average = None
    assert trained.validate() != averaged
    saved = load_weights(tmp_path / "run")
    best = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    trained.model.load_state_dict(saved.state)
    assert trained.validate()["loss"] == pytest.approx(best["loss"])


def test_average_is_the_exponential_one(jetclass, tmp_path):
    decay = 0.75
    trained = trainer(jetclass, tmp_path / "run", val=False, ema_decay=decay)
    expected = weights(trained)
    jets = next(iter(trained.stream))
    for number in (0, 1, 40):  # at 40, (1 + n) / (10 + n) is above 0.75
        trained.update(jets, number)
        used = min(decay, (1 + number) / (10 + number))
        expected = used * expected + (1 - used) * weights(trained)
    average = torch.cat([p.flatten() for p in trained.average.parameters()])
    torch.testing.assert_close(average, expected)


def test_rate_follows_the_schedule(jetclass, tmp_path):
    out = tmp_path / "run"
    trainer(jetclass, out, warmup_steps=2, val=False).fit()
    rates = [r["lr"] for r in read_metrics(out / "metrics.jsonl")]
    assert rates == [lr_at(s, peak=1e-3, warmup_steps=2, total_steps=6) for s in range(6)]


def test_gradients_are_clipped(jetclass, tmp_path):
    trained = trainer(jetclass, tmp_path / "run", clip=1e-3)
    trained.update(next(iter(trained.stream)), 0)
    assert trained.update.norm > 1e-3
    assert trained.update.gradient.norm().item() == pytest.approx(1e-3, rel=1e-3)


def poison(monkeypatch, when):
    """Makes the loss NaN at the calls for which ``when`` is true."""
    forward, calls = Objective.forward, iter(range(1000))

    def poisoned(self, jets, *rest):
        terms = forward(self, jets, *rest)
        scale = math.nan if when(next(calls)) else 1.0
        return {name: value * scale for name, value in terms.items()}

    monkeypatch.setattr(Objective, "forward", poisoned)


@pytest.mark.parametrize("on_device", [False, True])
def test_an_update_without_a_finite_gradient_is_skipped(jetclass, tmp_path, monkeypatch, on_device):
    if on_device:
        monkeypatch.setattr("jetkern.training.step.readable", lambda tensor: False)
    poison(monkeypatch, lambda call: call == 1)
    trained = trainer(jetclass, tmp_path / "run", val=False)
    batches = iter(trained.stream)
    trained.update(next(batches), 0)
    before = weights(trained)
    trained.update(next(batches), 0)
    assert trained.update.skipped == 1
    assert torch.equal(weights(trained), before)
    trained.update(next(batches), 0)
    assert trained.update.skipped == 0
    assert not torch.equal(weights(trained), before)


def test_what_is_decided_on_the_device_has_the_bits_of_the_host(jetclass, tmp_path, monkeypatch):
    ends = []
    for name in ("host", "device"):
        if name == "device":
            monkeypatch.setattr("jetkern.training.step.readable", lambda tensor: False)
        trained = trainer(jetclass, tmp_path / name, val=False)
        batches = iter(trained.stream)
        for number in range(4):
            trained.update(next(batches), number)
        ends.append(weights(trained))
    assert torch.equal(*ends)


def test_many_such_updates_stop_the_training_and_say_where(jetclass, tmp_path, monkeypatch):
    poison(monkeypatch, lambda call: call >= 3)
    out = tmp_path / "run"
    trained = trainer(jetclass, out, val=False, steps=50)
    with pytest.raises(TrainingError, match=r"jets 48 to 207 of the training order"):
        trained.fit()
    assert json.loads((out / "not_finite.json").read_text())["first_jet"] == 48
    assert not (out / "DONE").exists()
    saved = read_checkpoint(out / "checkpoints" / f"step-{3 + MAX_SKIPPED:08d}")
    assert all(v.isfinite().all() for v in saved["model"].values())


def test_without_validation_data_the_newest_checkpoint_is_used(jetclass, tmp_path):
    trainer(jetclass, tmp_path / "run", val=False).fit()
    assert load_weights(tmp_path / "run").path.name == "step-00000006"
    only_train = tmp_path / "data"
    only_train.mkdir()
    (only_train / "train").symlink_to(jetclass / "train")
    assert open_splits(only_train)[1] is None


def test_splits_must_agree(jetclass, toptag, tmp_path):
    (tmp_path / "train").symlink_to(jetclass / "train")
    (tmp_path / "val").symlink_to(toptag / "val")
    with pytest.raises(ValueError, match="train and val differ in classes"):
        open_splits(tmp_path)


def test_more_jets_than_there_are(jetclass, tmp_path):
    with pytest.raises(ValueError, match="num_jets is 257"):
        trainer(jetclass, tmp_path / "run", num_jets=257)


def test_a_subset_is_all_that_is_seen(jetclass, tmp_path):
    trained = trainer(jetclass, tmp_path / "run", num_jets=40, seed=3)
    assert isinstance(trained.stream, Stream)
    batches = iter(trained.stream)
    seen = torch.cat([next(batches).particles[:, 0] for _ in range(20)])
    everything = torch.cat(
        [
            j.particles[:, 0]
            for j in Stream(Shards(jetclass / "train"), batch_size=64, shuffle=False, epochs=1)
        ]
    )
    assert 0 < len(seen.unique()) < 0.3 * len(everything.unique())


@pytest.mark.parametrize("name", ["tpu9", "cuda:99"])
def test_a_device_that_is_not_there(name):
    with pytest.raises(ValueError, match="device"), join_world(name):
        pass


def test_weights_that_are_of_no_use_are_not_kept(jetclass, tmp_path):
    """A rate of 1e30 makes weights of 1e30 by a finite gradient; what follows is NaN."""
    out = tmp_path / "run"
    trainer(jetclass, out, val=False, steps=2, save_every=1).fit()
    (out / "DONE").unlink()
    changes = {"val": False, "save_every": 1, "lr": 1e30, "allow_mismatch": True}
    for steps, message in ((3, "do not give finite losses"), (7, "no finite gradient in 4")):
        with pytest.raises(TrainingError, match=f"{message}.* last good weights are .*00000002"):
            trainer(jetclass, out, steps=steps, **changes).fit()
        assert not (out / "DONE").exists()
        assert load_weights(out).step == 2
    again = trainer(jetclass, out, val=False, steps=4, allow_mismatch=True)
    assert again.fit()["reason"] == "all steps done"


def test_last_updates_without_a_finite_gradient_are_no_end(jetclass, tmp_path, monkeypatch):
    poison(monkeypatch, lambda call: call >= 4)
    for _ in range(2):  # the same command again says the same
        with pytest.raises(TrainingError, match="no finite gradient in 2 updates in a row"):
            trainer(jetclass, tmp_path / "run", val=False).fit()
    assert not (tmp_path / "run" / "DONE").exists()


def test_a_validation_that_is_not_finite_is_an_error(jetclass, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "validate", lambda self: {"mpm": 1.0, "loss": math.nan})
    with pytest.raises(TrainingError, match="validation after step 3 gave loss nan"):
        trainer(jetclass, tmp_path / "run").fit()


def test_val_without_a_field_of_train(jetclass, tmp_path):
    (tmp_path / "train").symlink_to(jetclass / "train")
    write_toy_shards(tmp_path / "val", ["QCD", "Hbb", "Zqq"], extras=False)
    with pytest.raises(ValueError, match=r"train and val differ in fields: .*tracks"):
        open_splits(tmp_path)


@pytest.mark.parametrize("name", ["lr", "weight_decay", "clip"])
def test_a_rate_that_is_no_number(name):
    for value in (math.nan, *([math.inf] if name != "clip" else [])):
        with pytest.raises(ValueError, match=name):
            OptimSettings(**{name: value})
