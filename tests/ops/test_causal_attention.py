from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from jetkern.jets import offsets_from_counts
from jetkern.ops import causal_attention
from tests.ops.helpers import HURTING, check_accuracy, generator, result_and_gradients, threads

BACKENDS = ["reference", "cpu"]


def batch(counts: list[int], heads: int, width: int, kv_heads: int = 0) -> tuple[Any, ...]:
    """q, k, v and offsets."""
    g = generator(len(counts))
    offsets = offsets_from_counts(torch.tensor(counts, dtype=torch.int64))
    q = torch.randn(int(offsets[-1]), heads, width, generator=g)
    k, v = torch.randn(2, int(offsets[-1]), kv_heads or heads, width, generator=g)
    return q, k, v, offsets


@pytest.mark.parametrize("counts", HURTING.values(), ids=HURTING)
def test_cpu_accuracy(counts: list[int]) -> None:
    check_accuracy(causal_attention, *batch(counts, 4, 8))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "width"), [(1, 1, 1), (2, 1, 5), (8, 2, 16), (4, 1, 32), (1, 1, 72)]
)
def test_cpu_accuracy_for_heads_of_any_width_and_sharing(
    heads: int, kv_heads: int, width: int
) -> None:
    check_accuracy(causal_attention, *batch([0, 1, 21, 40], heads, width, kv_heads))


@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(4, 4, 32), (4, 1, 20), (1, 1, 150)])
def test_cpu_accuracy_in_bfloat16(heads: int, kv_heads: int, width: int) -> None:
    counts = [0, 1, 15, 16, 17, 33, 130, 161, 700]
    check_accuracy(causal_attention, *batch(counts, heads, width, kv_heads), precision="bf16")


@pytest.mark.parametrize("count", [31, 32, 33, 127, 128, 129, 160, 161, 257])
def test_cpu_accuracy_where_panels_and_blocks_end(count: int) -> None:
    check_accuracy(causal_attention, *batch([count, 3], 2, 4, 1))


