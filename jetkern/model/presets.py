"""The four model sizes of arXiv 2606.14870 (its section III and released code).

The micro size takes K = 15 neighbours: the released training script never sets K for it, so its
published numbers were made with the constructor's default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from jetkern.model.config import PARTS, PETConfig, unknown

SIZES: dict[str, dict[str, int]] = {
    "micro": {"dim": 32, "layers": 3, "heads": 4, "neighbours": 15},
    "small": {"dim": 128, "layers": 8, "heads": 8, "neighbours": 10},
    "medium": {"dim": 512, "layers": 12, "heads": 16, "neighbours": 10},
    "large": {"dim": 1024, "layers": 28, "heads": 32, "neighbours": 10, "head_layers": 4},
}

# Bodies of the masked models of MPM (arXiv 2401.13537) and MPMv2 (arXiv 2409.12589) in width, depth
# and heads; neighbours as for the larger sizes above.
MASKED_SIZES: dict[str, dict[str, int]] = {
    "mpm-v1": {"dim": 1024, "layers": 8, "heads": 8, "neighbours": 10},
    "mpm-v2": {"dim": 512, "layers": 8, "heads": 8, "neighbours": 10},
}


def model_preset(size: str, parts: Iterable[str] = PARTS, **changes: Any) -> PETConfig:
    """The configuration of one of ``SIZES`` or ``MASKED_SIZES``, with task heads and changes.

    Raises:
        ValueError: for an unknown size, part or change.
    """
    sizes = SIZES | MASKED_SIZES
    if size not in sizes:
        raise ValueError(f"unknown model size {size!r}: choose one of {', '.join(sizes)}")
    known = [field.name for field in dataclasses.fields(PETConfig)]
    for name in changes:
        if name not in known:
            raise unknown("field of a model", name, known)
    return PETConfig(**{**sizes[size], "parts": tuple(parts), **changes})
