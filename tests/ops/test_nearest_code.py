import pytest
import torch

from jetkern.ops import nearest_code
from tests.ops.helpers import generator, threads

ROWS = {"none": 0, "one": 1, "around a vector": 65, "several blocks": 700}


def points(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=generator(seed))


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize(("codes", "columns"), [(1, 1), (2, 3), (130, 7), (1025, 7), (40, 33)])
def test_cpu_accuracy_finds_the_codes_of_the_reference(rows: int, codes: int, columns: int) -> None:
    x, c = points(rows, columns), points(codes, columns, 1)
    found = nearest_code(x, c, backend="cpu")
    assert found.shape == (rows,)
    assert found.dtype == torch.int64
    assert torch.equal(found, nearest_code(x, c, backend="reference"))
    exact = torch.cdist(x.double(), c.double())
    assert torch.allclose(exact.gather(1, found[:, None])[:, 0], exact.amin(1), atol=1e-6)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_the_lowest_of_equal_codes_is_taken(backend: str) -> None:
    grid = torch.cartesian_prod(*[torch.arange(-2.0, 3.0)] * 3)
    between = grid + 0.5  # each point lies in the middle of up to eight codes
    codes = torch.cat([grid, grid, between[:3], between[:3]])
    for x in (grid, between):
        squares = (x[:, None] - codes).square().sum(2)
        want = torch.tensor([int((row == row.min()).nonzero()[0]) for row in squares])
        assert torch.equal(nearest_code(x, codes, backend=backend), want)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_far_points_are_told_apart(backend: str) -> None:
    """Where |c|^2 - 2 x c would cancel: saturated features, 5.2, whose codes differ by 1e-3."""
    codes = torch.full((50, 7), 5.2) + 1e-3 * torch.arange(50.0)[:, None]
    x = codes + 2e-4 * points(50, 7).clamp(-1, 1)
    assert torch.equal(nearest_code(x, codes, backend=backend), torch.arange(50))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_what_is_no_number_has_the_first_code(backend: str) -> None:
    x = torch.tensor([[torch.nan, 0.0], [torch.inf, 0.0], [1e30, 1e30], [0.9, 1.0]])
    codes = torch.tensor([[0.0, torch.nan], [0.0, 0.0], [1.0, 1.0]])
    assert nearest_code(x, codes, backend=backend).tolist() == [0, 0, 0, 2]


def test_more_points_than_a_sixteen_bit_counter_holds_by_any_number_of_threads() -> None:
    x, c = points(70_000, 2), points(9, 2, 1)
    want = nearest_code(x, c, backend="reference")
    for n in (1, 3):
        with threads(n):
            assert torch.equal(nearest_code(x, c, backend="cpu"), want)


def test_other_layouts_and_dtypes() -> None:
    x, c = points(30, 4), points(12, 4, 1)
    want = nearest_code(x, c, backend="reference")
    strided = x.t().contiguous().t()
    assert torch.equal(nearest_code(strided, c.repeat(1, 2)[:, :4], backend="cpu"), want)
    assert torch.equal(nearest_code(x.double(), c), want)
    half = nearest_code(x.bfloat16(), c.bfloat16(), backend="cpu")
    assert torch.equal(half, nearest_code(x.bfloat16().float(), c.bfloat16().float()))


def test_registration_and_compilation() -> None:
    x, c = points(11, 4), points(5, 4, 1)
    torch.library.opcheck(torch.ops.jetkern.nearest_code.default, (x, c))
    compiled = torch.compile(lambda x, c: nearest_code(x, c, backend="cpu"), fullgraph=True)
    assert torch.equal(compiled(x, c), nearest_code(x, c))


def test_bad_input_is_refused() -> None:
    x, c = points(3, 4), points(5, 4)
    with pytest.raises(ValueError, match=r"codes must have shape \(any, 4\)"):
        nearest_code(x, c[:, :3])
    with pytest.raises(ValueError, match="codes must hold at least one number"):
        nearest_code(x, c[:0])
    with pytest.raises(ValueError, match="points must be floating point"):
        nearest_code(x.long(), c)
    with pytest.raises(RuntimeError, match="codes must be"):
        torch.ops.jetkern.nearest_code(x, c[:, :3].contiguous())
