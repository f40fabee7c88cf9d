"""The Triton kernels in Triton's interpreter; on a GPU the same tests run on it."""

import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from jetkern.ops import local_block
from tests.ops.helpers import (
    HURTING,
    check_accuracy,
    convert,
    result_and_gradients,
    triton_device,
)
from tests.ops.test_local_block import inputs

pytest.importorskip("triton", reason="needs Triton")

from jetkern.ops.gpu.launch import settings_asked
from jetkern.ops.local_block.triton import backward


@pytest.fixture(autouse=True)
def _round_to_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 as a GPU makes it: Triton's interpreter cuts the last bits off instead."""
    import triton.language as tl
    from triton.runtime import interpreter

    convert_float = interpreter._convert_float

    def rounded(values, source, target, mode):
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert_float(values, source, target, mode)
        bits = np.ascontiguousarray(values).view(np.uint32).astype(np.uint64)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)

    monkeypatch.setattr(interpreter, "_convert_float", rounded)


def run(particles, neighbours, embed, blocks, heads, backend="auto", precision="ieee") -> Tensor:
    """On the device that ``backend`` needs, the result on the CPU."""
    device = triton_device() if backend == "triton" else "cpu"
    tensors = convert((particles, embed, list(blocks)), lambda t: t.to(device))
    particles, embed, blocks = tensors
    out = local_block(
        particles,
        neighbours.to(device),
        embed,
        blocks,
        int(heads),
        backend=backend,
        precision=precision,
    )
    return out.cpu()


@pytest.mark.parametrize("counts", [[], [0, 0], [1], [0, 1, 2, 5, 0, 6], [7, 0]], ids=str)
def test_accuracy(counts: list[int]) -> None:
    check_accuracy(run, *inputs(counts, 32, 32, 5), 4, fixed=(0,), backend="triton")


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_accuracy_at_a_precision(precision: str) -> None:
    values = inputs([2, 12, 1, 9], 32, 32, 5)
    check_accuracy(run, *values, 4, fixed=(0,), backend="triton", precision=precision)


@pytest.mark.parametrize(
    ("precision", "kernel"),
    [("ieee", "local_embed_fwd"), ("tf32", "local_block_fwd"), ("bf16", "local_block_fwd")],
)
@pytest.mark.parametrize("k", [10, 17])
@pytest.mark.slow
def test_accuracy_of_the_widest(k: int, precision: str, kernel: str) -> None:
    """The fused kernels take width 128 but in "ieee", where they would spill."""
    values = inputs([4, 1], 128, 32, k, 1)
    with settings_asked() as asked:
        check_accuracy(run, *values, 8, fixed=(0,), backend="triton", precision=precision)
    assert kernel in {name for name, _ in asked}


@pytest.mark.parametrize(("width", "heads"), [(64, 1), (64, 8), (128, 4), (16, 8)])
def test_accuracy_of_any_head(width: int, heads: int) -> None:
    values = (*inputs([7, 1], width, 32, 4, 1), heads)
    check_accuracy(run, *values, fixed=(0,), backend="triton", precision="tf32")


@pytest.mark.parametrize("counts", [[], [0, 0], [1], [0, 1, 2, 5, 0, 6], [7, 0]], ids=str)
def test_accuracy_of_any_width(counts: list[int]) -> None:
    check_accuracy(run, *inputs(counts, 24, 40, 5), 3, fixed=(0,), backend="triton")


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_accuracy_of_any_width_at_a_precision(precision: str) -> None:
    values = inputs([2, 7], 24, 40, 5, 1)
    check_accuracy(run, *values, 3, fixed=(0,), backend="triton", precision=precision)


@pytest.mark.parametrize("width", [16, 24])
@pytest.mark.parametrize("k", [1, 7, 17])
def test_any_number_of_neighbours(width: int, k: int) -> None:
    counts = [1, k + 1]
    check_accuracy(run, *inputs(counts, width, 32, k, 1), 2, fixed=(0,), backend="triton")


@pytest.mark.parametrize("width", [16, 24])
def test_accuracy_without_optional_weights(width: int) -> None:
    parts = {"bias1": False, "norm": False, "bias2": False}
    values = inputs([9, 2], width, 32, 3, 3, **parts)
    check_accuracy(run, *values, 4, fixed=(0,), backend="triton")


@pytest.mark.parametrize("width", [16, 24])
def test_neighbours_may_be_missing_anywhere_and_come_in_any_order(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    particles, neighbours, embed, blocks = inputs([7, 3], width, 32, 4, 1)
    neighbours = neighbours[:, [2, 0, 3, 1]]
    neighbours[5] = torch.tensor([-1, 2, -1, 1])
    values = (particles, neighbours, embed, blocks, 2)
    check_accuracy(run, *values, fixed=(0,), backend="triton")
    neighbours[5] = torch.tensor([-1, 2, 10, 1])  # 10 is beyond the last particle
    with pytest.raises(ValueError, match="beyond the last particle"):
        run(*values, "triton")
    # Where looking would wait for the GPU, nothing is read outside.
    monkeypatch.setattr(sys.modules["jetkern.ops.local_block"], "readable", lambda _: False)
    assert run(*values, "triton").equal(run(*values[:1], neighbours, *values[2:], "triton"))


@pytest.mark.parametrize("width", [16, 24])
def test_a_particle_without_neighbours_gives_exactly_zero(width: int) -> None:
    out = run(*inputs([1, 4, 1], width, 32, 4, 1), 2, "triton")
    assert (out[[0, 5]] == 0).all()
    assert (out[1:5] != 0).all()


def test_coinciding_particles() -> None:
    particles, neighbours, embed, blocks = inputs([6], 16, 32, 4, 1)
    particles[3] = particles[1]
    check_accuracy(run, particles, neighbours, embed, blocks, 2, fixed=(0,), backend="triton")


@pytest.mark.parametrize("width", [16, 24])
def test_the_same_bits_twice(width: int) -> None:
    values = (*inputs([5, 2], width, 32, 4, 1), 2)
    first, second = (
        result_and_gradients(run, values, torch.float32, "triton", (0,)) for _ in range(2)
    )
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))


