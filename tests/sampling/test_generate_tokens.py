"""The generate command with a decoder of tokens: any interruption and slots, the same bytes."""

import json
import shutil

import h5py
import numpy as np
import pytest
import torch
from test_generate import checkpoint, digests

from jetkern import Jets
from jetkern.cli import evaluate, verify
from jetkern.cli.generate import main
from jetkern.data import Shards
from jetkern.evaluation import generate as module
from jetkern.evaluation.generate import first_jets
from jetkern.model.jet_decoder import JetDecoder, JetDecoderConfig
from jetkern.sampling import Drawing, generate_jets
from jetkern.tokenizers import QuantileNormal, Tokenizer
from tests.factories import write_jetnet_shards, write_untrained_run
from tests.faults import Faults, Killed, inject

FEATURES = ("delta_eta", "delta_phi", "ln_pt")
JETS, MOST = 8, 12
DRAWN = Drawing(temperature=1.1, top_k=7, top_p=0.95)
FLAGS = ("--temperature", "1.1", "--top-k", "7", "--top-p", "0.95")


def decoder(folder, features=FEATURES, **more):
    """A run of an untrained decoder of nine codes."""
    jets = Jets(particles=torch.randn(60, 4), offsets=torch.tensor([0, 40, 60]))
    values, _ = Tokenizer.blank(features, 0).values(jets)
    scale = QuantileNormal.fit([column.numpy() for column in values.T])
    torch.manual_seed(0)
    size = {"dim": 16, "layers": 1, "heads": 2}
    model = JetDecoder(JetDecoderConfig(classes=(9,), features=features, **size, **more))
    model.keep_tokenizer(Tokenizer(features, scale, scale(values)[:9]))
    return write_untrained_run(folder, model, kind="decoder"), model.eval()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return decoder(tmp_path_factory.mktemp("tokens") / "run")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(module, "PART", 3)


def draw(source, out, *more):
    numbers = ["--num-jets", str(JETS), "--max-particles", str(MOST)]
    return main([str(source), "--out", str(out), *numbers, *FLAGS, *more])


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    module.PART, before = 3, module.PART
    out = tmp_path_factory.mktemp("whole") / "out"
    assert draw(run[0], out) == 0
    module.PART = before
    return out


def test_the_jets_are_those_of_the_model(run, whole, capsys):
    model = run[1]
    want, cut = generate_jets(
        model, torch.arange(JETS), seed=0, max_particles=MOST, drawing=DRAWN
    )  # in one part
    made = first_jets(Shards(whole / "shards"))
    assert made.counts.tolist() == want.counts.tolist()
    assert made.label is None
    assert made.condition is None
    for number in range(JETS):
        have, drawn = made.select(slice(number, number + 1)), want.select(slice(number, number + 1))
        order = (-drawn.particles[:, 2]).argsort(stable=True)
        assert torch.equal(have.particles, drawn.particles[order])
    record = json.loads((whole / "generated.json").read_text())
    assert record["tokenizer"] == model.tokenizer.fingerprint
    assert record["cut"] == int(cut.sum()) > 0
    assert record["empty"] == int((want.counts == 0).sum())
    assert verify.main([str(whole / "shards")]) == 0
    with h5py.File(whole / "jetnet" / "all30.hdf5") as file:
        np.testing.assert_array_equal(file["jet_features"][:, 3], want.counts.numpy())
    assert draw(run[0], whole) == 0
    assert f"{cut.sum()} of them cut at {MOST} particles" in capsys.readouterr().out


@pytest.mark.parametrize("point", range(7))
def test_killed_anywhere_it_goes_on_to_the_same_bytes_with_other_slots(run, whole, tmp_path, point):
    """Killed at the point-th file that is published."""
    out = tmp_path / "out"
    with inject(Faults(out, "replace", point)), pytest.raises(Killed):
        draw(run[0], out, "--slots", "2")
    assert draw(run[0], out, "--slots", "5") == 0
    assert digests(out) == digests(whole)


