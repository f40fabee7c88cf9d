"""What the ops cost at least: bytes and operations counted, rates of the machine measured.

The limit of an op is the longest of three times: the bytes that must move over the bandwidth of a
large copy, the products over the rate of a large matrix product in the same precision, and the
elementwise operations over the rate of a float32 matrix product without tensor cores.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bench.cases import BINS, CLASSES, CODES
from jetkern.model.presets import SIZES, model_preset
from jetkern.objectives.masking import masked_counts

# Elementwise operations, one for each of a multiplication, an addition or a comparison.
GELU, TANH, EXP, FEATURES, BITS, SPLINE = 30, 24, 4, 60, 16, 60


class Work(NamedTuple):
    """Bytes moved, operations of matrix products, and elementwise operations."""

    bytes: float
    products: float
    elementwise: float

    def plus(self, products: float = 0.0, elementwise: float = 0.0) -> Work:
        """The same bytes and more operations."""
        return Work(self.bytes, self.products + products, self.elementwise + elementwise)


class Rates(NamedTuple):
    """Measured rates: bytes/s of a copy, operations/s of products and of float32 arithmetic."""

    bandwidth: float
    products: float
    elementwise: float

    def seconds(self, work: Work) -> float:
        """The limit: the longest of the three times."""
        return max(amount / rate for amount, rate in zip(work, self, strict=True))

    def bound(self, work: Work) -> str:
        """Which of the three it is."""
        times = [amount / rate for amount, rate in zip(work, self, strict=True)]
        return ("bytes", "products", "elementwise")[times.index(max(times))]


def _mlp(rows: float, inputs: int, hidden: int, out: int) -> tuple[float, float]:
    return 2 * rows * hidden * (inputs + out), rows * hidden * (GELU + TANH)


def work(op: str, size: str, counts: Tensor, itemsize: int) -> dict[str, Work]:
    """Least work of forward and backward of ``bench.ops``'s case of an op.

    Inputs are read once, results written once. The backward of a product is two products, one if
    its input needs no gradient. What a backward may recompute is not charged to it, but for the
    scores of attention, which are sooner computed than read.

    Args:
        counts: particles of each jet. itemsize: bytes of a stored number.
    """
    shape = SIZES[size]
    dim, heads, k = shape["dim"], shape["heads"], shape["neighbours"]
    layers = shape.get("head_layers", 2)  # of the local block
    n = counts.double()
    lengths = n.clamp(min=1)
    particles = float(n.sum())
    pairs, triangle = float((n * n).sum()), float((n * (n + 1) / 2).sum())
    rows, square = float((n + 4).sum()), float(((n + 4) ** 2).sum())
    edges = float((n * (n - 1).clamp(0, k)).sum())
    local_square = float((n * (n - 1).clamp(0, k) ** 2).sum())

    bias = heads * pairs * itemsize
    attended = Work(4 * rows * dim * itemsize + bias, 4 * square * dim, heads * square * (EXP + 4))
    causal = Work(4 * particles * dim * itemsize, 4 * triangle * dim, heads * triangle * (EXP + 4))
    block = Work(2 * rows * dim * itemsize + bias, *attended[1:])
    block = block.plus(8 * rows * dim * dim, 2 * rows * dim * TANH)
    block = block.plus(*_mlp(rows, dim, 2 * dim, dim))
    edge = _mlp(edges, 7, 2 * dim, dim)
    inside = _mlp(edges, dim, 2 * dim, dim)
    local = Work(
        particles * (16 + 8 * k + dim * itemsize),
        edge[0] + layers * (inside[0] + 8 * edges * dim * dim + 4 * local_square * dim),
        edges * FEATURES + edge[1] + layers * (inside[1] + 2 * edges * dim * TANH),
    )
    classes = 2 * particles * dim * CLASSES, particles * CLASSES * (EXP + 3)
    forward = {
        "knn": Work(particles * (8 + 8 * k), 0, 6 * pairs),
        "pair_bias": Work(
            particles * 16 + heads * pairs * itemsize,
            2 * triangle * 2 * dim * heads,
            triangle * (FEATURES + 2 * dim * (6 + GELU)),
        ),
        "pair_mlp": Work(
            (4 * triangle + heads * pairs) * itemsize,
            2 * triangle * (4 * 64 + 2 * 64 * 64 + 64 * heads),
            3 * triangle * 64 * GELU,
        ),
        "attention": attended,
        "attention_block": block,
        "causal_attention": causal,
        "decode_attention": Work(
            2 * (float(lengths.sum()) + len(n)) * dim * itemsize + 8 * len(n),
            4 * float(lengths.sum()) * dim,
            heads * float(lengths.sum()) * (EXP + 4),
        ),
        "linear_cross_entropy": Work(particles * (dim * itemsize + 4), *classes),
        "linear_cross_entropy_sum": Work(particles * dim * itemsize, *classes),
        "sample_linear": Work(
            particles * (dim * itemsize + 16),
            2 * particles * dim * CLASSES,
            particles * CLASSES * (BITS + 3),
        ),
        "local_block": local,
        "nearest_code": Work(particles * (16 + 8), 0, 13 * CODES * particles),
        "spline": Work(
            2 * particles * (1 + 3 * BINS - 1 + 2) * itemsize,
            0,
            2 * particles * (2 * BINS * (EXP + 8) + SPLINE),
        ),
        "mlp": Work(particles * (4 + dim) * itemsize, *_mlp(particles, 4, 2 * dim, dim)),
    }[op]
    first = {  # products whose input needs no gradient
        "mlp": 2 * particles * 4 * 2 * dim,
        "local_block": 2 * edges * 7 * 2 * dim,
        "pair_mlp": 2 * triangle * 4 * 64,
    }
    backward = Work(*(2 * amount for amount in forward)).plus(-first.get(op, 0.0))
    if op in ("decode_attention", "sample_linear"):  # for inference
        backward = Work(0, 0, 0)
    if op == "attention":  # q, k, v, the result's gradient and the bias in; four gradients out
        moved = 7 * rows * dim * itemsize + 2 * heads * pairs * itemsize
        backward = Work(moved, 10 * square * dim, heads * square * (EXP + 8))
    if op == "causal_attention":
        moved = 7 * particles * dim * itemsize
        backward = Work(moved, 10 * triangle * dim, heads * triangle * (EXP + 8))
    return {"forward": forward, "backward": backward}


def model_products(size: str, parts: Sequence[str], counts: Tensor) -> dict[str, float]:
    """Operations of the matrix products of a preset's loss, forward, by op.

    Only the global tokens' own products are PyTorch's, and the last layers: "rest". The classifier
    judges the jets as every part sees them. A training step needs three times as many.

    Args:
        size: a preset. parts: of an objective. counts: particles of each jet.
    """
    config = model_preset(size, parts)
    dim, head, jets, n = config.dim, config.head_layers, len(counts), float(counts.sum())
    total: dict[str, float] = defaultdict(float)

    def add(op: str, seen: Tensor, times: int = 1) -> None:
        total[op] += times * work(op, size, seen, 4)["forward"].products

    def add_mlp(rows: float, width: int, times: int = 1) -> None:
        total["mlp"] += times * _mlp(rows, width, 2 * width, width)[0]

    for part in parts:
        seen = counts - masked_counts(counts) if part == "mpm" else counts
        timed = part == "generator"
        add("local_block", seen)
        add("pair_bias", seen)
        add("mlp", seen, 2)  # kinematics and tracks
        add("attention_block", seen + timed, config.layers)
        if timed:
            add_mlp(jets, dim, 2)  # time and type
            add_mlp(n, dim)
        if part != "classifier":
            add(
                "attention_block",
                counts + 2 * timed + (part == "mpm" and "generator" in parts),
                head,
            )
            total["rest"] += 8 * n * dim
        if "classifier" in parts:
            rows = float((seen + timed).sum())
            total["attention"] += head * 16 * rows * dim
            add_mlp(4 * jets, dim, head)
            add_mlp(jets, 4 * dim)
            total["rest"] += (
                head * (16 * jets + 4 * rows) * dim**2 + 8 * jets * dim * config.num_classes
            )
    return dict(total)


def _seconds(run: Callable[[], object], repeats: int = 20) -> float:
    """Median time of ``run`` on the GPU."""
    times = []
    for i in range(repeats + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        if i >= 3:
            times.append(start.elapsed_time(end) * 1e-3)
    return statistics.median(times)


def _bandwidth(numbers: int = 2**28) -> float:
    source = torch.randn(numbers, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds(lambda: target.copy_(source))


def _product_rate(dtype: torch.dtype, tf32: bool, size: int = 8192) -> float:
    a, b = (torch.randn(size, size, device="cuda").to(dtype) for _ in range(2))
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        return 2 * size**3 / _seconds(lambda: torch.mm(a, b))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def measure_rates(precision: str) -> Rates:
    """The rates of this GPU. Products in "ieee" may take three TF32 products instead."""
    plain, tf32 = (_product_rate(torch.float32, tf32) for tf32 in (False, True))
    products = {
        "ieee": lambda: max(plain, tf32 / 3),
        "tf32": lambda: tf32,
        "bf16": lambda: _product_rate(torch.bfloat16, True),
    }[precision]()
    return Rates(_bandwidth(), products, plain)
