"""EPiC beside the same network on padded jets in plain PyTorch, and what no jet may know."""

import math

import pytest
import torch
from torch.nn.functional import leaky_relu

from jetkern.jets import Jets
from jetkern.model.columns import IDENTITY
from jetkern.model.epic import EPIC_SIZES, EPiC, EPiCConfig, time_features
from jetkern.packed import Packed, offsets_from_counts, segment_sums, spread

NAMES = (*IDENTITY, "tanh_d0", "d0_error", "tanh_dz", "dz_error")
COUNTS = (3, 0, 1, 7)


def config(names=NAMES, **changes):
    number = 4 + len(names)
    sizes = {"layers": 2, "dim": 8, "latent": 3, "time_features": 4, **changes}
    return EPiCConfig(
        **sizes,
        num_classes=3,
        condition_dim=2,
        condition_scale=(100.0, 10.0),
        columns=names,
        noise_mean=torch.linspace(-1, 1, number).tolist(),
        noise_width=torch.linspace(0.5, 2, number).tolist(),
    )


def batch(counts=COUNTS, dtype=torch.float64):
    total, sets = sum(counts), len(counts)
    values = torch.randn(total, 4 + len(NAMES), dtype=dtype)
    return Jets(
        particles=values[:, :4],
        columns=values[:, 4:],
        offsets=offsets_from_counts(torch.tensor(counts)),
        label=torch.arange(sets) % 3,
        condition=100 * torch.rand(sets, 2, dtype=dtype),
    ), torch.linspace(0, 1, sets, dtype=dtype)


def padded_velocity(model, jets, time):
    """The network as the paper has it: padded, masked, all inputs concatenated."""
    c = model.config
    x, mask = jets.to_padded()
    more = torch.zeros(*mask.shape, len(c.columns), dtype=x.dtype)
    more[mask] = jets.columns
    keep = mask[..., None].to(x.dtype)
    width = torch.tensor(c.noise_width, dtype=x.dtype)
    x = (torch.cat([x, more], 2) - torch.tensor(c.noise_mean, dtype=x.dtype)) / width * keep
    exponents = torch.arange(c.time_features, dtype=torch.float64).exp()
    times = torch.cos(math.pi * time[:, None] * exponents)
    kinds = torch.nn.functional.one_hot(jets.label, c.num_classes).to(x.dtype)
    condition = torch.cat([kinds, jets.condition / torch.tensor(c.condition_scale)], 1)

    def layer(part, *inputs):
        rows = [i if i.ndim == 3 else i[:, None].expand(-1, mask.shape[1], -1) for i in inputs]
        joint = torch.cat(rows if inputs[0].ndim == 3 else inputs, -1)
        length = part.weight.square().sum(1, keepdim=True).sqrt()
        return joint @ (part.scale * part.weight / length).T + part.bias

    def pool(x):
        total = (x * keep).sum(1)
        return total / mask.sum(1).clamp(min=1)[:, None], 0.01 * total

    s = model.stem
    x = leaky_relu(layer(s.local1, x, times))
    x = leaky_relu(layer(s.local2, x, times) + x)
    g = leaky_relu(layer(s.global1, *pool(x), times, condition))
    g = leaky_relu(layer(s.global2, g, times, condition))
    for part in model.layers:
        h = leaky_relu(layer(part.global1, *pool(x), g, times, condition))
        g = leaky_relu(layer(part.global2, h, times, condition) + g)
        h = leaky_relu(layer(part.local1, x, g, times))
        x = leaky_relu(layer(part.local2, h, times) + x)
    v = layer(model.out, x, times)
    return ((leaky_relu(v) if c.out_activation else v) * width)[mask]


@pytest.mark.parametrize("activation", [False, True])
def test_it_is_the_padded_network_and_so_are_its_gradients(activation):
    model = EPiC(config(out_activation=activation)).double()
    jets, time = batch()
    for tensor in (jets.particles, jets.columns):
        tensor.requires_grad_(True)
    inputs = [jets.particles, jets.columns, *model.parameters()]
    ours, theirs = model.velocity(jets, time), padded_velocity(model, jets, time)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
    weights = torch.randn_like(ours)
    found = torch.autograd.grad((ours * weights).sum(), inputs)
    expected = torch.autograd.grad((theirs * weights).sum(), inputs)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)
    single = EPiC(model.config)
    single.load_state_dict(model.state_dict())
    low = jets.replace(
        particles=jets.particles.float(),
        columns=jets.columns.float(),
        condition=jets.condition.float(),
    )
    torch.testing.assert_close(
        single.velocity(low, time.float()), theirs.float(), rtol=1e-3, atol=1e-4
    )


