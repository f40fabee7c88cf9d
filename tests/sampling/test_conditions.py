"""The model of the conditions: marginals, dependences, counts, and what is kept with the run."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from jetkern.cli.finetune import main as finetune
from jetkern.cli.generate import main as generate
from jetkern.data import Shards, Stream
from jetkern.evaluation import conditions
from jetkern.evaluation.conditions import draw_conditions, fit_conditions, load_conditions, outside
from jetkern.metrics.generation import wasserstein
from tests.factories import JETNET, write_jetnet_shards

COUNTS = [5, 8, 3, 9, 4, 12, 7] * 10


def some(jets=3000, seed=0):
    """Two types: a narrow mass and few particles, and a wide one that goes with many particles."""
    draw = np.random.default_rng(seed)
    label = np.arange(jets) % 2
    height = draw.normal(size=jets)
    mass = np.where(label == 0, 80 + 2 * height, np.exp(4 + 0.5 * height))
    count = np.where(label == 0, draw.poisson(12, jets) + 1, np.rint(60 + 15 * height))
    values = np.stack([draw.uniform(800, 1200, jets), mass, count.clip(1, 150)], axis=1)
    return torch.from_numpy(values), torch.from_numpy(label)


@pytest.fixture(scope="module")
def model():
    return fit_conditions(*some(), 2, steps=200)


def test_the_draws_have_the_distributions_of_their_type(model):
    values, label = some(seed=1)
    other, _ = some(seed=2)
    drawn = draw_conditions(model, label)
    for kind in (0, 1):
        chosen = label == kind
        for column in range(3):
            real = values[chosen, column]
            floor = wasserstein(real, other[chosen, column])
            assert wasserstein(real, drawn[chosen, column]) < 3 * floor + 0.1 * real.std()
    pair = drawn[label == 1][:, 1:].log().T
    assert torch.corrcoef(pair)[0, 1] > 0.8
    assert torch.corrcoef(drawn[label == 0].T)[1, 2].abs() < 0.2


def test_counts_are_integers_in_the_range_of_the_training_jets(model):
    values, label = some()
    drawn = draw_conditions(model, label, seed=5)
    for kind in (0, 1):
        count, real = drawn[label == kind][:, 2], values[label == kind][:, 2]
        assert torch.equal(count, count.round())
        assert real.min() <= count.min()
        assert count.max() <= real.max()


def test_draws_are_a_function_of_the_seed_and_the_number_of_the_jet(model):
    label = torch.tensor([0, 1, 1, 0, 1])
    first = draw_conditions(model, label, seed=3)
    torch.testing.assert_close(draw_conditions(model, label[:2], seed=3), first[:2])
    assert not torch.equal(draw_conditions(model, label, seed=4), first)


def test_the_same_jets_give_the_same_weights():
    one, other = (fit_conditions(*some(200), 2, steps=5, seed=7).state_dict() for _ in range(2))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_jets_that_are_all_the_same_come_back():
    values = torch.tensor([[1000.0, 80.0, 1.0]]).repeat(4, 1)
    model = fit_conditions(values, torch.zeros(4, dtype=torch.int64), 1, steps=2)
    drawn = draw_conditions(model, torch.zeros(50, dtype=torch.int64))
    torch.testing.assert_close(drawn, values[:1].repeat(50, 1).double())


def test_what_cannot_be_learned_or_drawn():
    values, label = some(20)
    values[3, 1] = np.nan
    with pytest.raises(ValueError, match="finite numbers"):
        fit_conditions(values, label, 2)
    with pytest.raises(ValueError, match="at least one jet"):
        fit_conditions(values[:0], label[:0], 2)
    model = fit_conditions(*some(20), 3, steps=1)
    for kind in (2, 3, -1):
        with pytest.raises(ValueError, match=f"type {kind} is unknown"):
            draw_conditions(model, torch.tensor([0, kind]))


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conditions")
    for number, split in enumerate(("train", "val")):
        write_jetnet_shards(folder / split, COUNTS, seed=number)
    flags = ["--steps=2", "--batch-size=10", "--warmup-steps=1", "--val-every=2", "--val-jets=10"]
    return ["jetnet", "--data", str(folder), "--out", str(folder / "run"), *flags]


@pytest.fixture(scope="module")
def run(command):
    assert finetune(command) == 0
    return Path(command[4])


def make(run, out, *more):
    flags = ["--conditions", "model", "--solver=ab2", "--evaluations=2", "--seed=1"]
    return generate([str(run), *flags, "--out", str(out), *more])


def test_finetune_keeps_it_and_a_kill_in_its_midst_is_made_good(run, command, monkeypatch):
    digest = load_conditions(run)[3]
    checkpoint = next((run / "checkpoints").glob("best-*"))
    before = {p: p.stat().st_mtime_ns for p in checkpoint.iterdir()}
    folder = run / "conditions"
    folder.rename(run / ".conditions.123.part")  # as a killed process leaves it
    assert finetune(command) == 0
    assert load_conditions(run)[3] == digest
    assert not list(run.glob(".*.part"))
    assert before == {p: p.stat().st_mtime_ns for p in checkpoint.iterdir()}
    monkeypatch.setattr(conditions, "fit_conditions", lambda *a, **k: pytest.fail("again"))
    assert finetune(command) == 0


def test_generate_makes_as_many_jets_of_each_type_as_asked_for(run, tmp_path):
    assert make(run, tmp_path / "a", "--jets-per-type", "g=3,t=2") == 0
    shards = Shards(tmp_path / "a" / "shards")
    jets = next(iter(Stream(shards, batch_size=99, shuffle=False, epochs=1)))
    assert shards.classes == JETNET
    assert jets.label.tolist() == [0] * 3 + [2] * 2
    assert min(COUNTS) <= jets.counts.min()
    assert jets.counts.max() <= max(COUNTS)
    torch.testing.assert_close(jets.condition[:, 2], jets.counts / 100)
    assert jets.condition[:, 0].tolist() == [1000.0] * 5  # as all that it learned from
    assert make(run, tmp_path / "b", "--jets-per-type", "1") == 0
    assert Shards(tmp_path / "b" / "shards").counts == (1, 1, 1, 1, 1)
    record = json.loads((tmp_path / "b" / "generated.json").read_text())
    assert record["conditions"] == load_conditions(run)[3]


def test_conditions_that_no_training_jet_had_are_counted(run, tmp_path, capsys):
    folder = tmp_path / "wanted"
    write_jetnet_shards(folder, COUNTS)
    flags = ["--conditions", str(folder), "--solver=ab2", "--evaluations=2"]
    assert generate([str(run), *flags, "--out", str(tmp_path / "a")]) == 0
    assert "beyond" not in capsys.readouterr().err
    shards = Shards(folder)
    jets = next(iter(Stream(shards, batch_size=99, shuffle=False, epochs=1)))
    known = set(jets.label.tolist())
    assert outside(run, jets, shards.condition, shards.classes) == {}
    far = jets.replace(condition=jets.condition.clone())
    far.condition[:2, 0] += 1.0  # of 1000 GeV, all alike
    far.condition[0, 1] = -1e3
    found = outside(run, far, shards.condition, shards.classes)
    assert found == {shards.condition[0]: 2, shards.condition[1]: 1}
    classes = ["x", *shards.classes[1:]]
    many = outside(run, jets, shards.condition, classes)
    assert many == ({"x": int((jets.label == 0).sum())} if 0 in known else {})
    assert outside(run, jets, ("other",), shards.classes) == {}
    assert outside(tmp_path, far, shards.condition, shards.classes) == {}
    longer = tmp_path / "longer"
    write_jetnet_shards(longer, (149,))
    flags[1] = str(longer)
    assert generate([str(run), *flags, "--out", str(tmp_path / "b")]) == 0
    assert "beyond what" in (told := capsys.readouterr().err)
    assert "multiplicity of 1" in told


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "goes with --jets-per-type"),
        (["--jets-per-type", "5", "--num-jets", "5"], "goes with --jets-per-type"),
        (["--jets-per-type", "x=5"], "the types are g, q, t, w, z, not x"),
        (["--jets-per-type", "g=-1"], "'-1' is not a number of jets"),
        (["--jets-per-type", "0"], "asks for no jets"),
        (["--jets-per-type", "5", "--conditions", "elsewhere"], "goes with --conditions model"),
    ],
)
def test_requests_that_do_not_fit(run, tmp_path, capsys, flags, message):
    assert make(run, tmp_path / "out", *flags) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_run_without_one_says_so(run, tmp_path, capsys):
    (run / "conditions").rename(tmp_path / "aside")
    try:
        assert make(run, tmp_path / "out", "--jets-per-type", "1") == 1
    finally:
        (tmp_path / "aside").rename(run / "conditions")
    assert "has no model of the conditions" in capsys.readouterr().err


def test_a_damaged_one_is_named(run, tmp_path, capsys):
    state = run / "conditions" / "state.pt"
    whole = state.read_bytes()
    try:
        state.write_bytes(whole[:-1] + b"?")
        assert make(run, tmp_path / "out", "--jets-per-type", "1") == 1
    finally:
        state.write_bytes(whole)
    assert "checksum" in capsys.readouterr().err
