"""How kernels are launched: settings by GPU, TF32 as tensor cores compute it."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")

import triton
import triton.language as tl

from jetkern.ops import dispatch
from jetkern.ops.gpu import functions, launch
from jetkern.ops.gpu.layout import offsets, views
from jetkern.ops.gpu.sums import Slabs, added
from jetkern.ops.linear.triton import Unsummed, summed
from jetkern.ops.mlp.triton import Sums
from tests.ops.helpers import generator, triton_device


@pytest.mark.parametrize(
    ("capability", "kib", "family"),
    [(80, 163, 80), (86, 99, 80), (89, 99, 80), (90, 227, 90), (100, 227, 90), (120, 99, 80)],
)
def test_settings_are_those_of_a_family_whose_shared_memory_the_gpu_has(
    capability: int, kib: int, family: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_properties", lambda _: (capability, kib))
    assert launch.family(torch.device("cuda", 0)) == family
    assert launch.unsuited(torch.device("cuda", 0)) == ""


@pytest.mark.parametrize(("capability", "kib"), [(75, 64), (70, 96), (87, 64)])
def test_a_gpu_that_no_settings_fit_is_refused_with_a_reason(
    capability: int, kib: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_properties", lambda _: (capability, kib))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    dispatch.triton_gpu.cache_clear()
    reason = dispatch.unavailable("knn", "triton", "cuda", torch.float32)
    dispatch.triton_gpu.cache_clear()
    assert "compute capability 8.0" in reason
    with pytest.raises(ValueError, match=rf"8\.0 with 99 KiB .*has {capability / 10} and {kib}"):
        launch.family(torch.device("cuda", 0))


def test_what_is_forced_counts_in_every_thread_and_only_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backward on a GPU launches from a thread of autograd's."""
    monkeypatch.setattr(launch, "TABLES", tmp_path)
    launch._table.cache_clear()
    (tmp_path / "sm80.json").write_text(json.dumps({"dot": {"a": {"N": 32}}}), encoding="utf-8")
    device, found = torch.device("cpu"), []

    def ask() -> None:
        found.append(launch.launch_settings(dot_kernel, "a", device, {"N": 16, "M": 1}))

    ask()
    with launch.settings_asked() as asked, launch.forced_settings("dot", "a", {"N": 64}):
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        launch.launch_settings(dot_kernel, "b", device, {})
    with launch.chosen_by(lambda *_: {}):
        ask()
    ask()
    launch._table.cache_clear()
    assert [f["N"] for f in found] == [32, 64, 16, 32]
    assert asked == {("dot", "b")}  # what is forced is asked of nobody


def test_an_empty_grid_launches_nothing() -> None:
    launch.launch(None, (0, 3), torch.device("cpu"), {})
    launch.launch(None, (3, 0), torch.device("cpu"), {})


def test_parts_of_a_row_are_where_the_kernels_are_told() -> None:
    sizes = (4, 4, 1, 3, 2, 1)
    places = offsets(Sums, sizes)
    assert places == Sums(0, 4, 8, 9, 12, 14, 15)
    row = torch.arange(15.0)
    parts = views(Sums, sizes, row)
    for name, size in zip(Sums._fields, sizes, strict=False):
        first = getattr(places, name)
        assert getattr(parts, name).equal(row[first : first + size])


@pytest.mark.parametrize("count", [0, 1, 2, 150])
def test_slabs_are_added_into_tensors_of_their_own(count: int) -> None:
    sizes, whole = (17, 1, 0, 40), (1, 3)
    random = generator(count)
    rows = torch.randn(count, sum(sizes), generator=random)
    alone = torch.randn(count, 33, generator=random)
    summands = [Slabs(rows, sizes, whole), Slabs(alone, (33,))]
    found, (one,) = added([s._replace(rows=s.rows.to(triton_device())) for s in summands])
    expected = [part.sum(0) for part in rows.double().split(list(sizes), 1)]
    expected = [p.sum(0, keepdim=True) if i in whole else p for i, p in enumerate(expected)]
    for part, right in zip([*found, one], [*expected, alone.double().sum(0)], strict=True):
        torch.testing.assert_close(part.cpu().double(), right, rtol=1e-5, atol=1e-5)
    assert len({part.data_ptr() for part in [*found, one] if part.numel()}) == 4


