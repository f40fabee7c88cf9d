"""The interaction bias as Triton kernels.

The pairs i <= j of all jets form one list, jet by jet, and a program takes PAIRS of them, whatever
jets they belong to: no lane is idle because a jet is short. Forward: the hidden layer is made UNITS
at a time in the registers of the first product, whose layout is that of the second one's factor.
Each value is stored at (i, j) and at (j, i).

Backward: ``fold_kernel`` adds the gradients of all layers and of (i, j) and (j, i), reading each
once, and lists the pairs' features. ``gradient_kernel`` makes the hidden layer again, transposed,
and keeps the gradients of UNITS hidden units in registers over a fixed share of the pairs; the
shares' sums are added in order. No atomics, the same bits each time.

Bound by the GELU: C n (n + 1) / 2 of them a jet forward, as many with their slope backward.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from jetkern.ops.pair_bias import reference
from jetkern.ops.parameters import MLPParameters
from jetkern.ops.triton_tools import (
    TYPES,
    CompileCase,
    Settings,
    define,
    dot,
    gelu,
    gelu_and_slope,
    launch_settings,
    on_device,
    pair_features,
)

FORWARD: Settings = {"PAIRS": 128, "UNITS": 32, "num_warps": 4, "num_stages": 2}
FOLD: Settings = {"TILE": 16, "num_warps": 4, "num_stages": 1}
GRADIENT: Settings = {"PAIRS": 32, "UNITS": 64, "PROGRAMS": 1056, "num_warps": 4, "num_stages": 2}
CANDIDATES = {
    "pair_bias": [
        {"PAIRS": pairs, "UNITS": units, "num_warps": 4, "num_stages": stages}
        for pairs, units in ((64, 32), (64, 64), (128, 16), (128, 32), (128, 64))
        for stages in (1, 2)
    ],
    "pair_bias_fold": [
        {"TILE": tile, "num_warps": warps}
        for tile, warps in ((16, 1), (16, 2), (16, 4), (32, 4), (32, 8), (32, 16))
    ],
    "pair_bias_gradient": [
        {"PAIRS": pairs, "PROGRAMS": programs, "num_stages": stages}
        for pairs in (32, 64)
        for programs in (528, 1056, 2112)
        for stages in (1, 2)
    ],
}


@triton.jit(do_not_specialize=["jets", "steps", "total", "pairs"])
def forward_kernel(
    particles,
    offsets,
    ends,
    fc1_weight,
    fc1_bias,
    fc2_weight,
    fc2_bias,
    out,
    jets,
    steps,
    total,
    pairs,
    HIDDEN: tl.constexpr,
    HEADS: tl.constexpr,
    PAIRS: tl.constexpr,
    UNITS: tl.constexpr,
    PADDED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    entry = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    # The entry's jet is the number of jets that end at or before it.
    jet = tl.zeros((PAIRS,), tl.int32)
    for step in range(steps):
        more = jet + (1 << (steps - 1 - step))
        end = tl.load(ends + more - 1, more <= jets, 0x7FFFFFFFFFFFFFFF)
        jet = tl.where(end <= 2 * entry, more, jet)
    exists = (entry < total) & (jet < jets)
    first = tl.load(offsets + jet, exists, 0)
    n = tl.load(offsets + jet + 1, exists, 0) - first
    begin = tl.load(ends + jet - 1, exists & (jet > 0), 0)
    rank = (entry - begin // 2).to(tl.int32)
    # rank = j (j + 1) / 2 + i with i <= j; the square root is right to within one.
    j = ((tl.sqrt(8.0 * rank.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    j = tl.where(j * (j + 1) // 2 > rank, j - 1, j)
    j = tl.where((j + 1) * (j + 2) // 2 <= rank, j + 1, j)
    i = rank - j * (j + 1) // 2

    a = particles + (first + i) * 4
    b = particles + (first + j) * 4
    ln_m2, ln_r, ln_kt = pair_features(
        tl.load(a, exists, 0.0).to(tl.float32),
        tl.load(a + 1, exists, 0.0).to(tl.float32),
        tl.load(a + 2, exists, 0.0).to(tl.float32),
        tl.load(b, exists, 0.0).to(tl.float32),
        tl.load(b + 1, exists, 0.0).to(tl.float32),
        tl.load(b + 2, exists, 0.0).to(tl.float32),
    )
    column = tl.arange(0, 16)[None, :]
    features = tl.where(column == 1, ln_r[:, None], tl.where(column == 2, ln_kt[:, None], 0.0))
    features = tl.where(column == 0, ln_m2[:, None], features)

    FIRST: tl.constexpr = "tf32" if PRECISION == "bf16" else PRECISION
    feature = tl.arange(0, 16)[:, None]
    head = tl.arange(0, PADDED)
    acc = tl.zeros((PAIRS, PADDED), tl.float32)
    for start in range(0, HIDDEN, UNITS):
        unit = start + tl.arange(0, UNITS)
        real = unit < HIDDEN
        w1 = tl.load(
            fc1_weight + unit[None, :] * 3 + feature, real[None, :] & (feature < 3), 0.0
        ).to(tl.float32)
        b1 = tl.load(fc1_bias + unit, real, 0.0).to(tl.float32)
        hidden = dot(features, w1, tl.broadcast_to(b1[None, :], (PAIRS, UNITS)), FIRST)
        w2 = tl.load(
            fc2_weight + head[None, :] * HIDDEN + unit[:, None],
            real[:, None] & (head < HEADS)[None, :],
            0.0,
        )
        acc = dot(gelu(hidden, PRECISION), w2, acc, PRECISION)
    bias = tl.trans(acc) + tl.load(fc2_bias + head, head < HEADS, 0.0).to(tl.float32)[:, None]

    square = begin - first  # where the jet's n x n entries begin
    direct = square + j * n + i
    turned = square + i * n + j
    # A wrong number of pairs must not write outside.
    wanted = (head < HEADS)[:, None] & (exists & (direct < pairs) & (turned < pairs))[None, :]
    row = out + head.to(tl.int64)[:, None] * pairs
    tl.store(row + direct[None, :], bias, wanted)
    tl.store(row + turned[None, :], bias, wanted)


@triton.jit(do_not_specialize=["total", "pairs"])
def fold_kernel(
    gradients,
    particles,
    offsets,
    ends,
    folded,
    features,
    total,
    pairs,
    LAYERS: tl.constexpr,
    HEADS: tl.constexpr,
    TILE: tl.constexpr,
):
    jet = tl.program_id(0) // HEADS
    head = tl.program_id(0) % HEADS
    first = tl.load(offsets + jet)
    n = (tl.load(offsets + jet + 1) - first).to(tl.int32)
    begin = tl.load(ends + jet - 1, jet > 0, 0)
    own = head.to(tl.int64) * pairs
    square = own + begin - first
    stride = tl.cdiv(total, 16) * 16  # of the rows of what is listed
    start = head.to(tl.int64) * stride
    listed = start + begin // 2
    if jet == tl.num_programs(0) // HEADS - 1:  # zeros up to the end of the aligned row
        rest = tl.zeros((16,), tl.int64) + total + tl.arange(0, 16)
        tl.store(folded + start + rest, 0.0, rest < stride)
        if head == 0:
            tl.store(features + rest, 0.0, rest < stride)
            tl.store(features + rest + stride, 0.0, rest < stride)
            tl.store(features + rest + stride + stride, 0.0, rest < stride)
    for top in range(0, n, TILE):
        for left in range(0, top + 1, TILE):
            row = top + tl.arange(0, TILE)
            column = left + tl.arange(0, TILE)
            lower = tl.zeros((TILE, TILE), tl.float32)
            upper = tl.zeros((TILE, TILE), tl.float32)
            below = square + row[:, None] * n + column[None, :]
            above = square + column[:, None] * n + row[None, :]
            # A wrong number of pairs must not read or write outside.
            here = (row < n)[:, None] & (column < n)[None, :] & (below < own + pairs)
            there = (column < n)[:, None] & (row < n)[None, :] & (above < own + pairs)
            for layer in tl.static_range(LAYERS):
                lower += tl.load(gradients[layer] + below, here, 0.0).to(tl.float32)
                upper += tl.load(gradients[layer] + above, there, 0.0).to(tl.float32)
            both = tl.where(row[:, None] == column[None, :], lower, lower + tl.trans(upper))
            place = listed + (row * (row + 1) // 2)[:, None] + column[None, :]
            kept = here & (column[None, :] <= row[:, None]) & (place < start + total)
            tl.store(folded + place, both, kept)
            if head == 0:
                a = particles + (first + row) * 4
                b = particles + (first + column) * 4
                ln_m2, ln_r, ln_kt = pair_features(
                    tl.load(a, row < n, 0.0).to(tl.float32)[:, None],
                    tl.load(a + 1, row < n, 0.0).to(tl.float32)[:, None],
                    tl.load(a + 2, row < n, 0.0).to(tl.float32)[:, None],
                    tl.load(b, column < n, 0.0).to(tl.float32)[None, :],
                    tl.load(b + 1, column < n, 0.0).to(tl.float32)[None, :],
                    tl.load(b + 2, column < n, 0.0).to(tl.float32)[None, :],
                )
                tl.store(features + place, ln_m2, kept)
                tl.store(features + place + stride, ln_r, kept)
                tl.store(features + place + stride + stride, ln_kt, kept)


@triton.jit(do_not_specialize=["total"])
def gradient_kernel(
    features,
    folded,
    fc1_weight,
    fc1_bias,
    fc2_weight,
    slab,
    total,
    HIDDEN: tl.constexpr,
    HEADS: tl.constexpr,
    PAIRS: tl.constexpr,
    UNITS: tl.constexpr,
    PADDED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # Programs of neighbouring numbers read the same pairs, for other hidden units.
    CHUNKS: tl.constexpr = (HIDDEN + UNITS - 1) // UNITS
    chunk = tl.program_id(0) % CHUNKS
    share = tl.program_id(0) // CHUNKS
    shares = tl.num_programs(0) // CHUNKS
    FIRST: tl.constexpr = "tf32" if PRECISION == "bf16" else PRECISION
    unit = chunk * UNITS + tl.arange(0, UNITS)
    real = unit < HIDDEN
    feature = tl.arange(0, 16)
    head = tl.arange(0, PADDED)
    w1 = tl.load(
        fc1_weight + unit[:, None] * 3 + feature[None, :],
        real[:, None] & (feature < 3)[None, :],
        0.0,
    ).to(tl.float32)
    b1 = tl.load(fc1_bias + unit, real, 0.0).to(tl.float32)
    w2 = tl.load(
        fc2_weight + head[None, :] * HIDDEN + unit[:, None],
        real[:, None] & (head < HEADS)[None, :],
        0.0,
    )
    d_first = tl.zeros((UNITS, 16), tl.float32)  # of fc1_weight, then of fc1_bias
    d_second = tl.zeros((UNITS, PADDED), tl.float32)
    d_bias = tl.zeros((PADDED, PAIRS), tl.float32)
    stride = tl.cdiv(total, 16) * 16
    feature_row = features + feature.to(tl.int64)[:, None] * stride
    head_row = folded + head.to(tl.int64)[:, None] * stride
    for tile in range(share, tl.cdiv(total, PAIRS), shares):
        entry = (tl.zeros((PAIRS,), tl.int64) + tile) * PAIRS + tl.arange(0, PAIRS)
        exists = (entry < stride)[None, :]
        f = tl.load(feature_row + entry[None, :], exists & (feature < 3)[:, None], 0.0)
        f = tl.where((feature == 3)[:, None], 1.0, f)
        g = tl.load(head_row + entry[None, :], exists & (head < HEADS)[:, None], 0.0)
        hidden = dot(w1, f, tl.broadcast_to(b1[:, None], (UNITS, PAIRS)), FIRST)
        active, slope = gelu_and_slope(hidden, PRECISION)
        d_second = dot(active, tl.trans(g), d_second, PRECISION)
        d_hidden = dot(w2, g, tl.zeros((UNITS, PAIRS), tl.float32), PRECISION) * slope
        d_first = dot(d_hidden, tl.trans(f), d_first, PRECISION)
        d_bias += g.to(tl.float32)
    own = slab + share.to(tl.int64) * ((4 + HEADS) * HIDDEN + HEADS)
    tl.store(
        own + feature[None, :] * HIDDEN + unit[:, None],
        d_first,
        real[:, None] & (feature < 4)[None, :],
    )
    own += 4 * HIDDEN
    tl.store(
        own + head[None, :] * HIDDEN + unit[:, None],
        d_second,
        real[:, None] & (head < HEADS)[None, :],
    )
    tl.store(own + HEADS * HIDDEN + head, tl.sum(d_bias, 1), (head < HEADS) & (chunk == 0))


def _ends(offsets: Tensor) -> Tensor:
    """(B,) twice the number of pairs i <= j of each jet and those before it."""
    n = offsets.diff()
    return torch.addcmul(n, n, n).cumsum(0)


def _gradient_settings(heads: int, precision: str) -> Settings:
    # Three products for one leave no registers to fetch ahead with.
    return {**GRADIENT, "num_stages": 1} if heads > 16 and precision == "ieee" else GRADIENT


def _sizes(fc2_weight: Tensor, precision: str) -> tuple[dict[str, Any], int, str]:
    """Constants of the kernels, the largest useful chunk of hidden units, the settings' key."""
    heads, hidden = fc2_weight.shape
    constants = {
        "HIDDEN": hidden,
        "HEADS": heads,
        "PADDED": max(16, triton.next_power_of_2(heads)),
        "PRECISION": precision,
    }
    key = f"c{hidden} h{heads} {precision}"
    return constants, max(16, triton.next_power_of_2(hidden)), key


