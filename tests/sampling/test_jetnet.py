"""The JetNet task: from fine-tuning to the table, at a toy's size."""

import json
import math

import pytest
import torch

from jetkern.cli.evaluate import main as evaluate
from jetkern.cli.finetune import main as finetune
from jetkern.data import Shards
from jetkern.evaluation.generate import first_jets, load_generator
from jetkern.evaluation.generation import generation_figure, generation_report, generation_table
from jetkern.training.weights import load_weights
from tests.factories import JETNET, write_jetnet_shards

COUNTS = [5, 8, 3, 9, 4, 12, 7] * 10


def toy(steps):
    flags = {"steps": steps, "batch-size": 10, "warmup-steps": 0, "val-every": 1, "val-jets": 10}
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jetnet")
    for number, split in enumerate(("train", "val", "test")):
        write_jetnet_shards(folder / split, COUNTS, seed=number)
    return folder


@pytest.fixture(scope="module")
def run(data):
    out = data / "run"
    flags = [
        "--steps",
        "2",
        "--batch-size",
        "10",
        "--warmup-steps",
        "1",
        "--val-every",
        "2",
        "--val-jets",
        "10",
    ]
    assert finetune(["jetnet", "--data", str(data), "--out", str(out), *flags]) == 0
    return out


def test_the_model_is_conditional_and_keeps_its_scale_and_average(run):
    model, weights = load_generator(run)
    config = model.config
    assert config.parts == ("generator",)
    assert (config.num_classes, config.condition_dim) == (5, 3)
    assert config.condition_scale == (1000.0, 100.0, 1.0)
    state = torch.load(weights.path / "state.pt", weights_only=True)
    for name, tensor in weights.state.items():
        assert torch.equal(tensor, state["average"][name])
    assert any(not torch.equal(t, state["model"][n]) for n, t in weights.state.items())


def test_the_condition_is_divided_by_the_scale(run, data):
    model, _ = load_generator(run)
    jets = first_jets(Shards(data / "test"), 3)
    time = torch.full((3,), 0.5)
    scaled = model.velocity(jets, time)
    object.__setattr__(model.config, "condition_scale", None)
    by_hand = jets.replace(condition=jets.condition / torch.tensor([1000.0, 100.0, 1.0]))
    torch.testing.assert_close(model.velocity(by_hand, time), scaled)
    assert not torch.allclose(model.velocity(jets, time), scaled)


def test_from_a_checkpoint_type_and_output_begin_anew(run, data, tmp_path, capsys):
    flags = [
        "--steps",
        "1",
        "--batch-size",
        "10",
        "--warmup-steps",
        "0",
        "--val-every",
        "1",
        "--val-jets",
        "10",
    ]
    out = str(tmp_path / "again")
    assert finetune(["jetnet", "--from", str(run), "--data", str(data), "--out", out, *flags]) == 0
    table = capsys.readouterr().out
    assert "generator.type_embed" in table
    assert load_weights(out).config["condition_scale"] == [1000.0, 100.0, 1.0]


def test_evaluate_writes_distances_and_floors(run, data, tmp_path):
    out = tmp_path / "results"
    assert evaluate([str(run), "--data", str(data), "--out", str(out)]) == 0
    report = json.loads((out / "report.json").read_text())
    distances = next(iter(report["models"].values()))["distances"]
    assert set(distances) == {*JETNET, "average"}
    names = {
        "W1 particle ln pT",
        "W1 mass",
        "W1 tau21",
        "W1 D2",
        "W1M",
        "W1P",
        "W1EFP",
        "FPD",
        "KPD",
    }
    assert names <= set(distances["average"])
    assert distances["average"]["W1 mass"]["value"][0] > 0
    assert "| W1 eta |" in (out / "table.md").read_text()
    sheets = {p.name for p in out.glob("run-*.png")}
    assert sheets == {f"run-{kind}.png" for kind in JETNET}


def test_real_jets_are_at_the_floor_and_shifted_ones_are_not(data):
    real = first_jets(Shards(data / "test"))
    other = first_jets(Shards(data / "val"))
    moved = other.replace(particles=other.particles + torch.tensor([0.0, 0.0, 0.7, 0.7]))
    same = generation_report(real, other, JETNET).distances["average"]
    shifted = generation_report(real, moved, JETNET).distances["average"]
    assert shifted["W1 particle ln pT"].value.value == pytest.approx(0.7, abs=0.3)
    assert same["W1 particle ln pT"].value.value < 0.5 * shifted["W1 particle ln pT"].value.value
    assert all(math.isfinite(d.floor.value) for d in same.values())
    assert generation_report(real, other, JETNET).distances["average"] == same


def test_a_type_without_jets_is_left_out(data):
    real = first_jets(Shards(data / "test"))
    some = real.select(real.label < 2)
    report = generation_report(real, some, JETNET)
    assert set(report.distances) == {"g", "q", "average"}
    assert "g | g, real" in generation_table(report)
    with pytest.raises(ValueError, match="no type has"):
        generation_report(real, real.select(slice(0, 0)), JETNET)


def test_the_sheet_is_drawn(data, tmp_path):
    real = first_jets(Shards(data / "test"))
    generation_figure(real, {"generated": first_jets(Shards(data / "val"))}, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 10_000
