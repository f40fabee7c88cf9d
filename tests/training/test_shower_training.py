"""Pre-training on the hits of showers: what is minimised, killed and continued, said of misfits."""

import json
import math
import signal
from dataclasses import asdict

import h5py
import numpy as np
import pytest
import torch
from test_transfer import settings

from jetkern.cli import baseline, convert, tokenize
from jetkern.cli import evaluate as judging
from jetkern.cli import finetune as tuning
from jetkern.cli import pretrain as command
from jetkern.clouds import Clouds
from jetkern.data import Shards, Stream
from jetkern.model.delay import delayed
from jetkern.model.shower_decoder import (
    ShowerDecoder,
    ShowerDecoderConfig,
    shower_decoder_config,
)
from jetkern.objectives import objective_of
from jetkern.packed import Packed
from jetkern.recipes import pretrain
from jetkern.showers import Showers
from jetkern.simulate.showers import CALORIMETERS, make_showers, simulate_showers
from jetkern.tokenizers import HITS, Tokenizer
from jetkern.training import step
from jetkern.training.checkpoints import RunError
from jetkern.training.config import SettingsError
from jetkern.training.defaults import finetune_defaults, pretrain_defaults
from jetkern.training.log import read_metrics
from jetkern.training.showers import shower_shape
from jetkern.training.weights import any_config, load_model, load_weights
from tests.factories import hit_codes

SMALL = {"objective": "next-token", "steps": 4, "val_every": 2, "warmup_steps": 1}
SIZE = {"dim": 16, "layers": 2, "heads": 2}
CELLS = (15, 12, 12)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("showers")
    make_showers(folder / "in", "small", 60, {"train": 0.6, "val": 0.2, "test": 0.2})
    words = ["--out", str(folder / "out"), "--quiet", "--jets-per-block", "5"]
    assert convert.main([str(folder / "in"), *words]) == 0
    return folder / "out"


def asked(data, out, *words, preset="micro", **changes):
    words = ("--preset", preset, *words)
    return settings(pretrain_defaults, *words, data=data, out=out, **SMALL | changes)


def test_a_training_speaks_of_showers(data, tmp_path, capsys):
    pretrain(asked(data, tmp_path / "run"))
    said = capsys.readouterr().out
    assert "36 showers, 4 steps of 32 showers, " in said
    assert "jets" not in said


def clouds(showers: Showers) -> Clouds:
    return Clouds(
        points=torch.from_numpy(showers.hits),
        offsets=torch.from_numpy(showers.offsets),
        condition=torch.from_numpy(showers.energies)[:, None],
        index=torch.arange(len(showers)),
    )


def model(size="spade", **changes):
    torch.manual_seed(0)
    own = {**SIZE, **changes}
    if size != "omnijet-c":
        return ShowerDecoder(shower_decoder_config(size, CELLS, (1.0, 10.0), 130, **own))
    tokenizer = hit_codes()
    config = shower_decoder_config(size, CELLS, (1.0, 10.0), 130, tokenizer=tokenizer, **own)
    found = ShowerDecoder(config)
    found.keep_tokenizer(tokenizer)
    return found


@pytest.fixture(scope="module", params=["micro", "combined", "omnijet-c"])
def preset(request):
    return request.param


@pytest.fixture(scope="module")
def words(data, preset, tmp_path_factory):
    """Flags that the preset needs."""
    if preset != "omnijet-c":
        return ("--ema-decay", 0.9)
    tokens = tmp_path_factory.mktemp("tokens") / "out"
    fitting = ["vqvae", "--data", str(data), "--out", str(tokens), "--codes", "32"]
    assert tokenize.main([*fitting, "--steps", "5", "--shape", "16", "1", "2", "4"]) == 0
    return ("--ema-decay", 0.9, "--tokenizer", tokens)


