"""The CUDA kernels on a GPU or, without one, on the emulation of tests/csrc."""

from typing import Any

import pytest
import torch
from torch import Tensor

from jetkern.ops import attention
from jetkern.ops.dispatch import PRECISIONS
from jetkern.packed import Packed
from tests.csrc.emulated import device
from tests.ops.helpers import HURTING, check_accuracy, generator, result_and_gradients
from tests.ops.test_attention import batch, class_batch

LIMITS = {"tf32": 2e-3, "bf16": 1e-2}  # relative RMS
FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16


def run(*inputs: Tensor | None, backend: str = "cuda", precision: str = "ieee") -> Tensor:
    """The op with the CUDA kernels wherever they run here, or with another backend."""
    if backend != "cuda":
        return attention(*inputs, backend=backend)
    from jetkern.ops.attention import cuda

    if cuda.covers(*inputs):  # wide heads, which "auto" leaves to another
        return attention(*inputs, backend="reference")
    where = device()
    moved = [x if x is None else x.to(where) for x in inputs]
    moved += [None] * (7 - len(moved))
    *moved, particles = moved
    layout = None if particles is None else Packed(particles)
    return cuda.attention(*moved, layout, precision=precision).to(inputs[0].device)


def check_precision(inputs: tuple[Any, ...], precision: str, dtype: torch.dtype) -> None:
    """Result and gradients have the relative RMS that the precision is granted."""
    limit = LIMITS["bf16" if dtype == BFLOAT16 else precision]
    exact = result_and_gradients(attention, inputs, torch.float64, "reference")

    def ours(*values: Tensor, backend: str) -> Tensor:
        return run(*values, backend=backend, precision=precision)

    for want, have in zip(exact, result_and_gradients(ours, inputs, dtype, "cuda"), strict=True):
        assert have.dtype == dtype
        assert (have - want).norm() <= limit * want.norm()


@pytest.mark.parametrize("prefix", [0, 2, -3], ids=["no prefix", "prefix", "prefix of some jets"])
@pytest.mark.parametrize("name", [name for name in HURTING if name != "one"])
def test_accuracy_with_bias(name: str, prefix: int) -> None:
    check_accuracy(run, *batch(HURTING[name], 3, 8, prefix), backend="cuda")


def test_a_particle_alone_has_its_own_value_and_gradients_that_round_to_zero() -> None:
    inputs = batch([1], 3, 8)
    out, dq, dk, dv, dbias = result_and_gradients(run, inputs, FLOAT32, "cuda")
    assert torch.allclose(out, inputs[2], rtol=1e-6)
    assert torch.allclose(dv, torch.randn(dv.shape, generator=generator(7)), rtol=1e-6)
    for vanishing in (dq, dk, dbias):
        assert vanishing.abs().max() < 2e-6


@pytest.mark.parametrize(("heads", "width"), [(1, 1), (2, 5), (8, 16), (3, 24), (2, 32), (1, 40)])
def test_accuracy_for_heads_of_any_width(heads: int, width: int) -> None:
    tiny = 2e-6 if width == 1 else 1e-6  # one product in three parts errs by up to 2^-22
    counts = [0, 1, 21, 70]
    check_accuracy(run, *batch(counts, heads, width, 1), backend="cuda", tiny=tiny)
    check_accuracy(run, *batch(counts, heads, width, bias=False), backend="cuda", tiny=tiny)


def test_accuracy_of_a_few_queries_over_many_keys() -> None:
    check_accuracy(run, *class_batch([1, 50, 3, 150]), backend="cuda")


@pytest.mark.parametrize("width", [8, 16, 32])
@pytest.mark.parametrize(  # but float32 as it is, which the accuracy tests judge
    ("precision", "dtype"),
    [(p, t) for p in PRECISIONS for t in (FLOAT32, BFLOAT16)][1:],
)
def test_each_precision(width: int, dtype: torch.dtype, precision: str) -> None:
    check_precision(batch([0, 1, 17, 81], 2, width, 1), precision, dtype)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_the_bias_may_have_another_dtype(dtype: torch.dtype) -> None:
    q, k, v, offsets, _, bias, particles = batch([5, 30], 2, 16, 1)
    other = BFLOAT16 if dtype == FLOAT32 else FLOAT32
    bias = bias.to(other).requires_grad_()
    out = run(q.to(dtype), k.to(dtype), v.to(dtype), offsets, offsets, bias, particles)
    (dbias,) = torch.autograd.grad(out.float().sum(), bias)
    assert out.dtype == dtype
    assert dbias.dtype == other
    exact = bias.detach().double().requires_grad_()
    values = [x.to(dtype).double() for x in (q, k, v)]
    want = attention(*values, offsets, offsets, exact, particles, backend="reference")
    (slope,) = torch.autograd.grad(want.sum(), exact)
    assert (out - want).norm() <= 1e-2 * want.norm()
    assert (dbias - slope).norm() <= 1e-2 * slope.norm()


