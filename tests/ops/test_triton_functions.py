"""Elementary functions of the Triton kernels; on a GPU also the instructions they are made of."""

from __future__ import annotations

import pytest
import torch

from tests.ops.helpers import triton_device

pytest.importorskip("triton", reason="needs Triton")

import triton
import triton.language as tl

from jetkern.ops.gpu import functions


@triton.jit
def functions_kernel(x, gelu, value, slope, tanh, N: tl.constexpr, PRECISION: tl.constexpr):
    at = tl.arange(0, N)
    a = tl.load(x + at)
    both = functions.gelu_and_slope(a, PRECISION)
    tl.store(gelu + at, functions.gelu(a, PRECISION))
    tl.store(value + at, both[0])
    tl.store(slope + at, both[1])
    tl.store(tanh + at, functions.tanh(a))


@pytest.mark.parametrize("precision", ["ieee", "tf32", "bf16"])
def test_functions_of_the_hidden_layer(precision: str) -> None:
    edges = torch.tensor([0.0, 1e-30, -1e-30, 1e4, -1e4, 1e15, -1e15, 7.74])
    x = torch.cat([torch.linspace(-12, 12, 4088), edges]).to(triton_device())
    results = torch.empty(4, len(x), device=x.device)
    functions_kernel[(1,)](x, *results, N=len(x), PRECISION=precision)
    gelu, value, slope, tanh = results.double()
    exact = x.double().requires_grad_()
    want = torch.nn.functional.gelu(exact)
    (want_slope,) = torch.autograd.grad(want.sum(), exact)
    size = exact.detach().abs()
    rounded = precision == "bf16"
    # In bf16 what one instruction for tanh, of relative error 2^-11, may add.
    off = (4e-5 + 2.0**-12 * size) if rounded else 4e-7 * size.clamp(min=1)
    assert ((gelu - want.detach()).abs() <= off).all()
    assert ((value - want.detach()).abs() <= off).all()
    assert (slope - want_slope).abs().max() <= (6e-3 if rounded else 1e-6)
    assert (tanh - exact.detach().tanh()).abs().max() <= 4e-7
