"""Pre-training on the tokens of jets: what is minimised, killed and continued, and what follows."""

import math
import signal
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from test_transfer import moved, settings

from jetkern.cli import pretrain as command
from jetkern.data import Shards, Stream
from jetkern.evaluation import load_classifier, predict
from jetkern.model.jet_decoder import JetDecoder, jet_decoder_config
from jetkern.model.vqvae import VQTokenizer
from jetkern.objectives import objective_of
from jetkern.recipes import evaluate, finetune, pretrain
from jetkern.tasks import find_task
from jetkern.tokenizers import Tokenizer
from jetkern.training import step
from jetkern.training.checkpoints import RunError
from jetkern.training.config import EvaluateSettings, SettingsError
from jetkern.training.defaults import pretrain_defaults
from jetkern.training.log import read_metrics
from jetkern.training.tokenize import load_tokenizer
from jetkern.training.weights import any_config, load_model, load_weights, model_config

SMALL = {"objective": "next-token", "steps": 4, "val_every": 2, "warmup_steps": 1}


def next_token(tokens, data, out, *words, **changes):
    words = ("--tokenizer", tokens, *words)
    return settings(pretrain_defaults, *words, data=data, out=out, **SMALL | changes)


def some(folder, jets, fields=("tracks",)):
    return next(iter(Stream(Shards(folder), batch_size=jets, shuffle=False, fields=fields)))


def decoder(tokens, **changes):
    torch.manual_seed(0)
    tokenizer = load_tokenizer(tokens)
    model = JetDecoder(jet_decoder_config("micro", tokenizer, **changes))
    model.keep_tokenizer(tokenizer)
    return model


@pytest.fixture(scope="module")
def pretrained(jetclass, tokens, tmp_path_factory):
    out = tmp_path_factory.mktemp("pretrained") / "run"
    pretrain(next_token(tokens, jetclass, out, "--ema-decay", 0.9))
    return out


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(
    pretrained, jetclass, tokens, tmp_path, monkeypatch
):
    whole, parts = pretrained, tmp_path / "parts"
    done = step.Step.__call__

    def stopping(self, jets, number):
        done(self, jets, number)
        if number == 2:
            signal.raise_signal(signal.SIGTERM)

    more = next_token(tokens, jetclass, parts, "--ema-decay", 0.9)
    monkeypatch.setattr(step.Step, "__call__", stopping)
    assert pretrain(more)["step"] == 3
    monkeypatch.setattr(step.Step, "__call__", done)
    pretrain(more)
    one, other = load_weights(whole), load_weights(parts)
    assert one.kind == "decoder"
    assert all(one.state[name].equal(other.state[name]) for name in one.state)

    # The checkpoint has its tokeniser; what is logged is what the likelihood says.
    model, kept = load_model(one), load_tokenizer(tokens)
    assert model.tokenizer.fingerprint == kept.fingerprint
    jets = some(jetclass / "val", 64)
    with torch.no_grad():
        nats = model.negative_log_likelihood(jets).sum() / len(jets.particles)
        plain = model.body.loss(kept.tokens(jets)[:, None], jets.packed)
    records = [r for r in read_metrics(whole / "metrics.jsonl") if r["kind"] == "validation"]
    assert float(nats) == pytest.approx(float(plain), rel=1e-5)
    assert float(nats) == pytest.approx(records[-1]["next_token"], rel=1e-5)
    everything = some(jetclass / "val", 256)
    counts = [*kept.tokens(everything).bincount().tolist(), 256]
    entropy = -sum(n * math.log(n / sum(counts)) for n in counts if n)
    unigram = entropy / len(everything.particles)
    assert records[-1]["next_token_trivial"] == pytest.approx(unigram, rel=1e-9)
    with pytest.raises(RunError, match="is a decoder; this needs a Point-Edge Transformer"):
        model_config(one)
    monkeypatch.setattr(Tokenizer, "fingerprint", property(lambda self: "another"))
    with pytest.raises(RunError, match=r"tokenizer: '.{64}' -> 'another'"):
        pretrain(more)


