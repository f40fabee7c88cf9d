"""The Triton kernels in Triton's interpreter; on a GPU the same tests run on it."""

from __future__ import annotations

import pytest
import torch

from jetkern.ops import mlp
from jetkern.ops.parameters import MLPParameters
from tests.ops.helpers import check_accuracy, generator, moved, random_mlp, triton_device

pytest.importorskip("triton", reason="needs Triton")

PARTS = [
    {},
    {"bias1": False, "bias2": False},
    {"norm": False},
    {"bias1": False, "norm": False, "bias2": False},
]
# inputs, hidden, outputs: fused thrice, fused unless in ieee, in pieces
SHAPES = [(7, 9, 5), (32, 64, 32), (20, 70, 33), (128, 40, 128), (130, 33, 3)]


@pytest.mark.parametrize("parts", PARTS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_accuracy(shape: tuple[int, int, int], parts: dict[str, bool]) -> None:
    for rows in (0, 1, 17, 100):
        x = 2 * torch.randn(rows, shape[0], generator=generator(3))
        check_accuracy(mlp, x, random_mlp(*shape, **parts), backend="triton")


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_accuracy_of_rounded_products(shape: tuple[int, int, int], precision: str) -> None:
    x = 2 * torch.randn(150, shape[0], generator=generator(3))
    check_accuracy(mlp, x, random_mlp(*shape), backend="triton", precision=precision)


@pytest.mark.parametrize("inputs", [3, 131])
def test_accuracy_far_from_zero(inputs: int) -> None:
    x = torch.linspace(-12, 12, 103)[:, None].expand(103, inputs)
    weights = random_mlp(inputs, 20, 6)
    weights = weights._replace(fc1_weight=weights.fc1_weight * (3 / inputs) ** 0.5)
    check_accuracy(mlp, x, weights, backend="triton")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.slow
def test_the_same_bits_twice(shape: tuple[int, int, int]) -> None:
    weights = moved(random_mlp(*shape), triton_device())
    x = torch.randn(300, shape[0], generator=generator(3)).to(triton_device())
    leaves = [x.requires_grad_(), *(w.requires_grad_() for w in weights)]
    results = []
    for _ in range(2):
        out = mlp(x, weights, backend="triton")
        results.append([out.detach(), *torch.autograd.grad(out.square().sum(), leaves)])
    assert all(a.equal(b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("shape", [(32, 64, 32), (130, 33, 3)], ids=str)
def test_types_and_strides(shape: tuple[int, int, int]) -> None:
    weights = moved(random_mlp(*shape), triton_device())
    x = torch.randn(50, shape[0], generator=generator(3)).to(triton_device())
    want = mlp(x, weights, backend="triton")
    strided = MLPParameters(*(w if w.ndim < 2 else w.t().contiguous().t() for w in weights))
    assert mlp(x.t().contiguous().t(), strided, backend="triton").equal(want)
    half = x.bfloat16().requires_grad_()
    out = mlp(half, weights, backend="triton", precision="bf16")
    assert out.dtype == torch.bfloat16
    assert (out - want).square().mean() < 1e-4 * want.square().mean()
    weights.fc1_weight.requires_grad_()
    out = mlp(half, weights, backend="triton", precision="bf16")
    d_x, d_weight = torch.autograd.grad(out.float().sum(), [half, weights.fc1_weight])
    assert (d_x.dtype, d_weight.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("shape", [(6, 20, 4), (130, 20, 4)], ids=str)
@pytest.mark.parametrize("parts", [PARTS[0], PARTS[3]], ids=str)
def test_registration(shape: tuple[int, int, int], parts: dict[str, bool]) -> None:
    weights = moved(random_mlp(*shape, **parts), triton_device())
    leaves = [None if w is None else w.requires_grad_() for w in weights]
    x = torch.randn(20, shape[0], generator=generator(3)).to(triton_device())
    arguments = (x.requires_grad_(), *leaves, "ieee")
    compiled = torch.compile(mlp, fullgraph=True, backend="aot_eager")
    assert compiled(x, weights, backend="triton").equal(mlp(x, weights, backend="triton"))
    torch.library.opcheck(torch.ops.jetkern_triton.mlp.default, arguments)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["ieee", "tf32", "bf16"])
@pytest.mark.parametrize("width", [32, 128, 512])
def test_compiles_and_replays(width: int, precision: str) -> None:
    weights = moved(random_mlp(width, 2 * width, width), "cuda")
    x = torch.randn(1000, width, device="cuda")
    want = mlp(x, weights, backend="triton", precision=precision)
    compiled = torch.compile(mlp, fullgraph=True)
    assert compiled(x, weights, backend="triton", precision=precision).equal(want)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = mlp(x, weights, backend="triton", precision=precision)
    graph.replay()
    assert out.equal(want)


@pytest.mark.gpu
def test_more_rows_than_a_grid_has_in_y() -> None:
    weights = moved(random_mlp(32, 64, 32), "cuda")
    x = torch.randn(5_000_000, 32, device="cuda")
    out = mlp(x, weights, backend="triton")
    torch.testing.assert_close(out[-9:], mlp(x[-9:], weights, backend="reference"))
