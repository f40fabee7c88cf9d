"""The Triton kernels in Triton's interpreter; on a GPU the same tests run on it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from jetkern.jets import offsets_from_counts
from jetkern.ops import MLPParameters, pair_bias, shared_pair_bias
from tests.ops.helpers import (
    HURTING,
    check_accuracy,
    generator,
    moved,
    random_mlp,
    random_particles,
    triton_device,
)

pytest.importorskip("triton", reason="needs Triton")

from jetkern.ops.gpu.launch import forced_settings


def on_weights(
    particles: Tensor, offsets: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, **kw: Any
) -> Tensor:
    """``pair_bias`` as a function of tensors."""
    return pair_bias(particles, offsets, MLPParameters(w1, b1, None, None, w2, b2), **kw)


def inputs(counts: list[int], hidden: int = 32, heads: int = 4) -> tuple[Any, ...]:
    p = random_mlp(3, hidden, heads, norm=False)
    return *random_particles(counts), p.fc1_weight, p.fc1_bias, p.fc2_weight, p.fc2_bias


def leaves(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """On the kernels' device, the weights as leaves that get a gradient."""
    particles, offsets, *weights = moved(arguments, triton_device())
    return particles, offsets, *(w.detach().requires_grad_() for w in weights)


@contextmanager
def few_programs(key: str) -> Iterator[None]:
    """Large tiles where the kernels are interpreted, which takes its time for each program."""
    tile = {} if torch.cuda.is_available() else {"PAIRS": 512}
    with (
        forced_settings("pair_bias_fwd", key, tile),
        forced_settings("pair_bias_bwd_weights", key, tile),
    ):
        yield


@pytest.mark.parametrize("counts", HURTING.values(), ids=HURTING)
def test_accuracy(counts: list[int]) -> None:
    with few_programs("c16 h4 ieee"):
        check_accuracy(on_weights, *inputs(counts, 16), fixed=(0,), backend="triton")


@pytest.mark.parametrize(("hidden", "heads"), [(1, 1), (70, 3), (256, 8), (96, 16), (64, 32)])
def test_accuracy_for_any_size(hidden: int, heads: int) -> None:
    check_accuracy(on_weights, *inputs([0, 2, 25], hidden, heads), fixed=(0,), backend="triton")


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize(("hidden", "heads"), [(64, 4), (256, 8)])
def test_accuracy_at_a_precision(hidden: int, heads: int, precision: str) -> None:
    arguments = inputs([1, 33, 0, 14], hidden, heads)
    with few_programs(f"c{hidden} h{heads} {precision}"):
        check_accuracy(on_weights, *arguments, fixed=(0,), backend="triton", precision=precision)


def test_accuracy_for_particles_at_the_same_place_and_nearly_so() -> None:
    particles, offsets, *weights = inputs([12, 6])
    particles[3, :2] = particles[4, :2]  # no angle at all
    particles[5] = particles[6]
    particles[7, :2] = particles[8, :2] + torch.tensor([1e-6, 0.0])
    particles[9, :2] = particles[10, :2] + torch.tensor([0.0, 3e-7])
    particles[12:, :2] *= 20  # far apart
    check_accuracy(on_weights, particles, offsets, *weights, fixed=(0,), backend="triton")


def test_programs_with_several_tiles_each_and_other_settings() -> None:
    arguments = inputs([40, 3, 31, 7], 40, 2)
    for forward, fold, gradient in (
        ({"PAIRS": 32, "UNITS": 16}, {"TILE": 16}, {"PAIRS": 32, "UNITS": 16, "PROGRAMS": 9}),
        ({"PAIRS": 128, "UNITS": 64}, {"TILE": 64}, {"PAIRS": 128, "UNITS": 32, "PROGRAMS": 1}),
    ):
        with (
            forced_settings("pair_bias_fwd", "c40 h2 ieee", forward),
            forced_settings("pair_bias_bwd_fold", "layers1", fold),
            forced_settings("pair_bias_bwd_weights", "c40 h2 ieee", gradient),
        ):
            check_accuracy(on_weights, *arguments, fixed=(0,), backend="triton")


def test_half_precision_input_and_result() -> None:
    particles, offsets, *weights = inputs([13, 1, 8])
    half = [particles.bfloat16(), offsets, *(w.bfloat16() for w in weights)]
    exact = [t.double() if t.is_floating_point() else t for t in half]
    results = []
    for values, backend in ((moved(half, triton_device()), "triton"), (exact, "reference")):
        own = [w.requires_grad_() for w in values[2:]]
        out = on_weights(*values[:2], *own, backend=backend)
        upstream = torch.randn(out.shape, generator=generator(7)).to(out)
        results.append([out.detach(), *torch.autograd.grad(out, own, upstream)])
    for have, want in zip(*results, strict=True):
        assert have.dtype == torch.bfloat16
        error = (have.double().cpu() - want).square().mean().sqrt()
        assert error <= 1e-2 * want.square().mean().sqrt()


