"""The JetNet task: from fine-tuning to the table, at a toy's size."""

import json
import math
import sys

import pytest
import torch

from jetkern.cli.evaluate import main as evaluate
from jetkern.cli.finetune import main as finetune
from jetkern.cli.generate import main as generate
from jetkern.data import Shards
from jetkern.evaluation.figures import average_image
from jetkern.evaluation.generate import first_jets, load_generator
from jetkern.evaluation.generation import generation_report, generation_table
from jetkern.evaluation.two_sample import two_sample_auc
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
    assert sheets == {f"run-{what}.png" for what in (*JETNET, "grid", "images")}


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


def test_coverage_and_mmd_need_pot_at_once(run, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ot", None)
    out = tmp_path / "out"
    assert evaluate([str(run), "--data", str(data), "--out", str(out), "--coverage", "3"]) != 0
    assert "ot is not installed: pip install 'jetkern[study]'" in capsys.readouterr().err


def test_a_type_without_jets_is_left_out(data):
    real = first_jets(Shards(data / "test"))
    some = real.select(real.label < 2)
    report = generation_report(real, some, JETNET)
    assert set(report.distances) == {"g", "q", "average"}
    assert "g | g, real" in generation_table(report)
    with pytest.raises(ValueError, match="no type has"):
        generation_report(real, real.select(slice(0, 0)), JETNET)


def test_jets_that_differ_are_told_apart_and_the_same_ones_are_not(data):
    real = first_jets(Shards(data / "test"))
    other = first_jets(Shards(data / "val"))
    moved = other.replace(particles=other.particles + torch.tensor([0.0, 0.0, 3.0, 3.0]))
    told = two_sample_auc(real, moved, steps=30, batch_size=32)
    same = two_sample_auc(real, other, steps=30, batch_size=32)
    assert told.value > 0.9
    assert abs(same.value - 0.5) < 4 * same.error
    assert two_sample_auc(real, other, steps=30, batch_size=32) == same
    with pytest.raises(ValueError, match="needs 10 jets of each, there are 9"):
        two_sample_auc(real.select(slice(0, 9)), other, steps=1)


def test_folders_of_generated_jets_are_judged_without_the_run(run, data, tmp_path, monkeypatch):
    for slow in ("sheet_figure", "grid_figure"):  # drawn in another test
        monkeypatch.setattr(f"jetkern.evaluation.figures.{slow}", lambda *a: None)
    for count in (2, 4):
        flags = [
            "--solver",
            "ab2",
            "--evaluations",
            str(count),
            "--out",
            str(tmp_path / f"{count}"),
        ]
        assert generate([str(run), "--conditions", str(data / "test"), *flags]) == 0
    folders = [str(tmp_path / "2"), str(tmp_path / "4")]
    out = tmp_path / "results"
    more = ["--two-sample", "2", "--coverage", "2"]
    assert evaluate([*folders, "--data", str(data), "--out", str(out), *more]) == 0
    models = json.loads((out / "report.json").read_text())["models"]
    assert [models[name]["evaluations"] for name in ("2", "4")] == [2, 4]
    average = models["2"]["distances"]["average"]
    assert 0 <= average["AUC of a classifier"]["value"][0] <= 1
    assert 0 < average["coverage"]["floor"][0] <= 1
    assert average["MMD"]["value"][0] > 0
    for name in ("evaluations.png", "4-images.png"):
        assert (out / name).stat().st_size > 10_000, name


def test_an_image_is_the_share_of_the_pt(data):
    jets = first_jets(Shards(data / "test"))
    inside = jets.replace(particles=jets.particles.clamp(-0.7, 0.7))
    assert average_image(inside).sum() == pytest.approx(1)
    assert average_image(jets.select(slice(0, 0))).sum() == 0
