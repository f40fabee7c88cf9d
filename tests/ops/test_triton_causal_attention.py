"""The Triton kernels in Triton's interpreter; on a GPU the same tests run on it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bench.accuracy import ROUNDED
from jetkern.ops import causal_attention
from tests.ops.helpers import (
    check_accuracy,
    generator,
    moved,
    result_and_gradients,
    triton_device,
)
from tests.ops.test_causal_attention import batch

pytest.importorskip("triton", reason="needs Triton")

from jetkern.ops.causal_attention import triton as kernels


@pytest.mark.parametrize("counts", [[], [0, 0], [1], [0, 1, 2, 0, 33], [64, 65], [150]], ids=str)
def test_accuracy(counts: list[int]) -> None:
    """Also where tiles of 32 rows and blocks of 32 keys end."""
    check_accuracy(causal_attention, *batch(counts, 1, 8), backend="triton")


@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(1, 1, 1), (4, 2, 5), (1, 1, 72)])
def test_accuracy_for_heads_of_any_width_and_sharing(heads: int, kv_heads: int, width: int) -> None:
    check_accuracy(causal_attention, *batch([1, 18], heads, width, kv_heads), backend="triton")


def test_any_number_of_programs_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = batch([70], 2, 8, 1)
    want = result_and_gradients(causal_attention, inputs, torch.float32, "triton")
    for programs in (1, 3 * 4):
        monkeypatch.setattr(kernels, "ENOUGH", programs)
        have = result_and_gradients(causal_attention, inputs, torch.float32, "triton")
        assert all(torch.equal(a, b) for a, b in zip(have, want, strict=True))


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_accuracy_at_a_precision(precision: str) -> None:
    inputs = batch([1, 40, 0], 2, 16, 1)
    check_accuracy(causal_attention, *inputs, backend="triton", precision=precision)


@pytest.mark.parametrize("precision", ["ieee", "bf16"])
def test_bfloat16_tensors(precision: str) -> None:
    *inputs, offsets = batch([1, 41], 2, 8, 1)
    leaves = [t.bfloat16() for t in inputs]
    upstream = torch.randn(inputs[0].shape, generator=generator(7)).bfloat16()

    def run(dtype: torch.dtype, backend: str, device: str) -> list[Tensor]:
        q, k, v = (t.to(device, dtype).requires_grad_() for t in leaves)
        out = causal_attention(q, k, v, offsets.to(device), precision=precision, backend=backend)
        return [out, *torch.autograd.grad(out, (q, k, v), upstream.to(device, out.dtype))]

    ours = run(torch.bfloat16, "triton", triton_device())
    assert [t.dtype for t in ours] == [torch.bfloat16] * 4
    for have, want in zip(ours, run(torch.float64, "reference", "cpu"), strict=True):
        assert (have.cpu() - want).norm() <= ROUNDED["bf16"] * want.norm()


def test_later_rows_and_other_sets_change_nothing() -> None:
    q, k, v, offsets = batch([7, 40, 5], 2, 8, 1)
    at = 7 + 33
    want = causal_attention(*moved((q, k, v, offsets), triton_device()), backend="triton")
    for t in (q, k, v):
        t[at + 1 : 47] = 1e4 * torch.randn(t[at + 1 : 47].shape, generator=generator(8))
        t[:7] = t[47:] = torch.nan
    have = causal_attention(*moved((q, k, v, offsets), triton_device()), backend="triton")
    assert torch.equal(have[7 : at + 1], want[7 : at + 1])
    _, dq, dk, dv = result_and_gradients(
        causal_attention, (q, k, v, offsets), torch.float32, "triton"
    )
    for gradient in (dq, dk, dv):
        assert gradient[7:47].isfinite().all()


def test_large_scores_do_not_overflow_and_what_is_not_a_number_stays_visible() -> None:
    q, k, v, offsets = batch([70, 4], 2, 8)
    inputs = moved((300 * q, 300 * k, v, offsets), triton_device())
    out = causal_attention(*inputs, backend="triton").cpu()
    best = torch.stack([(q[60] * k[j]).sum(-1) for j in range(61)]).argmax(0)
    assert torch.allclose(out[60], v[best, torch.arange(2)])
    q[3, 0, 0] = torch.nan
    out, dq, dk, dv = result_and_gradients(
        causal_attention, (q, k, v, offsets), torch.float32, "triton"
    )
    assert out[3, 0].isnan().all()
    assert dk[:4, 0].isnan().all()
    for healthy in (out[4:], out[:, 1], dq[70:], dk[70:], dv[70:], dv[:, 1]):
        assert healthy.isfinite().all()


def test_slices_of_a_joint_projection_and_other_strides() -> None:
    q, k, v, offsets = batch([3, 9], 1, 8)
    want = result_and_gradients(causal_attention, (q, k, v, offsets), torch.float32, "triton")
    joint = torch.stack([q, k, v], 1).to(triton_device()).requires_grad_()
    places = offsets.to(triton_device())
    out = causal_attention(*joint.unbind(1), places, backend="triton")
    assert torch.equal(out.cpu(), want[0])
    upstream = torch.randn(out.shape, generator=generator(7)).to(out.device)
    (gradient,) = torch.autograd.grad(out, joint, upstream)
    assert torch.equal(gradient.cpu(), torch.stack(want[1:], 1))
    swapped = [t.to(out.device).transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)]
    assert torch.equal(causal_attention(*swapped, places, backend="triton").cpu(), want[0])


def test_registration() -> None:
    q, k, v, offsets = moved(batch([1, 2], 2, 4, 1), triton_device())
    leaves = [t.requires_grad_() for t in (q, k, v)]
    op = torch.ops.jetkern_triton.causal_attention.default
    torch.library.opcheck(op, (*leaves, offsets, "ieee"))


@pytest.mark.gpu
def test_more_sets_than_a_sixteen_bit_counter_holds() -> None:
    q, k, v, offsets = moved(batch([i % 3 for i in range(70_000)], 1, 8), "cuda")
    out = causal_attention(q, k, v, offsets, backend="triton")
    few = slice(int(offsets[-9]), None)
    want = causal_attention(q[few], k[few], v[few], offsets[-9:] - offsets[-9], backend="reference")
    assert torch.allclose(out[few], want, atol=1e-6)
