"""Products whose factors are rounded to bfloat16, on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from jetkern import PET, Jets, PETConfig
from jetkern.model.layers import set_precision
from jetkern.ops import attention_block, local_block, mlp
from jetkern.ops.attention.reference import attention
from jetkern.ops.parameters import BlockParameters, MLPParameters
from tests.ops.helpers import (
    check_accuracy,
    check_alphas,
    generator,
    random_block,
    random_mlp,
    random_particles,
    result_and_gradients,
    threads,
)
from tests.ops.test_attention_block import rows
from tests.ops.test_local_block import inputs

NARROW = 16  # with fewer inputs the products stay float32


class RoundedLinear(torch.autograd.Function):
    """x w^T with both factors rounded, in forward and backward, in eager PyTorch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        x, w = x.bfloat16().to(x.dtype), w.bfloat16().to(w.dtype)
        ctx.save_for_backward(x, w)
        return x @ w.t()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        dy = dy.bfloat16().to(dy.dtype)
        return dy @ w, dy.t() @ x


def linear(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    y = x @ w.t() if w.shape[1] < NARROW else RoundedLinear.apply(x, w)
    return y if bias is None else y + bias


def rounded_mlp(x: Tensor, p: MLPParameters, *, backend: str) -> Tensor:
    hidden = torch.nn.functional.gelu(linear(x, p.fc1_weight, p.fc1_bias))
    return linear(p.gamma * (p.alpha * hidden).tanh(), p.fc2_weight, p.fc2_bias)


def rounded_block(
    x: Tensor, offsets: Tensor, p: BlockParameters, heads: int, *, backend: str
) -> Tensor:
    qkv = linear(p.gamma1 * (p.alpha1 * x).tanh(), p.qkv_weight)
    q, k, v = qkv.unflatten(1, (3, heads, -1)).unbind(1)
    x = x + linear(attention(q, k, v, offsets, offsets, None, None).flatten(1), p.out_weight)
    return x + rounded_mlp(p.gamma2 * (p.alpha2 * x).tanh(), p.mlp, backend=backend)


def hold_against_eager(op: Any, emulation: Any, *arguments: Any) -> None:
    """Asserts that bfloat16 costs us at most twice what it costs ``emulation``."""
    exact = result_and_gradients(op, arguments, torch.float64, "reference")
    eager = result_and_gradients(emulation, arguments, torch.float32, "reference")
    ours = result_and_gradients(op, arguments, torch.float32, "cpu", precision="bf16")
    for i, (want, plain, have) in enumerate(zip(exact, eager, ours, strict=True)):
        error, allowed = ((x - want).square().mean().sqrt().item() for x in (have, plain))
        if want.numel() > 1:  # single numbers scatter: `check_alphas` judges those
            assert error <= 2 * allowed + 1e-6 * want.abs().max().item(), f"output {i}"


@pytest.mark.parametrize("rows_", [1, 17, 33, 64, 200])
@pytest.mark.parametrize(
    ("inputs_", "hidden", "outputs"), [(4, 64, 32), (130, 33, 17), (48, 16, 100), (560, 520, 31)]
)
def test_cpu_accuracy_of_the_perceptron(
    rows_: int, inputs_: int, hidden: int, outputs: int
) -> None:
    x = torch.randn(rows_, inputs_, generator=generator(3))
    weights = random_mlp(inputs_, hidden, outputs)
    check_accuracy(mlp, x, weights, precision="bf16")
    hold_against_eager(mlp, rounded_mlp, x, weights)


def test_cpu_accuracy_of_alphas() -> None:
    x = torch.randn(1000, 32, generator=generator(3))
    check_alphas(mlp, x, [random_mlp(32, 64, 32)], rounded_mlp, precision="bf16")
    x, offsets, _ = rows([40] * 20, 32, False)

    def ours(x: Tensor, block: BlockParameters, **options: str) -> Tensor:
        return attention_block(x, offsets, block, 4, **options)

    def eager(x: Tensor, block: BlockParameters, **options: str) -> Tensor:
        return rounded_block(x, offsets, block, 4, **options)

    check_alphas(ours, x, [random_block(32, 64)], eager, precision="bf16")


@pytest.mark.parametrize(("width", "hidden", "heads"), [(32, 64, 4), (20, 41, 4), (200, 360, 8)])
def test_cpu_accuracy_of_the_attention_block(width: int, hidden: int, heads: int) -> None:
    x, offsets, _ = rows([21, 3, 0, 40], width, False)
    block = random_block(width, hidden)
    check_accuracy(attention_block, x, offsets, block, heads, precision="bf16")
    hold_against_eager(attention_block, rounded_block, x, offsets, block, heads)


@pytest.mark.parametrize(("width", "hidden", "heads", "k"), [(32, 64, 4, 15), (200, 300, 8, 6)])
def test_cpu_accuracy_of_the_local_block(width: int, hidden: int, heads: int, k: int) -> None:
    check_accuracy(local_block, *inputs([21, 3, 1], width, hidden, k), heads, precision="bf16")


def test_products_are_rounded() -> None:
    """One product in which rounding shows exactly: 1 + 2^-9 becomes 1."""
    eye = torch.eye(32)
    weights = MLPParameters(eye, None, None, None, eye * (1 + 2**-9), None)
    x = torch.full((3, 32), 8.0)  # gelu(8) is 8
    assert mlp(x, weights, precision="bf16", backend="cpu").equal(x)
    assert mlp(x, weights, precision="tf32", backend="cpu").equal(x * (1 + 2**-9))


def test_a_model_runs_at_its_precision() -> None:
    particles, offsets = random_particles([20, 5])
    jets = Jets(particles=particles, offsets=offsets)
    torch.manual_seed(0)
    config = PETConfig(dim=32, layers=2, heads=4, neighbours=5, use_pid=False, use_tracks=False)
    model = PET(config).eval()
    want = model.classify(jets)
    set_precision(model, "bf16")
    have = model.classify(jets)
    assert 0 < (have - want).abs().max() < 0.02 * want.abs().max()
    with pytest.raises(ValueError, match="unknown precision 'fp8': choose one of ieee, tf32, bf16"):
        set_precision(model, "fp8")


def test_not_a_number_and_infinity_survive() -> None:
    weights = random_mlp(32, 16, 20, norm=False)
    x = torch.zeros(4, 32)
    x[1, 5], x[2, 6] = torch.nan, torch.inf
    out = mlp(x, weights, precision="bf16", backend="cpu")
    assert out[[0, 3]].isfinite().all()
    assert out[1].isnan().all()
    assert not out[2].isfinite().any()


def test_the_same_bits_with_any_number_of_threads() -> None:
    particles, neighbours, embed, blocks = inputs([40] * 20, 32, 64, 5)
    leaves = [particles.requires_grad_(), blocks[0].qkv_weight.requires_grad_()]
    results = []
    for n in (1, 2, 3, 4):
        with threads(n):
            out = local_block(
                particles, neighbours, embed, blocks, 2, precision="bf16", backend="cpu"
            )
            results.append([out.detach(), *torch.autograd.grad(out.square().sum(), leaves)])
    for result in results[1:]:
        assert all(a.equal(b) for a, b in zip(result, results[0], strict=True))
