from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from bench.accuracy import ROUNDED
from jetkern.ops import linear_cross_entropy, linear_cross_entropy_sum
from tests.ops.helpers import (
    BACKENDS,
    check_accuracy,
    generator,
    moved,
    needs_triton,
    result_and_gradients,
    threads,
    triton_device,
)

FAST = BACKENDS[1:]
of_rows_or_their_sum = pytest.mark.parametrize(
    "op", [linear_cross_entropy, linear_cross_entropy_sum], ids=["rows", "sum"]
)


def batch(rows: int, classes: int, width: int, bias: bool = True) -> tuple[Any, ...]:
    """x, weight, bias and target, of which every fifth has no loss."""
    g = generator(rows)
    x = torch.randn(rows, width, generator=g)
    weight = torch.randn(classes, width, generator=g)
    target = torch.randint(classes, (rows,), generator=g)
    target[::5] = -1
    return x, weight, torch.randn(classes, generator=g) if bias else None, target


@pytest.mark.parametrize(
    ("rows", "classes", "width"),
    [(0, 5, 4), (1, 1, 1), (7, 2, 3), (33, 127, 8), (128, 128, 16), (129, 300, 33), (300, 129, 5)],
)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@of_rows_or_their_sum
def test_cpu_accuracy(op: Any, rows: int, classes: int, width: int, bias: bool) -> None:
    check_accuracy(op, *batch(rows, classes, width, bias))


@of_rows_or_their_sum
def test_cpu_accuracy_of_many_classes_and_of_several_runs_of_rows(op: Any) -> None:
    check_accuracy(op, *batch(40, 8194, 24))
    check_accuracy(op, *batch(300, 4100, 1024, bias=False))
    check_accuracy(op, *batch(1100, 600, 16))
    check_accuracy(op, *batch(70, 70_000, 8))  # more logits than fit in a run of the fewest rows


@pytest.mark.parametrize(
    ("rows", "classes", "width"),
    [(1, 5, 16), (15, 127, 40), (33, 200, 64), (129, 300, 100), (600, 2500, 33), (70, 8194, 256)],
)
@of_rows_or_their_sum
def test_cpu_accuracy_in_bfloat16(op: Any, rows: int, classes: int, width: int) -> None:
    x, *others = batch(rows, classes, width)
    check_accuracy(op, x / width**0.5, *others, precision="bf16")


