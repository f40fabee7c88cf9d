import functools
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from jetkern.jets import offsets_from_counts
from jetkern.ops import attention
from tests.ops.helpers import (
    HURTING,
    check_accuracy,
    generator,
    result_and_gradients,
    threads,
)


def batch(
    counts: list[int], heads: int, width: int, prefix: int = 0, bias: bool = True
) -> tuple[Any, ...]:
    """q, k, v, their offsets, bias and particle offsets of jets with a prefix of tokens."""
    g = generator(len(counts))
    n = torch.tensor(counts, dtype=torch.int64)
    some = torch.arange(len(n)) % 2 if prefix < 0 else 1
    rows = n + abs(prefix) * some
    offsets = offsets_from_counts(rows)
    q, k, v = torch.randn(3, int(offsets[-1]), heads, width, generator=g)
    if not bias:
        return q, k, v, offsets, offsets
    pairs = torch.randn(heads, int(n.square().sum()), generator=g)
    return q, k, v, offsets, offsets, pairs, offsets_from_counts(n)


def class_batch(counts: list[int], queries: int = 4) -> tuple[Any, ...]:
    g = generator(1)
    keys = offsets_from_counts(torch.tensor(counts))
    q = torch.randn(queries * len(counts), 4, 8, generator=g)
    k, v = torch.randn(2, int(keys[-1]), 4, 8, generator=g)
    return q, k, v, torch.arange(len(counts) + 1) * queries, keys


@pytest.mark.parametrize("prefix", [0, 2, -3], ids=["no prefix", "prefix", "prefix of some jets"])
@pytest.mark.parametrize("counts", HURTING.values(), ids=HURTING)
def test_cpu_accuracy_with_bias(counts: list[int], prefix: int) -> None:
    check_accuracy(attention, *batch(counts, 4, 8, prefix))


@pytest.mark.parametrize(("heads", "width"), [(1, 1), (2, 5), (8, 16), (2, 32), (1, 72)])
def test_cpu_accuracy_for_heads_of_any_width(heads: int, width: int) -> None:
    check_accuracy(attention, *batch([0, 1, 21, 40], heads, width, 1))
    check_accuracy(attention, *batch([0, 1, 21, 40], heads, width, bias=False))


def test_cpu_accuracy_of_a_few_queries_over_many_keys() -> None:
    check_accuracy(attention, *class_batch([1, 50, 3, 150]))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_queries_without_keys_give_zero_and_no_gradient(backend: str) -> None:
    out, dq, dk, _ = result_and_gradients(attention, class_batch([0, 5, 0]), torch.float32, backend)
    assert not out[:4].any()
    assert not out[8:].any()
    assert out[4:8].all()
    assert not dq[:4].any()
    assert dq[4:8].all()
    assert dk.all()


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_large_bias_selects_a_value(backend: str) -> None:
    q, k, v, offsets, _, bias, particles = batch([4, 6], 2, 8, prefix=1)
    bias = torch.zeros_like(bias)
    bias[1, 16 + 2 * 6 + 5] = 200.0  # jet 1, head 1: particle 2 looks at particle 5
    out = attention(q, k, v, offsets, offsets, bias, particles, backend=backend)
    first = int(offsets[1]) + 1  # the rows of jet 1 begin with one token
    assert torch.allclose(out[first + 2, 1], v[first + 5, 1])
    assert not torch.allclose(out[first + 2, 0], v[first + 5, 0])


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_large_scores_do_not_overflow(backend: str) -> None:
    q, k, v, offsets, _ = batch([20], 4, 8, bias=False)
    out = attention(300 * q, 300 * k, v, offsets, offsets, backend=backend)
    best = torch.einsum("ihd,jhd->hij", q, k).argmax(-1)
    assert torch.allclose(out, torch.stack([v[best[h], h] for h in range(4)], 1))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_a_number_stays_visible(backend: str, bad: float) -> None:
    q, k, v, *rest = batch([4, 20], 2, 8)
    q[1, 0, 0] = bad
    out, dq, dk, dv, _ = result_and_gradients(attention, (q, k, v, *rest), torch.float32, backend)
    assert out[1, 0].isnan().all()
    assert dk[:4, 0].isnan().all()
    assert dv[:4, 0].isnan().all()
    for healthy in (out[4:], out[:, 1], dq[4:], dk[4:], dv[4:]):
        assert healthy.isfinite().all()


def test_slices_of_a_joint_projection_need_no_copy_and_other_strides_work() -> None:
    q, k, v, *rest = batch([3, 20, 7], 4, 8)
    want = result_and_gradients(attention, (q, k, v, *rest), torch.float32, "cpu")
    joint = torch.stack([q, k, v], 1).requires_grad_()
    offsets, _, bias, particles = rest
    views = joint.unbind(1)
    assert not views[1].is_contiguous()
    turned = bias.t().contiguous().t()
    out = attention(*views, offsets, offsets, turned, particles, backend="cpu")
    assert torch.equal(out, want[0])
    upstream = torch.randn(out.shape, generator=generator(7))
    (gradient,) = torch.autograd.grad(out, joint, upstream)
    assert torch.equal(gradient, torch.stack(want[1:4], 1))
    swapped = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)]
    assert torch.equal(attention(*swapped, offsets, offsets, bias, particles), want[0])
    (expanded,) = torch.autograd.grad(attention(*views, offsets, offsets).sum(), joint)
    assert torch.isfinite(expanded).all()


