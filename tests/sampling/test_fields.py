"""Generators of identities and tracks, PET and EPiC: from pre-training to the table, at a toy's
size."""

import hashlib
import json

import numpy as np
import pytest
import torch

from jetkern import PET, model_preset
from jetkern.cli.evaluate import main as evaluate
from jetkern.cli.finetune import main as finetune
from jetkern.cli.generate import main as generate
from jetkern.cli.pretrain import main as pretrain
from jetkern.data import Shards
from jetkern.evaluation import generate as module
from jetkern.evaluation.generate import first_jets, load_generator
from jetkern.evaluation.generation import GenerationReport
from jetkern.evaluation.species import species_report
from jetkern.model.columns import IDENTITY, joined, with_columns
from jetkern.model.config import noise_of
from jetkern.model.epic import EPiC, EPiCConfig, epic_preset, with_conditions
from jetkern.objectives import flow, objective_of
from jetkern.objectives.views import NOISE, TIME
from jetkern.random import uniform
from jetkern.sampling import field_of, noise_jets, sample, with_evaluations
from jetkern.training.weights import load_weights
from tests.factories import write_jetnet_shards

COUNTS = [5, 8, 3, 9, 4, 12, 7] * 10
FIELDS = ("pid", "tracks")
NAMES = (*IDENTITY, "tanh_d0", "d0_error", "tanh_dz", "dz_error")
STEPS = ("--steps", "2", "--batch-size", "10", "--warmup-steps", "0", "--val-every", "2")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("columns")
    for seed, split in enumerate(("train", "val", "test")):
        write_jetnet_shards(folder / split, COUNTS, extras=True, seed=seed)
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """An EPiC that was pre-trained, and then learned the types and conditions."""
    folder = tmp_path_factory.mktemp("runs")
    flags = ["--data", str(data), *STEPS, "--val-jets", "10"]
    first = [*flags, "--objective", "generator", "--preset", "epic-small"]
    assert pretrain([*first, "--out", str(folder / "first")]) == 0
    more = ["--from", str(folder / "first"), "--out", str(folder / "run")]
    assert finetune(["jetnet", *flags, *more]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def made(run, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "out"
    assert command(run, data, out) == 0
    return out


def command(run, data, out):
    flags = ["--conditions", str(data / "test"), "--out", str(out), "--solver", "ab2"]
    return generate([str(run), *flags, "--evaluations", "2"])


def digests(folder):
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_the_model_knows_its_columns_and_their_noise(run, data):
    model, weights = load_generator(run)
    assert isinstance(model, EPiC)
    assert weights.kind == "epic"
    config = model.config
    assert config.columns == NAMES
    assert (config.num_classes, config.condition_dim) == (5, 3)
    rows = joined(with_columns(first_jets(Shards(data / "train"), None, FIELDS), NAMES))
    torch.testing.assert_close(model.noise_mean, rows.mean(0), rtol=1e-4, atol=1e-4)
    width = rows.std(0, correction=0).clamp(min=1e-3) / 5
    torch.testing.assert_close(model.noise_width, width, rtol=1e-4, atol=1e-5)


def test_generated_shards_have_identities_and_tracks(made, data):
    shards, asked = Shards(made / "shards"), first_jets(Shards(data / "test"))
    jets = first_jets(shards, None, FIELDS)
    assert jets.counts.tolist() == asked.counts.tolist()
    assert torch.equal(jets.label, asked.label)
    assert [f.name for f in shards.fields][1:4] == ["particles", "pid", "tracks"]
    assert shards.field("tracks").columns == NAMES[-4:]
    assert jets.tracks[:, ::2].abs().max() <= 1
    assert jets.tracks[:, 1::2].min() >= 0
    neutral = (jets.pid == 6) | (jets.pid == 7)
    assert jets.tracks[neutral].abs().sum() == 0
    falls = jets.particles[:, 2].diff() <= 0
    assert falls[jets.rank_in_jet[1:] > 0].all()


def test_killed_and_continued_to_the_same_bytes(run, made, data, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    parts = []

    def sample_once(*args, **options):
        if parts:
            raise Killed
        parts.append(1)
        return sample(*args, **options)

    monkeypatch.setattr(module, "PART", 30)
    with monkeypatch.context() as patch:
        patch.setattr(module, "sample", sample_once)
        with pytest.raises(Killed):
            command(run, data, tmp_path / "out")
    assert command(run, data, tmp_path / "out") == 0
    assert command(run, data, tmp_path / "whole") == 0
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_evaluate_reports_species_beside_floors(made, data, tmp_path, monkeypatch):
    for slow in ("sheet_figure", "grid_figure", "image_figure"):
        monkeypatch.setattr(f"jetkern.evaluation.figures.{slow}", lambda *a: None)
    report = GenerationReport({"average": {}}, {})
    monkeypatch.setattr("jetkern.tasks.jetnet.generation_report", lambda *a, **k: report)
    assert evaluate([str(made), "--data", str(data), "--out", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    species = report["models"]["out"]["species"]
    assert set(species) == {"g", "q", "t", "w", "z"}
    assert sum(kind["share"]["real"] for kind in species["g"].values()) == pytest.approx(1)
    assert species["g"]["photon"]["width"] is None
    assert "| d0 width (mm) |" in (tmp_path / "out" / "table.md").read_text()


def test_species_are_told_apart(data):
    jets = first_jets(Shards(data / "test"), None, FIELDS)
    other = first_jets(Shards(data / "val"), None, FIELDS)
    found = species_report(jets, other, ("g", "q", "t", "w", "z"), NAMES)
    photons = [found[name]["photon"].share for name in "gq"]
    assert photons[0].real > photons[1].real + 0.2
    assert abs(photons[0].real - photons[0].made) < 0.15
    width = {name: found[name]["charged_hadron"].width for name in "gq"}
    assert width["q"].real == pytest.approx(0.5, rel=0.4)
    assert width["g"].made == pytest.approx(0.05, rel=0.4)
    assert found["g"]["neutral_hadron"].width is None


@pytest.mark.parametrize("kind", ["pet", "epic"])
def test_a_jet_is_the_same_in_any_batch_and_its_loss_too(kind, data):
    torch.manual_seed(1)
    noise = {"noise_mean": [0.1] * 14, "noise_width": [0.7] * 14}
    options = {"num_classes": 5, "condition_dim": 3, "columns": NAMES, **noise}
    if kind == "epic":
        model = EPiC(epic_preset("epic-small", **options))
    else:
        plain = {"use_pid": False, "use_tracks": False, **options}
        model = PET(model_preset("micro", ("generator",), **plain))
    jets = first_jets(Shards(data / "test"), 4, FIELDS)
    objective = objective_of(model)
    assert objective.fields == FIELDS
    loss = objective(jets)["loss"]
    alone = [objective(jets.select(slice(i, i + 1)))["loss"] for i in range(4)]
    torch.testing.assert_close(loss, torch.stack(alone).mean(), rtol=1e-4, atol=1e-4)
    objective.eval()
    details = objective.sums(jets).details["generator"]
    torch.testing.assert_close(details.sum() / 4, loss, rtol=1e-4, atol=1e-4)
    start = noise_jets(
        jets.counts, label=jets.label, condition=jets.condition, statistics=noise_of(model.config)
    )
    scheme = with_evaluations("midpoint", 4)
    made = sample(field_of(model.eval()), start, scheme)
    by_hand = sample(model.velocity, start, scheme)
    third = sample(field_of(model), start.select(slice(2, 3)), scheme)
    own = made.select(slice(2, 3))
    torch.testing.assert_close(joined(made), joined(by_hand), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(joined(third), joined(own), rtol=1e-4, atol=1e-4)


def test_the_path_of_columns_and_that_of_the_study(data):
    jets = first_jets(Shards(data / "test"), 3, FIELDS)
    columns = with_columns(jets, NAMES)
    statistics = tuple(np.linspace(-1, 1, 14).tolist()), tuple(np.linspace(0.5, 2, 14).tolist())
    noise = flow.noise(columns, jets.index, 3, NOISE, statistics)
    study = flow.noise(jets, jets.index, 3, NOISE)
    mean, width = (torch.tensor(v) for v in statistics)
    assert noise.shape == (len(jets.particles), 14)
    ours = (noise - mean) / width
    theirs = (study - torch.tensor(flow.NOISE_MEAN)) / torch.tensor(flow.NOISE_WIDTH)
    torch.testing.assert_close(ours[:, :4], theirs, rtol=1e-4, atol=1e-4)
    for t, end in ((0.0, joined(columns)), (1.0, noise)):
        moved, velocity = flow.noised(columns, noise, torch.full((3,), t))
        torch.testing.assert_close(joined(moved), end)
        torch.testing.assert_close(velocity, noise - joined(columns))
    time = uniform(3, TIME, jets.index)
    moved, velocity = flow.noised(jets, study, time)
    t = time[jets.jet_of_particle][:, None]
    assert torch.equal(moved.particles, (1 - t) * jets.particles + t * study)
    assert torch.equal(velocity, study - jets.particles)


def test_new_conditions_begin_without_an_effect():
    noise = {"noise_mean": [0.0] * 4, "noise_width": [1.0] * 4}
    small = {"layers": 2, "dim": 8, "latent": 3, "time_features": 4, **noise}
    before = EPiCConfig(**small)
    after = EPiCConfig(**small, num_classes=3, condition_dim=2)
    first, second = EPiC(before).double(), EPiC(after).double()
    second.load_state_dict(with_conditions(first.state_dict(), before, after))
    jets = noise_jets(
        torch.tensor([3, 1, 6]),
        label=torch.tensor([0, 2, -1]).clamp(min=0),
        condition=torch.randn(3, 2, dtype=torch.float64),
        dtype=torch.float64,
    )
    time = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(second.velocity(jets, time), first.velocity(jets, time))
    third = EPiC(before).double()
    third.load_state_dict(with_conditions(second.state_dict(), after, before))
    torch.testing.assert_close(third.velocity(jets, time), first.velocity(jets, time))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pretrain", "--preset", "epic-small"], "has no pid, which --columns"),
        (["pretrain", "--columns", "identity"], "a particle has kinematics"),
        (["pretrain", "--columns", "kinematics+trakcs"], "did you mean tracks"),
        (
            ["finetune", "top", "--preset", "epic-small"],
            "the task top is for models of the kind PET or JetDecoder",
        ),
        (["pretrain", "--preset", "epic-small", "--velocity-units", "features"], "by a PET"),
    ],
)
def test_what_cannot_be_made(words, message, tmp_path, data, capsys):
    write_jetnet_shards(tmp_path / "plain" / "train", COUNTS[:7])
    folder = tmp_path / "plain" if "no pid" in message else data
    more = ["--columns", "kinematics+identity"] if "no pid" in message else []
    name, *flags = words
    if name == "pretrain":
        more += ["--objective", "generator"]
    start = {"pretrain": pretrain, "finetune": finetune}[name]
    flags += [*more, "--data", str(folder), "--out", str(tmp_path / "out"), *STEPS]
    assert start(flags) != 0
    assert message in capsys.readouterr().err


def test_a_checkpoint_of_other_columns(run, data, tmp_path, capsys):
    flags = ["--data", str(data), "--out", str(tmp_path / "out"), *STEPS]
    assert finetune(["jetnet", "--from", str(run), "--columns", "kinematics", *flags]) == 1
    assert "it has not learned --columns kinematics" in capsys.readouterr().err
    assert finetune(["distill", "--from", str(run), *flags]) == 1
    assert "the task distill is for models of the kind PET" in capsys.readouterr().err
    assert load_weights(run).config["columns"] == list(NAMES)


def test_units_of_the_velocity_are_those_of_the_checkpoint_unless_said(data, tmp_path):
    flags, told = ["--data", str(data), *STEPS], "--velocity-units"
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    words = [*flags, "--objective", "classifier+generator", told, "noise"]
    assert pretrain([*words, "--out", str(first)]) == 0
    assert finetune(["jetnet", "--from", str(first), *flags, "--out", str(second)]) == 0
    words = ["jetnet", "--from", str(second), *flags, told, "features", "--out", str(third)]
    assert finetune(words) == 0
    study = (flow.NOISE_MEAN, flow.NOISE_WIDTH)
    found = [noise_of(load_generator(run)[0].config) for run in (second, third)]
    assert found == [study, None]