WEIGHTS = "Tensor fc1_weight, Tensor fc1_bias, Tensor fc2_weight, Tensor fc2_bias"


def split_gradient(gradient: Tensor, heads: int, hidden: int) -> tuple[Tensor, ...]:
    """The parts of fc1_weight, fc1_bias, fc2_weight and fc2_bias of what the backward returns."""
    of_fc1, d_fc1_bias, of_fc2, d_fc2_bias = gradient.split(
        [3 * hidden, hidden, heads * hidden, heads]
    )
    return of_fc1.view(3, hidden).t(), d_fc1_bias, of_fc2.view(heads, hidden), d_fc2_bias


@define(
    "pair_bias",
    f"(Tensor particles, Tensor offsets, {WEIGHTS}, SymInt? num_pairs, ScalarType dtype,"
    " str precision) -> Tensor",
)
def _launch(
    particles: Tensor,
    offsets: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    num_pairs: int | None,
    dtype: torch.dtype,
    precision: str,
) -> Tensor:
    pairs = int(offsets.diff().square().sum()) if num_pairs is None else num_pairs
    out = particles.new_empty(len(fc2_bias), pairs, dtype=dtype)
    jets, total = len(offsets) - 1, (pairs + len(particles)) // 2
    if not pairs:
        return out
    constants, units, key = _sizes(fc2_weight, precision)
    settings = launch_settings("pair_bias", key, particles.device, FORWARD)
    settings["UNITS"] = min(settings["UNITS"], units)
    with on_device(particles):
        forward_kernel[(triton.cdiv(total, settings["PAIRS"]),)](
            particles,
            offsets,
            _ends(offsets),
            fc1_weight,
            fc1_bias,
            fc2_weight,
            fc2_bias,
            out,
            jets,
            jets.bit_length(),
            total,
            pairs,
            **constants,
            **settings,
        )
    return out


