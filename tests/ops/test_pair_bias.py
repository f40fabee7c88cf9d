from typing import Any

import pytest
import torch
from torch import Tensor

from jetkern.ops import MLPParameters, pair_bias, pair_offsets
from tests.ops.helpers import (
    HURTING,
    check_accuracy,
    generator,
    random_mlp,
    random_particles,
    result_and_gradients,
    threads,
)


def batch(counts: list[int], hidden: int = 64, heads: int = 4) -> tuple[Any, ...]:
    return *random_particles(counts), random_mlp(3, hidden, heads, norm=False)


def on_weights(
    particles: Tensor, offsets: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, **kw: Any
) -> Tensor:
    """``pair_bias`` as a function of tensors, for ``check_accuracy``."""
    return pair_bias(particles, offsets, MLPParameters(w1, b1, None, None, w2, b2), **kw)


def inputs(counts: list[int], hidden: int = 64, heads: int = 4) -> tuple[Tensor, ...]:
    particles, offsets, p = batch(counts, hidden, heads)
    return particles, offsets, p.fc1_weight, p.fc1_bias, p.fc2_weight, p.fc2_bias


@pytest.mark.parametrize("counts", HURTING.values(), ids=HURTING)
def test_cpu_accuracy(counts: list[int]) -> None:
    check_accuracy(on_weights, *inputs(counts))


@pytest.mark.parametrize(("hidden", "heads"), [(1, 1), (16, 2), (70, 3), (256, 8), (1024, 16)])
def test_cpu_accuracy_for_any_size(hidden: int, heads: int) -> None:
    # The gradient of one weight is one sum, which cancels, and which eager may get right by luck.
    tiny = 1e-5 if hidden == 1 else 1e-6
    check_accuracy(on_weights, *inputs([0, 2, 25], hidden, heads), tiny=tiny)


def test_cpu_accuracy_for_particles_at_the_same_place_and_nearly_so() -> None:
    particles, offsets, *weights = inputs([12, 6])
    particles[3, :2] = particles[4, :2]  # no angle at all
    particles[5] = particles[6]
    particles[7, :2] = particles[8, :2] + torch.tensor([1e-6, 0.0])
    particles[9, :2] = particles[10, :2] + torch.tensor([0.0, 3e-7])
    particles[12:, :2] *= 20  # far apart
    check_accuracy(on_weights, particles, offsets, *weights, fixed=(0,))


def test_cpu_accuracy_of_the_gradient_of_particles_that_coincide_or_nearly_do() -> None:
    particles, offsets, *weights = inputs([12, 6])
    particles[3, :2] = particles[4, :2]
    particles[5] = particles[6]
    particles[7, :2] = particles[8, :2] + torch.tensor([1e-3, 0.0])  # terms of 1e3 that cancel
    particles[9, 2] = particles[10, 2]  # the smaller pT is both
    particles[12:, :2] *= 20
    check_accuracy(on_weights, particles, offsets, *weights, tiny=1e-5)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_symmetric_with_the_perceptron_of_zero_on_the_diagonal(backend: str) -> None:
    particles, offsets, p = batch([9, 31])
    bias = pair_bias(particles, offsets, p, backend=backend)
    zero = p.fc2_weight @ torch.nn.functional.gelu(p.fc1_bias) + p.fc2_bias
    for b, n in enumerate([9, 31]):
        start = int(pair_offsets(offsets)[b])
        square = bias[:, start : start + n * n].unflatten(1, (n, n))
        assert torch.allclose(square, square.mT, atol=1e-6)
        assert torch.allclose(square.diagonal(dim1=1, dim2=2), zero[:, None], atol=1e-6)


def test_gradients_follow_finite_differences() -> None:
    arguments = inputs([3, 7], 16, 2)
    _, *gradients = result_and_gradients(on_weights, arguments, torch.float32, "cpu", fixed=(0,))
    exact = [a.double() if a.is_floating_point() else a for a in arguments]
    upstream = torch.randn(2, 58, generator=generator(7)).double()
    for position, gradient in enumerate(gradients, start=2):
        direction = torch.randn(gradient.shape, generator=generator(position)).double()
        ends = []
        for sign in (1, -1):
            moved = [*exact]
            moved[position] = moved[position] + sign * 1e-5 * direction
            ends.append((on_weights(*moved, backend="reference") * upstream).sum())
        slope = (ends[0] - ends[1]) / 2e-5
        assert (gradient.double() * direction).sum().item() == pytest.approx(
            slope.item(), rel=1e-4, abs=1e-4
        )


