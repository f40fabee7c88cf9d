"""The ops as the presets use them: modules, inputs, calls, and whether a result is right."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench.accuracy import fault
from jetkern import ops
from jetkern.jets import Jets
from jetkern.model.layers import MLP, AttentionBlock, LocalBlock, initialise
from jetkern.model.presets import SIZES
from jetkern.ops import dispatch
from jetkern.ops.pair_features import DEFAULT
from jetkern.random import random_bits

OPS = (
    "knn", "pair_bias", "pair_mlp", "attention", "attention_block", "causal_attention",
    "decode_attention", "linear_cross_entropy", "linear_cross_entropy_sum", "sample_linear",
    "local_block", "mlp", "nearest_code", "spline",
)  # fmt: skip
PARTICLES = {  # of a batch: so that memory suffices, on a GPU for the peers
    "cpu": {"micro": 2400, "small": 1200, "medium": 600},
    "cuda": {"micro": 160_000, "small": 80_000, "medium": 20_000, "large": 10_000},
}
MADE_FOR = {"cpu": ("cpu",), "cuda": ("triton",)}
CODES = 1024  # of a codebook
BINS = 8  # of a spline
CLASSES = 8194  # of a vocabulary
TINY = 1e-5  # error relative to the largest element that is never held against an op of this size


class Fixed(nn.Module):
    """A matrix that gets no gradient: the codes of a tokeniser, or what draws a class."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.randn(rows, columns))


class Case(NamedTuple):
    """``run(module, inputs, backend, precision)``; gradients of weights and ``inputs[:wanted]``.

    ``half`` are the inputs that are kept in bfloat16 at that precision.
    """

    module: nn.Module
    inputs: list[Tensor]
    wanted: int
    run: Callable[[Any, list[Tensor], str, str], Tensor]
    half: tuple[int, ...] = ()
    packed: tuple[Tensor, ...] = ()  # what the padded peers of attention need

    def prepare(
        self, dtype: torch.dtype, precision: str, store: bool = True
    ) -> tuple[nn.Module, list[Tensor], list[Tensor]]:
        """Module, inputs and the leaves that get a gradient, in ``dtype``.

        Inputs named in ``half`` are rounded to bfloat16 and, with ``store``, kept in it.
        """
        module = copy.deepcopy(self.module).to(dtype)
        on_gpu = self.inputs[0].device.type == "cuda"  # the C++ ops take float32
        rounded = self.half if precision == "bf16" and on_gpu else ()
        inputs = []
        for i, tensor in enumerate(self.inputs):
            kept = tensor.to(torch.bfloat16) if i in rounded else tensor
            inputs.append(kept.to(kept.dtype if store and i in rounded else dtype, copy=True))
        leaves = [t.requires_grad_() for t in inputs[: self.wanted]]
        return module, inputs, [*leaves, *module.parameters()]