def test_a_result_in_half_precision_from_float_particles() -> None:
    particles, offsets, *weights = leaves(inputs([9, 4]))
    out = on_weights(particles, offsets, *weights, dtype=torch.bfloat16, backend="triton")
    full = on_weights(particles, offsets, *weights, backend="triton")
    assert out.dtype == torch.bfloat16
    assert torch.allclose(out.float(), full, rtol=2**-7, atol=0)  # the interpreter truncates
    upstream = torch.randn(out.shape, generator=generator(3)).to(out)
    gradients = torch.autograd.grad(out, weights, upstream)
    for have, want in zip(
        gradients, torch.autograd.grad(full, weights, upstream.float()), strict=True
    ):
        assert have.dtype == torch.float32
        assert torch.equal(have, want)


def test_the_number_of_pairs_may_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    particles, offsets, *weights = leaves(inputs([9, 0, 4]))
    want = on_weights(particles, offsets, *weights, backend="triton")
    have = on_weights(particles, offsets, *weights, num_pairs=97, backend="triton")
    assert torch.equal(have, want)
    for wrong in (1, 60, 200):
        with pytest.raises(ValueError, match=f"num_pairs is {wrong}"):
            on_weights(particles, offsets, *weights, num_pairs=wrong, backend="triton")
    # Where looking would wait for the GPU it is meaningless, but nothing is written outside.
    monkeypatch.setattr(sys.modules["jetkern.ops.pair_bias"], "readable", lambda _: False)
    for wrong in (1, 60, 200):
        out = on_weights(particles, offsets, *weights, num_pairs=wrong, backend="triton")
        assert out.shape == (4, wrong)
        torch.autograd.grad(out.sum(), weights)


