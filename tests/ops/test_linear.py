from __future__ import annotations

import pytest
import torch

from bench.accuracy import ROUNDED
from jetkern.ops import dispatch, linear
from jetkern.ops.linear.cpu import constant_weights
from tests.ops.helpers import check_accuracy, generator, threads, triton_device

needs_tiles = pytest.mark.skipif(
    not dispatch.multiplies_bf16(),
    reason=dispatch.cpu_library() or f"the {dispatch.cpu_kernels()} kernels run, not those of AMX",
)
SHAPES = [(0, 3, 4), (1, 1, 1), (17, 7, 9), (100, 70, 33), (600, 16, 5)]


def arguments(rows: int, inputs: int, outputs: int) -> tuple[torch.Tensor, ...]:
    g = generator(rows)
    weight = torch.randn(outputs, inputs, generator=g) * inputs**-0.5
    return torch.randn(rows, inputs, generator=g), weight, torch.randn(outputs, generator=g)


def test_the_reference_is_the_formula() -> None:
    x, weight, bias = arguments(5, 3, 2)
    want = (x[:, None, :] * weight).sum(2) + bias
    torch.testing.assert_close(linear(x, weight, bias, backend="reference"), want)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cpu_rows_are_right_and_have_the_same_bits_in_any_batch(shape: tuple[int, ...]) -> None:
    x, weight, bias = arguments(*shape)
    have = linear(x, weight, bias, backend="cpu")
    exact = linear(x.double(), weight.double(), bias.double())
    torch.testing.assert_close(have.double(), exact, rtol=1e-5, atol=1e-5)
    for row in range(0, len(x), 83):
        assert torch.equal(linear(x[row : row + 1], weight, bias)[0], have[row])
    strided = x.t().contiguous().t()
    assert torch.equal(linear(strided, weight, None, backend="cpu"), linear(x, weight))


@pytest.mark.parametrize(
    "shape",
    [*SHAPES, (1, 40, 20), (15, 16, 16), (31, 33, 47), (97, 64, 600), (1100, 530, 70)],
    ids=str,
)
@pytest.mark.parametrize("precision", ["ieee", "bf16"])
def test_cpu_accuracy(shape: tuple[int, int, int], precision: str) -> None:
    x, weight, bias = arguments(*shape)
    check_accuracy(linear, x, weight, bias, precision=precision)
    check_accuracy(linear, x, weight, None, precision=precision)
    with torch.no_grad():
        whole = linear(x, weight, bias, precision=precision, backend="cpu")
        for row in range(0, len(x), 83):
            own = linear(x[row : row + 1], weight, bias, precision=precision)
            assert torch.equal(own[0], whole[row])


@pytest.mark.parametrize("rounded", [False, True])
def test_cpu_registration(rounded: bool) -> None:
    x, weight, bias = (t.requires_grad_() for t in arguments(33, 40, 18))
    op = torch.ops.jetkern.linear.default
    torch.library.opcheck(op, (x, weight, bias, rounded))
    out = op(x, weight, None, rounded)
    found = torch.autograd.grad(out.square().sum(), (x, weight))
    want = torch.autograd.grad(linear(x, weight).square().sum(), (x, weight))
    for have, exact in zip(found, want, strict=True):
        assert (have - exact).norm() <= (ROUNDED["bf16"] if rounded else 1e-6) * exact.norm()


@needs_tiles
def test_cpu_rounds_the_factors_of_tiles() -> None:
    """1 + 2^-9 becomes 1, in the product and in its gradients."""
    eye, fine = torch.eye(32), 1 + 2**-9
    x, weight = (eye * fine).requires_grad_(), (8 * eye).requires_grad_()
    out = linear(x, weight, precision="bf16")
    assert out.equal(8 * eye)
    d_x, d_weight = torch.autograd.grad(out, (x, weight), fine * eye)
    assert d_x.equal(8 * eye)
    assert d_weight.equal(eye)
    narrow = linear(x[:, :15], weight[:, :15], precision="bf16")  # too few inputs to be rounded
    assert narrow.equal((8 * fine * eye).index_fill(1, torch.arange(15, 32), 0.0))


