"""The CUDA kernel on a GPU or, without one, on the emulation of tests/csrc."""

import pytest
import torch
from torch import Tensor

from jetkern.ops import knn
from tests.csrc.emulated import device
from tests.ops.helpers import HURTING, random_particles


def find(coordinates: Tensor, offsets: Tensor, k: int) -> Tensor:
    from jetkern.ops.knn import cuda

    where = device()
    return cuda.knn(coordinates.to(where), offsets.to(where), k).cpu()


@pytest.mark.parametrize("k", [1, 10, 15, 16, 20, 40])
@pytest.mark.parametrize("counts", [*HURTING.values(), [300, 2]], ids=[*HURTING, "very long"])
def test_finds_the_neighbours_of_the_reference(counts: list[int], k: int) -> None:
    particles, offsets = random_particles(counts)
    found = find(particles, offsets, k)
    assert found.dtype == torch.int64
    assert torch.equal(found, knn(particles, offsets, k, backend="reference"))


@pytest.mark.parametrize("k", [3, 27, 40])
def test_equal_distances_come_in_the_order_of_the_rows(k: int) -> None:
    grid = torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0)) * 0.1  # many equal distances
    points = torch.cat([grid, grid[[7, 7, 12]], grid])  # and particles at the same place
    offsets = torch.tensor([0, 0, 28, 53])
    assert torch.equal(find(points, offsets, k), knn(points, offsets, k, backend="reference"))


def test_a_particle_infinitely_far_away_is_no_neighbour() -> None:
    points = torch.tensor([[0.0, 0.0], [torch.inf, 0.0], [1.0, 0.0]])
    found = find(points, torch.tensor([0, 3]), 2)
    assert found.tolist() == [[2, -1], [-1, -1], [0, -1]]


def test_strided_and_half_precision_coordinates() -> None:
    particles, offsets = random_particles([7, 12])
    wide = torch.randn(19, 8)
    wide[:, 2:6] = particles
    want = knn(particles, offsets, 3, backend="reference")
    for view in (wide[:, 2:6], particles.t().contiguous().t(), particles[:, :2]):
        assert torch.equal(find(view, offsets, 3), want)
    half = particles.bfloat16()
    assert torch.equal(find(half, offsets, 3), knn(half.float(), offsets, 3, backend="reference"))


@pytest.mark.parametrize("order", ["1", "2", "3"])
def test_the_order_of_the_threads_does_not_matter(
    order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    particles, offsets = random_particles([40, 3, 140])
    monkeypatch.setenv("JETKERN_EMULATE_ORDER", order)
    found = find(particles, offsets, 40)
    assert torch.equal(found, knn(particles, offsets, 40, backend="reference"))


def test_registration_and_compilation() -> None:
    particles, offsets = (t.to(device()) for t in random_particles([3, 0, 9]))
    torch.library.opcheck(torch.ops.jetkern_cuda.knn.default, (particles, offsets, 2))
    from jetkern.ops.knn import cuda

    compiled = torch.compile(lambda x, o: cuda.knn(2 * x, o, 2), fullgraph=True)
    assert torch.equal(compiled(particles, offsets), cuda.knn(2 * particles, offsets, 2))


def test_bad_input_is_refused() -> None:
    device()
    with pytest.raises(RuntimeError, match="float32 with dense rows"):
        torch.ops.jetkern_cuda.knn(torch.zeros(3, 2).double(), torch.tensor([0, 3]), 2)
    with pytest.raises(RuntimeError, match="offsets must be contiguous"):
        torch.ops.jetkern_cuda.knn(torch.zeros(3, 2), torch.tensor([0, 3]).int(), 2)
