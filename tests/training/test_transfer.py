"""What is frozen stays, what is new learns, rates by depth, probes; and runs go on the same."""

import signal
from dataclasses import replace

import pytest
import torch

from jetkern.cli.settings import parse
from jetkern.jets import Jets
from jetkern.model.config import PETConfig
from jetkern.model.heads import Probe
from jetkern.model.pet import PET
from jetkern.model.presets import model_preset
from jetkern.recipes import finetune, pretrain
from jetkern.training import step
from jetkern.training.checkpoints import RunError, facts_of, find_checkpoint
from jetkern.training.defaults import finetune_defaults, pretrain_defaults
from jetkern.training.schedule import thawed_at
from jetkern.training.transfer import freeze, lr_factors
from jetkern.training.weights import load_weights
from tests.training.drivers import FINETUNE, PRETRAIN, flags


def settings(defaults, *words, **changes):
    base = PRETRAIN if defaults is pretrain_defaults else FINETUNE
    given = [str(word) for word in (*flags(base, **changes), *words)]
    return parse(defaults, given, name="finetune", description="")


@pytest.fixture(scope="module")
def pretrained(jetclass, tmp_path_factory):
    """A generator: its classifier is new to those who take from it."""
    out = tmp_path_factory.mktemp("pretrained")
    more = {"objective": "classifier+generator", "data": jetclass, "out": out, "steps": 4}
    pretrain(settings(pretrain_defaults, **more))
    return out


def moved(before, after):
    """Parts, by their first two words, of which some parameter is another."""
    shared = before.keys() & after.keys()
    return {
        ".".join(name.split(".")[:2])
        for name in shared
        if before[name].shape != after[name].shape or not before[name].equal(after[name])
    }


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--freeze", "body"), {"classifier.blocks", "classifier.fc", "classifier.out"}),
        (("--freeze", "all-but-head"), {"classifier.fc", "classifier.out"}),
        (("--probe", "linear"), {"classifier.out"}),
        (("--probe", "linear", "--pool", "mean", "--ema-decay", "0.5"), {"classifier.out"}),
        (("--probe", "attention"), {"classifier.out"}),
    ],
)
def test_only_what_is_not_frozen_moves(pretrained, toptag, tmp_path, words, expected):
    before = load_weights(pretrained)
    more = settings(finetune_defaults, "--from", pretrained, *words, data=toptag, out=tmp_path)
    finetune("top", more)
    after = load_weights(tmp_path)
    assert moved(before.state, after.state) == expected
    pool = "attention" if more.probe == "attention" else more.pool
    assert after.config["probe"] == (None if "--freeze" in words else pool)
    facts = facts_of(find_checkpoint(tmp_path))
    assert facts["identity"]["freeze"] == (more.freeze or "body")
    with pytest.raises(RunError, match="freeze"):  # the same folder, but all of it trained
        finetune("top", replace(more, freeze=None, probe=None))


def test_a_stopped_run_goes_on_to_the_same_bits(pretrained, toptag, tmp_path, monkeypatch):
    words = ("--from", pretrained, "--freeze", "body", "--layer-decay", "0.7")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    finetune("top", settings(finetune_defaults, *words, data=toptag, out=whole))
    done = step.Step.__call__

    def stopping(self, jets, number):
        done(self, jets, number)
        if number == 10:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(step.Step, "__call__", stopping)
    more = settings(finetune_defaults, *words, data=toptag, out=parts)
    assert finetune("top", more)["step"] == 11
    monkeypatch.setattr(step.Step, "__call__", done)
    finetune("top", more)
    one, other = load_weights(whole), load_weights(parts)
    assert one.step == other.step
    assert all(one.state[name].equal(other.state[name]) for name in one.state)


def test_a_body_thaws_at_its_step_and_goes_on_to_the_same_bits(
    pretrained, toptag, tmp_path, monkeypatch
):
    """Before it no bit of it moves, with the decay of weights and what an optimiser remembers."""
    words = ("--from", pretrained, "--thaw-at", 3, "--catch-up", 2, "--optimizer", "ranger")
    before = {n: t for n, t in load_weights(pretrained).state.items() if n.startswith("body.")}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done, moved_at, stop_at = step.Step.__call__, [], [None]

    def watching(self, jets, number):
        done(self, jets, number)
        state = self.objective.model.state_dict()
        changed = [n for n in before.keys() & state.keys() if not state[n].equal(before[n])]
        moved_at.append((number, bool(changed)))
        if number == stop_at[0]:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(step.Step, "__call__", watching)
    for out, stop_at[0] in ((whole, None), (parts, 4), (parts, None)):
        more = settings(finetune_defaults, *words, data=toptag, out=out, steps=6, warmup_steps=0)
        finetune("top", more)
    assert moved_at == 2 * [(number, number >= 3) for number in range(6)]
    one, other = load_weights(whole), load_weights(parts)
    assert all(one.state[name].equal(other.state[name]) for name in one.state)
    facts = facts_of(find_checkpoint(whole))
    assert facts["identity"]["thaw_at"] == 3


