from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jetkern.ops import knn, local_block
from jetkern.ops.parameters import tensors
from tests.ops.helpers import (
    HURTING,
    check_accuracy,
    check_alphas,
    random_block,
    random_mlp,
    random_particles,
    threads,
)

WIDTHS = [(32, 64, 4, 15), (20, 40, 4, 5), (16, 24, 2, 4)]  # width, hidden width, heads, K


def inputs(counts: list[int], width: int, hidden: int, k: int, blocks: int = 2, **parts: bool):
    particles, offsets = random_particles(counts)
    neighbours = knn(particles, offsets, k, backend="reference")
    weights = [random_block(width, hidden, seed=b, **parts) for b in range(blocks)]
    return particles, neighbours, random_mlp(7, 2 * width, width, **parts), weights


def run(particles, neighbours, embed, blocks, heads, backend="auto") -> Tensor:
    return local_block(particles, neighbours, embed, blocks, int(heads), backend=backend)


@pytest.mark.parametrize("counts", HURTING.values(), ids=HURTING)
@pytest.mark.parametrize(("width", "hidden", "heads", "k"), WIDTHS)
def test_cpu_accuracy(counts: list[int], width: int, hidden: int, heads: int, k: int) -> None:
    check_accuracy(run, *inputs(counts, width, hidden, k), heads, fixed=(0,))


def test_cpu_accuracy_of_the_alphas() -> None:
    particles, neighbours, embed, blocks = inputs([40] * 10, 128, 256, 10)

    def local(particles, embed, *blocks, backend) -> Tensor:
        return local_block(particles, neighbours, embed, blocks, 8, backend=backend)

    check_alphas(local, particles, [embed, *blocks])


@pytest.mark.parametrize("blocks", [1, 3])
def test_cpu_accuracy_without_optional_weights(blocks: int) -> None:
    parts = {"bias1": False, "norm": False, "bias2": False}
    check_accuracy(run, *inputs([9, 2], 12, 20, 3, blocks, **parts), 3, fixed=(0,))


def test_cpu_accuracy_of_a_wide_block() -> None:
    check_accuracy(run, *inputs([21, 3], 200, 360, 6, 1), 8, fixed=(0,))


def test_cpu_accuracy_of_a_block_whose_gradient_is_summed_in_turn() -> None:
    check_accuracy(run, *inputs([40, 50], 320, 640, 3, 2), 8, fixed=(0,))  # more than one tile


def test_neighbours_may_be_missing_anywhere_and_come_in_any_order() -> None:
    particles, neighbours, embed, blocks = inputs([12, 3], 16, 24, 4)
    shuffled = neighbours[:, [2, 0, 3, 1]]
    shuffled[5] = torch.tensor([-1, 7, -1, 2])
    ours = run(particles, shuffled, embed, blocks, 2, "cpu")
    torch.testing.assert_close(ours, run(particles, shuffled, embed, blocks, 2, "reference"))
    assert not ours[12:].equal(ours[:3])


def test_a_particle_without_neighbours_gives_exactly_zero() -> None:
    out = run(*inputs([1, 4, 1], 16, 24, 4), 2, "cpu")
    assert (out[[0, 5]] == 0).all()
    assert (out[1:5] != 0).all()


def test_coinciding_particles() -> None:
    particles, neighbours, embed, blocks = inputs([6], 16, 24, 4)
    particles[3] = particles[1]
    check_accuracy(run, particles, neighbours, embed, blocks, 2, fixed=(0,))


def test_the_same_bits_with_any_number_of_threads() -> None:
    *tensors, embed, blocks = inputs([40] * 20, 16, 24, 5)
    leaves = [tensors[0].requires_grad_(), blocks[0].qkv_weight.requires_grad_()]
    results = []
    for n in (1, 2, 3, 4):
        with threads(n):
            out = run(*tensors, embed, blocks, 2, "cpu")
            results.append([out.detach(), *torch.autograd.grad(out.square().sum(), leaves)])
    for result in results[1:]:
        assert all(a.equal(b) for a, b in zip(result, results[0], strict=True))


