"""Targets of hidden particles against their formulas, closed forms and what must not matter."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from jetkern.jets import Jets
from jetkern.model.config import PETConfig
from jetkern.model.pet import PET
from jetkern.model.targets import Choices, gaussian
from jetkern.model.targets.spline_flow import BINS, TAIL, SplineFlow
from jetkern.model.targets.target import NOISE, Hidden
from jetkern.objectives import Objective
from jetkern.objectives.targets import parse_targets, target_losses
from jetkern.objectives.views import Masked
from jetkern.ops import spline
from jetkern.tokenizers import QuantileNormal

FEATURES = ("delta_eta", "delta_phi", "ln_pt", "d0", "dz_error")
COUNTS = [0, 1, 2, 9, 16, 150]
CODES = 11
ALL = ("regression", "identity", "tokens", "cfm", "cnf", "ssfm")


def some_jets(counts=COUNTS, seed=0):
    draw = torch.Generator().manual_seed(seed)
    total = sum(counts)
    tracks = torch.randn(total, 4, generator=draw)
    tracks[::3] = 0.0  # neutral
    return Jets(
        particles=torch.randn(total, 4, generator=draw) * 0.3,
        offsets=torch.tensor([0, *np.cumsum(counts, dtype=int)]),
        pid=torch.randint(0, 9, (total,), generator=draw),
        tracks=tracks,
        label=torch.zeros(len(counts), dtype=torch.int64),
        index=torch.arange(len(counts)) + 100,
    )


def learner(targets, *, view=None, choices=None, weights=None, features=FEATURES, **changes):
    config = PETConfig(
        dim=16,
        layers=1,
        heads=2,
        neighbours=3,
        head_layers=1,
        num_classes=1,
        parts=("mpm",),
        targets=targets,
        target_features=features,
        codes=CODES if features else 0,
        **changes,
    )
    torch.manual_seed(0)
    model = PET(config)
    if model.mpm.tokenizer is not None:
        values = np.random.default_rng(0).normal(size=(len(features), 1000))
        scale = QuantileNormal.fit(list(values))
        model.mpm.tokenizer.scale.load_state_dict(scale.state_dict())
        model.mpm.tokenizer.codes.copy_(torch.randn(CODES, len(features)))
    losses = target_losses(config, weights, view=view or Masked(), choices=choices or Choices())
    return Objective(model, 3, losses=losses)


def hidden_of(objective, jets):
    view = objective.losses[0].view(jets, jets.index, objective.seed)
    hidden = objective.losses[0]._hidden(objective.model, view)
    hidden.body, hidden.body_offsets = objective.model.body(view.jets)
    return objective.model.mpm.show(hidden)


def test_parse_targets():
    assert parse_targets("identity:0.3+regression") == {"regression": 1.0, "identity": 0.3}
    for wrong, message in {
        "regresion": "did you mean regression",
        "cfm+cfm:2": "named twice",
        "cfm:0": "a number above 0, got 'cfm:0'",
        "cfm:x": "a number above 0",
        "": "unknown target",
    }.items():
        with pytest.raises(ValueError, match=message):
            parse_targets(wrong)


def test_models_that_cannot_be():
    with pytest.raises(ValueError, match="cfm needs particles on a normal scale"):
        learner(("cfm",), features=())
    with pytest.raises(ValueError, match="needs a tokeniser with codes"):
        PETConfig(dim=8, layers=1, heads=2, neighbours=2, targets=("tokens",),
                  target_features=("ln_pt",))  # fmt: skip
    with pytest.raises(ValueError, match="3 heads do not divide the decoder's width 16"):
        learner(("identity",), decoder_heads=3)
    with pytest.raises(ValueError, match="must lie in"):
        Masked(0.5, 0.4)
    assert learner(("regression",), features=()).model.config.targets == ()
    model, keep = learner(("identity",)).model, torch.ones(sum(COUNTS), dtype=torch.bool)
    jets = some_jets()
    with pytest.raises(ValueError, match="predicts identity, not four numbers"):
        model.fill_masked(jets, keep)


@pytest.mark.parametrize("target", ALL)
@pytest.mark.parametrize("fraction", [(0.4, 0.4), (0.2, 1.0), (1.0, 1.0)])
def test_parts_of_a_batch_add_up_and_gradients_are_finite(target, fraction):
    objective, jets = learner((target,), view=Masked(*fraction)).eval(), some_jets()
    whole, weights, _ = objective.sums(jets)
    parts = [objective.sums(jets.select(slice(*s))) for s in ((0, 2), (2, 5), (5, 6))]
    for number, name in enumerate(whole):
        added = sum(p.sums[name].item() for p in parts)
        assert whole[name].item() == pytest.approx(added, rel=1e-4)
        assert float(weights[number]) == sum(float(p.weights[number]) for p in parts)
    objective(jets)["loss"].backward()
    for name, p in objective.model.named_parameters():
        assert p.grad is None or p.grad.isfinite().all(), name
    nothing = objective(some_jets([0, 1] if fraction[0] < 1 else [0, 0]))["loss"]
    assert nothing.item() == 0


def test_every_weight_learns_and_targets_are_summed_with_weights():
    weights = dict(zip(ALL, (1.0, 0.3, 2.0, 0.5, 0.1, 1.5), strict=True))
    objective, jets = learner(ALL, weights=weights).eval(), some_jets()
    found = objective(jets)
    assert list(found) == ["mpm_regression", "mpm_identity", "mpm_tokens", "mpm_cfm", "mpm_cnf",
                           "mpm_ssfm", "mpm_ssfm_identity", "loss"]  # fmt: skip
    alone = learner(("identity",)).eval()
    alone.model.load_state_dict(objective.model.state_dict(), strict=False)
    assert float(found["mpm_identity"]) == pytest.approx(0.3 * float(alone(jets)["loss"]))
    found["loss"].backward()
    idle = [n for n, p in objective.model.named_parameters() if p.grad is None]
    assert idle == []
    assert objective.trivial(jets).keys() == {f"{name}_trivial" for name in found if name != "loss"}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_numbers_identities_and_tokens_are_the_usual_losses(smoothing):
    objective = learner(("regression", "identity", "tokens"), choices=Choices(smoothing=smoothing))
    jets, mpm = some_jets(), objective.eval().model.mpm
    found, hidden = objective(jets), hidden_of(objective, jets)
    scaled, known = mpm.tokenizer.scaled(jets)
    scaled, known = scaled[~hidden.keep], known[~hidden.keep]
    assert not known.all()
    assert known[:, :3].all()
    errors = [(p - x)[k].abs().mean() for p, x, k in zip(mpm.out(hidden.rows), scaled, known,
                                                        strict=True)]  # fmt: skip
    torch.testing.assert_close(found["mpm_regression"], torch.stack(errors).mean())
    pid = jets.pid[~hidden.keep]
    each = cross_entropy(mpm.identity.out(hidden.rows)[pid > 0], pid[pid > 0],
                         label_smoothing=smoothing, reduction="sum")  # fmt: skip
    torch.testing.assert_close(found["mpm_identity"], each / len(pid))
    tokens = mpm.tokenizer.tokens(jets)[~hidden.keep]
    each = cross_entropy(mpm.tokens.out(hidden.rows), tokens, label_smoothing=smoothing)
    torch.testing.assert_close(found["mpm_tokens"], each)


def test_flow_matching_is_the_error_of_the_velocity_of_known_features():
    objective, jets = learner(("cfm",)).eval(), some_jets()
    hidden, target = hidden_of(objective, jets), objective.model.mpm.cfm
    values, known = hidden.values
    noise, time = hidden.normal(NOISE, 5), hidden.times()
    assert abs(float(time.mean()) - 0.5) < 0.1
    total = 0.0
    for row in range(len(values)):
        t = time[row : row + 1]
        x = ((1 - t) * values[row] + t * noise[row]) * known[row]
        context = target.context(hidden.rows[row : row + 1])
        found = target.velocity(x[None], t, known[row : row + 1], context)[0]
        total += float((found - noise[row] + values[row])[known[row]].square().mean())
    assert float(objective(jets)["loss"]) == pytest.approx(total / len(values), rel=1e-4)


@pytest.mark.parametrize("target", ["cfm", "cnf", "ssfm", "regression"])
def test_tracks_of_neutral_particles_have_no_loss_unless_noise_is_asked_for(target):
    jets = some_jets()
    objective = learner((target,)).eval()
    hidden = hidden_of(objective, jets)
    before = objective.model.mpm.target(target).losses(hidden)[0]
    values, known = hidden.values
    hidden.values = values + 3 * ~known, known
    if target == "regression":  # others put zeros there themselves
        torch.testing.assert_close(objective.model.mpm.target(target).losses(hidden)[0], before)
    noisy = learner((target,), choices=Choices(neutral_noise=True)).eval()
    values, known = hidden_of(noisy, jets).values
    assert known.all()
    drawn = values[~hidden.values[1]]
    assert abs(float(drawn.std()) - 1) < 0.2


def test_hidden_particles_reach_the_decoder_by_rank_alone():
    """Others in their place change nothing but their own targets."""
    jets = some_jets([20, 7])
    for shared in (False, True):
        objective = learner(("regression",), shared_mask=shared, decoder_dim=8).eval()
        hidden = hidden_of(objective, jets)
        assert hidden.rows.shape[1] == 8
        changed = jets.replace(
            particles=jets.particles + 5 * ~hidden.keep[:, None], pid=jets.pid * hidden.keep
        )
        again = hidden_of(objective, changed)
        assert torch.equal(again.rows, hidden.rows)
        assert torch.equal(again.body, hidden.body)
        alike = torch.allclose(hidden.rows[0], hidden.rows[1], atol=1e-6)
        assert alike == shared


def test_fractions_are_drawn_between_their_ends():
    jets = some_jets([100] * 400)
    counts = Masked(0.2, 0.8).counts(jets, jets.index, 0)
    assert 20 <= int(counts.min()) < 24
    assert 76 < int(counts.max()) <= 80
    assert abs(float(counts.double().mean()) - 50) < 3
    assert torch.equal(Masked(0.29, 0.29).counts(jets, jets.index, 0), torch.full((400,), 29))
    view = Masked(0.2, 0.8)(jets, jets.index, 0)
    assert torch.equal(jets.counts - view.jets.counts, counts)


def test_a_spline_is_the_identity_at_first_and_rises_everywhere():
    x = torch.linspace(-6, 6, 121, dtype=torch.float64)
    moved, log_slope = spline(x, torch.zeros(121, 3 * BINS - 1, dtype=torch.float64))
    torch.testing.assert_close(moved, x)
    torch.testing.assert_close(log_slope, torch.zeros_like(x), atol=1e-12, rtol=0)
    raw = 3 * torch.randn(3 * BINS - 1, dtype=torch.float64)
    knots = 2 * TAIL * torch.softmax(raw[:BINS], 0).cumsum(0) - TAIL
    x = torch.cat([x, knots, torch.tensor([-TAIL, TAIL, 40.0, -40.0])]).requires_grad_()
    raw = raw.expand(len(x), -1).clone().requires_grad_()
    moved, log_slope = spline(x, raw)
    (slope,) = torch.autograd.grad(moved.sum(), x, retain_graph=True)
    torch.testing.assert_close(slope.log(), log_slope, atol=1e-6, rtol=1e-6)
    assert (moved[:121].diff() > 0).all()
    back, log_back = spline(moved.detach(), raw.detach(), inverse=True)
    torch.testing.assert_close(back, x.detach(), atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(log_back, -log_slope.detach(), atol=1e-6, rtol=1e-6)
    (moved.sum() + log_slope.sum()).backward()
    assert raw.grad.isfinite().all()
    assert x.grad.isfinite().all()


def test_a_flow_of_all_features_has_the_determinant_of_its_jacobian():
    objective = learner(("cnf",)).double()
    flow = objective.model.mpm.cnf
    for coupling in flow.couplings:
        torch.nn.init.normal_(coupling.fc2.weight, std=0.5)
    draw = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(6, 5, dtype=torch.float64, generator=draw)
    known = torch.ones(6, 5, dtype=torch.bool)
    known[3:, 3:] = False
    context = torch.randn(6, 128, dtype=torch.float64, generator=draw)
    z, log_slope = flow.to_noise(x, known, context)
    for row in range(6):
        k = known[row]

        def one(inside, row=row, k=k):
            whole = x[row].clone()
            whole[k] = inside
            found = flow.to_noise(whole[None], known[row : row + 1], context[row : row + 1])
            return found[0][0, k]

        jacobian = torch.autograd.functional.jacobian(one, x[row, k])
        assert float(log_slope[row]) == pytest.approx(float(jacobian.slogdet()[1]), abs=1e-8)
    torch.testing.assert_close(flow.from_noise(z, known, context), x * known, atol=1e-8, rtol=1e-8)
    assert (z[3:, 3:] == 0).all()
    other = flow.to_noise(x.where(known, 9.0), known, context)
    assert torch.equal(other[0], z)
    assert torch.equal(other[1], log_slope)


def test_likelihood_of_a_toy_whose_answer_is_known():
    """x of width s around c, c known: the density given c is a normal one."""
    torch.manual_seed(0)
    config = PETConfig(dim=8, layers=1, heads=2, neighbours=2, parts=("mpm",), targets=("cnf",),
                       target_features=("delta_eta", "ln_pt"))  # fmt: skip
    flow = SplineFlow(config, 1)
    flow.initialise()
    width, known = 0.4, torch.ones(1024, 2, dtype=torch.bool)
    optimizer = torch.optim.Adam(flow.parameters(), 5e-3)
    draw = torch.Generator().manual_seed(1)
    losses = []
    for step in range(120):
        c = torch.randn(1024, 1, generator=draw)
        x = c + width * torch.randn(1024, 2, generator=draw)
        z, log_slope = flow.to_noise(x, known, flow.context(c))
        loss = (0.5 * (z.square() + math.log(2 * math.pi))).sum(1).mean() - log_slope.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step >= 90:
            losses.append(loss.item())
    exact = 2 * (0.5 * (math.log(2 * math.pi) + 1) + math.log(width))
    unconditional = gaussian.likelihood(x, known)
    assert exact < np.mean(losses) < exact + 0.1
    assert unconditional > exact + 0.8


def test_trivial_losses_are_the_closed_forms_of_normal_features():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(60_000, 3, generator=draw)
    known = torch.ones_like(x, dtype=torch.bool)
    assert gaussian.likelihood(x, known) == pytest.approx(3 * 1.4189, abs=0.02)
    assert gaussian.velocity(x, known) == pytest.approx(1.741, abs=0.01)
    known[:30_000, 2] = False
    assert gaussian.likelihood(x, known) == pytest.approx(2.5 * 1.4189, abs=0.02)
    one = torch.cat([x[:, :1], x[:, :1]], 1)  # two features that are one
    assert gaussian.likelihood(one, torch.ones_like(one) > 0) < -3


def test_trivial_losses_of_targets():
    objective, jets = learner(ALL).eval(), some_jets([40] * 50)
    found, hidden = objective.trivial(jets), hidden_of(objective, jets)
    pid = hidden.jets.pid
    share = torch.bincount(pid[pid > 0]).double() / (pid > 0).sum()
    entropy = -torch.special.xlogy(share, share).sum() * (pid > 0).double().mean()
    assert found["mpm_identity_trivial"] == pytest.approx(float(entropy))
    tokens = objective.model.mpm.tokenizer.tokens(hidden.jets)
    best = min(
        float(cross_entropy(logits.expand(len(tokens), -1), tokens))
        for logits in (torch.bincount(tokens, minlength=CODES).double().clamp(min=1e-9).log(),)
    )
    assert found["mpm_tokens_trivial"] == pytest.approx(best)
    values, known = hidden.values
    medians = torch.stack([v[k].median() for v, k in zip(values.T, known.T, strict=True)])
    error = torch.where(known, (values - medians).abs(), 0).sum(1) / known.sum(1)
    assert found["mpm_regression_trivial"] == pytest.approx(float(error.mean()))
    other = torch.where(known, (values - medians - 0.2).abs(), 0).sum(1) / known.sum(1)
    assert other.mean() > error.mean()


@pytest.mark.parametrize("target", ["regression", "identity", "tokens", "cfm", "cnf", "ssfm"])
def test_samples_have_the_shape_of_what_is_hidden(target):
    objective, jets = learner((target,)).eval(), some_jets([9, 0, 5])
    hidden = hidden_of(objective, jets)
    with torch.no_grad():
        drawn = objective.model.mpm.target(target).sample(hidden)
    number = len(hidden.jets.particles)
    if target == "ssfm":
        features, pid = drawn
        assert features.shape == (number, 5)
        assert pid.shape == (number,)
        assert features.isfinite().all()
    elif target in ("identity", "tokens"):
        assert drawn.shape == (number,)
        assert (drawn >= (target == "identity")).all()
    else:
        assert drawn.shape == (number, 5)
        assert drawn.isfinite().all()
    assert isinstance(hidden, Hidden)
