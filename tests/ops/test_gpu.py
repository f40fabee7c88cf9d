"""The GPU kernels on a GPU: what Triton's interpreter cannot show.

Accuracy and hurting shapes of each op are in ``test_triton_<op>.py``, which run on the GPU where
there is one; here are precisions at the presets' sizes, size limits, determinism, graphs, memory.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench.cases import OPS, Case, make, our_backends, outcome, wrong
from bench.jets import batch
from jetkern import ops
from jetkern.jets import Jets, offsets_from_counts
from jetkern.model.presets import SIZES
from jetkern.ops import dispatch
from tests.ops.helpers import random_particles

pytestmark = pytest.mark.gpu
BACKENDS = ("triton",)
ROOT = Path(__file__).parents[2]


def case_on_gpu(op: str, size: str, particles: int = 600, length: str = "real") -> Case:
    return make(op, size, batch(length, particles, "").to("cuda"))


def needs(op: str, backend: str) -> None:
    if backend not in our_backends(op, "cuda"):
        reason = dispatch.unavailable(op, backend, "cuda", torch.float32)
        pytest.skip(f"{op} on {backend}: {reason}")


@pytest.mark.parametrize("precision", dispatch.PRECISIONS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_accuracy_at_the_presets_sizes(backend: str, op: str, size: str, precision: str) -> None:
    needs(op, backend)
    for length in ("real", "10", "150"):
        assert wrong(case_on_gpu(op, size, 300, length), backend, precision) == ""


@pytest.mark.parametrize("precision", dispatch.PRECISIONS)
@pytest.mark.parametrize("size", ["micro", "small", "medium"])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_two_runs_give_the_same_bits(backend: str, op: str, size: str, precision: str) -> None:
    needs(op, backend)
    case = case_on_gpu(op, size, 4000)
    first, second = (outcome(case, backend, torch.float32, precision) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_more_jets_than_a_grid_axis_holds(backend: str, op: str) -> None:
    needs(op, backend)
    counts = [i % 4 for i in range(70_001)]
    particles, offsets = random_particles(counts)
    case = make(op, "micro", Jets(particles=particles, offsets=offsets).to("cuda"))
    assert wrong(case, backend) == ""


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bias_of_more_entries_than_a_32_bit_index_counts(backend: str) -> None:
    needs("attention", backend)
    jets, n, heads = 4600, 121, 32
    offsets = offsets_from_counts(torch.full((jets,), n)).cuda()
    bias = torch.zeros(heads, jets * n * n, dtype=torch.bfloat16, device="cuda")
    assert bias.numel() > 2**31
    bias[-1, -n:] = torch.arange(n, device="cuda") / 16  # last head's last query
    q, k, v = torch.randn(3, jets * n, heads, 8, device="cuda", dtype=torch.bfloat16)
    out = ops.attention(q, k, v, offsets, offsets, bias, offsets, backend=backend)
    last = slice(-n, None)
    few = torch.tensor([0, n], device="cuda")
    want = ops.attention(
        q[last], k[last], v[last], few, few, bias[:, -n * n :], few, backend="reference"
    )
    assert (out[last] - want).abs().max() < 0.05


@pytest.mark.parametrize("size", ["micro", "small", "medium"])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cuda_graph_replays_on_new_values(backend: str, op: str, size: str) -> None:
    needs(op, backend)
    case = case_on_gpu(op, size)
    module, inputs, leaves = case.prepare(torch.float32, "bf16")

    def step() -> list[Tensor]:
        out = case.run(module, inputs, backend, "bf16")
        gradients = torch.autograd.grad(out, leaves, torch.ones_like(out)) if leaves else ()
        return [out.detach(), *gradients]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for tensor in inputs:
            tensor.mul_(1.01)
    graph.replay()
    for have, want in zip(captured, step(), strict=True):
        assert torch.equal(have, want)


@pytest.mark.parametrize("op", OPS)
def test_compiles_as_one_graph(op: str) -> None:
    needs(op, "triton")
    case = case_on_gpu(op, "micro")
    module, inputs, leaves = case.prepare(torch.float32, "tf32")
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(
            lambda *tensors: case.run(module, list(tensors), "triton", "tf32"), fullgraph=True
        )
        have = compiled(*inputs)
    want = case.run(module, inputs, "triton", "tf32")
    assert torch.equal(have, want)
    if leaves:
        both = [torch.autograd.grad(out, leaves, torch.ones_like(out)) for out in (have, want)]
        for a, b in zip(*both, strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_host_synchronisation(backend: str, op: str) -> None:
    needs(op, backend)
    case = case_on_gpu(op, "small")
    module, inputs, leaves = case.prepare(torch.float32, "bf16")
    case.run(module, inputs, backend, "bf16")  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = case.run(module, inputs, backend, "bf16")
        if leaves:
            torch.autograd.grad(out, leaves, torch.ones_like(out))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_is_read_behind_the_inputs(backend: str, op: str) -> None:
    """Inputs at the very end of an allocation full of NaN, results the same to the bit."""
    needs(op, backend)
    case = case_on_gpu(op, "small")
    _, inputs, _ = case.prepare(torch.float32, "ieee")
    want = outcome(case, backend, torch.float32, "ieee")
    guarded = []
    for tensor in inputs:
        room = torch.full((tensor.numel() + 2 * 4096,), torch.nan, device="cuda")
        view = room[4096 : 4096 + tensor.numel()].view(tensor.shape)
        guarded.append(view.copy_(tensor.detach()))
    module, _, _ = case.prepare(torch.float32, "ieee")
    leaves = [t.requires_grad_() for t in guarded[: case.wanted]]
    out = case.run(module, guarded, backend, "ieee")
    have = [out.detach()]
    if parameters := [*leaves, *module.parameters()]:
        upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        have += torch.autograd.grad(out, parameters, upstream.to(out.device, out.dtype))
    for a, b in zip(have, want, strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer_finds_nothing(tool: str) -> None:
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("needs compute-sanitizer")
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", SMALL_SET]
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    if "not supported" in done.stdout:
        pytest.skip(f"compute-sanitizer refuses this device: {done.stdout.splitlines()[-1]}")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


SMALL_SET = """
import torch
from bench.cases import OPS, make, our_backends, outcome
from bench.jets import batch
for op in OPS:
    for size in ("micro", "medium"):
        case = make(op, size, batch("real", 200, "").to("cuda"))
        for backend in our_backends(op, "cuda"):
            outcome(case, backend, torch.float32, "bf16")
torch.cuda.synchronize()
"""