@pytest.fixture(scope="module")
def pretrained(data, preset, words, tmp_path_factory):
    out = tmp_path_factory.mktemp("pretrained") / "run"
    pretrain(asked(data, out, *words, preset=preset))
    return out


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(
    pretrained, preset, words, data, tmp_path, monkeypatch
):
    done = step.Step.__call__

    def stopping(self, jets, number):
        done(self, jets, number)
        if number == 2:
            signal.raise_signal(signal.SIGTERM)

    more = asked(data, tmp_path / "parts", *words, preset=preset)
    monkeypatch.setattr(step.Step, "__call__", stopping)
    assert pretrain(more)["step"] == 3
    monkeypatch.setattr(step.Step, "__call__", done)
    pretrain(more)
    one, other = load_weights(pretrained), load_weights(tmp_path / "parts")
    assert one.kind == "showers"
    assert one.data["fields"] == {"points": ["x", "y", "layer", "energy"]}
    assert all(one.state[name].equal(other.state[name]) for name in one.state)

    # What is logged is what the likelihood says, in all and by stream.
    trained = load_model(one)
    logged = [r for r in read_metrics(pretrained / "metrics.jsonl") if r["kind"] == "validation"]
    best = next(r for r in logged if r["step"] == one.step)
    showers = next(iter(Stream(Shards(data / "val"), batch_size=100, shuffle=False, epochs=1)))
    with torch.no_grad():
        nats = trained.negative_log_likelihood(showers).double().sum() / showers.total
        losses, _ = trained.row_losses(showers)
    assert best["next_token"] == pytest.approx(float(nats), rel=1e-4)
    found = {f"next_token_{n}" for n in trained.config.streams}
    assert {k for k in best if k.startswith("next_token_")} == found | {"next_token_trivial"}
    for name, column in zip(
        trained.config.streams, losses.double().T, strict=preset != "omnijet-c"
    ):
        mean = float(column.sum()) / showers.total
        assert best[f"next_token_{name}"] == pytest.approx(mean, rel=1e-4, abs=1e-6)


def test_hits_come_back_from_streams():
    showers = clouds(simulate_showers(CALORIMETERS["small"], range(3)))
    hits = showers.points
    for size in ("spade", "combined"):
        made = model(size)
        back = made.hits(made.points(showers), showers.packed)
        assert torch.equal(back[:, :3], hits[:, :3])
        torch.testing.assert_close(back[:, 3], hits[:, 3], rtol=1e-6, atol=0)
    last = torch.tensor([[11.0, 11.0, 14.0, 1.0]])
    last_hit = Clouds(points=last, offsets=torch.tensor([0, 1]))
    assert model("combined").points(last_hit)[0, 0] == 15 * 12 * 12 - 1
    assert model("spade").config.streams == ("layer", "x", "y", "ln_energy", "end")
    assert model("combined").config.streams == ("cell", "ln_energy", "end")


def test_what_rows_know_of_energies_is_as_spade_has_it():
    torch.manual_seed(0)
    made = ShowerDecoder(shower_decoder_config("spade", (30,) * 3, (10.0, 100.0), 9, **SIZE))
    found = made.condition(torch.tensor([10.0, 55.0, 100.0]))
    torch.testing.assert_close(found, torch.tensor([[-1.935], [0.0], [1.935]]))
    alike = ShowerDecoder(shower_decoder_config("spade", (30,) * 3, (5.0, 5.0), 9, **SIZE))
    assert alike.condition(torch.tensor([5.0, 6.0])).tolist() == [[0], [1]]


@pytest.mark.parametrize("size", ["spade", "combined", "micro", "omnijet-c"])
def test_passes_add_up_and_showers_are_alone_in_a_batch(size):
    """Empty showers and those of one hit among them."""
    hits = simulate_showers(CALORIMETERS["small"], range(3))
    rows = np.concatenate([hits.hits, hits.hits[:1]])
    offsets = np.array([0, *hits.offsets, hits.offsets[-1] + 1])
    every = clouds(Showers(rows, offsets, np.float32([5, *hits.energies, 9])))
    made = model(size)
    made.body.double()
    every = every.replace(points=every.points.double(), condition=every.condition.double())
    nats = made.negative_log_likelihood(every).detach()
    assert nats.isfinite().all()
    alone = torch.cat(
        [made.negative_log_likelihood(every.select(slice(i, i + 1))) for i in range(len(every))]
    )
    torch.testing.assert_close(nats, alone, rtol=1e-10, atol=1e-10)
    objective = objective_of(made)
    whole = objective(every)["loss"]
    assert float(whole.detach()) == pytest.approx(float(nats.sum()) / every.total, rel=1e-10)
    per_jet = objective.per_jet(every)
    parts = [every.select(slice(0, 2)), every.select(slice(2, None))]
    losses = [len(p) * float(objective(p, per_jet)["loss"].detach()) for p in parts]
    assert sum(losses) / len(every) == pytest.approx(float(whole.detach()), rel=1e-6)
    grad = torch.autograd.grad(whole, list(made.body.parameters()))
    assert all(g.isfinite().all() for g in grad)