@define(
    "pair_bias_backward",
    "(Tensor[] gradients, Tensor particles, Tensor offsets, Tensor fc1_weight, Tensor fc1_bias,"
    " Tensor fc2_weight, str precision) -> Tensor",
)
def _launch_backward(
    gradients: Sequence[Tensor],
    particles: Tensor,
    offsets: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    precision: str,
) -> Tensor:
    heads, hidden = fc2_weight.shape
    width = (4 + heads) * hidden + heads
    pairs = gradients[0].shape[1]
    total = (pairs + len(particles)) // 2
    if not pairs:
        return particles.new_zeros(width, dtype=torch.float32)
    constants, units, key = _sizes(fc2_weight, precision)
    row = triton.cdiv(total, 16) * 16
    kept = torch.bfloat16 if precision == "bf16" else torch.float32
    folded = particles.new_empty(heads, row, dtype=kept)
    features = particles.new_empty(3, row, dtype=torch.float32)
    device = particles.device
    fold = launch_settings("pair_bias_fold", f"layers{len(gradients)}", device, FOLD)
    settings = launch_settings(
        "pair_bias_gradient", key, device, _gradient_settings(heads, precision)
    )
    settings["UNITS"] = min(settings["UNITS"], units)
    chunks = triton.cdiv(hidden, settings["UNITS"])
    programs = settings.pop("PROGRAMS") // chunks
    shares = max(1, min(programs, triton.cdiv(total, settings["PAIRS"])))
    slab = particles.new_empty(shares, width, dtype=torch.float32)
    with on_device(particles):
        fold_kernel[((len(offsets) - 1) * heads,)](
            tuple(g.contiguous() for g in gradients),
            particles,
            offsets,
            _ends(offsets),
            folded,
            features,
            total,
            pairs,
            LAYERS=len(gradients),
            HEADS=heads,
            **fold,
        )
        gradient_kernel[(shares * chunks,)](
            features,
            folded,
            fc1_weight,
            fc1_bias,
            fc2_weight,
            slab,
            total,
            **constants,
            **settings,
        )
    return slab.sum(0)