def test_more_jets_than_a_sixteen_bit_counter_holds() -> None:
    q, k, v, offsets, _, bias, particles = batch([i % 3 for i in range(70_000)], 1, 2)
    out = attention(q, k, v, offsets, offsets, bias, particles, backend="cpu")
    start = 69_999 - 69_999 % 3  # jets 69_999 and before, cut out
    few = slice(int(offsets[start - 6]), int(offsets[-1]))
    pairs = slice(int(particles.diff()[: start - 6].square().sum()), None)
    some = offsets[start - 6 :] - offsets[start - 6]
    want = attention(q[few], k[few], v[few], some, some, bias[:, pairs], some, backend="reference")
    assert torch.allclose(out[few], want, atol=1e-6)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    inputs = batch([50, 3, 0, 77, 12, 12, 30], 4, 8, 1)
    results = []
    for n in (1, 2, 3, 4, 4):
        with threads(n):
            results.append(result_and_gradients(attention, inputs, torch.float32, "cpu"))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_no_gradient_of_the_bias_when_none_is_asked_for() -> None:
    q, k, v, offsets, _, bias, particles = batch([5, 9], 2, 4)
    q.requires_grad_()
    out = attention(q, k, v, offsets, offsets, bias, particles, backend="cpu")
    (dq,) = torch.autograd.grad(out.sum(), q)
    assert dq.any()


@pytest.mark.slow
def test_registration_and_compilation() -> None:
    leaves = [t.requires_grad_() for t in batch([3, 0, 18], 2, 4, 1)[:3]]
    _, _, _, offsets, _, bias, particles = batch([3, 0, 18], 2, 4, 1)
    inputs = (*leaves, offsets, offsets, bias.requires_grad_(), particles)
    op = torch.ops.jetkern.attention.default
    torch.library.opcheck(op, (*inputs, None, 0.0))
    torch.library.opcheck(op, (*inputs, torch.arange(3), 0.2))
    torch.library.opcheck(op, (*leaves, offsets, offsets, None, None, None, 0.0))

    def step(*inputs: Tensor) -> tuple[Tensor, ...]:
        out = attention(*inputs, backend="cpu")
        return (out, *torch.autograd.grad(out.square().sum(), [*leaves, bias]))

    compiled = torch.compile(
        lambda *inputs: attention(*inputs, backend="cpu").square(), fullgraph=True
    )
    out = compiled(*inputs)
    want = step(*inputs)
    assert torch.allclose(out, want[0].square())
    gradients = torch.autograd.grad(out.sum(), [*leaves, bias])
    for have, expected in zip(gradients, want[1:], strict=True):
        assert torch.allclose(have, expected, atol=1e-6)


def test_bad_input_is_refused() -> None:
    q, k, v, offsets, _, bias, particles = batch([3, 4], 2, 4)
    with pytest.raises(ValueError, match="a bias needs particle_offsets"):
        attention(q, k, v, offsets, offsets, bias)
    with pytest.raises(ValueError, match="k must have shape"):
        attention(q, k[:, :1], v, offsets, offsets)
    with pytest.raises(RuntimeError, match="one column for each pair"):
        attention(q, k, v, offsets, offsets, bias[:, 1:], particles, backend="cpu")
    with pytest.raises(RuntimeError, match="more particles than queries"):
        attention(q, k, v, offsets, offsets, bias, torch.tensor([0, 4, 8]), backend="cpu")
    with pytest.raises(RuntimeError, match="offsets must rise"):
        attention(q, k, v, torch.tensor([0, 9, 7]), offsets, backend="cpu")


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_the_scale_may_be_given(backend: str) -> None:
    q, k, v, rows, _ = batch([3, 1, 9], 2, 8, bias=False)
    out = attention(q, k, v, rows, rows, scale=0.3, backend=backend)
    start, end = int(rows[2]), int(rows[3])
    jet = [t[start:end].transpose(0, 1) for t in (q, k, v)]
    want = torch.nn.functional.scaled_dot_product_attention(*jet, scale=0.3).transpose(0, 1)
    torch.testing.assert_close(out[start:end], want)


DROPPED = {"dropout_p": 0.3, "seed": 5}


@pytest.mark.parametrize("prefix", [0, -3], ids=["no prefix", "prefix of some jets"])
@pytest.mark.parametrize("counts", HURTING.values(), ids=HURTING)
def test_cpu_accuracy_with_dropout(counts: list[int], prefix: int) -> None:
    run = functools.partial(attention, **DROPPED)
    check_accuracy(run, *batch(counts, 2, 8, prefix))
    check_accuracy(run, *batch(counts, 2, 8, prefix, bias=False))


