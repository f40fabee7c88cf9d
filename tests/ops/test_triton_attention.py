"""The Triton kernels in Triton's interpreter; on a GPU the same tests run on it."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from bench.accuracy import ROUNDED
from jetkern.jets import offsets_from_counts
from jetkern.ops import attention
from jetkern.packed import Packed
from tests.ops.helpers import (
    HURTING,
    check_accuracy,
    generator,
    moved,
    result_and_gradients,
    triton_device,
)
from tests.ops.test_attention import batch, class_batch

pytest.importorskip("triton", reason="needs Triton")

from jetkern.ops.attention.triton import Offsets, Rows, launch_backward
from jetkern.ops.gpu.launch import forced_settings


@pytest.mark.parametrize("counts", HURTING.values(), ids=HURTING)
def test_accuracy_with_bias(counts: list[int]) -> None:
    check_accuracy(attention, *batch(counts, 1, 8, 4), backend="triton")


@pytest.mark.parametrize("prefix", [0, -3], ids=["no prefix", "prefix of some jets"])
def test_accuracy_with_any_prefix(prefix: int) -> None:
    check_accuracy(attention, *batch([0, 1, 2, 0, 16, 30], 1, 8, prefix), backend="triton")


@pytest.mark.parametrize("counts", [[28], [29], [60], [61], [12, 13]], ids=str)
def test_accuracy_where_tiles_and_blocks_end(counts: list[int]) -> None:
    check_accuracy(attention, *batch(counts, 1, 8, 4), backend="triton")


@pytest.mark.parametrize(
    ("dtype", "keys"), [(torch.float32, 32), (torch.float32, 16), (torch.bfloat16, 32)]
)
def test_blocks_of_keys_agree_with_one_block(dtype: torch.dtype, keys: int) -> None:
    """Also that dq is summed in float32 between blocks, and the same bits from the same run."""
    inputs = batch([40, 3], 1, 8, 2)
    want = result_and_gradients(attention, inputs, dtype, "triton")
    kind = "bf16 ieee" if dtype == torch.bfloat16 else "fp32 ieee"
    few = {"ROWS": 16, "KEYS": keys}
    with (
        forced_settings("attention_fwd", f"d16 {kind}", few),
        forced_settings("attention_bwd", f"d16 {kind}", few),
    ):
        have = result_and_gradients(attention, inputs, dtype, "triton")
        again = result_and_gradients(attention, inputs, dtype, "triton")
    tolerance = {"rtol": 1e-2, "atol": 2e-3} if dtype == torch.bfloat16 else {"atol": 1e-6}
    for a, b, c in zip(have, want, again, strict=True):
        assert torch.allclose(a, b, **tolerance)
        assert torch.equal(a, c)


@pytest.mark.parametrize(("heads", "width"), [(1, 1), (2, 5), (3, 12), (2, 16), (1, 32), (1, 72)])
def test_accuracy_for_heads_of_any_width(heads: int, width: int) -> None:
    check_accuracy(attention, *batch([0, 1, 21], heads, width, 1), backend="triton")
    check_accuracy(attention, *batch([0, 1, 21], heads, width, bias=False), backend="triton")


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize(("heads", "width"), [(2, 8), (2, 16), (1, 32)])
def test_accuracy_at_a_precision(heads: int, width: int, precision: str) -> None:
    inputs = batch([1, 29, 0], heads, width, 4)
    check_accuracy(attention, *inputs, backend="triton", precision=precision)


@pytest.mark.parametrize(
    ("precision", "bias_dtype"), [("ieee", torch.float32), ("bf16", torch.bfloat16)]
)
def test_bfloat16_tensors(precision: str, bias_dtype: torch.dtype) -> None:
    *inputs, offsets, _, bias, particles = batch([1, 29, 0, 61], 1, 8, 4)
    leaves = [t.bfloat16() for t in inputs] + [bias.to(bias_dtype)]
    upstream = torch.randn(inputs[0].shape, generator=generator(7)).bfloat16()

    def run(dtype: torch.dtype | None, backend: str, device: str) -> list[Tensor]:
        q, k, v, b = (t.to(device, dtype or t.dtype).requires_grad_() for t in leaves)
        rows, own = offsets.to(device), particles.to(device)
        out = attention(q, k, v, rows, rows, b, own, precision=precision, backend=backend)
        return [out, *torch.autograd.grad(out, (q, k, v, b), upstream.to(device, out.dtype))]

    ours = run(None, "triton", triton_device())
    assert [t.dtype for t in ours] == [torch.bfloat16] * 4 + [bias_dtype]
    for have, want in zip(ours, run(torch.float64, "reference", "cpu"), strict=True):
        assert (have.cpu() - want).norm() <= ROUNDED["bf16"] * want.norm()


@pytest.mark.parametrize("prefix", [0, 2])
def test_accuracy_with_dropout(prefix: int) -> None:
    """In one block of keys and in several; what is left out is that of the reference."""
    run = functools.partial(attention, dropout_p=0.3, seed=5)
    check_accuracy(run, *batch([0, 1, 17, 40, 67], 2, 8, prefix), backend="triton")
    check_accuracy(run, *batch([5, 70], 1, 8, prefix, bias=False), backend="triton")


def test_accuracy_of_a_few_queries_over_many_keys() -> None:
    check_accuracy(attention, *class_batch([1, 50, 3, 70]), backend="triton")


def test_queries_without_keys_give_zero_and_no_gradient() -> None:
    inputs = class_batch([0, 5, 0])
    out, dq, dk, _ = result_and_gradients(attention, inputs, torch.float32, "triton")
    assert not out[:4].any()
    assert not out[8:].any()
    assert out[4:8].all()
    assert not dq[:4].any()
    assert not dq[8:].any()
    assert dq[4:8].all()
    assert dk.all()


def test_keys_without_queries_get_no_gradient() -> None:
    q, k, v = torch.randn(3, 6, 2, 8, generator=generator(1))
    inputs = (q[:4], k, v, torch.tensor([0, 0, 4]), torch.tensor([0, 5, 6]))
    _, _, dk, dv = result_and_gradients(attention, inputs, torch.float32, "triton")
    assert not dk[:5].any()
    assert not dv[:5].any()
    assert dv[5:].all()


def test_a_large_bias_selects_a_value_and_an_infinite_one_hides_it() -> None:
    q, k, v, offsets, _, bias, particles = batch([4, 6], 2, 8, prefix=1)
    bias = torch.zeros_like(bias)
    bias[1, 16 + 2 * 6 + 5] = 200.0  # jet 1, head 1: particle 2 looks at particle 5
    bias[0, 16 + 2 * 6 + 5] = -torch.inf
    inputs = (q, k, v, offsets, offsets, bias, particles)
    out = attention(*moved(inputs, triton_device()), backend="triton").cpu()
    first = int(offsets[1]) + 1  # the rows of jet 1 begin with one token
    assert torch.allclose(out[first + 2, 1], v[first + 5, 1])
    changed = v.clone()
    changed[first + 5] += 1.0
    other = (q, k, changed, offsets, offsets, bias, particles)
    again = attention(*moved(other, triton_device()), backend="triton").cpu()
    assert torch.equal(again[first + 2, 0], out[first + 2, 0])
    assert not torch.equal(again[first + 1, 0], out[first + 1, 0])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_a_number_stays_visible(bad: float) -> None:
    q, k, v, *rest = batch([4, 20], 2, 8)
    q[1, 0, 0] = bad
    out, dq, dk, dv, _ = result_and_gradients(attention, (q, k, v, *rest), torch.float32, "triton")
    assert out[1, 0].isnan().all()
    assert dk[:4, 0].isnan().all()
    assert dv[:4, 0].isnan().all()
    for healthy in (out[4:], out[:, 1], dq[4:], dk[4:], dv[4:]):
        assert healthy.isfinite().all()


def test_slices_of_a_joint_projection_and_other_strides() -> None:
    q, k, v, *rest = batch([3, 20], 2, 8)
    want = result_and_gradients(attention, (q, k, v, *rest), torch.float32, "triton")
    joint = torch.stack([q, k, v], 1).to(triton_device()).requires_grad_()
    offsets, _, bias, particles = moved(tuple(rest), triton_device())
    turned = bias.t().contiguous().t()
    out = attention(*joint.unbind(1), offsets, offsets, turned, particles, backend="triton")
    assert torch.equal(out.cpu(), want[0])
    upstream = torch.randn(out.shape, generator=generator(7)).to(out.device)
    (gradient,) = torch.autograd.grad(out, joint, upstream)
    assert torch.equal(gradient.cpu(), torch.stack(want[1:4], 1))
    swapped = [t.to(out.device).transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)]
    again = attention(*swapped, offsets, offsets, bias, particles, backend="triton")
    assert torch.equal(again.cpu(), want[0])
    total = attention(*joint.unbind(1), offsets, offsets, backend="triton").sum()
    (expanded,) = torch.autograd.grad(total, joint)  # the upstream gradient has no strides
    assert expanded.isfinite().all()


def test_gradients_are_written_into_parts_of_a_joint_gradient() -> None:
    inputs = batch([3, 40], 1, 8, 1)
    want = result_and_gradients(attention, inputs, torch.float32, "triton")
    q, k, v, offsets, _, bias, particles = moved(inputs, triton_device())
    ends = Packed(particles).pair_ends
    settings = (offsets, offsets, bias, particles, ends, "ieee", None, 0.0)
    out, lse = torch.ops.jetkern_triton.attention(q, k, v, *settings)
    upstream = torch.randn(out.shape, generator=generator(7)).to(out.device)
    joint = q.new_empty(len(q), 3, *q.shape[1:])
    d_q, d_k, d_v = joint.unbind(1)
    rows, places = Rows(q, k, v, out), Offsets(offsets, offsets, particles, ends)
    with forced_settings("attention_bwd", "d16 fp32 ieee", {"ROWS": 16, "KEYS": 32}):
        launch_backward(
            rows, lse, places, bias, "ieee", d_out=upstream, d_q=d_q, d_k=d_k, d_v=d_v, d_bias=None
        )
    for part, gradient in zip(joint.unbind(1), want[1:4], strict=True):
        assert torch.allclose(part.cpu(), gradient, atol=1e-6)


def test_no_gradient_of_the_bias_when_none_is_asked_for() -> None:
    q, k, v, offsets, _, bias, particles = moved(batch([5, 9], 2, 4), triton_device())
    q.requires_grad_()
    out = attention(q, k, v, offsets, offsets, bias, particles, backend="triton")
    (dq,) = torch.autograd.grad(out.sum(), q)
    assert dq.any()


def test_what_the_kernels_do_not_cover_goes_to_the_reference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JETKERN_BACKEND", "triton")
    check_accuracy(attention, *batch([3, 5], 1, 136, 1), backend="auto")
    q, k, v, offsets, _, bias, particles = moved(batch([3, 5], 1, 8), triton_device())
    have = attention(q, k, v, offsets, offsets, bias.double(), particles, backend="triton")
    want = attention(q, k, v, offsets, offsets, bias, particles, backend="reference")
    assert torch.allclose(have, want, atol=1e-6)


def test_registration() -> None:
    q, k, v, offsets, _, bias, particles = moved(batch([3, 0, 5], 1, 4, 1), triton_device())
    leaves = [t.requires_grad_() for t in (q, k, v, bias)]
    ends = Packed(particles).pair_ends
    op = torch.ops.jetkern_triton.attention.default
    biased = (leaves[3], particles, ends, "ieee")
    keys = torch.arange(3).to(q.device)
    torch.library.opcheck(op, (*leaves[:3], offsets, offsets, *biased, None, 0.0))
    torch.library.opcheck(op, (*leaves[:3], offsets, offsets, *biased, keys, 0.2))
    torch.library.opcheck(op, (*leaves[:3], offsets, offsets, None, None, None, "bf16", None, 0.0))


def test_compiles_whole() -> None:
    device = triton_device()

    def step(q, k, v, offsets, bias, particles):
        return attention(q, k, v, offsets, offsets, bias, particles, backend="triton").square()

    code = "inductor" if device == "cuda" else "aot_eager"  # inductor's own code is no concern
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=code)
    for counts in ([3, 0, 8], [5, 10, 3, 1]):
        q, k, v, offsets, _, bias, particles = moved(batch(counts, 1, 8, 4), device)
        leaves = [t.requires_grad_() for t in (q, k, v, bias)]
        out, want = (f(*leaves[:3], offsets, bias, particles) for f in (compiled, step))
        assert torch.allclose(out, want)
        have = torch.autograd.grad(out.sum(), leaves)
        for a, b in zip(have, torch.autograd.grad(want.sum(), leaves), strict=True):
            assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.gpu
def test_more_jets_than_a_sixteen_bit_counter_holds() -> None:
    q, k, v, offsets, _, bias, particles = (
        t.cuda() for t in batch([i % 3 for i in range(70_000)], 1, 8)
    )
    out = attention(q, k, v, offsets, offsets, bias, particles, backend="triton")
    counts = [i % 3 for i in range(69_996, 70_000)]
    few = offsets_from_counts(torch.tensor(counts)).cuda()
    rows, pairs = int(few[-1]), sum(n * n for n in counts)
    last = (t[-rows:] for t in (q, k, v))
    want = attention(*last, few, few, bias[:, -pairs:], few, backend="reference")
    assert torch.allclose(out[-rows:], want, atol=1e-6)
