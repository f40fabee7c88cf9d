"""The interaction bias as Triton kernels.

The pairs i <= j of all jets form one list, jet by jet, and a program takes PAIRS of them, whatever
jets they belong to: no lane is idle because a jet is short. Forward: the hidden layer is made UNITS
at a time in the registers of the first product, whose layout is that of the second one's factor.
Each value is stored at (i, j) and at (j, i).

Backward: ``pair_bias_bwd_fold_kernel`` adds the gradients of all layers and of (i, j) and (j, i),
reading each once, and lists the pairs' features. ``pair_bias_bwd_weights_kernel`` makes the hidden
layer again, transposed, and keeps the gradients of UNITS hidden units in registers over a fixed
share of the pairs; the shares' sums are added in order. No atomics, the same bits each time.

Bound by the GELU: C n (n + 1) / 2 of them a jet forward, as many with their slope backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from jetkern.ops.gpu.functions import dot, gelu, gelu_and_slope, pair_features
from jetkern.ops.gpu.launch import Settings, cdiv, launch, launch_settings, power_of_two
from jetkern.ops.gpu.layout import offsets as places
from jetkern.ops.gpu.pointwise import padded, stored_type
from jetkern.ops.gpu.register import gpu_operator
from jetkern.ops.gpu.sums import Slabs, added
from jetkern.ops.pair_bias import reference
from jetkern.ops.parameters import MLPParameters

FORWARD: Settings = {"PAIRS": 128, "UNITS": 32, "num_warps": 4, "num_stages": 2}
FOLD: Settings = {"TILE": 16, "num_warps": 4, "num_stages": 1}
GRADIENT: Settings = {"PAIRS": 32, "UNITS": 64, "PROGRAMS": 1056, "num_warps": 4, "num_stages": 2}
CANDIDATES = {
    "pair_bias_fwd": [
        {"PAIRS": pairs, "UNITS": units, "num_warps": 4, "num_stages": stages}
        for pairs, units in ((64, 32), (64, 64), (128, 16), (128, 32), (128, 64))
        for stages in (1, 2)
    ],
    "pair_bias_bwd_fold": [
        {"TILE": tile, "num_warps": warps}
        for tile, warps in ((16, 1), (16, 2), (16, 4), (32, 4), (32, 8), (32, 16))
    ],
    "pair_bias_bwd_weights": [
        {"PAIRS": pairs, "PROGRAMS": programs, "num_stages": stages}
        for pairs in (32, 64)
        for programs in (528, 1056, 2112)
        for stages in (1, 2)
    ],
}


class Weights(NamedTuple):
    """Of a perceptron 3 -> C -> H without a norm."""

    fc1_weight: Tensor
    fc1_bias: Tensor
    fc2_weight: Tensor
    fc2_bias: Tensor | None


class Sums(NamedTuple):
    """A slab of the weights' gradients."""

    fc1_weight: Any
    fc1_bias: Any
    fc2_weight: Any
    fc2_bias: Any
    end: Any


@triton.jit(do_not_specialize=["jets", "steps", "total", "pairs"])
def pair_bias_fwd_kernel(
    particles,
    offsets,
    ends,
    weights,
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
            weights.fc1_weight + unit[None, :] * 3 + feature, real[None, :] & (feature < 3), 0.0
        ).to(tl.float32)
        b1 = tl.load(weights.fc1_bias + unit, real, 0.0).to(tl.float32)
        hidden = dot(features, w1, tl.broadcast_to(b1[None, :], (PAIRS, UNITS)), FIRST)
        w2 = tl.load(
            weights.fc2_weight + head[None, :] * HIDDEN + unit[:, None],
            real[:, None] & (head < HEADS)[None, :],
            0.0,
        )
        acc = dot(gelu(hidden, PRECISION), w2, acc, PRECISION)
    bias = (
        tl.trans(acc) + tl.load(weights.fc2_bias + head, head < HEADS, 0.0).to(tl.float32)[:, None]
    )

    square = begin - first  # where the jet's n x n entries begin
    direct = square + j * n + i
    turned = square + i * n + j
    # A wrong number of pairs must not write outside.
    wanted = (head < HEADS)[:, None] & (exists & (direct < pairs) & (turned < pairs))[None, :]
    row = out + head.to(tl.int64)[:, None] * pairs
    tl.store(row + direct[None, :], bias, wanted)
    tl.store(row + turned[None, :], bias, wanted)


