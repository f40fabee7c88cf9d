import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jetkern.ops import (
    LinearParameters,
    fold_batch_norms,
    pair_bias,
    pair_features,
    pair_index,
    pair_mlp,
    pair_offsets,
    unordered_entry,
    unordered_pairs,
)
from jetkern.packed import Packed
from tests.ops.helpers import (
    HURTING,
    check_accuracy,
    generator,
    random_mlp,
    random_particles,
    result_and_gradients,
    threads,
)

PART = (4, 64, 64, 64, 8)  # widths of Particle Transformer's


def perceptron(widths: tuple[int, ...], seed: int = 0) -> list[LinearParameters]:
    g = generator(seed)
    return [
        LinearParameters(
            torch.randn(out, wide, generator=g) * wide**-0.5, 0.1 * torch.randn(out, generator=g)
        )
        for wide, out in itertools.pairwise(widths)
    ]


def batch(counts: list[int], widths: tuple[int, ...] = PART) -> tuple[Any, ...]:
    """Features, offsets and layers; the last layer has no bias if the first is 5 wide."""
    _, offsets = random_particles(counts)
    rows = int((offsets.diff() * (offsets.diff() + 1)).sum()) // 2
    layers = perceptron(widths)
    if widths[0] == 5:
        layers[-1] = LinearParameters(layers[-1].weight, None)
    return torch.randn(rows, widths[0], generator=generator(2)), offsets, layers


@pytest.mark.parametrize("counts", HURTING.values(), ids=HURTING)
def test_cpu_accuracy(counts: list[int]) -> None:
    check_accuracy(pair_mlp, *batch(counts))


@pytest.mark.parametrize(
    "widths",
    [(1, 1), (3, 2), (5, 7, 3), (3, 16, 4), (4, 70, 33, 65, 2), (2, *[9] * 14, 4)],
    ids=str,
)
def test_cpu_accuracy_for_any_depth_and_widths(widths: tuple[int, ...]) -> None:
    check_accuracy(pair_mlp, *batch([0, 2, 25], widths))


def test_cpu_accuracy_of_wide_layers_and_many_heads() -> None:
    check_accuracy(pair_mlp, *batch([17, 1, 4], (4, 300, 257, 40)))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_two_layers_on_the_pair_features_are_the_pair_bias(backend: str) -> None:
    particles, offsets = random_particles([9, 0, 1, 31])
    p = random_mlp(3, 24, 4, norm=False)
    i, j = unordered_pairs(offsets)
    layers = [
        LinearParameters(p.fc1_weight, p.fc1_bias),
        LinearParameters(p.fc2_weight, p.fc2_bias),
    ]
    have = pair_mlp(pair_features(particles[i], particles[j]), offsets, layers, backend=backend)
    torch.testing.assert_close(have, pair_bias(particles, offsets, p), atol=1e-5, rtol=1e-5)


def test_unordered_pairs_are_the_lower_triangles_and_every_pair_finds_its_entry() -> None:
    counts = [4, 0, 1, 7, 2]
    _, offsets = random_particles(counts)
    i, j = unordered_pairs(offsets)
    want_i, want_j = [], []
    for start, n in zip(offsets.tolist(), counts, strict=False):
        row, column = torch.tril_indices(n, n)
        want_i.append(start + column)
        want_j.append(start + row)
    assert torch.equal(i, torch.cat(want_i))
    assert torch.equal(j, torch.cat(want_j))
    assert torch.equal(unordered_pairs(offsets, len(i))[0], i)
    a, b = pair_index(offsets)
    entry = unordered_entry(offsets, len(a))
    assert torch.equal(i[entry], torch.minimum(a, b))
    assert torch.equal(j[entry], torch.maximum(a, b))


def test_the_rank_of_a_pair_in_a_jet_of_three_thousand() -> None:
    i, j = unordered_pairs(torch.tensor([0, 3000]))
    assert torch.equal(torch.stack([j, i]), torch.tril_indices(3000, 3000))


def test_symmetric_and_features_are_those_of_the_pair() -> None:
    features, offsets, layers = batch([5, 0, 9])
    bias = pair_mlp(features, offsets, layers)
    start = int(pair_offsets(offsets)[2])
    square = bias[:, start:].unflatten(1, (9, 9))
    assert torch.equal(square, square.mT)
    changed = features.clone()
    changed[15 + 10 + 3] += 1.0  # j = 4, i = 3 of the last jet
    moved = (pair_mlp(changed, offsets, layers) != bias).any(0).nonzero()[:, 0].tolist()
    assert moved == [start + 3 * 9 + 4, start + 4 * 9 + 3]