def test_more_jets_than_a_sixteen_bit_counter_holds() -> None:
    particles, offsets, p = batch([i % 3 for i in range(70_000)], 4, 1)
    bias = pair_bias(particles, offsets, p, backend="cpu")
    assert torch.allclose(bias, pair_bias(particles, offsets, p, backend="reference"), atol=1e-5)


def test_non_contiguous_inputs() -> None:
    particles, offsets, p = batch([8, 3])
    want = pair_bias(particles, offsets, p, backend="cpu")
    turned = [None if t is None else t.t().contiguous().t() if t.ndim == 2 else t for t in p]
    assert not turned[0].is_contiguous()
    strided = particles.t().contiguous().t()
    upstream = torch.randn(want.shape[::-1], generator=generator(3)).t()
    leaf = turned[0].requires_grad_()
    out = pair_bias(strided, offsets, MLPParameters(*turned), backend="cpu")
    assert torch.equal(out, want)
    (have,) = torch.autograd.grad(out, leaf, upstream)
    plain = p._replace(fc1_weight=p.fc1_weight.requires_grad_())
    again = pair_bias(particles, offsets, plain, backend="cpu")
    assert torch.equal(have, torch.autograd.grad(again, plain.fc1_weight, upstream)[0])


def test_any_number_of_threads_gives_the_same_bits() -> None:
    arguments = inputs([50, 3, 0, 77, 12, 12, 30])
    results = []
    for n in (1, 2, 3, 4, 4):
        with threads(n):
            results.append(result_and_gradients(on_weights, arguments, torch.float32, "cpu"))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("known_size", [False, True])
def test_registration_and_compilation(known_size: bool) -> None:
    particles, offsets, *weights = inputs([3, 0, 9], 8, 2)
    leaves = [w.requires_grad_() for w in weights]
    particles.requires_grad_()
    for known in (-1, 90):
        arguments = (particles, offsets, *leaves, known)
        torch.library.opcheck(torch.ops.jetkern.pair_bias.default, arguments)

    def sums(*arguments: Tensor, num_pairs: int | None = None) -> Tensor:
        return on_weights(*arguments, backend="cpu", num_pairs=num_pairs).square().sum()

    # Without num_pairs the size of the result depends on the offsets' values, which the compiler
    # must be told to allow.
    if known_size:
        total = torch.compile(sums, fullgraph=True)(particles, offsets, *leaves, num_pairs=90)
        gradients = torch.autograd.grad(total, leaves)
    else:
        with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
            total = torch.compile(sums, fullgraph=True)(particles, offsets, *leaves)
            gradients = torch.autograd.grad(total, leaves)
    want = torch.autograd.grad(sums(particles, offsets, *leaves), leaves)
    for have, expected in zip(gradients, want, strict=True):
        assert torch.allclose(have, expected, rtol=1e-5, atol=1e-5)


def test_bad_input_is_refused() -> None:
    particles, offsets, p = batch([4])
    with pytest.raises(ValueError, match="fc1_weight must have shape"):
        pair_bias(particles, offsets, p._replace(fc1_weight=p.fc1_weight[:, :2]))
    with pytest.raises(RuntimeError, match="num_pairs is 9, the jets have 16 pairs"):
        pair_bias(particles, offsets, p, num_pairs=9, backend="cpu")
    with pytest.raises(RuntimeError, match="offsets must rise"):
        pair_bias(particles, torch.tensor([0, 3]), p, backend="cpu")
    with pytest.raises(ValueError, match="num_pairs must not be negative, got -5"):
        pair_bias(particles, offsets, p, num_pairs=-5, backend="cpu")
    with pytest.raises(ValueError, match=r"parameters\.fc2_bias must have shape"):
        pair_bias(particles, offsets, p._replace(fc2_bias=p.fc2_bias[:1]), backend="cpu")