@pytest.mark.parametrize("size", ["spade", "combined", "micro", "omnijet-c"])
def test_rows_know_nothing_of_later_hits_or_other_showers(size):
    made = model(size)
    every = clouds(simulate_showers(CALORIMETERS["small"], range(3)))
    losses, offsets = made.row_losses(every)
    start, end = every.offsets[1:3].tolist()
    first = int(offsets[1]) + 9
    poisoned = every.points.clone()
    poisoned[start + 9 : end] = torch.tensor([0.0, 0.0, 0.0, 1e3])  # of the second, from hit 9 on
    poisoned[end:] = torch.tensor([11.0, 11.0, 14.0, 1e-3])
    other, _ = made.row_losses(every.replace(points=poisoned))
    torch.testing.assert_close(losses[:first], other[:first])
    assert not torch.allclose(losses[first:], other[first:])


def test_delays_longer_than_a_shower_lose_no_target():
    points = torch.tensor([[3.0, 1.0, 2.0, 0.5]])
    rows = delayed(points, Packed(torch.tensor([0, 1])), (0, 1, 2, 3), (15, 12, 12, 0), hazard=True)
    assert rows.packed.offsets.tolist() == [0, 4]
    assert [float(rows.targets[i, i]) for i in range(4)] == points[0].tolist()
    assert rows.targets[:, 4].tolist() == [0, 1, -1, -1]


def test_trivial_is_what_frequencies_reach(data):
    made = model("spade")
    showers = clouds(simulate_showers(CALORIMETERS["small"], range(20)))
    found = objective_of(made).trivial(showers)["next_token_trivial"]
    points = made.points(showers).double().numpy()
    expected = 0.5 * math.log(2 * math.pi * math.e * points[:, 3].var())
    for column in points[:, :3].T:
        shares = np.unique(column, return_counts=True)[1] / len(points)
        expected -= float((shares * np.log(shares)).sum())
    n, b = len(points), 20
    expected += math.log((n + b) / n) + b / n * math.log((n + b) / b)
    assert found == pytest.approx(expected, rel=1e-6)
    assert objective_of(made).trivial(showers.select(slice(0, 0))) == {}


def test_the_model_is_made_for_the_shards(data):
    shape = shower_shape(Shards(data / "train"))
    assert shape["cells"][0] <= 15
    assert shape["longest"] == max(int(Shards(data / s).multiplicity().max()) for s in
                                   ("train", "val", "test"))  # fmt: skip
    low, high = shape["energies"]
    assert 1 <= low < high <= 10
    splits = [
        next(iter(Stream(Shards(data / s), batch_size=999, shuffle=False, epochs=1)))
        for s in ("train", "val", "test")
    ]
    hits = torch.cat([clouds.points[:, 3] for clouds in splits])
    assert shape["hits"] == [float(hits.min()), float(hits.max())]
    config = shower_decoder_config("spade", **shape)
    assert config.lowest == (0, 0, 0, math.log(shape["hits"][0]))
    assert config.highest == (0, 0, 0, math.log(shape["hits"][1]))
    assert config == ShowerDecoderConfig(**json.loads(json.dumps(asdict(config))))


def test_the_published_sizes():
    spade = shower_decoder_config("spade", (30,) * 3, (10.0, 100.0), 1700)
    combined = shower_decoder_config("combined", (30,) * 3, (10.0, 100.0), 1700)
    assert (spade.classes, spade.delays) == ((30, 30, 30, 0), (0, 1, 2, 3))
    assert (combined.classes, combined.delays) == ((27_000, 0), (0, 1))
    tokens = Tokenizer.blank(HITS, 65_536)
    published = shower_decoder_config("omnijet-c", (30,) * 3, (10.0, 100.0), 1700, tokenizer=tokens)
    assert (published.classes, published.end, published.post_norm) == ((65_536,), "token", True)
    with pytest.raises(ValueError, match="size of a decoder of showers"):
        shower_decoder_config("omnijet", (30,) * 3, (10.0, 100.0), 1700)


def test_bad_hits_are_named():
    made = model("spade")
    showers = clouds(simulate_showers(CALORIMETERS["small"], range(2)))
    bad = showers.points.clone()
    row = int(showers.offsets[1]) + 4
    for column, value, message in (
        (0, 12.0, "point 4 of set 1 has class 12.0 in stream 1"),
        (2, 1.5, "point 4 of set 1 has class 1.5 in stream 0"),
        (3, -1.0, "point 4 of set 1 has the number nan in stream 3"),
    ):
        wrong = bad.clone()
        wrong[row, column] = value
        with pytest.raises(ValueError, match=message):
            made(showers.replace(points=wrong))
    with pytest.raises(ValueError, match="need the energies"):
        made(Clouds(points=bad, offsets=showers.offsets))


