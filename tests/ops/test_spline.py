from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from jetkern.ops import spline
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


def both(x: Tensor, raw: Tensor, **options: Any) -> Tensor:
    """Function and log of its slope, as one tensor."""
    return torch.stack(spline(x, raw, **options), -1)


def batch(n: int, bins: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Values, an eighth of them beyond the ends, and the numbers of their splines."""
    g = generator(seed)
    return 2.5 * torch.randn(n, generator=g), torch.randn(n, 3 * bins - 1, generator=g)


def on(backend: str, *tensors: Tensor) -> Any:
    return moved(tensors, triton_device() if backend == "triton" else "cpu")


@pytest.mark.parametrize(("n", "bins"), [(0, 8), (100, 1), (33, 2), (515, 8), (90, 5)])
def test_cpu_accuracy(n: int, bins: int) -> None:
    check_accuracy(both, *batch(n, bins))


@needs_triton
@pytest.mark.parametrize(("n", "bins"), [(0, 8), (70, 1), (33, 2), (131, 8), (90, 5)])
def test_triton_accuracy(n: int, bins: int) -> None:
    check_accuracy(both, *batch(n, bins), backend="triton")


@pytest.mark.parametrize("backend", BACKENDS)
def test_zeros_give_the_identity_and_so_do_the_ends(backend: str) -> None:
    x = torch.tensor([-9.0, -4.0, -3.99, -1.0, 0.0, 0.5, 2.0, 3.99, 4.0, 7.0, torch.inf])
    y, ln = spline(*on(backend, x, torch.zeros(11, 23)), backend=backend)
    torch.testing.assert_close(y.cpu(), x, rtol=1e-6, atol=1e-6)
    assert ln.abs().max() < 2e-5
    raw = batch(11, 8)[1]
    y, ln = spline(*on(backend, x, raw), backend=backend)
    ends = x.abs() >= 4
    assert torch.equal(y.cpu()[ends], x[ends])
    assert not ln.cpu()[ends].any()
    near = torch.tensor([-4 + 1e-5, 4 - 1e-5])
    y, _ = spline(*on(backend, near, raw[:2]), backend=backend)
    torch.testing.assert_close(y.cpu(), near, rtol=0, atol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bins", [1, 3, 8])
def test_the_inverse_leads_back(bins: int, backend: str) -> None:
    x, raw = on(backend, *batch(300, bins))
    y, ln = spline(x, raw, backend=backend)
    back, ln_back = spline(y, raw, inverse=True, backend=backend)
    torch.testing.assert_close(back, x, rtol=0, atol=2e-3)
    torch.testing.assert_close(ln_back, -ln, rtol=0, atol=2e-3)
    found = both(y, raw, inverse=True, backend=backend)
    eager = both(y, raw, inverse=True, backend="reference")
    exact = both(y.double(), raw.double(), inverse=True, backend="reference")
    assert (found - exact).abs().max() <= 2 * (eager - exact).abs().max() + 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_other_tails_and_least_shares(backend: str) -> None:
    x, raw = batch(200, 4)
    exact = spline(x.double(), raw.double(), tail=1.5, least=0.05, backend="reference")
    found = spline(*on(backend, x, raw), tail=1.5, least=0.05, backend=backend)
    for have, want in zip(found, exact, strict=True):
        torch.testing.assert_close(have.cpu().double(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", FAST)
def test_what_is_not_a_number_stays_with_its_value(backend: str) -> None:
    x, raw = batch(40, 8)
    x[3] = torch.nan
    raw[5, 2], raw[7, 20] = torch.nan, torch.inf
    x[5] = x[7] = 0.1
    found = result_and_gradients(both, (x, raw), torch.float32, backend)
    want = result_and_gradients(both, (x, raw), torch.float32, "reference")
    others = torch.ones(40, dtype=torch.bool)
    others[[3, 5, 7]] = False
    for have, of in zip(found, want, strict=True):
        assert have[others].isfinite().all()
        torch.testing.assert_close(have[others], of[others], rtol=1e-3, atol=1e-4)
    assert found[0][3, 0].isnan()
    assert found[0][5].isnan().all()


def test_any_number_of_threads_gives_the_same_bits() -> None:
    results = []
    for n in (1, 3):
        with threads(n):
            results.append(result_and_gradients(both, batch(2000, 8), torch.float32, "cpu"))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_shapes_and_strides() -> None:
    x, raw = batch(60, 3)
    want = spline(x, raw)
    wide = spline(x.view(5, 4, 3), raw.view(5, 4, 3, 8))
    skipped = spline(torch.stack([x, x], 1)[:, 0], torch.stack([raw, raw], 1)[:, 1])
    for found in (wide, skipped):
        assert all(torch.equal(a.flatten(), b) for a, b in zip(found, want, strict=True))
    y, ln = spline(x[0], raw[0])
    assert (y.shape, ln.shape) == ((), ())
    torch.testing.assert_close(y, want[0][0])


def test_more_bins_than_the_kernels_take_and_the_inverse_have_gradients_all_the_same() -> None:
    x, raw = batch(5, 65)
    assert torch.equal(both(x, raw), both(x, raw, backend="reference"))
    for backend in FAST:
        with pytest.raises(ValueError, match="at most 64 bins"):
            both(*on(backend, x, raw), backend=backend)
    x, raw = (t.double().requires_grad_() for t in batch(5, 3))
    assert torch.autograd.gradcheck(lambda *t: both(*t, inverse=True), (x, raw))
    leaf = raw.float().detach().requires_grad_()
    both(x.detach().float(), leaf, inverse=True).sum().backward()
    assert leaf.grad is not None
    with pytest.raises(ValueError, match="the inverse needs a gradient"):
        both(x.detach().float(), leaf, inverse=True, backend="cpu")


def test_registration() -> None:
    x, raw = (t.requires_grad_() for t in batch(6, 3))
    torch.library.opcheck(torch.ops.jetkern.spline.default, (x, raw, 4.0, 1e-3, False))


@needs_triton
def test_triton_registration() -> None:
    x, raw = on("triton", *batch(6, 3))
    both(x, raw, backend="triton")
    torch.library.opcheck(
        torch.ops.jetkern_triton.spline.default, (x, raw, 4.0, 1e-3, False),
        test_utils=("test_schema", "test_faketensor"),
    )  # fmt: skip


def test_bad_input_is_refused() -> None:
    x, raw = batch(6, 3)
    with pytest.raises(
        ValueError, match=r"raw must be \(\.\.\., 3 K - 1\) of K bins, got \(6, 7\)"
    ):
        spline(x, raw[:, :7])
    with pytest.raises(ValueError, match="raw must have shape"):
        spline(x[:5], raw)
    with pytest.raises(ValueError, match="tail must be above 0, got 0"):
        spline(x, raw, tail=0)
    with pytest.raises(ValueError, match=r"least must lie in \(0, 1 / 3\), got 0.4"):
        spline(x, raw, least=0.4)


@needs_triton
def test_triton_takes_bfloat16_tensors() -> None:
    x, raw = (t.bfloat16() for t in batch(40, 8))
    found = spline(*on("triton", x, raw), backend="triton")
    exact = spline(x.double(), raw.double(), backend="reference")
    for have, want in zip(found, exact, strict=True):
        assert have.dtype == torch.float32
        torch.testing.assert_close(have.cpu().double(), want, rtol=1e-3, atol=1e-4)