@triton.jit(do_not_specialize=["total", "pairs"])
def pair_bias_bwd_fold_kernel(
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
def pair_bias_bwd_weights_kernel(
    features,
    folded,
    weights,
    slab,
    total,
    SUMS: tl.constexpr,
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
        weights.fc1_weight + unit[:, None] * 3 + feature[None, :],
        real[:, None] & (feature < 3)[None, :],
        0.0,
    ).to(tl.float32)
    b1 = tl.load(weights.fc1_bias + unit, real, 0.0).to(tl.float32)
    w2 = tl.load(
        weights.fc2_weight + head[None, :] * HIDDEN + unit[:, None],
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
    own = slab + share.to(tl.int64) * SUMS.end
    tl.store(
        own + SUMS.fc1_weight + unit[:, None] * 3 + feature[None, :],
        d_first,
        real[:, None] & (feature < 3)[None, :],
    )
    tl.store(
        own + SUMS.fc1_bias + feature[None, :] * 0 + unit[:, None],
        d_first,
        real[:, None] & (feature == 3)[None, :],
    )
    tl.store(
        own + SUMS.fc2_weight + head[None, :] * HIDDEN + unit[:, None],
        d_second,
        real[:, None] & (head < HEADS)[None, :],
    )
    tl.store(own + SUMS.fc2_bias + head, tl.sum(d_bias, 1), (head < HEADS) & (chunk == 0))


def _ends(offsets: Tensor) -> Tensor:
    """(B,) twice the number of pairs i <= j of each jet and those before it."""
    n = offsets.diff()
    return torch.addcmul(n, n, n).cumsum(0)


def _settings(
    kernel: Any, weights: Weights, precision: str, default: Settings
) -> tuple[Settings, dict[str, Any]]:
    """How to launch, and the constants of the weights' sizes."""
    heads, hidden = weights.fc2_weight.shape
    key = f"c{hidden} h{heads} {precision}"
    settings = launch_settings(kernel, key, weights.fc2_weight.device, default)
    settings["UNITS"] = min(settings["UNITS"], max(16, power_of_two(hidden)))
    constants = {
        "HIDDEN": hidden,
        "HEADS": heads,
        "PADDED": padded(heads),
        "PRECISION": precision,
    }
    return settings, constants


def _forward(
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
    if not pairs:
        return out
    weights = Weights(fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    settings, constants = _settings(pair_bias_fwd_kernel, weights, precision, FORWARD)
    jets, total = len(offsets) - 1, (pairs + len(particles)) // 2
    launch(
        pair_bias_fwd_kernel,
        (cdiv(total, settings["PAIRS"]),),
        particles.device,
        settings,
        particles=particles,
        offsets=offsets,
        ends=_ends(offsets),
        weights=weights,
        out=out,
        jets=jets,
        steps=jets.bit_length(),
        total=total,
        pairs=pairs,
        **constants,
    )
    return out


def _gradient(
    gradients: Sequence[Tensor],
    particles: Tensor,
    offsets: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    precision: str,
) -> tuple[Tensor, ...]:
    """Of the weights, in their dtypes, from those of the bias of each layer."""
    weights = Weights(fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    heads, hidden = fc2_weight.shape
    pairs = gradients[0].shape[1]
    if not pairs:
        return tuple(torch.zeros_like(w) for w in (fc1_weight, fc1_bias, fc2_weight, fc2_bias))
    total, device = (pairs + len(particles)) // 2, particles.device
    row = cdiv(total, 16) * 16
    folded = particles.new_empty(heads, row, dtype=stored_type(precision))
    features = particles.new_empty(3, row, dtype=torch.float32)
    launch(
        pair_bias_bwd_fold_kernel,
        ((len(offsets) - 1) * heads,),
        device,
        launch_settings(pair_bias_bwd_fold_kernel, f"layers{len(gradients)}", device, FOLD),
        gradients=tuple(g.contiguous() for g in gradients),
        particles=particles,
        offsets=offsets,
        ends=_ends(offsets),
        folded=folded,
        features=features,
        total=total,
        pairs=pairs,
        LAYERS=len(gradients),
        HEADS=heads,
    )
    # Three products for one leave no registers to fetch ahead with.
    default = GRADIENT | ({"num_stages": 1} if heads > 16 and precision == "ieee" else {})
    settings, constants = _settings(pair_bias_bwd_weights_kernel, weights, precision, default)
    chunks = cdiv(hidden, settings["UNITS"])
    programs = settings.pop("PROGRAMS") // chunks
    shares = max(1, min(programs, cdiv(total, settings["PAIRS"])))
    sizes = (3 * hidden, hidden, heads * hidden, heads)
    layout = places(Sums, sizes)
    slab = particles.new_empty(shares, layout.end, dtype=torch.float32)
    launch(
        pair_bias_bwd_weights_kernel,
        (shares * chunks,),
        device,
        settings,
        features=features,
        folded=folded,
        weights=weights._replace(fc2_bias=None),
        slab=slab,
        total=total,
        SUMS=layout,
        **constants,
    )
    found = Sums._make([*added([Slabs(slab, sizes)])[0], None])
    return (
        found.fc1_weight.view(hidden, 3).to(fc1_weight),
        found.fc1_bias.to(fc1_bias),
        found.fc2_weight.view(heads, hidden).to(fc2_weight),
        found.fc2_bias.to(fc2_bias),
    )


def _backward(
    d_out: Tensor, particles: Tensor, offsets: Tensor, *others: Any
) -> tuple[Tensor, ...]:
    w1, b1, w2, b2, _, _, precision = others
    return _gradient([d_out], particles, offsets, w1, b1, w2, b2, precision)


def _fake(particles: Tensor, offsets: Tensor, *others: Any) -> Tensor:
    *_, fc2_bias, num_pairs, dtype, _ = others
    pairs = torch.library.get_ctx().new_dynamic_size() if num_pairs is None else num_pairs
    return particles.new_empty(fc2_bias.shape[0], pairs, dtype=dtype)


def _fake_gradient(
    gradients: Sequence[Tensor], particles: Tensor, offsets: Tensor, *others: Any
) -> tuple[Tensor, ...]:
    *weights, _ = others
    return tuple(w.new_empty(w.shape) for w in weights)


def _reference(particles: Tensor, offsets: Tensor, *others: Any) -> Tensor:
    w1, b1, w2, b2, num_pairs, dtype, _ = others
    p = MLPParameters(w1, b1, None, None, w2, b2)
    return reference.pair_bias(particles, offsets, p, num_pairs=num_pairs, dtype=dtype)


WEIGHTS = ", ".join(f"Tensor {name}" for name in Weights._fields)
_op = gpu_operator(
    "pair_bias",
    f"(Tensor particles, Tensor offsets, {WEIGHTS}, SymInt? num_pairs, ScalarType dtype,"
    " str precision) -> Tensor out",
    fake=_fake,
    forward=_forward,
    backward=_backward,
    gradients=" ".join(Weights._fields),
    reference=_reference,
)
_gradient_op = gpu_operator(
    "pair_bias_gradient",
    f"(Tensor[] gradients, Tensor particles, Tensor offsets, {WEIGHTS}, str precision)"
    f" -> ({', '.join(f'Tensor d_{name}' for name in Weights._fields)})",
    fake=_fake_gradient,
    forward=_gradient,
)


class _Shared(torch.autograd.Function):
    """The bias once for each layer, whose gradients arrive together."""

    @staticmethod
    def forward(ctx: Any, layers: int, *inputs: Any) -> tuple[Tensor, ...]:
        *tensors, _, _, ctx.precision = inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        bias = _op(*inputs)
        return tuple(bias.view_as(bias) for _ in range(layers))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "shared_pair_bias has no second derivatives on triton: take backend='reference'"
            )
        given = [g for g in gradients if g is not None]
        weights = _gradient_op(given, *ctx.saved_tensors, ctx.precision)
        return None, None, None, *weights, None, None, None


def covers(particles: Tensor, offsets: Tensor, parameters: MLPParameters) -> str:
    """No gradient of the particles, a perceptron with both biases and without a norm."""
    p = parameters
    if p.alpha is not None or p.fc1_bias is None or p.fc2_bias is None:
        return "its perceptron has two biases and no norm"
    wanted = particles.requires_grad and torch.is_grad_enabled()
    return "it has no gradient of the particles" if wanted else ""


def pair_bias(
    particles: Tensor,
    offsets: Tensor,
    parameters: MLPParameters,
    *,
    num_pairs: int | None = None,
    dtype: torch.dtype | None = None,
    precision: str = "ieee",
) -> Tensor:
    """See ``jetkern.ops.pair_bias``."""
    inputs = _inputs(particles, offsets, parameters)
    return _op(*inputs, num_pairs, dtype or particles.dtype, precision)


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
    inputs = _inputs(particles, offsets, parameters)
    return _Shared.apply(layers, *inputs, num_pairs, dtype or particles.dtype, precision)


def _inputs(particles: Tensor, offsets: Tensor, p: MLPParameters) -> list[Tensor]:
    weights = (p.fc1_weight, p.fc1_bias, p.fc2_weight, p.fc2_bias)
    return [t.contiguous() for t in (particles, offsets, *weights) if t is not None]
