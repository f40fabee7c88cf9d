"""Which shapes the fused kernels take, and how they are launched."""

from __future__ import annotations

import math
from typing import Any

import torch

from jetkern.ops.gpu.launch import Settings, cdiv, launch_settings
from jetkern.ops.local_block.triton.layout import Shape, set_rows

# The widest that the fused kernels take. In "ieee" factors take three times the registers.
WIDEST = {"ieee": 32, "tf32": 128, "bf16": 128}
WIDEST_HEAD = 32  # wider ones need more shared memory than there is
MAX_NEIGHBOURS = 64


def fits(shape: Shape, precision: str) -> bool:
    """Whether the fused kernels are made for this shape."""
    return (
        shape.width in (16, 32, 64, 128)
        and shape.width <= WIDEST[precision]
        and shape.width <= WIDEST_HEAD * shape.heads
        and shape.embed_hidden % 32 == 0
        and shape.hidden % 32 == 0
        and 1 <= shape.k <= MAX_NEIGHBOURS
    )


def settings_of(
    kernel: Any,
    shape: Shape,
    precision: str,
    device: torch.device,
    default: Settings,
    use: str = "",
) -> Settings:
    """How to launch a kernel: as asked for, but tiles hold whole sets and parts divide layers.

    ``default`` is what fits in registers; ``use`` tells launches apart that the table may settle
    differently.
    """
    key = " ".join(filter(None, (f"d{shape.width} k{shape.k} {precision}", use)))
    settings = launch_settings(kernel, key, device, default)
    if "CHUNK" in settings:
        layer = math.gcd(shape.embed_hidden, shape.hidden)
        settings["CHUNK"] = dividing(layer, settings["CHUNK"])
    if "GROUP" in settings:  # whole heads
        head = shape.width // shape.heads
        settings["GROUP"] = max(min(settings["GROUP"], shape.width), head)
    if "WIDE" not in settings:  # not of edges one by one
        settings["ROWS"] = max(settings["ROWS"], set_rows(shape.k))
    return settings


def tiles_of(particles: int, shape: Shape, settings: Settings) -> int:
    """Number of tiles of whole neighbourhoods."""
    rows = set_rows(shape.k)
    return cdiv(particles, settings["ROWS"] // rows * (rows // shape.k))


def dividing(size: int, most: int) -> int:
    """The largest power of two up to ``most`` that divides ``size``."""
    return min(size & -size, most)