def weights_of(counts: list[int], heads: int = 2, **options: Any) -> Tensor:
    """(T, H, longest) attention weights after dropout, of equal scores: v tells the keys apart."""
    longest = max(counts)
    offsets = offsets_from_counts(torch.tensor(counts))
    place = torch.cat([torch.arange(n) for n in counts])
    v = torch.nn.functional.one_hot(place, longest)[:, None].expand(-1, heads, -1).float()
    q = torch.zeros_like(v)
    return attention(q, q, v, offsets, offsets, **options)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_dropout_leaves_out_a_share_and_scales_the_rest(backend: str) -> None:
    weights = weights_of([60] * 40, 4, dropout_p=0.3, seed=1, backend=backend)
    kept = weights > 0
    assert torch.allclose(weights[kept], torch.tensor(1 / 60 / 0.7), rtol=1e-5)
    total = kept.numel()  # 576,000 draws
    assert abs(kept.double().mean().item() - 0.7) < 5 * (0.3 * 0.7 / total) ** 0.5
    square = kept.view(40, 60, 4, 60).double() - 0.7
    for shifted in (square.roll(1, 0), square.roll(1, 1), square.roll(1, 2), square.roll(1, 3)):
        assert abs((square * shifted).mean().item() / 0.21) < 5 / total**0.5
    turned = square * square.transpose(1, 3) * (1 - torch.eye(60))[:, None]
    assert abs(turned.mean().item() / 0.21) < 10 / total**0.5  # each pair twice


def test_what_is_left_out_is_the_same_everywhere_and_for_any_split_of_a_batch() -> None:
    counts = [3, 0, 17, 1, 40]
    want = weights_of(counts, **DROPPED, backend="reference") > 0
    assert torch.equal(weights_of(counts, **DROPPED, backend="cpu") > 0, want)
    assert not torch.equal(weights_of(counts, dropout_p=0.3, seed=6) > 0, want)
    as_tensor = weights_of(counts, dropout_p=0.3, seed=torch.tensor(5))
    assert torch.equal(as_tensor > 0, want)
    numbers = torch.tensor([40, 2])  # jets 4 and 2 of the batch, in another order
    some = weights_of([40, 17], **DROPPED, jet_numbers=torch.tensor([4, 2])) > 0
    assert torch.equal(some[:40], want[-40:])
    assert torch.equal(some[40:, :, :17], want[3:20, :, :17])
    assert not torch.equal(weights_of([40, 17], **DROPPED, jet_numbers=numbers) > 0, some)


def test_no_dropout_is_the_same_bits_and_needs_no_random_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs = batch([3, 20], 2, 8, 1)
    want = result_and_gradients(attention, inputs, torch.float32, "cpu")
    monkeypatch.setattr(sys.modules["jetkern.ops.attention"], "random_bits", None)
    have = result_and_gradients(attention, inputs, torch.float32, "cpu", dropout_p=0.0, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(have, want, strict=True))


def test_dropout_gives_the_same_bits_on_any_number_of_threads_and_second_derivatives() -> None:
    inputs = batch([50, 3, 0, 77, 12], 2, 8, 1)
    results = []
    for n in (1, 3):
        with threads(n):
            results.append(result_and_gradients(attention, inputs, torch.float32, "cpu", **DROPPED))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))

    def second(dtype: torch.dtype, backend: str) -> Tensor:
        q, k, v, *rest = (t.to(dtype) if t.is_floating_point() else t for t in batch([4, 9], 2, 4))
        q.requires_grad_()
        out = attention(q, k, v, *rest, **DROPPED, backend=backend)
        (first,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
        return torch.autograd.grad(first.sin().sum(), q)[0]

    have, want = second(torch.float32, "cpu"), second(torch.float64, "reference")
    assert (have - want).norm() < 2e-5 * want.norm()


def test_a_compiled_step_takes_its_seed_as_a_tensor() -> None:
    q, k, v, offsets, _, bias, particles = batch([3, 0, 8], 1, 4)

    def step(seed: Tensor) -> Tensor:
        return attention(q, k, v, offsets, offsets, bias, particles, dropout_p=0.4, seed=seed)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    results = [compiled(torch.tensor(seed)) for seed in (1, 2, -3)]
    for seed, have in zip((1, 2, -3), results, strict=True):
        assert torch.equal(have, step(torch.tensor(seed)))
        want = attention(
            q, k, v, offsets, offsets, bias, particles, dropout_p=0.4, seed=seed, backend="cpu"
        )
        assert torch.equal(have, want)
    assert not torch.equal(results[0], results[1])


def test_bad_dropout_is_refused() -> None:
    q, k, v, offsets, _ = batch([3, 4], 2, 4, bias=False)
    for p in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="dropout_p must be at least 0 and below 1"):
            attention(q, k, v, offsets, offsets, dropout_p=p)
    for numbers, reason in (
        (torch.arange(3), r"jet_numbers must have shape \(2\)"),
        (torch.arange(2).int(), "jet_numbers must be int64"),
    ):
        with pytest.raises(ValueError, match=reason):
            attention(q, k, v, offsets, offsets, dropout_p=0.1, jet_numbers=numbers)