@pytest.mark.parametrize("precision", ["ieee", "bf16"])
@pytest.mark.parametrize("rows", [0, 1, 700])
def test_weight_gradients_of_several_products_in_one_launch(rows: int, precision: str) -> None:
    source = generator(rows)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32

    def random(count: int, width: int) -> torch.Tensor:
        return torch.randn(count, width, generator=source).to(dtype).to(triton_device())

    products = ((random(rows, 5), random(rows, 70)), (random(rows, 64), random(rows, 3)))
    other = ((random(rows // 2, 8), random(rows // 2, 8)),)
    slabs = Slabs(torch.ones(3, 2, device=triton_device()), (2,))
    found = summed([Unsummed(products, slabs), Unsummed(other, slabs)], precision)
    assert [sums[0].tolist() for _, sums in found] == [[3, 3], [3, 3]]
    matrices = [matrix for part, _ in found for matrix in part]
    for matrix, (d, x) in zip(matrices, (*products, *other), strict=True):
        right = d.double().t() @ x.double()
        torch.testing.assert_close(matrix.double(), right, rtol=1e-4, atol=1e-4)


@triton.jit
def dot_kernel(a, b, out, N: tl.constexpr, ROUND: tl.constexpr, PRECISION: tl.constexpr):
    i = tl.arange(0, N)
    at = i[:, None] * N + i[None, :]
    x, y = tl.load(a + at), tl.load(b + at)
    zero = tl.zeros((N, N), tl.float32)
    if ROUND:
        tl.store(out + at, functions.dot(x, y, zero, PRECISION))
    else:
        tl.store(out + at, functions._tf32_cores(x, y, zero))


def product(a: torch.Tensor, b: torch.Tensor, rounded: bool, precision: str) -> torch.Tensor:
    device = triton_device()
    a, b = a.to(device), b.to(device)
    out = torch.empty_like(a, dtype=torch.float32)
    dot_kernel[(1,)](a, b, out, N=len(a), ROUND=rounded, PRECISION=precision)
    return out.cpu().double()


def test_factors_are_rounded_to_tf32_where_the_tensor_cores_would_truncate() -> None:
    """Of positive numbers, whose truncation errors all have one sign."""
    a, b = torch.rand(2, 32, 32, generator=generator()) + 0.5
    exact = a.double() @ b.double()
    bias = {r: ((product(a, b, r, "tf32") - exact) / exact).mean().item() for r in (True, False)}
    assert abs(bias[True]) < 2e-5
    assert -1e-3 < bias[False] < -2e-4


@pytest.mark.parametrize("precision", ["tf32", "bf16", "ieee"])
def test_rounded_factors_multiply_exactly(precision: str) -> None:
    """bfloat16 is TF32 already; sums of few small integers are exact."""
    a, b = torch.randint(-128, 129, (2, 16, 16), generator=generator()).float()
    for dtype in (torch.float32, torch.bfloat16):
        have = product(a.to(dtype), b.to(dtype), True, precision)
        assert have.equal(a.double() @ b.double())


def test_rounding_is_to_nearest_with_ties_away_from_zero() -> None:
    step = 2.0**-10
    values = torch.tensor([1 + step / 2, 1 + 0.49 * step, -1 - step / 2, 1 + 1.5 * step, 2.0**-126])
    a = torch.diag(torch.cat([values, torch.ones(11)]))
    have = product(a, torch.eye(16), True, "tf32").diag()[:5]
    assert have.tolist() == [1 + step, 1.0, -1 - step, 1 + 2 * step, 2.0**-126]
