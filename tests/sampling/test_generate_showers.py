"""The generate command with a decoder of showers: any interruption and slots, the same bytes."""

import json
import shutil

import numpy as np
import pytest
import torch
from test_generate import checkpoint, digests

from jetkern.cli import convert, evaluate, verify
from jetkern.cli.generate import main
from jetkern.convert.readers.showers import read_showers
from jetkern.data import Shards
from jetkern.evaluation import showers as module
from jetkern.evaluation.generate import first_jets
from jetkern.model.shower_decoder import ShowerDecoder, shower_decoder_config
from jetkern.sampling import Drawing, generate
from jetkern.showers import Showers
from jetkern.simulate.showers import CALORIMETERS, simulate_showers, write_showers
from tests.factories import hit_codes, write_untrained_run
from tests.faults import Faults, Killed, inject

SHOWERS, MOST = 8, 12
FLAGS = ("--max-particles", str(MOST), "--temperature", "1.1", "--top-p", "0.95")


def decoder(folder, size="spade"):
    """A run of an untrained decoder of showers that end after about twelve hits."""
    torch.manual_seed(0)
    own = {"dim": 16, "layers": 1, "heads": 2}
    tokenizer = hit_codes() if size == "omnijet-c" else None
    config = shower_decoder_config(size, (15, 12, 12), (1.0, 10.0), 132, tokenizer=tokenizer, **own)
    model = ShowerDecoder(config)
    if tokenizer is not None:
        model.keep_tokenizer(tokenizer)
    else:
        torch.nn.init.constant_(model.body.end.linear.bias, -2.5)
    return write_untrained_run(folder, model, kind="showers"), model.eval()


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    (folder / "in" / "test").mkdir(parents=True)
    write_showers(folder / "in" / "test" / "a.h5", CALORIMETERS["small"], range(30), seed=0)
    words = ["--out", str(folder / "out"), "--quiet", "--jets-per-block", "5"]
    assert convert.main([str(folder / "in"), *words]) == 0
    return folder / "out"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return decoder(tmp_path_factory.mktemp("showers") / "run")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(module, "PART", 3)


def draw(source, shards, out, *more):
    numbers = ["--num-jets", str(SHOWERS), "--conditions", str(shards / "test")]
    return main([str(source), "--out", str(out), *numbers, *FLAGS, *more])


@pytest.fixture(scope="module")
def whole(run, shards, tmp_path_factory):
    module.PART, before = 3, module.PART
    out = tmp_path_factory.mktemp("whole") / "out"
    assert draw(run[0], shards, out) == 0
    module.PART = before
    return out


def test_the_showers_are_those_of_the_model_for_the_energies_of_the_shards(run, shards, whole):
    model = run[1]
    asked = first_jets(Shards(shards / "test"), SHOWERS).condition
    drawn = generate(
        model.body, torch.arange(SHOWERS), seed=0, max_points=MOST,
        drawing=Drawing(temperature=1.1, top_p=0.95), condition=model.condition(asked[:, 0]),
    )  # fmt: skip
    made = first_jets(Shards(whole / "shards"))
    assert torch.equal(made.condition, asked)
    assert torch.equal(made.offsets, drawn.packed.offsets)
    assert torch.equal(made.points, model.hits(drawn.points, drawn.packed))
    record = json.loads((whole / "generated.json").read_text())
    assert record["cut"] == int(drawn.cut.sum())
    assert record["empty"] == int((made.counts == 0).sum())
    assert record["outside"] == 0
    assert verify.main([str(whole / "shards")]) == 0
    file = read_showers(whole / "showers" / "showers_0000.h5")
    found = Showers.of_clouds(made)
    assert np.array_equal(file.hits, found.hits)
    assert np.array_equal(file.offsets, found.offsets)
    assert np.array_equal(file.energies, found.energies)


@pytest.mark.parametrize("point", range(7))
def test_killed_anywhere_it_goes_on_to_the_same_bytes_with_other_slots(
    run, shards, whole, tmp_path, point
):
    """Killed at the point-th file that is published."""
    out = tmp_path / "out"
    with inject(Faults(out, "replace", point)), pytest.raises(Killed):
        draw(run[0], shards, out, "--slots", "2")
    assert draw(run[0], shards, out, "--slots", "5") == 0
    assert digests(out) == digests(whole)


@pytest.mark.parametrize("slots", [1, 7, 64])
def test_the_same_bytes_from_any_slots(run, shards, whole, tmp_path, slots):
    assert draw(run[0], shards, tmp_path / "out", "--slots", str(slots)) == 0
    assert digests(tmp_path / "out") == digests(whole)


