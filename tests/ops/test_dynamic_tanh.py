from __future__ import annotations

import pytest
import torch

from jetkern.ops import dynamic_tanh
from tests.ops.helpers import check_accuracy, generator, triton_device


def arguments(rows: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = generator(rows + width)
    x = 2 * torch.randn(rows, width, generator=g)
    return x, 0.5 + 0.1 * torch.randn(1, generator=g), 1 + 0.2 * torch.randn(width, generator=g)


def test_the_reference_is_the_formula() -> None:
    x, alpha, gamma = arguments(5, 3)
    want = gamma[None, :] * torch.tanh(alpha[0] * x)
    torch.testing.assert_close(dynamic_tanh(x, alpha, gamma, backend="reference"), want)


def test_wrong_shapes_are_errors() -> None:
    x, alpha, gamma = arguments(5, 3)
    with pytest.raises(ValueError, match="gamma must have shape"):
        dynamic_tanh(x, alpha, gamma[:2])
    with pytest.raises(ValueError, match="alpha must have shape"):
        dynamic_tanh(x, alpha[0], gamma)
    with pytest.raises(ValueError, match="x must be floating point"):
        dynamic_tanh(x.long(), alpha, gamma)


@pytest.mark.parametrize(("rows", "width"), [(0, 7), (1, 1), (37, 33), (300, 130), (5, 512)])
def test_triton_accuracy(rows: int, width: int) -> None:
    pytest.importorskip("triton", reason="needs Triton")
    check_accuracy(dynamic_tanh, *arguments(rows, width), backend="triton")


def test_triton_far_from_zero() -> None:
    pytest.importorskip("triton", reason="needs Triton")
    x = torch.linspace(-15, 15, 203)[:, None].expand(203, 2)
    check_accuracy(dynamic_tanh, x, *arguments(1, 2)[1:], backend="triton")


def test_triton_takes_any_rank_layout_and_bfloat16() -> None:
    pytest.importorskip("triton", reason="needs Triton")
    x, alpha, gamma = (t.to(triton_device()) for t in arguments(24, 18))
    want = dynamic_tanh(x, alpha, gamma, backend="triton")
    for view in (x.view(2, 3, 4, 18), x.t().contiguous().t()):
        have = dynamic_tanh(view, alpha, gamma, backend="triton")
        assert have.shape == view.shape
        assert have.view(24, 18).equal(want)
    assert dynamic_tanh(x[0], alpha, gamma, backend="triton").equal(want[0])
    half = dynamic_tanh(x.bfloat16(), alpha, gamma, backend="triton")
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(
        half, dynamic_tanh(x.bfloat16().float(), alpha, gamma, backend="reference").bfloat16()
    )


def test_triton_registration_and_determinism() -> None:
    pytest.importorskip("triton", reason="needs Triton")
    leaves = [t.to(triton_device()).requires_grad_() for t in arguments(700, 20)]
    results = []
    for _ in range(2):
        out = dynamic_tanh(*leaves, backend="triton")
        results.append([out.detach(), *torch.autograd.grad(out.square().sum(), leaves)])
    assert all(a.equal(b) for a, b in zip(*results, strict=True))
    torch.library.opcheck(torch.ops.jetkern_triton.dynamic_tanh.default, tuple(leaves))


def test_triton_compiles() -> None:
    pytest.importorskip("triton", reason="needs Triton")
    leaves = [t.to(triton_device()).requires_grad_() for t in arguments(70, 32)]
    compiled = torch.compile(dynamic_tanh, fullgraph=True, backend="aot_eager")
    assert compiled(*leaves, backend="triton").equal(dynamic_tanh(*leaves, backend="triton"))
