import pytest
import torch

from jetkern.ops import knn
from tests.ops.helpers import HURTING, random_particles, threads


@pytest.mark.parametrize("k", [1, 5, 16, 200])
@pytest.mark.parametrize("counts", HURTING.values(), ids=HURTING)
def test_cpu_accuracy_finds_the_neighbours_of_the_reference(counts: list[int], k: int) -> None:
    particles, offsets = random_particles(counts)
    found = knn(particles, offsets, k, backend="cpu")
    assert found.shape == (len(particles), k)
    assert found.dtype == torch.int64
    assert torch.equal(found, knn(particles, offsets, k, backend="reference"))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_nearest_first_never_itself_and_never_of_another_jet(backend: str) -> None:
    particles, offsets = random_particles([9, 30])
    found = knn(particles, offsets, 4, backend=backend)
    distance = (particles[found, :2] - particles[:, None, :2]).square().sum(-1)
    assert (distance.diff(dim=1) >= 0).all()
    assert not (found == torch.arange(39)[:, None]).any()
    assert (found[:9] < 9).all()
    assert (found[9:] >= 9).all()
    everything = torch.cdist(particles[9:, :2], particles[9:, :2]).fill_diagonal_(torch.inf)
    assert torch.allclose(distance[9:, 3].sqrt(), everything.sort().values[:, 3], atol=1e-6)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_equal_distances_come_in_the_order_of_the_rows(backend: str) -> None:
    grid = torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0)) * 0.1  # many equal distances
    points = torch.cat([grid, grid[[7, 7, 12]]])  # and particles at the same place
    found = knn(points, torch.tensor([0, 28]), 27, backend=backend)
    squares = (points[:, None] - points).square().sum(-1)
    for i in range(28):
        others = [j for j in range(28) if j != i]
        assert found[i].tolist() == sorted(others, key=lambda j: (squares[i, j].item(), j))


def test_a_jet_of_few_particles_is_filled_up_with_minus_one() -> None:
    particles, offsets = random_particles([1, 3])
    found = knn(particles, offsets, 3, backend="cpu")
    assert (found[0] == -1).all()
    assert (found[1:, 2] == -1).all()
    assert (found[1:, :2] >= 1).all()


def test_more_jets_than_a_sixteen_bit_counter_holds() -> None:
    counts = [i % 3 for i in range(70_000)]
    particles, offsets = random_particles(counts)
    found = knn(particles, offsets, 2, backend="cpu")
    start = offsets[:-1].repeat_interleave(offsets.diff())
    pairs = offsets.diff().repeat_interleave(offsets.diff()) == 2
    partner = 2 * start + 1 - torch.arange(len(start))
    assert torch.equal(found[:, 0], torch.where(pairs, partner, -1))


def test_non_contiguous_input_and_any_number_of_threads() -> None:
    particles, offsets = random_particles([40, 3, 90])
    want = knn(particles, offsets, 7, backend="reference")
    strided = particles.t().contiguous().t()
    assert not strided.is_contiguous()
    for n in (1, 2, 3, 4):
        with threads(n):
            assert torch.equal(knn(strided, offsets, 7, backend="cpu"), want)


def test_registration_and_compilation() -> None:
    particles, offsets = random_particles([4, 0, 11])
    torch.library.opcheck(torch.ops.jetkern.knn.default, (particles, offsets, 3))
    compiled = torch.compile(lambda x, o: knn(x, o, 3, backend="cpu"), fullgraph=True)
    assert torch.equal(compiled(particles, offsets), knn(particles, offsets, 3))


def test_bad_input_is_refused() -> None:
    particles, offsets = random_particles([4])
    with pytest.raises(ValueError, match="k must be at least 1"):
        knn(particles, offsets, 0)
    with pytest.raises(ValueError, match="coordinates must have shape"):
        knn(particles[:, :1], offsets, 1)
    with pytest.raises(RuntimeError, match="offsets must rise"):
        knn(particles, torch.tensor([0, 5]), 1, backend="cpu")


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("width", [1, 3, 64])
def test_points_in_any_space(backend: str, width: int) -> None:
    _, offsets = random_particles([9, 0, 1, 30])
    points = torch.randn(40, width, generator=torch.Generator().manual_seed(1))
    found = knn(points, offsets, 5, columns=width, backend=backend)
    distance = torch.cdist(points.double(), points.double()).fill_diagonal_(torch.inf)
    for first, last in ((0, 9), (10, 40)):
        nearest = distance[first:last, first:last].topk(5, largest=False).indices + first
        assert torch.equal(found[first:last], nearest)
    assert (found[9] == -1).all()
    leading = torch.cat([points, torch.randn(40, 2)], 1)
    assert torch.equal(knn(leading, offsets, 5, columns=width, backend=backend), found)


def test_which_columns_are_coordinates_is_said_or_clear() -> None:
    particles, offsets = random_particles([4, 7])
    plane = knn(particles[:, :2], offsets, 3)
    assert torch.equal(knn(particles, offsets, 3), plane)
    assert torch.equal(knn(particles, offsets, 3, columns=2), plane)
    for width in (3, 64):
        with pytest.raises(ValueError, match=f"{width} columns: say how many .*columns={width}"):
            knn(torch.zeros(11, width), offsets, 3)
    for columns in (0, 5, -1):
        with pytest.raises(ValueError, match="columns must be 1 to"):
            knn(particles, offsets, 3, columns=columns)