def test_many_tiny_jets() -> None:
    particles, neighbours, embed, blocks = inputs([1, 0, 2] * 24_000, 8, 8, 2, 1)
    out = run(particles, neighbours, embed, blocks, 1, "cpu")
    small = run(particles[:3], neighbours[:3], embed, blocks, 1, "reference")
    torch.testing.assert_close(out[:3], small)
    last = neighbours[-2:] - (len(particles) - 2)
    torch.testing.assert_close(out[-2:], run(particles[-2:], last, embed, blocks, 1, "reference"))


def test_inputs_need_not_be_contiguous() -> None:
    particles, neighbours, embed, blocks = inputs([9, 8], 16, 24, 4)
    want = run(particles, neighbours, embed, blocks, 2, "cpu")
    embed = embed._replace(fc1_weight=embed.fc1_weight.t().contiguous().t())
    spread = particles.repeat_interleave(2, 1)[:, ::2]
    assert run(spread, neighbours.t().contiguous().t(), embed, blocks, 2, "cpu").equal(want)


@pytest.mark.parametrize("counts", HURTING.values(), ids=HURTING)
def test_cpu_accuracy_of_the_gradient_of_the_particles(counts: list[int]) -> None:
    check_accuracy(run, *inputs(counts, 16, 24, 4), 2)


def test_cpu_accuracy_of_the_gradient_of_particles_that_coincide_or_nearly_do() -> None:
    particles, neighbours, embed, blocks = inputs([12, 6], 16, 24, 4)
    particles[3, :2] = particles[4, :2]
    particles[5] = particles[6]
    particles[7, :2] = particles[8, :2] + torch.tensor([1e-3, 0.0])  # terms of 1e3 that cancel
    particles[9, 2] = particles[10, 2]  # the smaller pT is both
    particles[12:, :2] *= 20
    neighbours = knn(particles, torch.tensor([0, 12, 18]), 4, backend="reference")
    check_accuracy(run, particles, neighbours, embed, blocks, 2, tiny=1e-5)


def test_a_neighbour_beyond_the_last_particle_is_an_error() -> None:
    particles, neighbours, embed, blocks = inputs([9], 16, 24, 4)
    neighbours[3, 1] = 9
    with pytest.raises(RuntimeError, match="beyond the last particle"):
        run(particles, neighbours, embed, blocks, 2, "cpu")


def test_weights_of_wrong_shapes_and_heads_are_named() -> None:
    particles, neighbours, embed, blocks = inputs([9], 16, 24, 4)
    turned = blocks[1]._replace(qkv_weight=blocks[1].qkv_weight.t())
    with pytest.raises(ValueError, match=r"blocks\[1\].qkv_weight must have shape"):
        run(particles, neighbours, embed, [blocks[0], turned], 2, "cpu")
    with pytest.raises(ValueError, match="heads must divide the width 16, got 5"):
        run(particles, neighbours, embed, blocks, 5, "cpu")
    with pytest.raises(ValueError, match="blocks is empty"):
        run(particles, neighbours, embed, [], 2, "cpu")


def test_opcheck_and_compile() -> None:
    particles, neighbours, embed, blocks = inputs([5, 0, 3], 8, 12, 3)
    weights = [w.clone().requires_grad_() for w in tensors(embed, *blocks)]
    leaf = particles.clone().requires_grad_()
    arguments = (leaf, neighbours.contiguous(), weights, 8, 2, 2, 16, 7, 12, 7, False)
    torch.library.opcheck(torch.ops.jetkern.local_block, arguments)
    want = run(particles, neighbours, embed, blocks, 2, "cpu")
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert compiled(particles, neighbours, embed, blocks, 2, "cpu").equal(want)
