"""Pre-training with targets on a tokeniser's scale: killed and continued, and what follows."""

import json
import signal

import pytest
import torch
from test_transfer import settings

from jetkern.cli import evaluate as judge
from jetkern.cli import pretrain as command
from jetkern.cli import tokenize
from jetkern.data import Shards, select_classes
from jetkern.recipes import finetune, pretrain
from jetkern.training import step
from jetkern.training.checkpoints import RunError
from jetkern.training.defaults import finetune_defaults, pretrain_defaults
from jetkern.training.log import read_metrics
from jetkern.training.tokenize import load_tokenizer
from jetkern.training.weights import load_weights, model_config

TARGETS = "regression+identity:0.3+tokens+cfm+cnf+ssfm"


def masked(tokens, data, out, *words, target=TARGETS, **changes):
    words = ("--target", target, "--tokenizer", tokens, "--mask-fraction", 0.2, 0.6, *words)
    more = {"objective": "mpm", "steps": 8, "val_every": 4, "warmup_steps": 1} | changes
    return settings(pretrain_defaults, *words, data=data, out=out, **more)


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(jetclass, tokens, tmp_path, monkeypatch):
    shape = ("--decoder-dim", 16, "--decoder-layers", 1, "--mask-tokens", "shared")
    shape += ("--registers", 2, "--ema-decay", 0.9, "--optimizer", "adamw")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    pretrain(masked(tokens, jetclass, whole, *shape))
    done = step.Step.__call__

    def stopping(self, jets, number):
        done(self, jets, number)
        if number == 2:
            signal.raise_signal(signal.SIGTERM)

    more = masked(tokens, jetclass, parts, *shape)
    monkeypatch.setattr(step.Step, "__call__", stopping)
    assert pretrain(more)["step"] == 3
    monkeypatch.setattr(step.Step, "__call__", done)
    pretrain(more)
    one, other = load_weights(whole), load_weights(parts)
    assert all(one.state[name].equal(other.state[name]) for name in one.state)

    kept, own = load_tokenizer(tokens), model_config(one)
    assert own.target_features == kept.features
    assert (own.codes, own.global_tokens) == (8, 2)
    assert one.state["mpm.tokenizer.codes"].equal(kept.codes)
    records = [r for r in read_metrics(whole / "metrics.jsonl") if r["kind"] == "validation"]
    for name in ("regression", "identity", "tokens", "cfm", "cnf", "ssfm", "ssfm_identity"):
        assert all(r[f"mpm_{name}"] != 0 and f"mpm_{name}_trivial" in r for r in records)

    # Fine-tuning takes the body and the registers and leaves what was for hidden particles.
    fine = {"data": jetclass, "steps": 2, "warmup_steps": 0, "out": tmp_path / "fine"}
    finetune("classify", settings(finetune_defaults, "--from", whole, **fine))
    assert not [n for n in load_weights(tmp_path / "fine").state if n.startswith("mpm.")]


def test_a_run_goes_on_with_its_own_tokeniser_alone(jetclass, tokens, tmp_path):
    other = tmp_path / "other"
    flags = f"kmeans --data {jetclass} --out {other} --codes 8 --steps 6 --threads 1"
    assert tokenize.main(flags.split()) == 0
    more = {"target": "tokens", "steps": 2, "val_every": 2}
    pretrain(masked(tokens, jetclass, tmp_path / "run", **more))
    with pytest.raises(RunError, match=r"masked\.tokenizer"):
        pretrain(masked(other, jetclass, tmp_path / "run", **more))
    with pytest.raises(RunError, match=r"masked\.target"):
        pretrain(masked(tokens, jetclass, tmp_path / "run", **more | {"target": "tokens:2"}))