@pytest.mark.parametrize("inputs", ["tokens", "features"])
def test_passes_add_up_to_the_same_step(jetclass, tokens, inputs):
    objective, jets = objective_of(decoder(tokens, inputs=inputs)), some(jetclass / "val", 8)
    parameters = [p for p in objective.parameters() if p.requires_grad]
    whole = torch.autograd.grad(objective(jets)["loss"], parameters)
    per_jet = objective.per_jet(jets)
    parts = [jets.select(slice(0, 3)), jets.select(slice(3, 8))]
    loss = sum(objective(part, per_jet)["loss"] * len(part) / 8 for part in parts)
    for found, want in zip(torch.autograd.grad(loss, parameters), whole, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-6)


def test_codes_of_a_vqvae_are_learned_from(jetclass):
    torch.manual_seed(0)
    tokenizer = VQTokenizer.blank(("delta_eta", "delta_phi", "ln_pt"), 8, (16, 1, 2, 4))
    tokenizer.codes.normal_()
    tokenizer.scale.quantiles.copy_(torch.linspace(-3, 3, tokenizer.scale.quantiles.shape[1]))
    model = JetDecoder(jet_decoder_config("micro", tokenizer))
    model.keep_tokenizer(tokenizer)
    assert model.tokenizer.fingerprint == tokenizer.fingerprint
    jets = some(jetclass / "val", 8, fields=())
    assert model.read(jets).targets.unique().numel() > 2
    half = JetDecoder(model.config, precision="bf16")
    half.load_state_dict(model.state_dict())
    assert half.read(jets).targets.equal(model.read(jets).targets)  # whatever products round to
    objective_of(model)(jets)["loss"].backward()
    learning = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert learning == {"body"}


@pytest.mark.parametrize("inputs", ["tokens", "features"])
def test_rows_know_nothing_of_later_particles(jetclass, tokens, inputs):
    model, jets = decoder(tokens, inputs=inputs), some(jetclass / "val", 3)
    last = jets.offsets[1:] - 1
    changed = jets.particles.clone()
    changed[last] = 5.0
    with torch.no_grad():
        before, after = model.read(jets), model.read(jets.replace(particles=changed))
    same = torch.ones(len(before.x), dtype=torch.bool)
    same[before.packed.offsets[1:] - 1] = False  # these have read the last ones
    assert before.x[same].equal(after.x[same])
    assert not before.x[~same].equal(after.x[~same])


def test_losses_of_jets_alone_are_those_in_a_batch(jetclass, tokens):
    model, jets = decoder(tokens), some(jetclass / "val", 4)
    objective = objective_of(model)
    with torch.no_grad():
        each = [objective(jets.select(slice(i, i + 1)))["loss"] for i in range(4)]
        total = sum(n * loss for n, loss in zip(jets.counts, each, strict=True))
        together = objective(jets)["loss"]
    torch.testing.assert_close(total / len(jets.particles), together)


def tuned(task, data, out, *words):
    few = {"steps": 2, "val_every": 2, "warmup_steps": 0, "lr": 1e-3}
    finetune(task, settings(find_task(task).defaults, *words, data=data, out=out, **few))
    return load_weights(out)


def judged(run, data, out, **changes):
    more = {"split": "val", "bootstrap": 2, "num_jets": 32} | changes
    return evaluate(EvaluateSettings(runs=(run,), data=data, out=out, **more))


def test_a_decoder_becomes_a_classifier(pretrained, jetclass, tmp_path):
    frozen = ("--from", pretrained, "--freeze", "body")
    before = load_weights(pretrained)
    after = tuned("classify", jetclass, tmp_path / "frozen", *frozen)
    assert after.config["num_classes"] == 3
    assert moved(before.state, after.state) == set()
    assert {name.split(".")[0] for name in after.state} == {"body", "classifier", "tokenizer"}
    assert not [name for name in after.state if name.startswith("body.heads")]
    words = ("--from", pretrained, "--head", "attention", "--layer-decay", 0.5)
    assert "classifier.query" in tuned("classify", jetclass, tmp_path / "fine", *words).state
    (report,) = judged(tmp_path / "frozen", jetclass, tmp_path / "judged").values()
    assert 0 < report.accuracy.value < 1
    model = load_classifier(tmp_path / "fine")
    one, other = (predict(model, Shards(jetclass / "val"), batch_size=n)[0] for n in (33, 256))
    torch.testing.assert_close(torch.tensor(one), torch.tensor(other), rtol=1e-4, atol=1e-4)


