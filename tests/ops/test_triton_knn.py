"""The Triton kernel in Triton's interpreter; on a GPU the same tests run on it."""

import pytest
import torch

from jetkern.ops import knn
from tests.ops.helpers import HURTING, random_particles, triton_device

pytest.importorskip("triton", reason="needs Triton")


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
