"""The sampler: exact counts, noise keyed by jet, one result for any batch and order, errors."""

import numpy as np
import pytest
import torch
import torchdiffeq

from jetkern import PET, Jets, model_preset
from jetkern.objectives.flow import NOISE_MEAN, NOISE_WIDTH
from jetkern.sampling import (
    PETVelocity,
    SamplingError,
    guided,
    noise_jets,
    sample,
    with_evaluations,
)


def build(**changes):
    torch.manual_seed(0)
    options = {"num_classes": 5, "use_pid": False, "use_tracks": False, "condition_dim": 3}
    parts = changes.pop("parts", ["generator"])
    return PET(model_preset("micro", parts, **{**options, **changes})).eval()


@pytest.fixture(scope="module")
def model():
    return build()


def noise(counts, *, seed=5, index=None, dtype=torch.float32):
    numbers = torch.arange(len(counts)) if index is None else torch.as_tensor(index)
    return noise_jets(
        torch.as_tensor(counts),
        seed=seed,
        index=numbers,
        label=numbers % 5,
        condition=torch.stack(
            [numbers / 50, numbers % 3, torch.as_tensor(counts) / 100], 1
        ).float(),
        dtype=dtype,
    )


COUNTS = [1, 150, 2, 16, 15, 17, 40, 3, 9]


def decay(jets, time):
    """Any function of jets and times is a velocity."""
    return -jets.particles * time[jets.jet_of_particle][:, None]


def test_every_multiplicity_comes_back():
    counts = torch.arange(1, 151)
    jets = sample(decay, noise_jets(counts), with_evaluations("euler", 2))
    assert torch.equal(jets.counts, counts)
    assert jets.particles.isfinite().all()


def test_noise_is_that_of_the_training_path():
    jets = noise_jets(torch.full((2000,), 20), seed=1)
    np.testing.assert_allclose(jets.particles.mean(0), NOISE_MEAN, atol=0.03)
    np.testing.assert_allclose(jets.particles.std(0), NOISE_WIDTH, rtol=0.02)


def test_noise_depends_on_seed_and_number_of_the_jet_only():
    all_jets = noise(COUNTS)
    some = noise([COUNTS[7], COUNTS[1]], index=[7, 1])
    assert torch.equal(some.particles, all_jets.select(torch.tensor([7, 1])).particles)
    assert not torch.equal(noise(COUNTS, seed=6).particles, all_jets.particles)


@pytest.mark.parametrize("prepared", [False, True], ids=["plain", "prepared"])
def test_batch_size_and_order_change_nothing(model, prepared):
    velocity = PETVelocity(model) if prepared else model.velocity
    table = with_evaluations("ab2", 3)
    start = noise(COUNTS)
    expected = sample(velocity, start, table)
    for size in (1, 4, 100):
        jets = sample(velocity, start, table, batch_size=size)
        torch.testing.assert_close(jets.particles, expected.particles, rtol=1e-5, atol=1e-5)
        assert torch.equal(jets.offsets, expected.offsets)
    order = torch.randperm(len(COUNTS), generator=torch.Generator().manual_seed(3))
    shuffled = sample(velocity, start.select(order), table)
    torch.testing.assert_close(
        shuffled.particles, expected.select(order).particles, rtol=1e-5, atol=1e-5
    )


def test_two_samplings_have_the_same_bits(model):
    results = [sample(PETVelocity(model), noise(COUNTS), with_evaluations("heun", 4)) for _ in "ab"]
    assert torch.equal(results[0].particles, results[1].particles)


@pytest.mark.parametrize("changes", [{}, {"condition_dim": 0}, {"num_classes": 1}], ids=str)
def test_what_is_computed_once_changes_nothing(changes):
    model = build(**changes).double()
    start = noise(COUNTS, dtype=torch.float64)
    start = start.replace(condition=start.condition.double())
    table = with_evaluations("rk4", 8)
    once = sample(PETVelocity(model), start, table).particles
    torch.testing.assert_close(
        sample(model.velocity, start, table).particles, once, rtol=1e-10, atol=1e-10
    )


def test_a_model_agrees_with_torchdiffeq_in_float64(model):
    double = build().double()
    start = noise([3, 20, 7], dtype=torch.float64)
    start = start.replace(condition=start.condition.double())
    grid = torch.linspace(1, 0, 5, dtype=torch.float64)

    def velocity(t, x):
        with torch.no_grad():
            return double.velocity(start.replace(particles=x), t.expand(3))

    expected = torchdiffeq.odeint(velocity, start.particles, grid, method="midpoint")[-1]
    result = sample(PETVelocity(double), start, with_evaluations("midpoint", 8))
    torch.testing.assert_close(result.particles, expected, rtol=1e-10, atol=1e-10)