def test_what_does_not_fit_is_said(data, jetclass, tmp_path, capsys):
    def refused(driver, *words):
        code = driver.main([str(w) for w in words])
        error = capsys.readouterr().err
        assert code
        assert error.count("\n") == 1
        return error

    out = ("--out", tmp_path / "out")
    words = ("--data", data, *out)
    said = refused(command, "--objective", "classifier", *words)
    assert "learned by --objective next-token" in said
    said = refused(command, "--preset", "spade", "--data", jetclass, *out)
    assert "has no showers" in said
    said = refused(command, "--preset", "omnijet", *words)
    assert "size of a decoder of showers" in said
    assert "has showers, the task top needs jets" in refused(tuning, "top", *words)
    said = refused(tokenize, "kmeans", "--codes", 8, "--features", "ln_pt", *words)
    assert "has showers, a tokeniser of particles needs jets" in said
    said = refused(tokenize, "kmeans", "--codes", 8, "--features", "x", "y", *words)
    assert "of showers x, y, layer, ln_hit_energy, all four" in said
    jets = ("--data", jetclass, *out)
    said = refused(tokenize, "kmeans", "--features", *HITS, "--codes", 8, *jets)
    assert "has jets, a tokeniser of hits needs showers" in said
    codes, kept = tmp_path / "codes", tmp_path / "kept"
    told = ["kmeans", "--codes", "8", "--steps", "2"]
    assert tokenize.main([*told, "--data", str(data), "--out", str(codes)]) == 0
    assert tokenize.main([*told, "--data", str(jetclass), "--out", str(kept)]) == 0
    capsys.readouterr()
    said = refused(command, "--preset", "omnijet-c", *words)
    assert "omnijet-c predicts tokens of hits: --tokenizer" in said
    said = refused(command, "--preset", "spade", "--tokenizer", codes, *words)
    assert "spade predicts cells and energies" in said
    said = refused(command, "--preset", "omnijet-c", "--tokenizer", kept, *words)
    assert "has showers" in said
    assert "needs jets" in said
    said = refused(command, "--preset", "omnijet", "--tokenizer", codes, *jets)
    assert "has jets" in said
    assert "needs showers" in said
    assert "has showers, the baseline needs jets" in refused(baseline, *words)
    with pytest.raises(SettingsError, match="of showers, which only pretrain learns"):
        finetune_defaults("spade")
    assert not (tmp_path / "out").exists()


def test_hits_off_the_cells_are_refused(tmp_path, capsys):
    events = np.zeros((20, 4, 3), np.float32)
    events[:, :, 1:] = [[1.5, 2], [3, 4], [5, 6], [0.01, 0.02]]
    (tmp_path / "in").mkdir()
    with h5py.File(tmp_path / "in" / "a.h5", "w") as file:
        file["events"], file["energy"] = events, np.linspace(1, 2, 20)[:, None]
    words = ["--out", str(tmp_path / "out"), "--quiet", "--splits", "train=0.5,val=0.5"]
    assert convert.main([str(tmp_path / "in"), *words]) == 0
    assert "hits at no whole number of cells: 20" in capsys.readouterr().out
    words = ["--objective", "next-token", "--data", str(tmp_path / "out")]
    assert command.main([*words, "--out", str(tmp_path / "run")]) == 1
    assert "20 hits at no whole number of cells" in capsys.readouterr().err


def test_a_run_is_judged_by_its_likelihood(pretrained, data, tmp_path, capsys):
    words = ["--data", str(data), "--out", str(tmp_path / "out")]
    assert judging.main([str(pretrained), *words]) == 0
    assert "nats per hit" in capsys.readouterr().out
    showers = next(iter(Stream(Shards(data / "test"), batch_size=100, shuffle=False, epochs=1)))
    trained = load_model(load_weights(pretrained))
    with torch.no_grad():
        nats = float(trained.negative_log_likelihood(showers).sum()) / showers.total
    (found,) = json.loads((tmp_path / "out" / "report.json").read_text())["models"].values()
    assert found["nats"]["sum"]["value"] == pytest.approx(nats, rel=1e-5)
    assert found["showers"] == len(showers)
    assert judging.main([str(pretrained), *words, "--task", "top"]) == 1
    assert "has showers, the task top needs jets" in capsys.readouterr().err


def test_a_forged_configuration_is_refused(pretrained):
    weights = load_weights(pretrained)
    for name, value in (("energies", ["a", "b"]), ("cells", [1, 2]), ("longest", -1)):
        forged = type(weights)(**{**vars(weights), "config": {**weights.config, name: value}})
        with pytest.raises(RunError, match=r"model_config"):
            any_config(forged)