@pytest.mark.parametrize("rounded", [False, True])
def test_cpu_gradients_do_not_depend_on_threads(rounded: bool) -> None:
    leaves = [t.requires_grad_() for t in arguments(1100, 64, 200)]
    results = []
    for number in (1, 2, 4):
        with threads(number):
            out = torch.ops.jetkern.linear(*leaves, rounded)
            results.append(torch.autograd.grad(out.square().sum(), leaves))
    for result in results[1:]:
        assert all(a.equal(b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("number", [7, 8, 33, 150])
def test_cpu_has_the_same_bits_whichever_of_rows_and_weights_is_turned(number: int) -> None:
    x, weight, bias = arguments(700, 300, 310)  # of 700 rows the weights are turned
    whole = linear(x, weight, bias, backend="cpu")
    assert torch.equal(linear(x[100 : 100 + number], weight, bias), whole[100 : 100 + number])
    assert torch.equal(linear(x[:number], weight), linear(x, weight)[:number])


@pytest.mark.parametrize("precision", ["ieee", "bf16"])
def test_cpu_packs_constant_weights_once(precision: str) -> None:
    x, weight, bias = arguments(40, 70, 90)
    layer = torch.nn.Parameter(weight.clone())
    with torch.no_grad():
        want = linear(x, layer, bias, precision=precision)
        with constant_weights():
            assert torch.equal(linear(x, layer, bias, precision=precision), want)
            layer.zero_()  # against the rule: only so can it be seen
            assert torch.equal(linear(x, layer, bias, precision=precision), want)
            assert torch.equal(linear(x, weight, bias, precision=precision), want)
        assert torch.equal(linear(x, layer, bias, precision=precision), bias.expand(40, 90))


def test_cpu_registration_of_packed_products() -> None:
    x, weight, bias = arguments(9, 20, 33)
    panels = torch.ops.jetkern.linear_panels(weight, False)
    torch.library.opcheck(torch.ops.jetkern.linear_panels.default, (weight, False))
    torch.library.opcheck(torch.ops.jetkern.linear_packed.default, (x, panels, bias, 33, False))
    with pytest.raises(RuntimeError, match="x, panels and bias do not fit each other"):
        torch.ops.jetkern.linear_packed(x, panels, bias, 330, False)


def test_wrong_shapes_and_precisions_are_errors() -> None:
    x, weight, bias = arguments(5, 3, 2)
    with pytest.raises(ValueError, match="x must have shape"):
        linear(x[:, :2], weight)
    with pytest.raises(ValueError, match="bias must have shape"):
        linear(x, weight, bias[:1])
    with pytest.raises(ValueError, match="unknown precision 'fp8'"):
        linear(x, weight, precision="fp8")


@pytest.mark.parametrize("precision", ["ieee", "tf32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_triton_accuracy(shape: tuple[int, int, int], precision: str) -> None:
    pytest.importorskip("triton", reason="needs Triton")
    check_accuracy(linear, *arguments(*shape), backend="triton", precision=precision)


def test_triton_strides_and_bfloat16() -> None:
    pytest.importorskip("triton", reason="needs Triton")
    x, weight, _ = (t.to(triton_device()) for t in arguments(40, 18, 6))
    want = linear(x, weight, backend="triton")
    have = linear(x.t().contiguous().t(), weight.t().contiguous().t(), backend="triton")
    assert have.equal(want)
    half = linear(x.bfloat16(), weight, backend="triton")
    assert half.dtype == torch.bfloat16
    exact = linear(x.bfloat16().double(), weight.double(), backend="reference")
    torch.testing.assert_close(half, exact.bfloat16())


def test_triton_registration_and_determinism() -> None:
    pytest.importorskip("triton", reason="needs Triton")
    leaves = [t.to(triton_device()).requires_grad_() for t in arguments(700, 20, 6)]
    results = []
    for _ in range(2):
        out = linear(*leaves, backend="triton")
        results.append([out.detach(), *torch.autograd.grad(out.square().sum(), leaves)])
    assert all(a.equal(b) for a, b in zip(*results, strict=True))
    for bias in (leaves[2], None):
        torch.library.opcheck(torch.ops.jetkern_triton.linear.default, (*leaves[:2], bias, "ieee"))


@pytest.mark.gpu
@pytest.mark.parametrize("allowed", [False, True])
def test_the_precision_is_the_calls_not_the_process_s(allowed: bool) -> None:
    leaves = [t.cuda().requires_grad_() for t in arguments(500, 300, 200)]
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        exact = linear(*(t.detach().double() for t in leaves), backend="reference")
        errors = {
            precision: (linear(*leaves, precision=precision, backend="triton") - exact).abs().max()
            for precision in ("ieee", "tf32", "bf16")
        }
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert errors["ieee"] < 1e-5
    assert 1e-4 < errors["tf32"] < 1e-2 < errors["bf16"] < 1e-1


def test_triton_compiles() -> None:
    pytest.importorskip("triton", reason="needs Triton")
    leaves = [t.to(triton_device()).requires_grad_() for t in arguments(70, 32, 8)]
    compiled = torch.compile(linear, fullgraph=True, backend="aot_eager")
    assert compiled(*leaves, backend="triton").equal(linear(*leaves, backend="triton"))
