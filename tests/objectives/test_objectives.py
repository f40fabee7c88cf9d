import itertools

import pytest
import torch
from test_jets import make
from torch.nn.functional import cross_entropy

from jetkern.jets import Jets
from jetkern.model.config import PARTS
from jetkern.model.pet import PET
from jetkern.model.presets import SIZES, model_preset
from jetkern.objectives import Objective, flow, parse_objective
from jetkern.objectives.masking import masked_counts, random_keep
from jetkern.objectives.views import TIME, turned
from jetkern.packed import _constant
from jetkern.random import uniform

# The reference code: 10 classes, tracks, MPM by regression, unconditional.
PARAMETERS = {
    "classifier": (134_795, 2_748_222, 52_040_786, 375_836_828),
    "generator": (80_391, 1_891_642, 38_390_862, 321_276_058),
    "mpm": (72_326, 1_711_929, 35_312_717, 308_828_313),
    "classifier+generator": (164_630, 3_211_593, 59_399_261, 422_025_389),
    "classifier+mpm": (156_565, 3_031_880, 56_321_116, 409_577_644),
    "generator+mpm": (102_161, 2_175_300, 42_671_192, 355_016_874),
    "pretrain": (186_400, 3_495_251, 63_679_591, 455_766_205),
}
COUNTS = [1, 2, 15, 16, 0, 30, 7]


def batch(counts=COUNTS, seed=0):
    jets = make(counts, seed)
    tracks = torch.rand(len(jets.particles), 4, generator=torch.Generator().manual_seed(seed))
    return jets.replace(tracks=tracks, particles=jets.particles * 0.4)


def objective(text, **changes):
    torch.manual_seed(1)
    config = model_preset("micro", parse_objective(text), layers=1, head_layers=1, **changes)
    return Objective(PET(config), seed=3)


@pytest.mark.parametrize(("text", "size"), list(itertools.product(PARAMETERS, SIZES)))
def test_parameter_counts(text, size):
    with torch.device("meta"):
        model = PET(model_preset(size, parse_objective(text)))
    count = sum(p.numel() for p in model.parameters())
    assert count == PARAMETERS[text][list(SIZES).index(size)]


def test_parse_objective():
    assert parse_objective("pretrain") == parse_objective("mpm+generator+classifier") == PARTS
    assert parse_objective("mpm") == ("mpm",)
    for wrong in ("", "classifer", "mpm+", "all+mpm"):
        with pytest.raises(ValueError, match="unknown objective"):
            parse_objective(wrong)


@pytest.mark.parametrize("text", PARAMETERS)
def test_one_packed_pass_equals_the_passes_one_by_one(text):
    """Eq. 4, each term computed from a forward pass of its own."""
    learner, jets = objective(text).eval().double(), batch()
    jets = jets.replace(particles=jets.particles.double(), tracks=jets.tracks.double())
    model = learner.model
    losses = learner(jets)

    expected = {}
    if model.classifier is not None:
        expected["classifier"] = cross_entropy(model.classify(jets), jets.label)
    if model.generator is not None:
        time = uniform(3, TIME, jets.index).double()
        z, velocity = flow.noised(jets, flow.noise(jets, jets.index, 3, 2), time)
        error = (model.velocity(z, time) - velocity).square().sum(1)
        per_jet = [error[a:b].mean() for a, b in itertools.pairwise(jets.offsets) if b > a]
        expected["generator"] = torch.stack(per_jet).sum() / len(jets)
        if model.classifier is not None:
            logits = model.classifier(*model.body(z, time))
            entropy = cross_entropy(logits, jets.label, reduction="none")
            expected["classifier_noised"] = ((1 - time) ** 2 * entropy).mean()
    if model.mpm is not None:
        keep = random_keep(jets, jets.index, 3, 3)
        error = model.fill_masked(jets, keep) - jets.particles
        expected["mpm"] = error[~keep].abs().mean()
        if model.classifier is not None:
            logits = model.classify(jets.keep_particles(keep))
            expected["classifier_masked"] = 0.6 * cross_entropy(logits, jets.label)
    expected["loss"] = sum(expected.values())

    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, msg=name)


@pytest.mark.parametrize("text", ["pretrain", "mpm", "classifier+generator"])
def test_losses_of_a_split_batch_average_to_those_of_the_whole(text):
    """What makes training the same for any number of processes, feature dropout included."""
    learner, jets = objective(text).train(), batch([*COUNTS, 9])
    whole = learner(jets)
    mean = learner.per_jet(jets)
    halves = [learner(jets.select(slice(a, a + 4)), mean) for a in (0, 4)]
    for name, value in whole.items():
        torch.testing.assert_close((halves[0][name] + halves[1][name]) / 2, value, msg=name)


def test_details_add_up_to_their_loss_and_cost_nothing_in_training():
    learner, jets = objective("pretrain"), batch()
    assert not learner.train().sums(jets).details
    sums, _, details = learner.eval().sums(jets)
    assert list(details) == ["generator"]
    assert details["generator"].shape == (4,)
    torch.testing.assert_close(details["generator"].sum(), sums["generator"])