def test_from_scratch_it_is_the_same_model(pretrained, jetclass, tokens, tmp_path):
    words = ("--tokenizer", tokens, "--inputs", "features")
    scratch = tuned("classify", jetclass, tmp_path / "scratch", *words)
    config, own = any_config(scratch), any_config(load_weights(pretrained))
    assert replace(own, parts=("classifier",), num_classes=3, inputs="features") == config
    kept = load_tokenizer(tokens)
    assert load_model(scratch).tokenizer.fingerprint == kept.fingerprint


def test_a_decoder_learns_other_jets_and_is_judged_by_them(pretrained, jetclass, tmp_path):
    after = tuned("next-token", jetclass, tmp_path / "run", "--from", pretrained)
    before = load_weights(pretrained)
    assert before.state.keys() == after.state.keys()
    assert "body.heads" in moved(before.state, after.state)
    for run in (pretrained, tmp_path / "run"):  # a pre-training is judged by its own objective
        (report,) = judged(run, jetclass, tmp_path / "judged", num_jets=None).values()
        with torch.no_grad():
            jets = some(jetclass / "val", 256)
            nats = load_model(load_weights(run)).negative_log_likelihood(jets)
        mean = float(nats.sum()) / len(jets.particles)
        assert report.nats.value == pytest.approx(mean, rel=1e-5)
        assert report.codes + report.ends == pytest.approx(mean, rel=1e-5)
        assert (report.jets, report.particles) == (256, len(jets.particles))
    records = [r for r in read_metrics(pretrained / "metrics.jsonl") if r["kind"] == "validation"]
    assert report.frequencies == pytest.approx(records[-1]["next_token_trivial"], rel=1e-6)


def test_transfers_that_do_not_fit_are_said(pretrained, jetclass, tokens, tmp_path, monkeypatch):
    start = ("--from", pretrained)
    for task, words, message in (
        ("origin", start, "for models of the kind PET"),
        ("classify", (*start, "--probe", "linear"), "--freeze body keeps it"),
        ("classify", (*start, "--preset", "small"), "a decoder has the size of"),
        ("classify", (*start, "--inputs", "features"), "reads tokens, not features"),
        ("classify", ("--head", "sum"), "is a choice of decoders"),
        ("next-token", (), "for models of the kind JetDecoder"),
    ):
        with pytest.raises(ValueError, match=message):
            tuned(task, jetclass, tmp_path / "run", *words)
    with pytest.raises(SettingsError, match="needs tokens"):
        find_task("classify").defaults("omnijet")
    monkeypatch.setattr(Tokenizer, "fingerprint", property(lambda self: str(id(self))))
    with pytest.raises(ValueError, match="knows the tokens of the tokeniser"):
        tuned("classify", jetclass, tmp_path / "run", *start, "--tokenizer", tokens)


def test_what_does_not_fit_is_said(toptag, tokens, tmp_path, capsys):
    base = ["--data", str(toptag), "--out", str(tmp_path / "run"), "--objective", "next-token"]
    scale = Tokenizer.blank(("ln_pt",), 0)
    with pytest.raises(ValueError, match="needs a tokeniser with codes"):
        jet_decoder_config("micro", scale)
    for wrong, message in (
        ([], "--tokenizer names a folder of tokenize"),
        (["--tokenizer", str(tokens)], "reads tracks, which the jets of"),
        (["--objective", "next-token+mpm"], "trains a model of its own"),
        (["--objective", "next-tokn"], "did you mean next-token"),
        (["--preset", "mpm-v1"], "is of masked particles"),
        (["--preset", "omnijet", "--objective", "mpm"], "is of next-token"),
        (["--objective", "classifier", "--tokenizer", str(tokens)], "no use for a tokeniser"),
        (["--objective", "classifier", "--inputs", "features"], "is a choice of next-token"),
    ):
        with suppress(SystemExit):
            assert command.main([*base, *wrong]) in (1, 2)
        assert message in capsys.readouterr().err


def test_the_preset_is_the_published_generator():
    found = pretrain_defaults("omnijet")
    assert (found.objective, found.optim.optimizer, found.optim.lr) == ("next-token", "adamw", 1e-3)
    assert replace(found, preset="micro").inputs == "tokens"