def test_turned_jets_are_of_the_run_and_not_of_weak_labels(toptag, tmp_path):
    more = settings(finetune_defaults, "--augment", "rotation", data=toptag, out=tmp_path)
    finetune("top", more)
    assert facts_of(find_checkpoint(tmp_path))["identity"]["augment"] == "rotation"
    with pytest.raises(RunError, match="augment"):
        finetune("top", replace(more, augment=None))
    with pytest.raises(ValueError, match="--augment rotation"):
        finetune("weak", replace(more, signal_jets=10, out=tmp_path / "weak"))


def test_what_cannot_be_frozen_is_said(pretrained, toptag, tmp_path):
    with pytest.raises(SystemExit):
        settings(finetune_defaults, "--freeze", "body", data=toptag, out=tmp_path)
    more = ("--freeze", "body", "--probe", "linear", "--from", pretrained)
    with pytest.raises(SystemExit):
        settings(finetune_defaults, *more, data=toptag, out=tmp_path)
    for wrong in (("--thaw-at", 3), ("--catch-up", 3), ("--thaw-at", -1)):
        with pytest.raises(SystemExit):
            settings(finetune_defaults, *wrong, data=toptag, out=tmp_path)
    model = torch.nn.ModuleDict({"body": torch.nn.Linear(1, 1)})
    with pytest.raises(ValueError, match="nothing to train"):
        freeze(model, "body", {"body.weight", "body.bias"})
    with pytest.raises(ValueError, match="nothing came"):
        freeze(model, "body", set())


def test_new_parameters_are_never_frozen():
    model = PET(model_preset("micro", ["classifier"]))
    names = {name for name, _ in model.named_parameters()}
    loaded = {name for name in names if not name.startswith("classifier")}
    assert freeze(model, "all-but-head", loaded) == loaded
    assert {n for n, p in model.named_parameters() if p.requires_grad} == names - loaded


def test_rates_by_depth():
    names = ["body.tokens", "body.local.mlp.fc1.weight", "body.blocks.0.norm1.alpha"]
    names += ["body.blocks.2.mlp.fc1.weight", "body.norm.weight", "classifier.fc.fc1.bias"]
    found = lr_factors(
        [*names, "classifier.out.bias"],
        layers=3,
        decay=0.5,
        new={"classifier.out.bias"},
        new_factor=5.0,
    )
    assert list(found.values()) == [1 / 8, 1 / 8, 1 / 4, 1, 1, 1, 5]


@pytest.mark.parametrize("pool", ["token", "mean"])
def test_a_probe_is_linear_in_the_rows_of_each_jet(pool):
    config = PETConfig(dim=8, layers=1, heads=2, neighbours=2, num_classes=3, probe=pool)
    probe = Probe(config).double()
    counts = torch.tensor([3, 0, 1, 70_000 // 1000])
    rows = counts + config.global_tokens
    offsets = torch.nn.functional.pad(rows.cumsum(0), (1, 0))
    x = torch.randn(int(rows.sum()), 8, dtype=torch.float64, requires_grad=True)
    found = probe(x, offsets)
    for jet in range(len(counts)):
        own = x[offsets[jet] : offsets[jet + 1]]
        tokens, rest = own[: config.global_tokens], own[config.global_tokens :]
        mean = rest.mean(0) if len(rest) else torch.zeros(8, dtype=torch.float64)
        features = tokens.flatten() if pool == "token" else mean
        torch.testing.assert_close(found[jet], probe.out(features))
    weights = torch.randn_like(found)
    (gradient,) = torch.autograd.grad((found * weights).sum(), x)
    assert gradient[offsets[1] : offsets[2]].any() == (pool == "token")  # no particles there
    none = Jets.from_padded(torch.zeros(0, 5, 4), torch.zeros(0, 5, dtype=torch.bool))
    model = PET(replace(config, use_pid=False, use_tracks=False))
    assert model.classify(none).shape == (0, 3)


def test_an_attention_probe_looks_at_each_jet_alone():
    config = PETConfig(dim=8, layers=1, heads=2, neighbours=2, num_classes=3, probe="attention")
    model = PET(config).double()
    offsets = torch.tensor([0, 5, 9, 40])
    x = torch.randn(40, 8, dtype=torch.float64)
    found = model.classifier(x, offsets)
    for jet in range(3):
        rows = x[offsets[jet] : offsets[jet + 1]]
        alone = model.classifier(rows.flip(0), torch.tensor([0, len(rows)]))
        torch.testing.assert_close(alone[0], found[jet])


def test_rates_of_a_body_that_thaws():
    rates = [thawed_at(step, thaw_at=2, catch_up=3) for step in range(7)]
    assert rates == [0, 0, 0.25, 0.5, 0.75, 1, 1]
    assert [thawed_at(step, thaw_at=1, catch_up=0) for step in range(2)] == [0, 1]


def test_an_unknown_probe_is_refused():
    with pytest.raises(ValueError, match="did you mean token"):
        model_preset("micro", ["classifier"], probe="tokens")


def test_checkpoints_of_the_trajectory_stay(jetclass, tmp_path):
    pretrain(settings(pretrain_defaults, "--keep-every", "8", data=jetclass, out=tmp_path))
    found = {p.name for p in (tmp_path / "checkpoints").glob("step-*")}
    assert found == {"step-00000008", "step-00000016", "step-00000018", "step-00000024"}