def test_queries_without_keys_give_zero_and_no_gradient() -> None:
    out, dq, dk, _ = result_and_gradients(run, class_batch([0, 5, 0]), FLOAT32, "cuda")
    assert not out[:4].any()
    assert not out[8:].any()
    assert out[4:8].all()
    assert not dq[:4].any()
    assert dq[4:8].all()
    assert dk.all()


def test_keys_without_queries_get_no_gradient() -> None:
    g = generator(1)
    q, k = torch.randn(3, 2, 8, generator=g), torch.randn(9, 2, 8, generator=g)
    offsets = torch.tensor([0, 0, 3]), torch.tensor([0, 5, 9])
    _, dq, dk, dv = result_and_gradients(run, (q, k, k.clone(), *offsets), FLOAT32, "cuda")
    assert dq.all()
    assert not dk[:5].any()
    assert not dv[:5].any()
    assert dv[5:].all()
    empty = run(q[:0], k, k, torch.tensor([0, 0, 0]), offsets[1])
    assert empty.shape == (0, 2, 8)


def test_a_large_bias_selects_a_value() -> None:
    q, k, v, offsets, _, bias, particles = batch([4, 6], 2, 8, prefix=1)
    bias = torch.zeros_like(bias)
    bias[1, 16 + 2 * 6 + 5] = 200.0  # jet 1, head 1: particle 2 looks at particle 5
    out = run(q, k, v, offsets, offsets, bias, particles)
    first = int(offsets[1]) + 1  # the rows of jet 1 begin with one token
    assert torch.allclose(out[first + 2, 1], v[first + 5, 1])
    assert not torch.allclose(out[first + 2, 0], v[first + 5, 0])


def test_large_scores_do_not_overflow() -> None:
    q, k, v, offsets, _ = batch([20], 4, 8, bias=False)
    out = run(300 * q, 300 * k, v, offsets, offsets)
    best = torch.einsum("ihd,jhd->hij", q, k).argmax(-1)
    assert torch.allclose(out, torch.stack([v[best[h], h] for h in range(4)], 1))


def test_a_bias_of_minus_infinity_hides_keys() -> None:
    q, k, v, offsets, _, bias, particles = batch([150], 2, 8)
    seen = slice(130, 140)  # all of the first two steps of 64 keys are hidden
    hidden = torch.full_like(bias, -torch.inf)
    square = hidden.view(2, 150, 150)
    square[:, :, seen] = bias.view(2, 150, 150)[:, :, seen]
    out = run(q, k, v, offsets, offsets, hidden, particles)
    want = attention(q, k, v, offsets, offsets, hidden, particles, backend="reference")
    assert torch.allclose(out, want, atol=1e-6)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_a_number_stays_visible(bad: float) -> None:
    q, k, v, *rest = batch([4, 20], 2, 8)
    q[1, 0, 0] = bad
    out, dq, dk, dv, _ = result_and_gradients(run, (q, k, v, *rest), FLOAT32, "cuda")
    assert out[1, 0].isnan().all()
    assert dk[:4, 0].isnan().all()
    assert dv[:4, 0].isnan().all()
    for healthy in (out[4:], out[:, 1], dq[4:], dk[4:], dv[4:]):
        assert healthy.isfinite().all()