def test_tokens_of_a_vqvae_are_those_of_complete_jets(jetclass, tmp_path):
    tokens, out = tmp_path / "vq", tmp_path / "run"
    flags = f"vqvae --data {jetclass} --out {tokens} --codes 8 --steps 3 --shape 16 1 2 4"
    assert tokenize.main([*flags.split(), "--threads", "1"]) == 0
    pretrain(masked(tokens, jetclass, out, target="tokens", steps=2, val_every=2))
    weights, kept = load_weights(out), load_tokenizer(tokens)
    assert model_config(weights).vqvae == kept.shape
    for name, value in kept.state_dict().items():
        assert weights.state[f"mpm.tokenizer.{name}"].equal(value)


def test_what_does_not_fit_is_said(jetclass, toptag, tokens, tmp_path, capsys):
    base = ["--data", str(toptag), "--out", str(tmp_path / "run"), "--objective", "mpm"]
    assert command.main([*base, "--target", "regression+identity"]) == 1
    assert "has no identities of particles" in capsys.readouterr().err
    assert command.main([*base, "--target", "tokens", "--tokenizer", str(tokens)]) == 1
    assert "reads tracks, which the jets of" in capsys.readouterr().err
    assert command.main([*base, "--target", "cfm"]) == 1
    assert "needs particles on a normal scale" in capsys.readouterr().err
    for wrong, message in (
        (["--target", "regresion"], "did you mean regression"),
        (["--mask-fraction", "0"], "must lie in (0, 1]"),
        (["--mask-fraction", "0.1", "0.2", "0.3"], "one number or two"),
        (["--objective", "classifier", "--registers", "8"], "settings of these need mpm"),
    ):
        with pytest.raises(SystemExit):
            command.main([*base, *wrong])
        assert message in capsys.readouterr().err


def test_classes_that_a_pretraining_did_not_see(jetclass, tokens, tmp_path, capsys):
    known, new, out = ("QCD", "Hbb"), ("Zqq", "QCD"), tmp_path / "new"
    words = ("--classes", *known)
    more = {"target": "regression", "steps": 2, "val_every": 2, "objective": "classifier+mpm"}
    pretrain(masked(tokens, jetclass, tmp_path / "known", *words, **more))
    seen = load_weights(tmp_path / "known")
    assert (seen.data["classes"], model_config(seen).num_classes) == (list(known), 2)
    with pytest.raises(RunError, match="train_data"):
        pretrain(masked(tokens, jetclass, tmp_path / "known", *words[:-1], **more))
    words = ("--from", tmp_path / "known", "--classes", *new)
    more = {"data": jetclass, "out": out, "steps": 2, "warmup_steps": 0}
    finetune("classify", settings(finetune_defaults, *words, **more))
    assert load_weights(out).data["classes"] == list(new)
    words = (out, "--data", jetclass, "--out", tmp_path / "result", "--split", "val")
    judged = [*map(str, words)]
    assert judge.main(judged) == 1
    assert "--classes names those of the jets" in capsys.readouterr().err
    assert judge.main([*judged, "--classes", *new, "--bootstrap", "2"]) == 0
    jets = json.loads((tmp_path / "result" / "report.json").read_text())["data"]
    assert jets["fingerprint"] == select_classes(Shards(jetclass / "val"), new).fingerprint
    other = ["kmeans", "--data", str(jetclass), "--out", str(tmp_path / "tokens"), "--codes", "8"]
    assert tokenize.main([*other, "--steps", "2", "--classes", "top"]) == 1
    assert "has no class top, but QCD, Hbb, Zqq" in capsys.readouterr().err


def test_the_study_s_target_is_the_default(jetclass, tmp_path):
    plain = settings(
        pretrain_defaults,
        data=jetclass,
        out=tmp_path / "a",
        objective="mpm",
        steps=2,
        warmup_steps=0,
    )
    named = settings(pretrain_defaults, "--target", "regression", data=jetclass,
                     out=tmp_path / "b", objective="mpm", steps=2, warmup_steps=0)  # fmt: skip
    pretrain(plain)
    pretrain(named)
    one, other = load_weights(tmp_path / "a"), load_weights(tmp_path / "b")
    assert one.state.keys() == other.state.keys()
    assert all(torch.equal(one.state[n], other.state[n]) for n in one.state)
    assert model_config(one).targets == ()
