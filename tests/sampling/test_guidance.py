"""Label dropout in training and classifier-free guidance in sampling."""

import json

import pytest
import torch

from jetkern import PET, Objective, model_preset
from jetkern.cli.finetune import main as finetune
from jetkern.cli.generate import main as generate
from jetkern.evaluation.generate import load_generator
from jetkern.objectives.views import DROP_LABEL
from jetkern.random import uniform
from jetkern.sampling import PETVelocity, SamplingError, guided, noise_jets, sample, scheme
from jetkern.sampling.solvers import uniform_grid
from jetkern.training.config import FinetuneSettings
from tests.factories import JETNET, write_jetnet_shards

COUNTS = [5, 8, 3, 9, 4, 12, 7] * 10
AB2 = scheme("ab2", uniform_grid(3))


def build(**changes):
    torch.manual_seed(0)
    options = {"num_classes": 5, "use_pid": False, "use_tracks": False, "layers": 1}
    return PET(model_preset("micro", ["generator"], **{**options, **changes}))


def jets(seed=0):
    labels = torch.arange(40) % 5
    return noise_jets(torch.arange(1, 41), seed=seed, label=labels)


def test_without_dropout_nothing_is_added():
    without, with_ = build().state_dict(), build(label_drop=0.2).state_dict()
    larger = {n for n in without if without[n].shape != with_[n].shape}
    assert without.keys() == with_.keys()
    assert larger == {"generator.type_embed.weight"}
    assert len(with_["generator.type_embed.weight"]) == 6
    learner = Objective(build())
    assert learner._told(jets(), jets().index) is None


def test_as_many_types_as_asked_for_are_hidden_by_seed_and_jet():
    learner = Objective(build(label_drop=0.25), seed=7).train()
    many = noise_jets(torch.ones(4000, dtype=torch.int64), label=torch.zeros(4000).long())
    told = learner._told(many, many.index).label
    hidden = told == -1
    assert torch.equal(hidden, uniform(7, DROP_LABEL, many.index) < 0.25)
    assert 0.22 < hidden.float().mean() < 0.28
    assert set(told.unique().tolist()) == {-1, 0}
    part = many.select(slice(100, 200))
    assert torch.equal(learner._told(part, part.index).label, told[100:200])
    assert learner.eval()._told(many, many.index) is None


def test_the_loss_is_that_of_the_jets_as_told():
    learner = Objective(build(label_drop=0.5), seed=1).train()
    some = jets()
    told = learner._told(some, some.index)
    assert (told.label == -1).any()
    expected = learner.eval()(told)["loss"]
    assert torch.equal(learner.train()(some)["loss"], expected)
    assert not torch.equal(learner.eval()(some)["loss"], expected)


def test_the_classifier_still_knows_the_types():
    torch.manual_seed(0)
    options = {"use_pid": False, "use_tracks": False, "layers": 1, "num_classes": 5}
    config = model_preset("micro", ["classifier", "generator"], label_drop=0.9, **options)
    learner = Objective(PET(config), seed=1)
    trained, evaluated = learner.train()(jets()), learner.eval()(jets())
    for name in ("classifier", "classifier_noised"):
        assert torch.equal(trained[name], evaluated[name])
    assert not torch.equal(trained["generator"], evaluated["generator"])


def test_the_missing_type_learns():
    model = build(label_drop=0.5)
    Objective(model, seed=1).train()(jets())["loss"].backward()
    assert model.generator.type_embed.weight.grad[5].abs().sum() > 0


def test_a_scale_of_one_is_no_guidance_and_zero_is_no_type():
    model = build(label_drop=0.1).eval()
    start = jets()
    plain = sample(PETVelocity(model), start, AB2).particles
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(
        sample(guided(PETVelocity(model), 1.0), start, AB2).particles, plain, **close
    )
    untyped = sample(PETVelocity(model), start.replace(label=torch.full((40,), -1)), AB2).particles
    torch.testing.assert_close(
        sample(guided(PETVelocity(model), 0.0), start, AB2).particles, untyped, **close
    )
    assert not torch.allclose(plain, untyped, **close)


def test_models_that_cannot_leave_out_the_type():
    for wrong in ({"label_drop": 1.0}, {"label_drop": -0.1}, {"label_drop": 0.1, "num_classes": 1}):
        with pytest.raises(ValueError, match=r"label_drop must lie in \[0, 1\)"):
            build(**wrong)
    with pytest.raises(SamplingError, match="--label-drop"):
        sample(guided(PETVelocity(build().eval()), 2.0), jets(), AB2)


def test_from_training_to_guided_jets(tmp_path):
    for number, split in enumerate(("train", "val")):
        write_jetnet_shards(tmp_path / split, COUNTS, seed=number)
    run, out = tmp_path / "run", tmp_path / "out"
    short = {"steps": 2, "batch-size": 10, "warmup-steps": 0, "val-every": 2, "label-drop": 0.2}
    flags = [word for name, value in short.items() for word in (f"--{name}", str(value))]
    assert finetune(["jetnet", "--data", str(tmp_path), "--out", str(run), *flags]) == 0
    model, _ = load_generator(run)
    assert model.config.label_drop == 0.2
    assert len(model.generator.type_embed.weight) == len(JETNET) + 1
    made = {}
    for scale in ("1", "3"):
        folder = out / scale
        words = [str(run), "--conditions", str(tmp_path / "val"), "--out", str(folder)]
        words += ["--num-jets", "6", "--evaluations", "2", "--guidance", scale]
        assert generate(words) == 0
        made[scale] = (folder / "shards" / "shard-00000.tar").read_bytes()
    assert made["1"] != made["3"]
    stored = json.loads((run / "sampler.json").read_text())
    assert set(stored["schemes"]) == {"2", "2, guidance 3.0"}  # each fitted to its own field
    with pytest.raises(ValueError, match=r"label_drop must lie in \[0, 1\)"):
        FinetuneSettings(data=run, out=out, label_drop=1.0)