def test_more_jets_than_a_sixteen_bit_counter_holds() -> None:
    inputs = batch([i % 3 for i in range(70_000)], (2, 3, 1))
    have = pair_mlp(*inputs, backend="cpu")
    torch.testing.assert_close(have, pair_mlp(*inputs, backend="reference"), atol=1e-6, rtol=1e-5)


def test_non_contiguous_inputs() -> None:
    features, offsets, layers = batch([8, 3])
    want = pair_mlp(features, offsets, layers, backend="cpu")
    turned = [LinearParameters(w.t().contiguous().t(), b) for w, b in layers]
    assert not turned[1].weight.is_contiguous()
    strided = features.t().contiguous().t()
    leaves = [w.requires_grad_() for w, _ in turned]
    out = pair_mlp(strided, offsets, turned, backend="cpu")
    assert torch.equal(out, want)
    upstream = torch.randn(want.shape[::-1], generator=generator(3)).t()
    plain = [LinearParameters(w.detach().clone().requires_grad_(), b) for w, b in layers]
    again = pair_mlp(features, offsets, plain, backend="cpu")
    for have, expected in zip(
        torch.autograd.grad(out, leaves, upstream),
        torch.autograd.grad(again, [w for w, _ in plain], upstream),
        strict=True,
    ):
        assert torch.equal(have, expected)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    inputs = batch([50, 3, 0, 77, 12, 12, 30])
    results = []
    for n in (1, 2, 3, 4, 4):
        with threads(n):
            results.append(result_and_gradients(pair_mlp, inputs, torch.float32, "cpu"))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_gradients_of_the_features_only_if_they_are_wanted() -> None:
    features, offsets, layers = batch([4, 6])
    leaf = layers[0].weight.requires_grad_()
    out = pair_mlp(features, offsets, layers, backend="cpu")
    assert torch.autograd.grad(out.sum(), leaf)[0].any()
    out = pair_mlp(features.requires_grad_(), offsets, layers, backend="cpu")
    assert torch.autograd.grad(out.sum(), features)[0].all()