@pytest.mark.parametrize("layers", [1, 3])
def test_layers_share_one_bias_and_its_gradient(layers: int) -> None:
    particles, offsets, w1, b1, w2, b2 = leaves(inputs([17, 1, 0, 6]))
    p = MLPParameters(w1, b1, None, None, w2, b2)
    biases = shared_pair_bias(particles, offsets, p, layers, backend="triton")
    assert len(biases) == layers
    single = pair_bias(particles, offsets, p, backend="triton")
    upstream = torch.randn(layers, *single.shape, generator=generator(5)).to(single)
    for bias in biases:
        assert torch.equal(bias, single)
        assert bias.data_ptr() == biases[0].data_ptr()
    have = torch.autograd.grad(list(biases), (w1, b1, w2, b2), list(upstream))
    want = torch.autograd.grad(single, (w1, b1, w2, b2), upstream.sum(0))
    for a, b in zip(have, want, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_layer_may_leave_its_bias_unused() -> None:
    particles, offsets, w1, b1, w2, b2 = leaves(inputs([8, 5]))
    p = MLPParameters(w1, b1, None, None, w2, b2)
    _, used, _ = shared_pair_bias(particles, offsets, p, 3, backend="triton")
    (have,) = torch.autograd.grad(used.square().sum(), w1)
    single = pair_bias(particles, offsets, p, backend="triton")
    assert torch.equal(have, torch.autograd.grad(single.square().sum(), w1)[0])


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_other_backends_share_by_repeating(backend: str) -> None:
    particles, offsets, *weights = inputs([8, 5])
    p = MLPParameters(weights[0], weights[1], None, None, weights[2], weights[3])
    biases = shared_pair_bias(particles, offsets, p, 2, num_pairs=89, backend=backend)
    assert biases[0] is biases[1]
    assert torch.equal(biases[0], pair_bias(particles, offsets, p, backend=backend))
    half = pair_bias(particles, offsets, p, dtype=torch.bfloat16, backend=backend)
    assert torch.equal(half, biases[0].bfloat16())
    with pytest.raises((ValueError, RuntimeError), match="num_pairs is 88, the jets have 89 pairs"):
        pair_bias(particles, offsets, p, num_pairs=88, backend=backend)


def test_the_gradient_of_the_particles_comes_from_the_reference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JETKERN_BACKEND", "triton")  # which leaves it; by name it is refused
    particles, offsets, *weights = leaves(inputs([4, 5]))
    particles.requires_grad_()
    p = MLPParameters(weights[0], weights[1], None, None, weights[2], weights[3])
    plain = pair_bias(particles, offsets, p, backend="reference")
    (want,) = torch.autograd.grad(plain.sum(), particles)
    alone = pair_bias(particles, offsets, p)
    first, second = shared_pair_bias(particles, offsets, p, 2)
    for sums in (alone.sum(), 0.25 * first.sum() + 0.75 * second.sum()):
        (have,) = torch.autograd.grad(sums, particles)
        assert torch.allclose(have, want, rtol=1e-5, atol=1e-5)


def test_non_contiguous_inputs() -> None:
    particles, offsets, *weights = leaves(inputs([8, 3]))
    want = on_weights(particles, offsets, *weights, backend="triton")
    turned = [w.detach().t().contiguous().t().requires_grad_() for w in weights]
    assert not turned[0].is_contiguous()
    strided = particles.t().contiguous().t()
    out = on_weights(strided, offsets, *turned, backend="triton")
    assert torch.equal(out, want)
    upstream = torch.randn(want.shape[::-1], generator=generator(3)).to(want).t()
    for have, expected in zip(
        torch.autograd.grad(out, turned, upstream),
        torch.autograd.grad(want, weights, upstream.contiguous()),
        strict=True,
    ):
        assert torch.equal(have, expected)


def test_the_same_bits_twice() -> None:
    results = []
    for _ in range(2):
        particles, offsets, *weights = leaves(inputs([20, 3, 0, 33], 48, 8))
        out = on_weights(particles, offsets, *weights, backend="triton")
        results.append([out, *torch.autograd.grad(out.square().sum(), weights)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_registration() -> None:
    particles, offsets, *weights = leaves(inputs([3, 0, 9], 8, 2))
    out = on_weights(particles, offsets, *weights, backend="triton")
    for pairs in (None, 90):
        torch.library.opcheck(
            torch.ops.jetkern_triton.pair_bias.default,
            (particles, offsets, *weights, pairs, torch.float32, "ieee"),
        )
    plain = [w.detach() for w in weights]
    torch.library.opcheck(
        torch.ops.jetkern_triton.pair_bias_gradient.default,
        ([out.detach(), out.detach()], particles, offsets, *plain, "ieee"),
    )


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.gpu)])
def test_compilation(compiler: str) -> None:
    particles, offsets, *weights = leaves(inputs([3, 0, 9], 8, 2))

    def sums(*weights: Tensor) -> Tensor:
        p = MLPParameters(weights[0], weights[1], None, None, weights[2], weights[3])
        first, second = shared_pair_bias(particles, offsets, p, 2, num_pairs=90, backend="triton")
        alone = pair_bias(particles, offsets, p, num_pairs=90, backend="triton")
        return (first.square() + second.sin() + alone).sum()

    total = torch.compile(sums, fullgraph=True, backend=compiler)(*weights)
    want = sums(*weights)
    assert torch.allclose(total, want, rtol=1e-5)
    for have, expected in zip(
        torch.autograd.grad(total, weights), torch.autograd.grad(want, weights), strict=True
    ):
        assert torch.allclose(have, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
def test_more_jets_than_a_sixteen_bit_counter_holds() -> None:
    counts = torch.arange(70_000) % 3
    particles = random_particles([int(counts.sum())])[0].cuda()
    offsets = offsets_from_counts(counts).cuda()
    p = moved(random_mlp(3, 32, 4, norm=False), "cuda")
    bias = pair_bias(particles, offsets, p, backend="triton")
    assert torch.allclose(bias, pair_bias(particles, offsets, p, backend="reference"), atol=1e-5)


@pytest.mark.gpu
def test_replay_of_a_graph() -> None:
    particles, offsets, *weights = leaves(inputs([30, 0, 50, 1], 256, 8))
    p = MLPParameters(weights[0], weights[1], None, None, weights[2], weights[3])

    def step() -> list[Tensor]:
        biases = shared_pair_bias(particles, offsets, p, 3, num_pairs=3401, backend="triton")
        return [biases[0], *torch.autograd.grad(sum(b.square().sum() for b in biases), weights)]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = step()
    particles.copy_(particles.flip(0))
    graph.replay()
    for have, want in zip(replayed, step(), strict=True):
        assert torch.equal(have, want)


def test_the_shared_bias_says_that_it_has_no_second_derivatives() -> None:
    device = triton_device()
    particles, offsets = random_particles([4, 0, 3])
    p = random_mlp(3, 16, 2, norm=False)
    p = moved(p._replace(fc2_bias=p.fc2_bias.requires_grad_()), device)
    first, _ = shared_pair_bias(
        particles.to(device), offsets.to(device), p, 2, num_pairs=25, backend="triton"
    )
    with pytest.raises(RuntimeError, match="no second derivatives on triton: take backend="):
        torch.autograd.grad(first.square().sum(), p.fc2_bias, create_graph=True)
