"""The Triton kernel in Triton's interpreter; on a GPU the same tests run on it."""

import pytest
import torch

from jetkern.ops import nearest_code
from tests.ops.helpers import generator, triton_device

pytest.importorskip("triton", reason="needs Triton")


@pytest.mark.parametrize("rows", [0, 1, 33, 100])
@pytest.mark.parametrize(("codes", "columns"), [(1, 1), (130, 7), (300, 33)])
def test_finds_the_codes_of_the_reference(rows: int, codes: int, columns: int) -> None:
    x = torch.randn(rows, columns, generator=generator())
    c = torch.randn(codes, columns, generator=generator(1))
    device = triton_device()
    found = nearest_code(x.to(device), c.to(device), backend="triton")
    assert found.dtype == torch.int64
    assert torch.equal(found.cpu(), nearest_code(x, c, backend="reference"))


def test_equal_codes_other_layouts_and_what_is_no_number() -> None:
    grid = torch.cartesian_prod(torch.arange(-2.0, 3.0), torch.arange(-2.0, 3.0))
    x = torch.cat([grid + 0.5, torch.tensor([[torch.nan, 0.0], [torch.inf, 0.0]])])
    codes = torch.cat([grid] * 6)  # more than one tile
    device = triton_device()
    want = nearest_code(x, codes, backend="reference")
    for points in (x, x.t().contiguous().t()):
        found = nearest_code(points.to(device), codes.to(device), backend="triton")
        assert torch.equal(found.cpu(), want)


def test_registration() -> None:
    x, c = torch.randn(5, 3), torch.randn(4, 3)
    nearest_code(x.to(triton_device()), c.to(triton_device()), backend="triton")
    given = (x.to(triton_device()), c.to(triton_device()))
    torch.library.opcheck(torch.ops.jetkern_triton.nearest_code.default, given)