def test_cpu_accuracy_of_thousands_of_rows() -> None:
    q, k, v, offsets = batch([3000], 1, 8)
    exact = scaled_dot_product_attention(
        *(t.double().transpose(0, 1) for t in (q, k, v)), is_causal=True
    ).transpose(0, 1)
    torch.testing.assert_close(
        causal_attention(q, k, v, offsets, backend="cpu").double(), exact, atol=2e-6, rtol=2e-6
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_set_is_what_pytorch_computes(backend: str) -> None:
    q, k, v, offsets = batch([3, 1, 9], 4, 8, 2)
    out = causal_attention(q, k, v, offsets, scale=0.3, backend=backend)
    for start, end in zip(offsets.tolist(), offsets[1:].tolist(), strict=False):
        one = [t[start:end].transpose(0, 1)[None] for t in (q, k, v)]
        want = scaled_dot_product_attention(*one, is_causal=True, scale=0.3, enable_gqa=True)
        torch.testing.assert_close(out[start:end], want[0].transpose(0, 1))


@pytest.mark.parametrize(
    ("backend", "precision"), [*((backend, "ieee") for backend in BACKENDS), ("cpu", "bf16")]
)
@pytest.mark.parametrize("at", [0, 5, 33, 139])
def test_later_rows_and_other_sets_change_nothing(backend: str, precision: str, at: int) -> None:
    q, k, v, offsets = batch([7, 140, 5], 2, 32, 1)
    how: Any = {"backend": backend, "precision": precision}
    first, last = int(offsets[1]), int(offsets[2])
    row = first + at
    upstream = torch.randn(q.shape, generator=generator(7))
    upstream[row + 1 :] = 0.0  # a loss of the rows so far
    upstream[:first] = 0.0

    def run(q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in (q, k, v)]
        out = causal_attention(*leaves, offsets, **how)
        found = torch.autograd.grad(out[first : row + 1], leaves, upstream[first : row + 1])
        assert not any(g[row + 1 :].any() for g in found)
        return [t[first : row + 1] for t in (out, *found)]

    poisoned = [t.clone() for t in (q, k, v)]
    for t in poisoned:
        t[row + 1 : last] = 1e4 * torch.randn(t[row + 1 : last].shape, generator=generator(8))
    want, have = run(q, k, v), run(*poisoned)
    for a, b in zip(want, have, strict=True):
        torch.testing.assert_close(a, b, atol=0.0, rtol=0.0)
    for t in poisoned:
        t[:first] = t[last:] = torch.nan
    out = causal_attention(*poisoned, offsets, **how)
    assert torch.equal(out[first : row + 1], want[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_scores_do_not_overflow_and_what_is_not_a_number_stays_visible(backend: str) -> None:
    q, k, v, offsets = batch([150, 4], 2, 8)
    out = causal_attention(300 * q, 300 * k, v, offsets, backend=backend)
    best = torch.stack([(q[140] * k[j]).sum(-1) for j in range(141)]).argmax(0)
    assert torch.allclose(out[140], v[best, torch.arange(2)])
    q[3, 0, 0] = torch.nan
    out, dq, dk, dv = result_and_gradients(
        causal_attention, (q, k, v, offsets), torch.float32, backend
    )
    assert out[3, 0].isnan().all()
    assert dk[:4, 0].isnan().all()
    for healthy in (out[4:], out[:, 1], dq[150:], dk[150:], dv[150:], dv[:, 1]):
        assert healthy.isfinite().all()


def test_slices_of_a_joint_projection_need_no_copy_and_other_strides_work() -> None:
    q, k, v, offsets = batch([3, 40, 7], 4, 8)
    want = result_and_gradients(causal_attention, (q, k, v, offsets), torch.float32, "cpu")
    joint = torch.stack([q, k, v], 1).requires_grad_()
    out = causal_attention(*joint.unbind(1), offsets, backend="cpu")
    assert torch.equal(out, want[0])
    upstream = torch.randn(out.shape, generator=generator(7))
    (gradient,) = torch.autograd.grad(out, joint, upstream)
    assert torch.equal(gradient, torch.stack(want[1:], 1))
    swapped = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)]
    assert torch.equal(causal_attention(*swapped, offsets, backend="cpu"), want[0])


def test_more_sets_than_a_sixteen_bit_counter_holds() -> None:
    q, k, v, offsets = batch([i % 3 for i in range(70_000)], 1, 2)
    out = causal_attention(q, k, v, offsets, backend="cpu")
    few = slice(int(offsets[-9]), None)
    want = causal_attention(q[few], k[few], v[few], offsets[-9:] - offsets[-9], backend="reference")
    assert torch.allclose(out[few], want, atol=1e-6)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    inputs = batch([50, 3, 0, 177, 12, 12, 30], 4, 8, 2)
    results = []
    for n in (1, 2, 3, 4, 4):
        with threads(n):
            results.append(result_and_gradients(causal_attention, inputs, torch.float32, "cpu"))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_registration_and_compilation() -> None:
    q, k, v, offsets = batch([3, 0, 18], 4, 4, 2)
    leaves = [t.requires_grad_() for t in (q, k, v)]
    torch.library.opcheck(torch.ops.jetkern.causal_attention.default, (*leaves, offsets, True))
    compiled = torch.compile(
        lambda *inputs: causal_attention(*inputs, backend="cpu").square(), fullgraph=True
    )
    out = compiled(*leaves, offsets)
    want = causal_attention(*leaves, offsets, backend="cpu").square()
    assert torch.allclose(out, want)
    for have, expected in zip(
        torch.autograd.grad(out.sum(), leaves),
        torch.autograd.grad(want.sum(), leaves),
        strict=True,
    ):
        assert torch.allclose(have, expected, atol=1e-6)


def test_bad_input_is_refused() -> None:
    q, k, v, offsets = batch([3, 4], 4, 4, 2)
    with pytest.raises(ValueError, match="2 heads of k must divide the 3 of q"):
        causal_attention(q[:, :3], k, v, offsets)
    with pytest.raises(ValueError, match="v must have shape"):
        causal_attention(q, k, v[:, :1], offsets)
    with pytest.raises(ValueError, match="k must have shape"):
        causal_attention(q, k[1:], v[1:], offsets)
    with pytest.raises(RuntimeError, match="offsets must rise"):
        causal_attention(q, k, v, torch.tensor([0, 9, 7]), backend="cpu")
