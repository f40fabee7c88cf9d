from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jetkern.jets import offsets_from_counts
from jetkern.ops import attention_block
from jetkern.ops.parameters import tensors
from tests.ops.helpers import (
    HURTING,
    check_accuracy,
    check_alphas,
    generator,
    random_block,
    threads,
)

WIDTHS = [(32, 64, 4), (20, 40, 4), (16, 24, 2), (18, 12, 1)]  # width, hidden width, heads


def rows(counts: list[int], width: int, prefix: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Rows and their offsets, and the offsets of particles: with a prefix of 0 to 5 tokens."""
    particles = torch.tensor(counts, dtype=torch.int64)
    offsets = offsets_from_counts(particles + prefix * (torch.arange(len(counts)) % 6))
    x = torch.randn(int(offsets[-1]), width, generator=generator(3))
    return x, offsets, offsets_from_counts(particles)


def run(x, offsets, block, heads, bias=None, particles=None, backend="auto") -> Tensor:
    return attention_block(x, offsets, block, heads, bias, particles, backend=backend)


@pytest.mark.parametrize("counts", HURTING.values(), ids=HURTING)
@pytest.mark.parametrize(("width", "hidden", "heads"), WIDTHS)
def test_cpu_accuracy(counts: list[int], width: int, hidden: int, heads: int) -> None:
    x, offsets, _ = rows(counts, width, False)
    check_accuracy(run, x, offsets, random_block(width, hidden), heads)


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("counts", HURTING.values(), ids=HURTING)
@pytest.mark.parametrize(("width", "hidden", "heads"), WIDTHS)
def test_cpu_accuracy_with_bias(
    counts: list[int], width: int, hidden: int, heads: int, prefix: bool
) -> None:
    x, offsets, particles = rows(counts, width, prefix)
    pairs = int(particles.diff().square().sum())
    bias = torch.randn(heads, pairs, generator=generator(4))
    check_accuracy(run, x, offsets, random_block(width, hidden), heads, bias, particles)


def test_cpu_accuracy_of_the_alphas() -> None:
    x, offsets, _ = rows([40] * 60, 32, False)

    def attend(x, block, backend) -> Tensor:
        return attention_block(x, offsets, block, 4, backend=backend)

    check_alphas(attend, x, [random_block(32, 64)])


def test_cpu_accuracy_without_optional_weights() -> None:
    x, offsets, _ = rows([9, 2, 30], 12, False)
    check_accuracy(run, x, offsets, random_block(12, 20, bias1=False, norm=False, bias2=False), 3)


def test_cpu_accuracy_of_a_wide_block() -> None:
    x, offsets, _ = rows([21, 3], 200, False)
    check_accuracy(run, x, offsets, random_block(200, 360), 8)


def test_cpu_accuracy_of_a_block_whose_gradient_is_summed_in_turn() -> None:
    x, offsets, _ = rows([40] * 12, 384, False)  # more than one tile
    check_accuracy(run, x, offsets, random_block(384, 768), 8)


def test_large_scores_do_not_overflow() -> None:
    x, offsets, particles = rows([9, 20], 8, True)
    pairs = int(particles.diff().square().sum())
    bias = 300 * torch.randn(2, pairs, generator=generator(4))
    ours, reference = (
        run(x, offsets, random_block(8, 8), 2, bias, particles, b) for b in ("cpu", "reference")
    )
    torch.testing.assert_close(ours, reference)


@pytest.mark.parametrize("width", [16, 384])  # of the latter the gradient is summed in turn
def test_the_same_bits_with_any_number_of_threads(width: int) -> None:
    x, offsets, particles = rows([40, 3, 90] * 8, width, True)
    bias = torch.randn(2, int(particles.diff().square().sum()), generator=generator(4))
    block = random_block(width, 24 if width == 16 else 768)
    leaves = [x.requires_grad_(), block.mlp.fc1_weight.requires_grad_(), bias.requires_grad_()]
    results = []
    for n in (1, 2, 3, 4):
        with threads(n):
            out = run(x, offsets, block, 2, bias, particles, "cpu")
            results.append([out.detach(), *torch.autograd.grad(out.square().sum(), leaves)])
    for result in results[1:]:
        assert all(a.equal(b) for a, b in zip(result, results[0], strict=True))


def test_many_tiny_jets() -> None:
    x, offsets, _ = rows([1, 0, 2] * 24_000, 8, False)
    out = run(x, offsets, random_block(8, 8), 2, backend="cpu")
    want = run(x[-3:], torch.tensor([0, 1, 3]), random_block(8, 8), 2, backend="reference")
    torch.testing.assert_close(out[-3:], want)


def test_inputs_need_not_be_contiguous() -> None:
    x, offsets, particles = rows([9, 8], 16, True)
    bias = torch.randn(2, int(particles.diff().square().sum()), generator=generator(4))
    want = run(x, offsets, random_block(16, 24), 2, bias, particles, "cpu")
    strided = x.t().contiguous().t(), offsets.repeat_interleave(2)[::2]
    have = run(*strided, random_block(16, 24), 2, bias.t().contiguous().t(), particles, "cpu")
    assert have.equal(want)


def test_weights_of_wrong_shapes_and_heads_are_named() -> None:
    x, offsets, _ = rows([4, 5], 8, False)
    block = random_block(8, 12)
    turned = block._replace(mlp=block.mlp._replace(fc2_weight=block.mlp.fc2_weight.t()))
    with pytest.raises(ValueError, match=r"parameters\.mlp\.fc2_weight must have shape"):
        run(x, offsets, turned, 2, backend="cpu")
    for heads in (0, 3):
        with pytest.raises(ValueError, match=f"heads must divide the width 8, got {heads}"):
            run(x, offsets, block, heads, backend="cpu")


def test_offsets_of_particles_have_the_type_of_offsets() -> None:
    x, offsets, particles = rows([4, 5], 8, False)
    bias = torch.zeros(2, 41)
    small = run(x, offsets.int(), random_block(8, 8), 2, bias, particles.int(), "cpu")
    assert small.equal(run(x, offsets, random_block(8, 8), 2, bias, particles, "cpu"))
    with pytest.raises(ValueError, match="particle_offsets must be"):
        run(x, offsets, random_block(8, 8), 2, bias, particles.double(), "cpu")


@pytest.mark.parametrize("broken", ["offsets", "particles", "bias"])
def test_inconsistent_sizes_are_errors(broken: str) -> None:
    x, offsets, particles = rows([4, 5], 8, False)
    bias = torch.zeros(2, 41)
    if broken == "offsets":
        offsets = offsets + 1
    elif broken == "particles":
        particles = torch.tensor([0, 5, 9])
    else:
        bias = bias[:, 1:]
    with pytest.raises(RuntimeError):
        run(x, offsets, random_block(8, 8), 2, bias, particles, "cpu")


def test_opcheck_and_compile() -> None:
    x, offsets, particles = rows([5, 0, 3], 8, True)
    bias = torch.randn(2, 34, generator=generator(4))
    block = random_block(8, 12)
    arguments = (
        x.clone().requires_grad_(),
        offsets,
        [w.clone().requires_grad_() for w in tensors(block)],
        bias.clone().requires_grad_(),
        particles,
        2,
        12,
        7,
        False,
    )
    torch.library.opcheck(torch.ops.jetkern.attention_block, arguments)
    want = run(x, offsets, block, 2, bias, particles, "cpu")
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert compiled(x, offsets, block, 2, bias, particles, "cpu").equal(want)