def test_errors_in_units_of_the_noise():
    """Of the same velocity those of the study over the widths squared; all other losses alike."""
    widths = {"noise_mean": flow.NOISE_MEAN, "noise_width": flow.NOISE_WIDTH}
    plain, scaled = (objective("pretrain", **c).eval() for c in ({}, widths))
    scaled.load_state_dict(plain.state_dict())
    width, jets = torch.tensor(flow.NOISE_WIDTH), batch()
    with torch.no_grad():
        for value in (scaled.model.generator.out.weight, scaled.model.generator.out.bias):
            value.div_(width[:, None] if value.ndim == 2 else width)
        one, other = plain.sums(jets), scaled.sums(jets)
    expected = one.details["generator"] / width**2
    torch.testing.assert_close(other.details["generator"], expected)
    assert list(one.sums) == list(other.sums)
    for name, value in one.sums.items():
        value = expected.sum() if name == "generator" else value
        torch.testing.assert_close(other.sums[name], value, msg=name)


def test_feature_dropout_is_per_jet_and_off_in_evaluation():
    learner, jets = objective("classifier", feature_drop=0.5), batch()
    assert torch.equal(learner.eval()(jets)["loss"], learner(jets)["loss"])
    trained = learner.train()(jets)["loss"]
    assert trained != learner.eval()(jets)["loss"]
    assert torch.equal(trained, learner.train()(jets)["loss"])


def test_masks_hide_two_fifths_of_each_jet_uniformly():
    jets = batch(list(range(41)) * 40)
    keep = random_keep(jets, torch.arange(len(jets)), 0, 3)
    hidden = torch.zeros(len(jets), dtype=torch.int64)
    hidden.index_add_(0, jets.jet_of_particle, (~keep).long())
    assert torch.equal(hidden, masked_counts(jets.counts))
    assert hidden[40] == 16
    ranks = jets.rank_in_jet[(jets.counts[jets.jet_of_particle] == 40) & ~keep]
    assert (torch.bincount(ranks, minlength=40) - 16).abs().max() < 13  # 4 sigma of 40 jets


def test_noise_has_the_published_mean_and_width():
    jets = batch([150] * 300)
    noise = flow.noise(jets, torch.arange(300), 0, 2)
    torch.testing.assert_close(noise.mean(0), torch.tensor(flow.NOISE_MEAN), atol=0.03, rtol=0)
    torch.testing.assert_close(noise.std(0), torch.tensor(flow.NOISE_WIDTH), atol=0, rtol=0.02)


def test_every_active_parameter_gets_a_gradient():
    """Distributed training relies on it: no search for unused parameters."""
    for text in PARAMETERS:
        learner = objective(text)
        learner(batch())["loss"].backward()
        missing = [n for n, p in learner.named_parameters() if p.grad is None]
        assert not missing, f"{text}: {missing}"


def test_says_what_a_batch_lacks():
    jets = batch()
    with pytest.raises(ValueError, match="embeds tracks, but the jets have none"):
        objective("mpm")(jets.replace(tracks=None))
    with pytest.raises(ValueError, match="needs the label"):
        objective("classifier")(jets.replace(label=None))
    with pytest.raises(ValueError, match="needs the type of each jet"):
        objective("generator")(jets.replace(label=None))
    with pytest.raises(ValueError, match="no condition"):
        objective("mpm", condition_dim=2)(jets)


@pytest.mark.parametrize("text", ["pretrain", "mpm"])
def test_conditional_models(text):
    jets = batch().replace(condition=torch.randn(len(COUNTS), 3))
    assert objective(text, condition_dim=3)(jets)["loss"].isfinite()


def test_a_batch_without_jets_or_without_particles():
    model = objective("classifier").model
    assert model.classify(batch([])).shape == (0, 10)
    assert model.classify(batch([0, 0])).isfinite().all()
    assert isinstance(batch([]), Jets)


def test_what_inference_mode_leaves_behind_can_be_learned_with():
    _constant.cache_clear()
    learner = objective("pretrain")
    with torch.inference_mode():
        learner(batch())
    learner(batch())["loss"].backward()


def test_turned_jets_keep_what_a_turn_keeps():
    jets = batch([40] * 200).replace(index=torch.arange(200) + 7)
    found = turned(jets, jets.index, seed=3)
    before, after = (torch.complex(*j.particles[:, :2].double().unbind(1)) for j in (jets, found))
    assert found.particles[:, 2:].equal(jets.particles[:, 2:])
    torch.testing.assert_close(after.abs(), before.abs(), atol=1e-6, rtol=1e-6)
    # Of two particles of a jet the angle between them stays, or changes its sign.
    one, other = (x.view(200, 40)[:, 1:] / x.view(200, 40)[:, :1] for x in (before, after))
    same = (other - one).abs().amax(1) < 1e-3 * one.abs().amax(1)
    mirrored = (other - one.conj()).abs().amax(1) < 1e-3 * one.abs().amax(1)
    assert (same ^ mirrored).all()
    assert 70 < int(mirrored.sum()) < 130
    # The angles are uniform: their mean direction is that of a walk of so many steps.
    angle = torch.where(same, after[::40] / before[::40], after[::40] / before[::40].conj())
    assert float((angle / angle.abs()).mean().abs()) < 3 / 200**0.5
    # By the index of a jet, not its place; another index, another angle.
    some = torch.tensor([5, 0])
    again = turned(jets.select(some), jets.index[some], seed=3)
    assert again.particles.equal(found.select(some).particles)
    assert len(angle.angle().unique()) == 200


def test_jets_are_turned_in_training_alone():
    plain = objective("classifier")
    other = Objective(plain.model, seed=3, turned=True)
    jets = batch()
    assert not other(jets)["loss"].equal(plain(jets)["loss"])
    assert other.eval()(jets)["loss"].equal(plain.eval()(jets)["loss"])