@torch.library.register_fake("jetkern_triton::pair_bias")
def _fake(particles: Tensor, *others: Any) -> Tensor:
    fc2_bias, num_pairs, dtype, _ = others[4:]
    pairs = torch.library.get_ctx().new_dynamic_size() if num_pairs is None else num_pairs
    return particles.new_empty(fc2_bias.shape[0], pairs, dtype=dtype)


@torch.library.register_fake("jetkern_triton::pair_bias_backward")
def _backward_fake(gradients: Sequence[Tensor], particles: Tensor, *others: Any) -> Tensor:
    heads, hidden = others[3].shape
    return particles.new_empty((4 + heads) * hidden + heads, dtype=torch.float32)


def _weight_gradients(
    gradients: Sequence[Tensor], saved: Sequence[Tensor], precision: str
) -> tuple[Tensor, ...]:
    """Of fc1_weight, fc1_bias, fc2_weight and fc2_bias, in their dtypes."""
    particles, offsets, *weights = saved
    gradient = torch.ops.jetkern_triton.pair_bias_backward(
        gradients, particles, offsets, *weights[:3], precision
    )
    parts = split_gradient(gradient, *weights[2].shape)
    return tuple(p.to(w.dtype) for p, w in zip(parts, weights, strict=True))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, _, _, ctx.precision = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    weights = _weight_gradients([gradient], ctx.saved_tensors, ctx.precision)
    return None, None, *weights, None, None, None


