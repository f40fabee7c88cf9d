"""What the tests of the ops share: random weights, jets that hurt, comparison with float64."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.accuracy import fault
from jetkern.jets import offsets_from_counts
from jetkern.ops import dispatch
from jetkern.ops.parameters import BlockParameters, MLPParameters, tensors

# Numbers of particles: empty jets, one particle, around K = 5 and around vectors, the longest.
HURTING = {
    "no jets": [],
    "empty": [0, 0],
    "one": [1],
    "mixed": [0, 1, 2, 5, 0, 6, 15, 16, 17, 3, 33],
    "longest": [150, 1],
    "last empty": [7, 0],
}

for _op in (
    "attention", "attention_block", "causal_attention", "decode_attention", "knn", "linear",
    "linear_cross_entropy", "linear_cross_entropy_sum", "local_block", "mlp", "nearest_code",
    "pair_bias", "pair_mlp", "sample_linear", "spline",
):  # fmt: skip
    importlib.import_module(f"jetkern.ops.{_op}.cpu")  # registers torch.ops.jetkern, for opcheck
dispatch.cpu_library()


TRITON = not dispatch.triton_package()
BACKENDS = ["reference", "cpu", *(["triton"] if TRITON else [])]
needs_triton = pytest.mark.skipif(not TRITON, reason=dispatch.triton_package())


def triton_device() -> str:
    """Where Triton kernels run in this process: the GPU, or CPU tensors in its interpreter."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@contextmanager
def threads(n: int) -> Iterator[None]:
    """PyTorch on n threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def random_particles(counts: list[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """(T, 4) particles of jets with the given numbers of them, and the offsets."""
    offsets = offsets_from_counts(torch.tensor(counts, dtype=torch.int64))
    rows = torch.randn(int(offsets[-1]), 4, generator=generator(seed))
    return rows * torch.tensor([0.2, 0.2, 1.0, 1.0]) + torch.tensor([0.0, 0.0, 2.0, 3.0]), offsets


def random_mlp(
    inputs: int,
    hidden: int,
    outputs: int,
    *,
    bias1: bool = True,
    norm: bool = True,
    bias2: bool = True,
    seed: int = 0,
) -> MLPParameters:
    g = generator(seed)
    return MLPParameters(
        torch.randn(hidden, inputs, generator=g) * inputs**-0.5,
        0.1 * torch.randn(hidden, generator=g) if bias1 else None,
        0.5 + 0.1 * torch.randn(1, generator=g) if norm else None,
        1.0 + 0.2 * torch.randn(hidden, generator=g) if norm else None,
        torch.randn(outputs, hidden, generator=g) * hidden**-0.5,
        0.1 * torch.randn(outputs, generator=g) if bias2 else None,
    )


def random_block(width: int, hidden: int, *, seed: int = 0, **parts: bool) -> BlockParameters:
    g = generator(seed + 1000)
    return BlockParameters(
        0.5 + 0.1 * torch.randn(1, generator=g),
        1.0 + 0.2 * torch.randn(width, generator=g),
        1.5 * torch.randn(3 * width, width, generator=g) * width**-0.5,
        torch.randn(width, width, generator=g) * width**-0.5,
        0.5 + 0.1 * torch.randn(1, generator=g),
        1.0 + 0.2 * torch.randn(width, generator=g),
        random_mlp(width, hidden, width, seed=seed, **parts),
    )


def convert(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """``function`` applied to every float tensor in nested tuples and lists."""
    if isinstance(value, Tensor):
        return function(value) if value.is_floating_point() else value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(convert(v, function) for v in value))
    if isinstance(value, (tuple, list)):
        return type(value)(convert(v, function) for v in value)
    return value


def moved(value: Any, device: str) -> Any:
    """Nested tuples and lists with every tensor on ``device``."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(moved(v, device) for v in value))
    if isinstance(value, (tuple, list)):
        return type(value)(moved(v, device) for v in value)
    return value


def result_and_gradients(
    op: Callable[..., Tensor],
    inputs: tuple[Any, ...],
    dtype: torch.dtype,
    backend: str,
    fixed: tuple[int, ...] = (),
    **options: Any,
) -> list[Tensor]:
    """The op's result, then the gradient of each float tensor of ``inputs`` in order.

    Inputs whose positions are in ``fixed`` get no gradient. On the CPU, wherever ``backend`` runs;
    ``options`` are passed to the op.
    """
    leaves: list[Tensor] = []

    def leaf(tensor: Tensor) -> Tensor:
        leaves.append(tensor.detach().to(dtype).requires_grad_())
        return leaves[-1]

    values = [
        convert(v, (lambda t: t.to(dtype)) if i in fixed else leaf) for i, v in enumerate(inputs)
    ]
    device = triton_device() if backend == "triton" else "cpu"
    out = op(*moved(values, device), backend=backend, **options).to("cpu")
    upstream = torch.randn(out.shape, generator=generator(7)).to(dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]


def check_accuracy(
    op: Callable[..., Tensor],
    *inputs: Any,
    fixed: tuple[int, ...] = (),
    backend: str = "cpu",
    tiny: float = 1e-6,
    precision: str = "ieee",
    chained: int = 1,
) -> list[Tensor]:
    """Asserts that result and gradients are as accurate as ``bench.accuracy.fault`` asks.

    The gradients of alphas are held against eager's by ``check_alphas``. Returns what ``backend``
    computed.
    """
    exact = result_and_gradients(op, inputs, torch.float64, "reference", fixed)
    eager = result_and_gradients(op, inputs, torch.float32, "reference", fixed)
    options = {} if precision == "ieee" else {"precision": precision}
    ours = result_and_gradients(op, inputs, torch.float32, backend, fixed, **options)
    assert fault(exact, eager, ours, precision, tiny=tiny, chained=chained) == ""
    return ours


def check_alphas(
    op: Callable[..., Tensor],
    x: Tensor,
    weights: Sequence[MLPParameters | BlockParameters],
    eager: Callable[..., Tensor] | None = None,
    **options: str,
) -> None:
    """Asserts that on the CPU gradients of alphas err at most twice as much as eager float32's.

    Each is one number, which eager may get right by luck: what counts is the root mean square over
    all alphas, each relative to its size, and 16 upstream gradients. ``eager`` is ``op`` on the
    reference, or what else to compare with; ``options`` are passed to ours.
    """

    def gradients(dtype: torch.dtype, op: Callable[..., Tensor] = op, **options: str) -> Tensor:
        parameters = convert(weights, lambda t: t.detach().to(dtype).requires_grad_())
        alphas = [t for t in tensors(*parameters) if t.shape == (1,)]
        out = op(x.to(dtype), *parameters, **options)
        draws = [torch.randn(out.shape, generator=generator(seed)) for seed in range(16)]
        found = [torch.autograd.grad(out, alphas, d.to(dtype), retain_graph=True) for d in draws]
        return torch.stack([torch.cat(g) for g in found])

    exact = gradients(torch.float64, backend="reference")
    plain = gradients(torch.float32, eager or op, backend="reference")
    ours = gradients(torch.float32, backend="cpu", **options)
    size = exact.square().mean(0).sqrt()
    error, allowed = (((g - exact) / size).square().mean().sqrt() for g in (ours, plain))
    assert error <= 2 * allowed, f"error {error:.2e}, of eager {allowed:.2e}"