def test_guidance_moves_from_the_unconditional_to_the_conditional_velocity():
    def field(jets, time):
        return jets.label[jets.jet_of_particle][:, None].to(jets.particles) * torch.ones(4)

    start = noise_jets(torch.tensor([2, 3]), label=torch.tensor([4, 1]))
    table = with_evaluations("euler", 1)
    for scale, velocities in ((0.0, (-1, -1)), (1.0, (4, 1)), (2.0, (9, 3))):
        jets = sample(guided(field, scale), start, table)
        moved = (start.particles - jets.particles)[:, 0]
        expected = torch.tensor([float(velocities[0])] * 2 + [float(velocities[1])] * 3)
        torch.testing.assert_close(moved, expected)


def test_guidance_of_a_prepared_velocity_is_that_of_the_plain_one(model):
    def other(jets):
        return jets.replace(label=(jets.label + 1) % 5)

    start, table = noise(COUNTS), with_evaluations("ab2", 2)
    plain = sample(guided(model.velocity, 1.5, other), start, table)
    prepared = sample(guided(PETVelocity(model), 1.5, other), start, table)
    torch.testing.assert_close(plain.particles, prepared.particles, rtol=1e-5, atol=1e-5)


def test_guidance_of_a_model_that_always_had_labels_is_refused(model):
    with pytest.raises(SamplingError, match="not been trained on jets without a type"):
        sample(guided(PETVelocity(model), 2.0), noise(COUNTS), with_evaluations("ab2", 2))


def test_no_jets_are_no_jets(model):
    jets = sample(PETVelocity(model), noise([]), with_evaluations("ab2", 2))
    assert len(jets) == 0


@pytest.mark.parametrize("count", [0, -1, 151])
def test_a_count_out_of_range_names_the_jet(count):
    with pytest.raises(SamplingError, match=r"counts: jet 1 with a count out of 1 to 150"):
        noise_jets(torch.tensor([5, count, 7]))


def test_a_condition_that_is_not_finite_names_the_jets():
    condition = torch.zeros(9, 3)
    condition[2:, 1] = torch.nan
    with pytest.raises(SamplingError, match=r"condition: jets 12, 13, 14, 15, 16 and 2 more"):
        noise_jets(torch.full((9,), 4), condition=condition, index=torch.arange(10, 19))


@pytest.mark.parametrize("field", ["label", "condition"])
def test_rows_that_do_not_fit_the_counts(field):
    value = torch.zeros(2, dtype=torch.int64) if field == "label" else torch.zeros(2, 3)
    with pytest.raises(SamplingError, match=f"{field} has 2 rows for 3 jets"):
        noise_jets(torch.tensor([1, 2, 3]), **{field: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": torch.tensor([0, 7])}, "type 7 is unknown: the model has types 0 to 4"),
        ({"label": None}, "needs the type"),
        ({"condition": None}, "takes 3 conditions, given none"),
        ({"condition": torch.zeros(2, 2)}, "takes 3 conditions, given 2"),
    ],
)
def test_jets_that_do_not_fit_the_model(model, changes, message):
    start = noise([2, 3]).replace(**changes)
    with pytest.raises(SamplingError, match=message):
        sample(PETVelocity(model), start, with_evaluations("ab2", 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": ["classifier"]}, "no generator, only classifier"),
        ({"use_pid": True}, "embeds pid"),
        ({"use_tracks": True}, "embeds tracks"),
    ],
)
def test_models_that_cannot_generate(changes, message):
    with pytest.raises(SamplingError, match=message):
        PETVelocity(build(**changes))


def test_a_velocity_that_is_not_finite_names_evaluation_and_jets():
    def breaks(jets, time):
        bad = (jets.index[jets.jet_of_particle] == 31) & (time[jets.jet_of_particle] < 0.7)
        return torch.where(bad[:, None], torch.nan, decay(jets, time))

    start = noise_jets(torch.tensor([3, 4, 5]), index=torch.tensor([30, 31, 32]))
    with pytest.raises(SamplingError, match=r"evaluation 3 of 4 \(t = 0.5\): jet 31$"):
        sample(breaks, start, with_evaluations("euler", 4))


def test_a_velocity_of_another_shape_is_refused():
    def padded(jets, time):
        return jets.to_padded()[0]

    with pytest.raises(SamplingError, match=r"shape \(2, 4, 4\), not \(7, 4\)"):
        sample(padded, noise_jets(torch.tensor([3, 4])), with_evaluations("euler", 1))


def test_the_bar_counts_jets(capsys):
    sample(decay, noise_jets(torch.tensor([3, 4])), with_evaluations("euler", 1), progress=True)
    assert "2/2" in capsys.readouterr().err
    sample(decay, noise_jets(torch.tensor([3, 4])), with_evaluations("euler", 1))
    assert capsys.readouterr().err == ""


def test_other_fields_stay(model):
    start = noise(COUNTS)
    jets = sample(PETVelocity(model), start, with_evaluations("euler", 1))
    assert isinstance(jets, Jets)
    for name in ("label", "condition", "index"):
        assert torch.equal(getattr(jets, name), getattr(start, name))