def make(op: str, size: str, jets: Jets) -> Case:
    """The op as the model of that size uses it, on the jets' device."""
    torch.manual_seed(0)
    shape = SIZES[size]
    dim, heads, k = shape["dim"], shape["heads"], shape["neighbours"]
    particles, offsets = jets.particles, jets.offsets
    device = particles.device
    rows = offsets + 4 * torch.arange(len(offsets), device=device)  # four global tokens
    lengths = jets.counts.clamp(min=1)
    keys = random_bits(0, 0, torch.arange(len(particles), device=device))
    pairs = int(jets.counts.square().sum())
    bias = torch.randn(heads, pairs, device=device)
    i, j = ops.unordered_pairs(offsets)
    neighbours = ops.knn(particles, offsets, k)
    tokens = torch.randn(3, int(rows[-1]), heads, dim // heads, device=device)

    def vocabulary(op: Callable[..., Tensor]) -> Case:
        target = torch.arange(len(particles), device=device) % CLASSES
        return Case(
            nn.Linear(dim, CLASSES),
            [torch.randn(len(particles), dim, device=device)],
            1,
            lambda m, t, b, p: op(t[0], m.weight, m.bias, target, precision=p, backend=b),
            (0,),
        )

    cases = {
        "knn": lambda: Case(
            nn.Module(), [particles], 0, lambda _, t, b, p: ops.knn(t[0], offsets, k, backend=b)
        ),
        "pair_bias": lambda: Case(
            MLP(3, 2 * dim, heads, norm=False),
            [particles],
            0,
            lambda m, t, b, p: ops.pair_bias(
                t[0], offsets, m.weights, num_pairs=pairs, precision=p, backend=b
            ),
        ),
        "pair_mlp": lambda: Case(  # Particle Transformer's, without its norms
            nn.Sequential(*map(nn.Linear, (4, 64, 64, 64), (64, 64, 64, heads))),
            [ops.pair_features(particles[i], particles[j], (*DEFAULT, "ln_z"))],
            0,
            lambda m, t, b, p: ops.pair_mlp(
                t[0],
                offsets,
                [ops.LinearParameters(x.weight, x.bias) for x in m],
                num_pairs=pairs,
                backend=b,
            ),
        ),
        "attention": lambda: Case(
            nn.Module(),
            [*tokens, bias],
            4,
            lambda _, t, b, p: ops.attention(
                t[0], t[1], t[2], rows, rows, t[3], offsets, precision=p, backend=b
            ),
            (0, 1, 2, 3),
            (rows, offsets),
        ),
        "attention_block": lambda: Case(
            AttentionBlock(dim, heads, 2),
            [tokens[0].flatten(1), bias],
            2,
            lambda m, t, b, p: ops.attention_block(
                t[0], rows, m.weights, heads, t[1], offsets, precision=p, backend=b
            ),
            (1,),
        ),
        "causal_attention": lambda: Case(
            nn.Module(),
            list(torch.randn(3, len(particles), heads, dim // heads, device=device)),
            3,
            lambda _, t, b, p: ops.causal_attention(
                t[0], t[1], t[2], offsets, precision=p, backend=b
            ),
            (0, 1, 2),
            (offsets,),
        ),
        "decode_attention": lambda: Case(  # of the last row of each jet
            nn.Module(),
            [
                torch.randn(len(jets), heads, dim // heads, device=device),
                *torch.randn(2, len(jets), int(lengths.max()), heads, dim // heads, device=device),
            ],
            0,
            lambda _, t, b, p: ops.decode_attention(
                t[0], t[1], t[2], lengths, precision=p, backend=b
            ),
            (0, 1, 2),
        ),
        "linear_cross_entropy": lambda: vocabulary(ops.linear_cross_entropy),
        "linear_cross_entropy_sum": lambda: vocabulary(ops.linear_cross_entropy_sum),
        "sample_linear": lambda: Case(
            Fixed(CLASSES, dim),
            [torch.randn(len(particles), dim, device=device)],
            0,
            lambda m, t, b, p: ops.sample_linear(
                t[0], m.matrix, None, keys, precision=p, backend=b
            ),
            (0,),
        ),
        "local_block": lambda: Case(
            LocalBlock(dim, heads, shape.get("head_layers", 2), 2),
            [particles],
            0,
            lambda m, t, b, p: ops.local_block(
                t[0],
                neighbours,
                m.embed.weights,
                [x.weights for x in m.blocks],
                heads,
                precision=p,
                backend=b,
            ),
        ),
        "mlp": lambda: Case(
            MLP(4, 2 * dim, dim),
            [particles],
            0,
            lambda m, t, b, p: ops.mlp(t[0], m.weights, precision=p, backend=b),
        ),
        "nearest_code": lambda: Case(
            Fixed(CODES, 4),
            [particles],
            0,
            lambda m, t, b, p: ops.nearest_code(t[0], m.matrix, backend=b),
        ),
        "spline": lambda: Case(  # two features of each particle, as of a coupling
            nn.Module(),
            [
                torch.randn(len(particles), 2, device=device),
                torch.randn(len(particles), 2, 3 * BINS - 1, device=device),
            ],
            2,
            lambda _, t, b, p: torch.stack(ops.spline(*t, backend=b), -1),
        ),
    }
    case = cases[op]()
    initialise(case.module)
    return case._replace(module=case.module.to(device))


def our_backends(op: str, device: str) -> list[str]:
    """Our backends that run ``op`` here, best first; the reference is a peer."""
    return [
        b
        for b in dispatch.backends_of(op)
        if b in MADE_FOR[device] and not dispatch.unavailable(op, b, device, torch.float32)
    ]


def outcome(case: Case, backend: str, dtype: torch.dtype, precision: str) -> list[Tensor]:
    """Result and gradients."""
    ours = backend != "reference"
    module, inputs, leaves = case.prepare(dtype, precision, store=ours)
    out = case.run(module, inputs, backend, precision)
    if not leaves:
        return [out]
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    upstream = upstream.to(out.device, out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]


def wrong(case: Case, backend: str, precision: str = "ieee") -> str:
    """What is wrong with our result, "" if nothing."""
    exact, eager, ours = (
        outcome(case, b, d, precision)
        for b, d in (
            ("reference", torch.float64),
            ("reference", torch.float32),
            (backend, torch.float32),
        )
    )
    return fault(exact, eager, ours, precision, tiny=TINY)