@needs_triton
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@of_rows_or_their_sum
def test_triton_accuracy(op: Any, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from jetkern.ops.linear_cross_entropy import triton

    monkeypatch.setattr(triton, "LOGITS", 1100 * 16)  # two runs
    check_accuracy(op, *batch(21, 1100, 9, bias), backend="triton")
    check_accuracy(op, *batch(0, 3, 4, bias), backend="triton")


@needs_triton
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@of_rows_or_their_sum
def test_triton_accuracy_at_a_precision(op: Any, precision: str) -> None:
    check_accuracy(op, *batch(9, 40, 16), backend="triton", precision=precision)


@needs_triton
@of_rows_or_their_sum
def test_triton_takes_bfloat16_tensors(op: Any) -> None:
    x, weight, bias, target = batch(9, 40, 16)
    leaves = [t.bfloat16() for t in (x, weight, bias)]
    found = result_and_gradients(op, (*leaves, target), torch.bfloat16, "triton", precision="bf16")
    assert [t.dtype for t in found] == [torch.float32] + 3 * [torch.bfloat16]
    exact = result_and_gradients(op, (*leaves, target), torch.float64, "reference")
    for have, want in zip(found, exact, strict=True):
        assert (have - want).norm() <= 2 * ROUNDED["bf16"] * want.norm()


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_the_cross_entropy_of_pytorch(backend: str) -> None:
    x, weight, bias, target = batch(20, 30, 8)
    want = functional.cross_entropy(
        functional.linear(x, weight, bias), target, ignore_index=-1, reduction="none"
    )
    inputs = moved((x, weight, bias, target), triton_device() if backend == "triton" else "cpu")
    torch.testing.assert_close(linear_cross_entropy(*inputs, backend=backend).cpu(), want)
    total = linear_cross_entropy_sum(*inputs, backend=backend).cpu()
    torch.testing.assert_close(total, want.sum())


@pytest.mark.parametrize("backend", FAST)
def test_small_losses_keep_their_digits(backend: str) -> None:
    """The right class is ahead by 14: what is left of the probability is 1e-6."""
    x, weight = torch.tensor([[1.0]]), torch.tensor([[100.0], [86.0]])
    target = torch.tensor([0])
    inputs = moved((x, weight, None, target), triton_device() if backend == "triton" else "cpu")
    loss = linear_cross_entropy(*inputs, backend=backend).cpu()
    exact = linear_cross_entropy(x.double(), weight.double(), None, target)
    assert abs(loss.double() - exact) <= 1e-7


@pytest.mark.parametrize("backend", FAST)
@of_rows_or_their_sum
def test_a_bias_of_minus_infinity_forbids_classes(op: Any, backend: str) -> None:
    x, weight, _, target = batch(12, 400, 8)
    bias = torch.zeros(400)
    bias[:300] = -torch.inf
    target = torch.where(target < 0, target, 300 + target % 100)
    found = result_and_gradients(op, (x, weight, bias, target), torch.float32, backend)
    want = result_and_gradients(
        op, (x, weight[300:], bias[300:], target.clamp(min=299) - 300),
        torch.float32, "reference",
    )  # fmt: skip
    torch.testing.assert_close(found[0], want[0])
    torch.testing.assert_close(found[1], want[1], atol=1e-6, rtol=1e-5)
    assert not found[2][:300].any()
    torch.testing.assert_close(found[2][300:], want[2], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("backend", FAST)
@of_rows_or_their_sum
def test_what_is_not_a_number_stays_with_its_row(op: Any, backend: str) -> None:
    x, weight, bias, target = batch(12, 40, 8)
    x[2, 3] = torch.nan
    others = torch.arange(12) != 2
    found = result_and_gradients(op, (x, weight, bias, target), torch.float32, backend)
    if op is linear_cross_entropy:
        assert found[0][2].isnan()
        assert found[0][others].isfinite().all()
    else:
        assert found[0].isnan()
    assert found[1][2].isnan().all()
    assert found[1][others].isfinite().all()
    target[2] = -1  # and counts for nothing in a row without a target
    found = result_and_gradients(op, (x, weight, bias, target), torch.float32, backend)
    assert found[0].isfinite().all()
    assert not found[1][2].any()


@of_rows_or_their_sum
def test_any_number_of_threads_gives_the_same_bits(op: Any) -> None:
    inputs = batch(300, 2700, 40)
    results = []
    for n in (1, 2, 3, 4, 4):
        with threads(n):
            results.append(result_and_gradients(op, inputs, torch.float32, "cpu"))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@of_rows_or_their_sum
def test_no_tensor_of_rows_times_classes_is_made(op: Any) -> None:
    """The largest allocation of a step is that of the weight's gradient."""
    x, weight, bias, target = batch(1000, 3000, 8)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    with torch.profiler.profile(profile_memory=True) as profile:
        torch.autograd.grad(op(*leaves, target, backend="cpu").sum(), leaves)
    largest = max(e.self_cpu_memory_usage for e in profile.events())
    assert weight.nbytes <= largest < 1000 * 3000


@pytest.mark.parametrize("backend", FAST)
def test_a_sum_has_the_same_bits_without_its_gradient_and_may_be_differentiated_again(
    backend: str,
) -> None:
    x, weight, bias, target = moved(
        batch(40, 300, 8), triton_device() if backend == "triton" else "cpu"
    )
    without = linear_cross_entropy_sum(x, weight, bias, target, backend=backend)
    leaf = weight.clone().requires_grad_()
    total = linear_cross_entropy_sum(x, leaf, bias, target, backend=backend)
    assert torch.equal(total, without)
    with torch.no_grad():
        assert torch.equal(
            linear_cross_entropy_sum(x, leaf, bias, target, backend=backend), without
        )
    (first,) = torch.autograd.grad(total, leaf, retain_graph=True)
    (second,) = torch.autograd.grad(-2 * total, leaf)
    assert torch.equal(second, -2 * first)


def test_registration_and_strides() -> None:
    x, weight, bias, target = batch(6, 9, 4)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    op = torch.ops.jetkern.linear_cross_entropy.default
    torch.library.opcheck(op, (*leaves, target, False))
    torch.library.opcheck(op, (*leaves[:2], None, target, True))
    wide = torch.stack([weight, weight], 2).detach()
    again = linear_cross_entropy(x, wide[..., 0], bias, target, backend="cpu")
    assert torch.equal(again, linear_cross_entropy(*leaves, target, backend="cpu"))
    summed = torch.ops.jetkern.linear_cross_entropy_sum.default
    torch.library.opcheck(summed, (*leaves, target, False, True))
    torch.library.opcheck(summed, (*leaves[:2], None, target, True, True))
    again = linear_cross_entropy_sum(x, wide[..., 0], bias, target, backend="cpu")
    assert torch.equal(again, linear_cross_entropy_sum(*leaves, target, backend="cpu"))


@needs_triton
def test_triton_registration() -> None:
    x, weight, bias, target = moved(batch(3, 5, 4), triton_device())
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    op = torch.ops.jetkern_triton.linear_cross_entropy.default
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(op, (*leaves, target, "ieee"), test_utils=tests)
    op = torch.ops.jetkern_triton.linear_cross_entropy_sum.default
    torch.library.opcheck(op, (*leaves, target, "ieee", True), test_utils=tests)


@of_rows_or_their_sum
def test_bad_input_is_refused(op: Any) -> None:
    x, weight, bias, target = batch(6, 9, 4)
    with pytest.raises(ValueError, match=r"target must be int64 on cpu, got torch\.int32"):
        op(x, weight, bias, target.int())
    with pytest.raises(ValueError, match="weight must have at least one class"):
        op(x, weight[:0], None, target)
    with pytest.raises(ValueError, match="bias must have shape"):
        op(x, weight, bias[1:], target)
    target[4] = 9
    for backend in ("reference", "cpu"):
        with pytest.raises((ValueError, RuntimeError), match="target of row 4 is 9, there are 9"):
            op(x, weight, bias, target, backend=backend)


@of_rows_or_their_sum
def test_double_backward_is_that_of_the_reference(op: Any) -> None:
    x, weight, bias, target = batch(6, 9, 4)

    def second(dtype: torch.dtype, backend: str) -> Tensor:
        leaf = x.to(dtype).requires_grad_()
        loss = op(leaf, weight.to(dtype), bias.to(dtype), target, backend=backend)
        (first,) = torch.autograd.grad(loss.square().sum(), leaf, create_graph=True)
        return torch.autograd.grad(first.square().sum(), leaf)[0]

    want = second(torch.float64, "reference")
    torch.testing.assert_close(second(torch.float32, "cpu").double(), want, rtol=1e-4, atol=1e-4)
