"""The Triton kernel in Triton's interpreter; on a GPU the same tests run on it."""

import pytest
import torch

from jetkern.ops import knn
from tests.ops.helpers import HURTING, random_particles, triton_device

pytest.importorskip("triton", reason="needs Triton")

from jetkern.ops.gpu.launch import forced_settings
from jetkern.ops.knn import triton as kernels


@pytest.fixture(autouse=True)
def _few_large_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter is as slow for small tiles as for large ones."""
    monkeypatch.setattr(kernels, "DEFAULT", {"ROWS": 256, "num_warps": 4, "num_stages": 1})


def test_tiles_that_hold_parts_of_jets() -> None:
    particles, offsets = random_particles([5, 0, 40, 1, 9])
    device = triton_device()
    with forced_settings("knn", "k3", {"ROWS": 16, "num_warps": 1}):
        found = knn(particles.to(device), offsets.to(device), 3, backend="triton")
    assert torch.equal(found.cpu(), knn(particles, offsets, 3, backend="reference"))


@pytest.mark.parametrize("k", [1, 5, 20])
@pytest.mark.parametrize("counts", HURTING.values(), ids=HURTING)
def test_finds_the_neighbours_of_the_reference(counts: list[int], k: int) -> None:
    particles, offsets = random_particles(counts)
    want = knn(particles, offsets, k, backend="reference")
    device = triton_device()
    found = knn(particles.to(device), offsets.to(device), k, backend="triton")
    assert found.dtype == torch.int64
    assert torch.equal(found.cpu(), want)


def test_equal_distances_come_in_the_order_of_the_rows() -> None:
    grid = torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0)) * 0.1  # many equal distances
    points = torch.cat([grid, grid[[7, 7, 12]]])  # and particles at the same place
    offsets = torch.tensor([0, 28])
    device = triton_device()
    found = knn(points.to(device), offsets.to(device), 27, backend="triton")
    assert torch.equal(found.cpu(), knn(points, offsets, 27, backend="reference"))


@pytest.mark.parametrize("k", [9, 16, 17])
def test_more_neighbours_than_one_walk_finds(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "MOST", 8)
    points, offsets = random_particles([25, 3, 10])
    points[:10] = points[10:20]  # equal distances on both sides of the border
    device = triton_device()
    found = knn(points.to(device), offsets.to(device), k, backend="triton")
    assert torch.equal(found.cpu(), knn(points, offsets, k, backend="reference"))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, in the interpreter
def test_what_is_no_number_or_infinitely_far_is_no_neighbour() -> None:
    points = torch.zeros(9, 2)
    points[:, 0] = torch.tensor([0, 1, torch.nan, 3, torch.inf, -torch.inf, 1e30, torch.nan, 2])
    offsets = torch.tensor([0, 4, 9])
    device = triton_device()
    found = knn(points.to(device), offsets.to(device), 4, backend="triton").cpu()
    assert torch.equal(found, knn(points, offsets, 4, backend="reference"))
    assert (found[[2, 4, 5, 7]] == -1).all()


def test_more_jets_than_a_grid_has_along_its_second_axis() -> None:
    counts = [1, 0, 2] * 22_000
    points, offsets = random_particles(counts)
    device = triton_device()
    with forced_settings("knn", "k1", {"ROWS": 8192, "num_warps": 4}):
        found = knn(points.to(device), offsets.to(device), 1, backend="triton").cpu()
    assert torch.equal(found, knn(points, offsets, 1, backend="reference"))


def test_strided_and_half_precision_coordinates() -> None:
    particles, offsets = random_particles([7, 12])
    device = triton_device()
    wide = torch.randn(19, 8)
    wide[:, 2:6] = particles
    columns = particles.t().contiguous().t()
    want = knn(particles, offsets, 3, backend="reference")
    for view in (wide[:, 2:6], columns):
        found = knn(view.to(device), offsets.to(device), 3, backend="triton")
        assert torch.equal(found.cpu(), want)
    half = particles.bfloat16()
    found = knn(half.to(device), offsets.to(device), 3, backend="triton")
    assert torch.equal(found.cpu(), knn(half.float(), offsets, 3, backend="reference"))


def test_registration() -> None:
    particles, offsets = random_particles([3, 0, 9])
    knn(particles.to(triton_device()), offsets.to(triton_device()), 2, backend="triton")
    torch.library.opcheck(
        torch.ops.jetkern_triton.knn.default,
        (particles.to(triton_device()), offsets.to(triton_device()), 2),
    )