def test_registration_and_compilation() -> None:
    features, offsets, layers = batch([3, 0, 9], (4, 8, 6, 2))
    leaves = [w.requires_grad_() for layer in layers for w in layer]
    features.requires_grad_()
    for known in (-1, 90):
        arguments = (features, offsets, leaves, known)
        torch.library.opcheck(torch.ops.jetkern.pair_mlp.default, arguments)

    def total(features: Tensor, offsets: Tensor, layers: Any) -> Tensor:
        return pair_mlp(features, offsets, layers, num_pairs=90, backend="cpu").square().sum()

    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")(features, offsets, layers)
    want = torch.autograd.grad(total(features, offsets, layers), [features, *leaves])
    for have, expected in zip(
        torch.autograd.grad(compiled, [features, *leaves]), want, strict=True
    ):
        torch.testing.assert_close(have, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_bad_input_is_refused(backend: str) -> None:
    features, offsets, layers = batch([4])
    wrong = (ValueError, RuntimeError)

    def run(features: Tensor = features, layers: Any = layers, **options: Any) -> Tensor:
        return pair_mlp(features, offsets, layers, backend=backend, **options)

    with pytest.raises(ValueError, match=r"layers\[0\]\.weight must have shape \(any, 3\)"):
        run(features[:, :3])
    with pytest.raises(ValueError, match=r"layers\[2\]\.bias must have shape"):
        run(layers=[*layers[:2], LinearParameters(layers[2].weight, torch.zeros(3))])
    with pytest.raises(ValueError, match="at least one"):
        run(layers=[])
    with pytest.raises(wrong, match="one row for each of the 10 pairs i <= j of the jets, got 9"):
        run(features[:9])
    with pytest.raises(wrong, match="num_pairs is 9, the jets have 16 pairs"):
        run(num_pairs=9)
    with pytest.raises(ValueError, match="num_pairs must not be negative"):
        run(num_pairs=-2)


def test_the_layout_knows_the_number_of_pairs() -> None:
    features, offsets, layers = batch([4, 2])
    want = pair_mlp(features, offsets, layers)
    assert torch.equal(pair_mlp(features, Packed(offsets, num_pairs=20), layers), want)
    with pytest.raises((ValueError, RuntimeError), match="num_pairs is 21, the jets have 20"):
        pair_mlp(features, Packed(offsets, num_pairs=21), layers)


def embedding(convolution: bool, bias: bool = True) -> nn.Sequential:
    """Particle Transformer's pair embedding, with running statistics that are not 0 and 1."""
    modules: list[nn.Module] = [nn.BatchNorm1d(4)]
    for wide, out in ((4, 12), (12, 9), (9, 2)):
        kind = nn.Conv1d(wide, out, 1, bias=bias) if convolution else nn.Linear(wide, out, bias)
        modules += [kind, nn.BatchNorm1d(out), nn.GELU()]
    built = nn.Sequential(*modules[:-1]).double()
    g = generator(5)
    for module in built:
        if isinstance(module, nn.BatchNorm1d):
            for t in (module.weight, module.bias, module.running_mean, module.running_var):
                t.data = torch.rand(t.shape, generator=g).double() + 0.5
    return built.eval()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("convolution", [True, False])
def test_folded_batch_norms_give_the_same_result_and_gradients(
    convolution: bool, bias: bool
) -> None:
    features, offsets, _ = batch([3, 0, 7])
    module, x = embedding(convolution, bias), features.double()
    plain = module(x.t()[None])[0].t() if convolution else module(x)
    want = plain[unordered_entry(offsets)].t()
    have = pair_mlp(x, offsets, fold_batch_norms(module))
    torch.testing.assert_close(have, want, rtol=1e-12, atol=1e-12)
    weights = list(module.parameters())
    for a, b in zip(
        torch.autograd.grad(have.sin().sum(), weights),
        torch.autograd.grad(want.sin().sum(), weights),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_what_cannot_be_folded_is_refused() -> None:
    norm, layer, gelu = nn.BatchNorm1d(4).eval(), nn.Linear(4, 4), nn.GELU()
    for modules, reason in (
        ([nn.BatchNorm1d(4), layer], "in training"),
        ([nn.BatchNorm1d(4, track_running_stats=False).eval(), layer], "in training"),
        ([norm, norm, layer], "two batch norms"),
        ([layer, layer], "two layers without a GELU"),
        ([layer, nn.ReLU(), layer], "no place for ReLU"),
        ([layer, nn.GELU("tanh"), layer], "no place for GELU"),
        ([layer, gelu], "the last module"),
        ([gelu, layer], "no place for GELU"),
        ([nn.Conv1d(4, 4, 3)], "wider than one"),
    ):
        with pytest.raises(ValueError, match=reason):
            fold_batch_norms(modules)


def test_the_share_of_momentum() -> None:
    particles, _ = random_particles([6])
    particles = particles.double()
    i, j = unordered_pairs(torch.tensor([0, 6]))
    pt = particles[:, 2].exp()
    z = torch.minimum(pt[i], pt[j]) / (pt[i] + pt[j])
    all_four = pair_features(particles[i], particles[j], ("ln_z", "ln_kt", "ln_m2", "ln_r"))
    torch.testing.assert_close(all_four[:, 0], z.log(), rtol=1e-14, atol=1e-14)
    usual = pair_features(particles[i], particles[j])
    assert torch.equal(all_four[:, [2, 3, 1]], usual)
    assert (all_four[i == j, 0] == -torch.tensor(2.0).double().log()).all()
    far = pair_features(torch.tensor([0.0, 0, 800, 0]), torch.tensor([0.0, 0, -800, 0]), ("ln_z",))
    assert far.item() == -1600
    leaf = particles.requires_grad_()
    (have,) = torch.autograd.grad(
        pair_features(leaf[i], leaf[j], ("ln_z",)).sum(), leaf, retain_graph=True
    )
    pt = leaf[:, 2].exp()
    z = torch.minimum(pt[i], pt[j]) / (pt[i] + pt[j])
    torch.testing.assert_close(have, torch.autograd.grad(z.log().sum(), leaf)[0])
    with pytest.raises(ValueError, match="unknown pair feature 'ln_y': choose from ln_m2, ln_r"):
        pair_features(particles, particles, ("ln_y",))