torch.library.register_autograd(
    "jetkern_triton::pair_bias", _backward, setup_context=_setup_context
)


class _Shared(torch.autograd.Function):
    """The bias once for each layer, whose gradients arrive together."""

    @staticmethod
    def forward(ctx: Any, layers: int, *inputs: Any) -> tuple[Tensor, ...]:
        *tensors, _, _, ctx.precision = inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        bias = torch.ops.jetkern_triton.pair_bias(*inputs)
        return tuple(bias.view_as(bias) for _ in range(layers))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        given = [g for g in gradients if g is not None]
        weights = _weight_gradients(given, ctx.saved_tensors, ctx.precision)
        return None, None, None, *weights, None, None, None


def pair_bias(
    particles: Tensor,
    offsets: Tensor,
    parameters: MLPParameters,
    *,
    num_pairs: int | None = None,
    dtype: torch.dtype | None = None,
    precision: str = "ieee",
) -> Tensor:
    """See ``jetkern.ops.pair_bias``. The gradient of the particles, and a perceptron with a norm
    or without its biases, are left to the reference."""
    if _left_to_the_reference(particles, parameters):
        return reference.pair_bias(particles, offsets, parameters, num_pairs=num_pairs, dtype=dtype)
    inputs = _inputs(particles, offsets, parameters)
    return torch.ops.jetkern_triton.pair_bias(
        *inputs, num_pairs, dtype or particles.dtype, precision
    )