@pytest.mark.parametrize("slots", [1, 7, 64])
def test_the_same_bytes_from_any_slots(run, whole, tmp_path, slots):
    assert draw(run[0], tmp_path / "out", "--slots", str(slots)) == 0
    assert digests(tmp_path / "out") == digests(whole)


def test_a_longer_request_begins_with_the_same_jets(run, whole, tmp_path):
    assert draw(run[0], tmp_path / "out", "--num-jets", "11") == 0
    longer = first_jets(Shards(tmp_path / "out" / "shards")).select(slice(0, JETS))
    made = first_jets(Shards(whole / "shards"))
    assert torch.equal(longer.particles, made.particles)
    assert torch.equal(longer.offsets, made.offsets)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seed", "1"], "made with another seed"),
        (["--precision", "bf16"], "made with another precision"),
        (["--top-k", "3"], "made with another top_k"),
        (["--solver", "ab2"], "--solver is for velocity fields"),
        (["--jets-per-type", "5"], "--jets-per-type is for velocity fields"),
        (["--conditions", "model"], "--conditions is for velocity fields"),
        (["--batch-size", "256"], "--batch-size is for velocity fields"),
        (["--temperature", "-1"], "temperature must be 0 or more, got -1.0"),
        (["--top-p", "1.5"], "top_p must be above 0 and at most 1, got 1.5"),
        (["--max-particles", "151"], "at most 150 particles: 151"),
    ],
)
def test_requests_that_do_not_fit(run, whole, tmp_path, capsys, flags, message):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    assert draw(run[0], out, *flags) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert digests(out) == digests(whole)


def test_a_number_of_jets_is_needed(run, tmp_path, capsys):
    assert main([str(run[0]), "--out", str(tmp_path / "out")]) == 1
    assert "needs --num-jets" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flag", ["temperature", "top-k", "top-p", "max-particles", "slots"])
def test_velocity_fields_draw_no_tokens(tmp_path, capsys, flag):
    source = checkpoint(tmp_path / "run")
    flags = ["--conditions", "model", "--out", str(tmp_path / "out"), f"--{flag}", "1"]
    assert main([str(source), *flags]) == 1
    error = capsys.readouterr().err
    assert f"--{flag} is for decoders of tokens" in error
    assert str(source) in error
    assert main([str(source), "--out", str(tmp_path / "out")]) == 1
    assert "a velocity field needs --conditions" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parts": ("classifier",)}, "read and predict tokens"),
        ({"inputs": "features"}, "read and predict tokens"),
        ({"features": FEATURES[:2]}, "does not read ln_pt"),
    ],
)
def test_decoders_that_draw_no_jets(tmp_path, capsys, change, message):
    source, _ = decoder(tmp_path / "run", **change)
    assert draw(source, tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert message in error
    assert str(source) in error
    assert not (tmp_path / "out").exists()


def test_jets_without_types_are_judged_as_one_type(run, tmp_path, capsys):
    counts = [5, 1, 12, 3, 7] * 5
    shards = write_jetnet_shards(tmp_path / "data" / "test", counts).parent
    for name in ("one", "other"):
        seed = str(len(name))
        assert draw(run[0], tmp_path / name, "--num-jets", "30", "--seed", seed) == 0
    flags = ["--data", str(shards), "--out", str(tmp_path / "results")]
    runs = [str(tmp_path / name) for name in ("one", "other")]
    assert evaluate.main([*runs, *flags]) == 0
    report = json.loads((tmp_path / "results" / "report.json").read_text())
    assert list(report["models"]) == ["one", "other"]
    for found in report["models"].values():
        assert found["resampled"] == {"all": len(counts) // 2}
        assert found["evaluations"] is None
        assert found["distances"]["all"] == found["distances"]["average"]
        assert found["distances"]["all"]["W1 multiplicity"]["value"][0] > 0
    assert (tmp_path / "results" / "one-all.png").exists()