@pytest.mark.parametrize("size", ["combined", "micro", "omnijet-c"])
def test_other_streams_are_drawn_the_same_from_any_slots(shards, tmp_path, size):
    source, _ = decoder(tmp_path / "run", size)
    for slots in (1, 5):
        assert draw(source, shards, tmp_path / str(slots), "--slots", str(slots)) == 0
    assert digests(tmp_path / "1") == digests(tmp_path / "5")
    made = first_jets(Shards(tmp_path / "1" / "shards"))
    assert ((made.points[:, :3] >= 0) & (made.points[:, :3] < torch.tensor([12, 12, 15]))).all()


def test_a_longer_request_begins_with_the_same_showers(run, shards, whole, tmp_path):
    assert draw(run[0], shards, tmp_path / "out", "--num-jets", "11") == 0
    longer = first_jets(Shards(tmp_path / "out" / "shards")).select(slice(0, SHOWERS))
    made = first_jets(Shards(whole / "shards"))
    assert torch.equal(longer.points, made.points)
    assert torch.equal(longer.offsets, made.offsets)


def test_energies_of_a_file_or_evenly_spread(run, whole, tmp_path, capsys):
    path = tmp_path / "a.h5"
    write_showers(path, CALORIMETERS["small"], range(6), seed=1)
    words = [str(run[0]), *FLAGS, "--energies"]
    assert main([*words, str(path), "--out", str(tmp_path / "file")]) == 0
    made = first_jets(Shards(tmp_path / "file" / "shards"))
    expected = simulate_showers(CALORIMETERS["small"], range(6), seed=1).energies
    assert np.array_equal(made.condition[:, 0].numpy(), expected)
    spread = [*words, "5,20", "--num-jets", "40", "--out", str(tmp_path / "even")]
    assert main(spread) == 0
    energies = first_jets(Shards(tmp_path / "even" / "shards")).condition[:, 0]
    assert 5 <= energies.min() < 8
    assert 17 < energies.max() <= 20
    outside = int((energies > 10).sum())
    said = capsys.readouterr().out
    assert f"{outside} of them of energies that the model has not seen" in said
    assert f"cut at {MOST} hits" in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seed", "1"], "made with another seed"),
        (["--precision", "bf16"], "made with another precision"),
        (["--max-particles", "11"], "made with another max_particles"),
        (["--solver", "ab2"], "--solver is for velocity fields"),
        (["--batch-size", "256"], "--batch-size is for velocity fields"),
        (["--energies", "1,10"], "needs --conditions, a folder of shards, or --energies"),
        (["--num-jets", "31"], "has 30 showers, 31 are asked for"),
        (["--temperature", "-1"], "temperature must be 0 or more, got -1.0"),
    ],
)
def test_requests_that_do_not_fit(run, shards, whole, tmp_path, capsys, flags, message):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    assert draw(run[0], shards, out, *flags) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert digests(out) == digests(whole)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "needs --conditions, a folder of shards, or --energies"),
        (["--energies", "1,10"], "needs --num-jets"),
        (["--energies", "10,1"], "is neither a file nor LOW,HIGH in GeV"),
        (["--energies", "0,1"], "is neither a file nor LOW,HIGH in GeV"),
        (["--energies", "nothing.h5"], "nothing.h5: no such file"),
    ],
)
def test_energies_that_are_none(run, tmp_path, capsys, flags, message):
    assert main([str(run[0]), *flags, "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_other_models_know_no_energies(tmp_path, capsys):
    source = checkpoint(tmp_path / "run")
    words = ["--conditions", "model", "--out", str(tmp_path / "out"), "--energies", "1,2"]
    assert main([str(source), *words]) == 1
    assert "--energies is for decoders of showers" in capsys.readouterr().err


def test_what_is_drawn_is_judged_beside_a_floor(run, shards, whole, tmp_path, capsys):
    words = ["--data", str(shards), "--out", str(tmp_path / "results")]
    assert evaluate.main([str(whole), *words]) == 0
    assert "W1 of out" in capsys.readouterr().out
    report = json.loads((tmp_path / "results" / "report.json").read_text())
    (found,) = report["models"].values()
    assert found["drawn"] == SHOWERS
    assert found["distances"]["hits"]["value"]["value"] > 5
    assert (tmp_path / "results" / "out.png").read_bytes()[:4] == b"\x89PNG"
    assert evaluate.main([str(whole), *words, "--task", "jetnet"]) == 1
    assert "has showers, the task jetnet needs jets" in capsys.readouterr().err