def shared_pair_bias(
    particles: Tensor,
    offsets: Tensor,
    parameters: MLPParameters,
    layers: int,
    *,
    num_pairs: int | None = None,
    dtype: torch.dtype | None = None,
    precision: str = "ieee",
) -> tuple[Tensor, ...]:
    """See ``jetkern.ops.shared_pair_bias``."""
    if _left_to_the_reference(particles, parameters):
        bias = reference.pair_bias(particles, offsets, parameters, num_pairs=num_pairs, dtype=dtype)
        return (bias,) * layers
    inputs = _inputs(particles, offsets, parameters)
    return _Shared.apply(layers, *inputs, num_pairs, dtype or particles.dtype, precision)


def _left_to_the_reference(particles: Tensor, p: MLPParameters) -> bool:
    plain = p.alpha is None and p.fc1_bias is not None and p.fc2_bias is not None
    return not plain or (particles.requires_grad and torch.is_grad_enabled())


def _inputs(particles: Tensor, offsets: Tensor, p: MLPParameters) -> list[Tensor]:
    weights = (p.fc1_weight, p.fc1_bias, p.fc2_weight, p.fc2_bias)
    return [t.contiguous() for t in (particles, offsets, *weights) if t is not None]


def compile_cases() -> Iterator[CompileCase]:
    """The kernels at the presets' widths, heads and layers, at each precision."""
    sizes = {
        "micro": (64, 4, 3),
        "small": (256, 8, 8),
        "medium": (1024, 16, 12),
        "large": (2048, 32, 28),
    }
    weights = {"fc1_weight": "*fp32", "fc1_bias": "*fp32", "fc2_weight": "*fp32"}
    places = {"particles": "*fp32", "offsets": "*i64", "ends": "*i64"}
    for size, (hidden, heads, layers) in sizes.items():
        for precision in ("ieee", "tf32", "bf16"):
            stored = TYPES[torch.bfloat16 if precision == "bf16" else torch.float32]
            sums = {"folded": stored, "features": "*fp32"}
            fc2_weight = torch.empty(heads, hidden, device="meta")
            constants, _, key = _sizes(fc2_weight, precision)
            for kernel, row, settings, arguments in (
                (
                    forward_kernel,
                    ("pair_bias", key),
                    FORWARD,
                    {
                        **places,
                        **weights,
                        "fc2_bias": "*fp32",
                        "out": stored,
                        **dict.fromkeys(("jets", "steps", "total", "pairs"), "i32"),
                        **constants,
                    },
                ),
                (
                    fold_kernel,
                    ("pair_bias_fold", f"layers{layers}"),
                    FOLD,
                    {
                        "gradients": (stored,) * layers,
                        **places,
                        **sums,
                        "total": "i32",
                        "pairs": "i32",
                        "LAYERS": layers,
                        "HEADS": heads,
                    },
                ),
                (
                    gradient_kernel,
                    ("pair_bias_gradient", key),
                    _gradient_settings(heads, precision),
                    {
                        "features": "*fp32",
                        "folded": stored,
                        **weights,
                        "slab": "*fp32",
                        "total": "i32",
                        **constants,
                    },
                ),
            ):
                if kernel is fold_kernel and precision == "tf32":
                    continue  # that of "ieee"
                tiles = {n: v for n, v in settings.items() if n in ("PAIRS", "UNITS", "TILE")}
                arguments = {**arguments, **tiles}
                yield CompileCase(kernel, f"{size} {precision}", arguments, settings, row)
