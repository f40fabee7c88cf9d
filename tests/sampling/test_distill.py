"""Few-step generators: mean velocities against closed forms, and the task from run to jets."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from jetkern import PET, Objective, model_preset
from jetkern.cli.evaluate import main as evaluate
from jetkern.cli.finetune import main as finetune
from jetkern.cli.generate import main as generate
from jetkern.evaluation.generate import load_generator
from jetkern.objectives import flow
from jetkern.sampling import (
    FLOW_MAP,
    PETVelocity,
    SamplingError,
    Scheme,
    noise_jets,
    sample,
    with_evaluations,
)
from jetkern.tasks import distill
from jetkern.tasks.distill import STEPS, Distillation, mean_velocity, steps_at
from jetkern.training.weights import load_weights
from tests.factories import write_jetnet_shards
from tests.sampling.test_sampler import noise

CENTRE, WIDTH = torch.tensor([0.1, -0.1, 2.0, 3.0]).double(), 0.3
COUNTS = [5, 8, 3, 9, 4, 12, 7] * 10


def width_at(time):
    """Of the marginal at ``time`` between standard normal noise and data N(CENTRE, WIDTH)."""
    return ((1 - time) ** 2 * WIDTH**2 + time**2).sqrt()


def exact(jets, time):
    """Velocity at (B,) times, mean velocity of (B, 2) steps, between those Gaussians."""
    if time.dim() == 1:
        t = time[jets.jet_of_particle][:, None]
        rate = (t - (1 - t) * WIDTH**2) / width_at(t) ** 2
        return (jets.particles - (1 - t) * CENTRE) * rate - CENTRE
    begin, end = time[jets.jet_of_particle].T[..., None]
    moved = (jets.particles - (1 - begin) * CENTRE) * width_at(end) / width_at(begin)
    return (moved + (1 - end) * CENTRE - jets.particles) / (end - begin)


def gaussian_jets(size=200):
    jets = noise_jets(torch.arange(size) % 7 + 1, seed=3, dtype=torch.float64)
    mean, width = (jets.particles.new_tensor(v) for v in (flow.NOISE_MEAN, flow.NOISE_WIDTH))
    return jets.replace(particles=(jets.particles - mean) / width)


@pytest.mark.parametrize("evaluations", [1, 2, 3, 4])
def test_a_flow_map_is_exact_with_any_number_of_steps(evaluations):
    start = gaussian_jets()
    made = sample(exact, start, with_evaluations(FLOW_MAP, evaluations))
    torch.testing.assert_close(
        made.particles, CENTRE + WIDTH * start.particles, rtol=1e-12, atol=1e-12
    )


def test_the_teachers_mean_velocity_is_that_of_its_trajectory(monkeypatch):
    jets = gaussian_jets()
    begin = torch.linspace(0.3, 1, len(jets)).double()
    time = torch.stack([begin, begin - 0.25], 1)
    errors = []
    for steps in (8, 16):
        monkeypatch.setattr(
            distill, "TEACHER", distill.scheme("midpoint", distill.uniform_grid(steps, 0, 1))
        )
        found = mean_velocity(exact, jets, time)
        errors.append(float((found - exact(jets, time)).square().mean().sqrt()))
    assert errors[0] < 0.01
    assert errors[0] / errors[1] > 3.5  # of second order at least


def test_the_exact_flow_map_is_its_own_target():
    field = SimpleNamespace(velocity=exact, to=lambda device: field)
    jets = gaussian_jets(400)
    time = steps_at((torch.arange(400) + 0.5) / 400).double()
    target = Distillation(field, field).target(jets, time)
    error = (target - exact(jets, time)).norm(dim=1)
    shortest = time[:, 0] - time[:, 1] == 1 / max(STEPS)
    of_shortest = shortest[jets.jet_of_particle]
    assert error[~of_shortest].max() < 1e-12  # two halves of an exact map
    taught = mean_velocity(exact, jets.select(shortest), time[shortest])
    assert torch.equal(target[of_shortest], taught)


def test_every_step_is_drawn():
    drawn = steps_at((torch.arange(700) + 0.5) / 700)
    found, times = drawn.unique(dim=0, return_counts=True)
    expected = {(1 - k / n, 1 - (k + 1) / n): 100 for n in STEPS for k in range(n)}
    assert dict(zip(map(tuple, found.tolist()), times.tolist(), strict=True)) == expected
    assert steps_at(torch.tensor([1.0 - 2**-24])).tolist() == [[0.25, 0.0]]


def build(**changes):
    torch.manual_seed(0)
    options = {"num_classes": 5, "use_pid": False, "use_tracks": False, "condition_dim": 3}
    return PET(model_preset("micro", ["generator"], layers=1, **{**options, **changes})).eval()


def test_a_new_flow_map_is_the_velocity_where_its_steps_begin():
    plain, model = build(), build(few_steps=STEPS)
    model.load_state_dict(plain.state_dict(), strict=False)
    jets = noise([3, 1, 20])
    begin = torch.tensor([1.0, 0.5, 0.75])
    expected = plain.velocity(jets, begin)
    assert torch.equal(model.velocity(jets, torch.stack([begin, begin - 0.25], 1)), expected)
    torch.nn.init.normal_(model.body.step_embed.fc2.weight)
    assert torch.equal(model.velocity(jets, torch.stack([begin, begin], 1)), expected)
    assert not torch.equal(model.velocity(jets, torch.stack([begin, begin - 0.25], 1)), expected)


@pytest.mark.parametrize("evaluations", STEPS)
def test_what_is_computed_once_changes_nothing(evaluations):
    model = build(few_steps=STEPS).double()
    torch.nn.init.normal_(model.body.step_embed.fc2.weight)
    start = noise([1, 150, 2, 16], dtype=torch.float64)
    start = start.replace(condition=start.condition.double())
    table = with_evaluations(FLOW_MAP, evaluations)
    torch.testing.assert_close(
        sample(PETVelocity(model), start, table).particles,
        sample(model.velocity, start, table).particles,
        rtol=1e-10,
        atol=1e-10,
    )


def test_solvers_and_models_that_do_not_fit():
    for model, solver in ((build(), FLOW_MAP), (build(few_steps=STEPS), "ab2")):
        with pytest.raises(SamplingError, match="go with each other only"):
            sample(PETVelocity(model), noise([3, 4]), with_evaluations(solver, 4))
    with pytest.raises(ValueError, match="was not distilled"):
        build().velocity(noise([3]), torch.tensor([[1.0, 0.0]]))
    with pytest.raises(ValueError, match="at least 1"):
        build(few_steps=(0,))


def test_a_scheme_with_ends_is_kept_to_the_last_bit():
    table = with_evaluations(FLOW_MAP, 4)
    again = Scheme.from_json(json.loads(json.dumps(table.as_json())))
    assert again.ends.tolist() == table.ends.tolist() == [0.75, 0.5, 0.25, 0.0]
    assert "ends" not in with_evaluations("euler", 4).as_json()
    with pytest.raises(ValueError, match="needs 2 finite ends"):
        Scheme([1.0, 0.5], [[1.0, 0.0], [0.0, 1.0]], ends=[0.5])


def test_the_gradient_is_of_the_output_alone():
    """Against the same loss with the target as a number; jets one by one give the same sum."""
    model, teacher = build(few_steps=STEPS), build().requires_grad_(False)
    torch.nn.init.normal_(model.body.step_embed.fc2.weight, std=0.1)
    loss = Distillation(model, teacher)
    objective = Objective(model, seed=2, losses=[loss])
    jets = noise([3, 5, 1, 16, 4, 30, 2, 9])
    objective(jets)["loss"].backward()
    view = loss.make(jets, jets.index, 2)
    assert not view.target.requires_grad
    found = model.velocity(view.jets, view.time)
    error = ((found - view.target) / found.new_tensor(flow.NOISE_WIDTH)).square().sum(1)
    by_jet = torch.stack([e.mean() for e in error.split(jets.counts.tolist())])
    expected = torch.autograd.grad(by_jet.mean(), list(model.parameters()))
    for (name, parameter), gradient in zip(model.named_parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5, msg=name)
    each = [objective.sums(jets.select(slice(a, a + 1))).sums["generator"] for a in range(8)]
    torch.testing.assert_close(sum(each), objective.sums(jets).sums["generator"])


def words(**flags):
    return [word for n, v in flags.items() for word in (f"--{n.replace('_', '-')}", str(v))]


SHORT = {"batch_size": 10, "warmup_steps": 0, "val_every": 2, "val_jets": 10}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distill")
    for number, split in enumerate(("train", "val", "test")):
        write_jetnet_shards(folder / split, COUNTS, seed=number)
    for task, more in (("jetnet", {"label_drop": 0.1}), ("distill", {"from": folder / "jetnet"})):
        flags = words(data=folder, out=folder / task, steps=4, save_every=2, **SHORT, **more)
        assert finetune([task, *flags]) == 0
    return folder


def test_a_run_that_is_continued_has_the_same_bytes(data, tmp_path):
    shutil.copytree(data / "distill", tmp_path / "run")
    (tmp_path / "run" / "DONE").unlink()
    for kind in ("step", "best"):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / f"{kind}-00000004", ignore_errors=True)
    more = {"steps": 4, "save_every": 2, "from": data / "jetnet"}
    flags = words(data=data, out=tmp_path / "run", **SHORT, **more)
    assert finetune(["distill", *flags]) == 0
    files = [
        f / "checkpoints" / "step-00000004" / "state.pt"
        for f in (tmp_path / "run", data / "distill")
    ]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_model_and_its_average_are_kept_without_the_teacher(data):
    model, weights = load_generator(data / "distill")
    teacher = load_weights(data / "jetnet")
    assert model.config.few_steps == STEPS
    assert weights.data["task"] == "distill"
    new = {n for n in model.state_dict() if n not in teacher.state}
    assert {n.rsplit(".", 2)[0] for n in new} == {"body.step_embed"}
    assert weights.state.keys() == model.state_dict().keys()
    assert any(not torch.equal(weights.state[n], t) for n, t in teacher.state.items())


def test_jets_are_made_by_its_own_solver(data, tmp_path, capsys):
    run, test = data / "distill", data / "test"
    for number in (None, 1, 2):
        out = tmp_path / str(number)
        more = {} if number is None else {"evaluations": number}
        assert generate([str(run), *words(conditions=test, out=out, num_jets=5, **more)]) == 0
        scheme = json.loads((out / "generated.json").read_text())["scheme"]
        assert (scheme["name"], len(scheme["times"])) == (FLOW_MAP, number or max(STEPS))
    capsys.readouterr()
    for more, message in (
        ({"evaluations": 3}, "distilled for flow-map with 1, 2, 4"),
        ({"solver": "ab2"}, "distilled for flow-map with 1, 2, 4"),
        ({"guidance": 2}, "takes no guidance"),
    ):
        assert generate([str(run), *words(conditions=test, out=tmp_path / "no", **more)]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_it_is_judged_as_the_generator_is(data, tmp_path, monkeypatch):
    monkeypatch.setattr("jetkern.evaluation.figures.sheet_figure", lambda *a: None)
    flags = words(data=data, out=tmp_path, num_jets=25)
    assert evaluate([str(data / "distill"), *flags]) == 0
    assert "W1 mass" in (tmp_path / "table.md").read_text()


def test_runs_that_cannot_be_distilled(data, tmp_path, capsys):
    write_jetnet_shards(tmp_path / "train", [3, 4], classes=("a", "b"))
    for more, message in (
        ({}, "from --from RUN alone"),
        ({"from": data / "jetnet", "preset": "micro"}, "from --from RUN alone"),
        ({"from": data / "distill"}, "distilled already"),
        ({"from": data / "jetnet", "data": tmp_path}, "has 5 types"),
    ):
        flags = words(**{"data": data, "out": tmp_path / "out", **SHORT, **more})
        assert finetune(["distill", *flags]) == 1
        assert message in capsys.readouterr().err
