"""Input checks shared by the ops: one clear ValueError each."""

from __future__ import annotations

import math

from torch import Tensor

from jetkern.ops.parameters import BlockParameters, MLPParameters
from jetkern.packed import Packed, check_rising, int64_offsets, readable


def check_shape(name: str, tensor: Tensor, *shape: int | None) -> None:
    """Raises ValueError unless ``tensor`` has the given shape; None matches any length."""
    if tensor.shape == shape:
        return
    fits = tensor.ndim == len(shape)
    for have, want in zip(tensor.shape, shape, strict=False):  # a generator takes twice as long
        fits = fits and (want is None or have == want)
    if not fits:
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(f"{name} must have shape ({wanted}), got {tuple(tensor.shape)}")


def check_float(name: str, tensor: Tensor) -> None:
    """Raises ValueError unless ``tensor`` is floating point."""
    if not tensor.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {tensor.dtype}")


def check_drawing(temperature: float, top_k: int, top_p: float) -> None:
    """Raises ValueError for settings that ``sample_linear`` cannot draw with."""
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be 0 or more, got {temperature}")
    if top_k < 0:
        raise ValueError(f"top_k must be 0 or more, got {top_k}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, got {top_p}")


def check_offsets(
    name: str, offsets: Tensor | Packed, like: Tensor, jets: int | None = None
) -> Tensor:
    """The offsets as int64.

    Raises:
        ValueError: unless they are (B + 1,) int64 or int32 on the device of ``like``, with B
            ``jets`` if that is given.
    """
    offsets = offsets.offsets if isinstance(offsets, Packed) else int64_offsets(name, offsets)
    if offsets.device != like.device:
        raise ValueError(f"{name} is on {offsets.device}, the data on {like.device}")
    if jets is not None and offsets.shape[0] != jets + 1:
        raise ValueError(f"{name} has {offsets.shape[0] - 1} jets, the others have {jets}")
    return offsets


def check_bias(
    bias: Tensor, particle_offsets: Tensor | Packed | None, heads: int, rows: Tensor, jets: int
) -> Packed:
    """The particles' layout.

    Raises:
        ValueError: unless the bias is (heads, P) floating point with offsets of as many jets.
    """
    check_float("bias", bias)
    check_shape("bias", bias, heads, None)
    if particle_offsets is None:
        raise ValueError("a bias needs particle_offsets")
    offsets = check_offsets("particle_offsets", particle_offsets, rows, jets)
    if bias.device != rows.device:
        raise ValueError(f"bias is on {bias.device}, the data on {rows.device}")
    if isinstance(particle_offsets, Packed):
        return particle_offsets
    return Packed.trusted(offsets)


def check_bias_values(
    bias: Tensor | None, particles: Packed | None, *segments: tuple[str, Tensor]
) -> None:
    """Raises ValueError unless the bias has a column for each pair of particles and no jet has more
    particles than rows in each of ``segments``."""
    if bias is None or particles is None or not readable(particles.offsets):
        return
    check_rising("particle_offsets", particles.offsets)
    if particles.num_pairs != bias.shape[1]:
        raise ValueError(
            f"bias must have one column for each of the {particles.num_pairs} pairs of particles, "
            f"got {bias.shape[1]}"
        )
    for name, offsets in segments:
        if readable(offsets) and (particles.counts > offsets.diff()).any():
            raise ValueError(f"a jet has more particles than {name} gives it rows")


def check_mlp(name: str, p: MLPParameters, inputs: int, outputs: int | None = None) -> None:
    """Raises ValueError unless the perceptron's weights fit each other and these widths."""
    check_shape(f"{name}.fc1_weight", p.fc1_weight, None, inputs)
    hidden = len(p.fc1_weight)
    check_shape(f"{name}.fc2_weight", p.fc2_weight, outputs, hidden)
    if (p.alpha is None) != (p.gamma is None):
        raise ValueError(f"{name} must have both alpha and gamma, or neither")
    for field, weight, size in (
        ("fc1_bias", p.fc1_bias, hidden),
        ("alpha", p.alpha, 1),
        ("gamma", p.gamma, hidden),
        ("fc2_bias", p.fc2_bias, len(p.fc2_weight)),
    ):
        if weight is not None:
            check_shape(f"{name}.{field}", weight, size)


def check_block(name: str, p: BlockParameters, width: int, heads: int) -> None:
    """Raises ValueError unless the block's weights fit the width, and the heads divide it."""
    if heads < 1 or width % heads:
        raise ValueError(f"heads must divide the width {width}, got {heads}")
    check_shape(f"{name}.alpha1", p.alpha1, 1)
    check_shape(f"{name}.gamma1", p.gamma1, width)
    check_shape(f"{name}.qkv_weight", p.qkv_weight, 3 * width, width)
    check_shape(f"{name}.out_weight", p.out_weight, width, width)
    check_shape(f"{name}.alpha2", p.alpha2, 1)
    check_shape(f"{name}.gamma2", p.gamma2, width)
    check_mlp(f"{name}.mlp", p.mlp, width, width)