def test_particles_a_few_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    values = (*inputs([18, 2], 16, 32, 4, 1), 2)
    whole = result_and_gradients(run, values, torch.float32, "triton", (0,))
    monkeypatch.setattr(backward, "FACTOR_BYTES", 0)  # 16 particles at a time
    parts = result_and_gradients(run, values, torch.float32, "triton", (0,))
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", [16, 24])
def test_half_precision_and_strided_inputs(width: int) -> None:
    particles, neighbours, embed, blocks = inputs([9, 8], width, 32, 4, 1)
    half = convert((particles, embed, blocks), lambda t: t.bfloat16())
    back = convert(half, lambda t: t.float())
    ours = run(half[0], neighbours, *half[1:], 2, "triton", "bf16")
    want = run(back[0], neighbours, *back[1:], 2, "reference")
    assert ours.dtype == torch.bfloat16
    assert (ours - want).square().mean() < 1e-4 * want.square().mean()
    want = run(particles, neighbours, embed, blocks, 2, "triton")
    embed = embed._replace(fc1_weight=embed.fc1_weight.t().contiguous().t())
    spread = particles.repeat_interleave(2, 1)[:, ::2]
    columns = neighbours.t().contiguous().t()
    assert run(spread, columns, embed, blocks, 2, "triton").equal(want)


def test_gradient_of_the_particles_comes_from_the_reference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JETKERN_BACKEND", "triton")  # which leaves it; by name it is refused
    particles, neighbours, embed, blocks = inputs([9], 16, 32, 4, 1)
    particles.requires_grad_()
    ours, reference = (
        torch.autograd.grad(run(particles, neighbours, embed, blocks, 2, b).sum(), particles)[0]
        for b in ("auto", "reference")
    )
    torch.testing.assert_close(ours, reference)


def on_device(*values):
    return convert(values, lambda t: t.to(triton_device()))


def test_registration_of_the_fused_operator() -> None:
    particles, neighbours, embed, blocks = inputs([3, 0, 2], 16, 32, 3, 1)
    flat = [*embed, *blocks[0][:-1], *blocks[0].mlp]
    tensors = on_device(particles, [w.requires_grad_() for w in flat])
    arguments = (tensors[0], neighbours.to(triton_device()), tensors[1], 2, 1, 7, 7, "ieee", True)
    torch.library.opcheck(torch.ops.jetkern_triton.local_block.default, arguments)


def test_registration_of_the_pieces() -> None:
    particles, neighbours, embed, blocks = inputs([3, 0, 2], 24, 40, 3, 1)
    neighbours = neighbours.to(triton_device())
    particles, embed, blocks = on_device(particles, embed, blocks)
    op = torch.ops.jetkern_triton
    weights = [w.requires_grad_() for w in embed]
    torch.library.opcheck(op.local_embed.default, (particles, neighbours, *weights, "ieee"))
    x = torch.randn(neighbours.numel(), 24, device=particles.device, requires_grad=True)
    weights = [w.requires_grad_() for w in (*blocks[0][:-1], *blocks[0].mlp)]
    torch.library.opcheck(
        op.local_transformer.default, (x, neighbours, *weights, 3, "ieee"), atol=1e-5, rtol=1e-5
    )
    torch.library.opcheck(op.local_mean.default, (x, neighbours, torch.float32))


@pytest.mark.parametrize("width", [16, 24])
def test_compiles_whole(width: int) -> None:
    particles, neighbours, embed, blocks = inputs([5, 0, 3], width, 32, 3, 1)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    arguments = (particles, neighbours, embed, blocks, 2, "triton")
    assert compiled(*arguments).equal(run(*arguments))


@pytest.mark.gpu
def test_many_tiny_jets() -> None:
    values = (*inputs([1, 0, 2] * 24_000, 32, 64, 2, 1), 4)
    torch.testing.assert_close(run(*values, "triton"), run(*values, "reference"))


@pytest.mark.gpu
@pytest.mark.parametrize(("width", "heads", "k"), [(32, 4, 15), (128, 8, 10), (512, 16, 10)])
@pytest.mark.parametrize("precision", ["ieee", "tf32", "bf16"])
def test_accuracy_of_the_presets(width: int, heads: int, k: int, precision: str) -> None:
    for counts in HURTING.values():
        values = (*inputs(counts, width, 2 * width, k), heads)
        check_accuracy(run, *values, fixed=(0,), backend="triton", precision=precision)


@pytest.mark.gpu
@pytest.mark.parametrize("width", [32, 512])
def test_replays_in_a_cuda_graph(width: int) -> None:
    particles, neighbours, embed, blocks = inputs([30, 1, 47], width, 2 * width, 10)
    neighbours = neighbours.cuda()
    particles, embed, blocks = on_device(particles, embed, blocks)
    weight = blocks[0].qkv_weight.requires_grad_()

    def step() -> tuple[Tensor, Tensor]:
        out = local_block(particles, neighbours, embed, blocks, 4, backend="triton")
        return out, torch.autograd.grad(out.square().sum(), weight)[0]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()  # compiles
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    particles.mul_(1.1)
    graph.replay()
    assert all(a.equal(b) for a, b in zip(found, step(), strict=True))