def test_the_size_of_the_published_network():
    """8,504,698 with 13 columns, ten types, jet pT and eta, counted from its code's shapes."""
    published = EPiCConfig(
        **EPIC_SIZES["epic"],
        num_classes=10,
        condition_dim=2,
        columns=tuple("abcdefghi"),
        noise_mean=[0.0] * 13,
        noise_width=[1.0] * 13,
    )
    with torch.device("meta"):
        assert sum(p.numel() for p in EPiC(published).parameters()) == 8_504_698


def test_a_permutation_of_the_particles_permutes_the_velocity():
    model = EPiC(config()).double()
    jets, time = batch((6,))
    order = torch.randperm(6)
    mixed = jets.replace(particles=jets.particles[order], columns=jets.columns[order])
    torch.testing.assert_close(model.velocity(mixed, time), model.velocity(jets, time)[order])


def test_jets_never_see_one_another():
    model = EPiC(config()).double()
    jets, time = batch()
    clean = model.velocity(jets, time)
    own = jets.jet_of_particle == 3
    poison = torch.where(own[:, None], jets.columns, torch.nan).requires_grad_(True)
    made = model.velocity(jets.replace(columns=poison), time)
    torch.testing.assert_close(made[own], clean[own], rtol=1e-12, atol=1e-12)
    alone = jets.select(slice(3, 4))
    torch.testing.assert_close(model.velocity(alone, time[3:]), clean[own])
    (gradient,) = torch.autograd.grad(made[own].sum(), poison)
    assert gradient[own].isfinite().all()


@pytest.mark.parametrize("counts", [(), (0, 0), (1,), (150, 1)])
def test_shapes_that_hurt(counts):
    model = EPiC(config())
    jets, time = batch(counts, torch.float32)
    made = model.velocity(jets, time)
    assert made.shape == (sum(counts), 14)
    assert made.isfinite().all()


def test_time_features_at_the_ends_of_the_path():
    time = torch.tensor([0.0, 1.0, 0.37])
    features = time_features(time, 32)
    assert torch.equal(features[0], torch.ones(32, dtype=torch.float64))
    expected = [math.cos(math.pi * math.e**k) for k in range(12)]
    torch.testing.assert_close(features[1, :12], torch.tensor(expected, dtype=torch.float64))
    assert (features.abs() <= 1).all()
    model = EPiC(config())
    jets, _ = batch((4, 4, 4), torch.float32)
    assert model.velocity(jets, time).isfinite().all()


def test_jets_that_lack_what_the_model_needs():
    model = EPiC(config()).double()
    jets, time = batch()
    for name, message in (
        ("columns", "makes 14 columns, the jets have 4"),
        ("label", "needs the type"),
        ("condition", "no condition"),
    ):
        with pytest.raises(ValueError, match=message):
            model.velocity(jets.replace(**{name: None}), time)
    with pytest.raises(ValueError, match="noise_width must be 14 finite numbers"):
        EPiCConfig(**{**vars(config()), "noise_width": [0.0] * 14})
    with pytest.raises(ValueError, match="mean and width of the noise"):
        EPiCConfig(layers=1, dim=2, latent=1)


def test_sums_of_segments_and_their_gradients():
    packed = Packed(offsets_from_counts(torch.tensor([2, 0, 3])))
    rows = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    sets = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    expected = torch.stack([rows[:2].sum(0), 0 * rows[0], rows[2:].sum(0)])
    torch.testing.assert_close(segment_sums(rows, packed), expected)
    assert torch.autograd.gradcheck(lambda x: segment_sums(x, packed), (rows,))
    assert torch.autograd.gradcheck(lambda x: spread(x, packed, 5), (sets,))
    assert torch.autograd.gradgradcheck(lambda x: segment_sums(x, packed).square(), (rows,))
