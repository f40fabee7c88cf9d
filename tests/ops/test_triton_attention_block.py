"""The Triton kernels in Triton's interpreter; on a GPU the same tests run on it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jetkern.ops import attention_block
from tests.ops.helpers import (
    HURTING,
    check_accuracy,
    generator,
    moved,
    random_block,
    triton_device,
)
from tests.ops.test_attention_block import rows

pytest.importorskip("triton", reason="needs Triton")

# width, hidden width, heads: fused twice, in pieces
WIDTHS = [(32, 64, 4), (36, 40, 3), (136, 72, 4)]
COUNTS = {k: v for k, v in HURTING.items() if k != "longest"} | {"long": [70, 1]}
CASES = [(WIDTHS[0], counts) for counts in COUNTS.values()]
CASES += [(sizes, counts) for sizes in WIDTHS[1:] for counts in ([0, 0], [1], [5, 0, 17, 1, 2])]


def run(x, offsets, block, heads, bias=None, particles=None, **options) -> Tensor:
    return attention_block(x, offsets, block, heads, bias, particles, **options)


def biased(counts: list[int], width: int, heads: int) -> tuple[Tensor, ...]:
    x, offsets, particles = rows(counts, width, True)
    pairs = int(particles.diff().square().sum())
    return x, offsets, particles, torch.randn(heads, pairs, generator=generator(4))


@pytest.mark.parametrize(("sizes", "counts"), CASES, ids=str)
def test_accuracy_with_bias(sizes: tuple[int, int, int], counts: list[int]) -> None:
    width, hidden, heads = sizes
    x, offsets, particles, bias = biased(counts, width, heads)
    # The bias of a particle alone has no effect: the rounding of 0 has no scale.
    fixed = (4,) if max(counts, default=0) < 2 else ()
    block = random_block(width, hidden)
    check_accuracy(run, x, offsets, block, heads, bias, particles, fixed=fixed, backend="triton")


@pytest.mark.parametrize("parts", [{"norm": False}, {"bias1": False, "bias2": False}], ids=str)
@pytest.mark.parametrize(("width", "hidden", "heads"), WIDTHS)
def test_accuracy_without_optional_weights(
    width: int, hidden: int, heads: int, parts: dict[str, bool]
) -> None:
    x, offsets, _ = rows([9, 2, 17], width, False)
    check_accuracy(run, x, offsets, random_block(width, hidden, **parts), heads, backend="triton")


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize(("width", "hidden", "heads"), WIDTHS)
def test_accuracy_of_rounded_products(width: int, hidden: int, heads: int, precision: str) -> None:
    x, offsets, particles, bias = biased([20, 3, 11], width, heads)
    block = random_block(width, hidden)
    inputs = (run, x, offsets, block, heads, bias, particles)
    check_accuracy(*inputs, backend="triton", precision=precision, chained=4)


def test_heads_too_wide_for_the_kernels_go_to_the_reference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JETKERN_BACKEND", "triton")
    x, offsets, _ = rows([5], 160, False)
    block = moved(random_block(160, 20), triton_device())
    inputs = (x.to(triton_device()), offsets.to(triton_device()), block, 1)
    torch.testing.assert_close(run(*inputs, backend="auto"), run(*inputs, backend="reference"))


@pytest.mark.parametrize(("width", "hidden", "heads"), WIDTHS)
def test_the_same_bits_twice_and_bfloat16(width: int, hidden: int, heads: int) -> None:
    x, offsets, particles, bias = moved(biased([20, 3, 0, 11], width, heads), triton_device())
    block = moved(random_block(width, hidden), triton_device())
    leaves = [x, bias, block.qkv_weight, block.out_weight, block.alpha1, block.mlp.fc1_weight]
    for leaf in leaves:
        leaf.requires_grad_()
    results = []
    for _ in range(2):
        out = run(x, offsets, block, heads, bias, particles, backend="triton")
        results.append([out.detach(), *torch.autograd.grad(out.square().sum(), leaves)])
    assert all(a.equal(b) for a, b in zip(*results, strict=True))
    want = results[0][0]
    options = {"backend": "triton", "precision": "bf16"}
    half = run(x.bfloat16(), offsets, block, heads, bias.bfloat16(), particles, **options)
    assert half.dtype == torch.bfloat16
    assert (half - want).square().mean() < 1e-4 * want.square().mean()


def test_inputs_need_not_be_contiguous() -> None:
    x, offsets, particles, bias = moved(biased([9, 8], 32, 4), triton_device())
    block = moved(random_block(32, 64), triton_device())
    want = run(x, offsets, block, 4, bias, particles, backend="triton")
    strided = x.t().contiguous().t(), offsets.repeat_interleave(2)[::2]
    bias = bias.t().contiguous().t()
    assert run(*strided, block, 4, bias, particles, backend="triton").equal(want)


@pytest.mark.parametrize("width", [16, 136])
def test_registration(width: int) -> None:
    x, offsets, particles, bias = moved(biased([5, 0, 3], width, 2), triton_device())
    block = moved(random_block(width, 24, bias1=False), triton_device())
    leaves = [None if w is None else w.requires_grad_() for w in (*block[:-1], *block.mlp)]
    ends = particles.diff().square().cumsum(0)
    arguments = (x.requires_grad_(), offsets, *leaves, bias.requires_grad_(), particles, ends)
    inputs = (x, offsets, block, 2, bias, particles)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert compiled(*inputs, backend="triton").equal(run(*inputs, backend="triton"))
    torch.library.opcheck(torch.ops.jetkern_triton.attention_block.default, (*arguments, 2, "ieee"))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["ieee", "tf32", "bf16"])
@pytest.mark.parametrize("width", [32, 128, 512])
def test_compiles_and_replays(width: int, precision: str) -> None:
    x, offsets, particles, bias = moved(biased([40, 3, 0, 150] * 50, width, 8), "cuda")
    block = moved(random_block(width, 2 * width), "cuda")
    inputs = (x, offsets, block, 8, bias, particles)
    options = {"backend": "triton", "precision": precision}
    want = run(*inputs, **options)
    assert torch.compile(run, fullgraph=True)(*inputs, **options).equal(want)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(*inputs, **options)
    graph.replay()
    assert out.equal(want)