def test_slices_of_a_joint_projection_and_other_strides() -> None:
    q, k, v, *rest = batch([3, 20, 7], 4, 8)
    want = result_and_gradients(run, (q, k, v, *rest), FLOAT32, "cuda")
    joint = torch.stack([q, k, v], 1).requires_grad_()
    offsets, _, bias, particles = rest
    views = joint.unbind(1)
    assert not views[1].is_contiguous()
    out = run(*views, offsets, offsets, bias.t().contiguous().t(), particles)
    assert torch.equal(out, want[0])
    upstream = torch.randn(out.shape, generator=generator(7))
    (gradient,) = torch.autograd.grad(out, joint, upstream)
    assert torch.equal(gradient, torch.stack(want[1:4], 1))
    swapped = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)]
    assert torch.equal(run(*swapped, offsets, offsets, bias, particles), want[0])
    shifted = [torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape) for t in (q, k, v)]
    assert torch.equal(run(*shifted, offsets, offsets, bias, particles), want[0])
    (expanded,) = torch.autograd.grad(run(*views, offsets, offsets).sum(), joint)
    assert torch.isfinite(expanded).all()


def test_no_gradient_of_the_bias_when_none_is_asked_for() -> None:
    q, k, v, offsets, _, bias, particles = batch([5, 9], 2, 8)
    q.requires_grad_()
    (dq,) = torch.autograd.grad(run(q, k, v, offsets, offsets, bias, particles).sum(), q)
    assert dq.any()


def test_the_order_of_the_threads_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = batch([50, 3, 0, 77], 4, 8, 1)
    first = result_and_gradients(run, inputs, FLOAT32, "cuda")
    for order in ("1", "2"):
        monkeypatch.setenv("JETKERN_EMULATE_ORDER", order)
        again = result_and_gradients(run, inputs, FLOAT32, "cuda")
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_registration_and_compilation() -> None:
    where = device()
    leaves = [t.to(where).requires_grad_() for t in batch([3, 0, 18], 2, 8, 1)[:3]]
    offsets, _, bias, particles = (t.to(where) for t in batch([3, 0, 18], 2, 8, 1)[3:])
    bias.requires_grad_()
    pairs = torch.tensor([0, 9, 9, 333], device=where)
    op = torch.ops.jetkern_cuda.attention.default
    torch.library.opcheck(
        op, (*leaves, offsets, offsets, bias, particles, pairs, 0.5, 0), atol=1e-5, rtol=1e-4
    )
    torch.library.opcheck(op, (*leaves, offsets, offsets, None, None, None, 0.5, 2))
    from jetkern.ops.attention import cuda

    inputs = (*leaves, offsets, offsets, bias, particles)
    compiled = torch.compile(
        lambda *x: cuda.attention(*x[:-1], Packed.trusted(x[-1])).square(), fullgraph=True
    )
    out, want = compiled(*inputs), run(*inputs).square()
    assert torch.allclose(out, want)
    gradients = torch.autograd.grad(out.sum(), [*leaves, bias])
    expected = torch.autograd.grad(want.sum(), [*leaves, bias])
    for have, expect in zip(gradients, expected, strict=True):
        assert torch.allclose(have, expect, atol=1e-5)


def test_bad_input_is_refused() -> None:
    device()
    op = torch.ops.jetkern_cuda.attention
    q, k, v, offsets, _, bias, particles = batch([3, 4], 2, 8)
    pairs = torch.tensor([0, 9, 25])
    plain = (None, None, None, 1.0, 0)
    with pytest.raises(RuntimeError, match="width of 8, 16 or 32"):
        op(q[..., :4], k[..., :4], v[..., :4], offsets, offsets, *plain)
    with pytest.raises(RuntimeError, match="v must have the heads, width and dtype of q"):
        op(q, k, v[:, :1], offsets, offsets, *plain)
    with pytest.raises(RuntimeError, match="k must have the heads, width and dtype of q"):
        op(q, k.bfloat16(), v, offsets, offsets, *plain)
    with pytest.raises(RuntimeError, match="q must be float32 or bfloat16"):
        op(q.double(), k.double(), v.double(), offsets, offsets, *plain)
    with pytest.raises(RuntimeError, match="key_offsets differ in length"):
        op(q, k, v, offsets, offsets[:-1], *plain)
    with pytest.raises(RuntimeError, match="bias needs particle_offsets and pair_offsets"):
        op(q, k, v, offsets, offsets, bias, particles, None, 1.0, 0)
    with pytest.raises(RuntimeError, match="a row for each head"):
        op(q, k, v, offsets, offsets, bias[:1], particles, pairs, 1.0, 0)
    with pytest.raises(RuntimeError, match="unknown precision"):
        op(q, k, v, offsets, offsets, None, None, None, 1.0, 3)
