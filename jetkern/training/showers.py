"""What a decoder has to know of the showers in shards before it is made."""

from __future__ import annotations

from typing import Any

from jetkern.convert.showers import OFF_CELLS
from jetkern.data import ShardError, Shards
from jetkern.showers import COLUMNS, CONDITION


def shower_shape(shards: Shards) -> dict[str, Any]:
    """Cells, energies, the most hits and the energies of hits of the showers in shards, over all
    splits of their conversion, as ``shower_decoder_config`` takes them.

    Raises:
        ShardError: if they are not of showers, or their hits not at whole numbers of cells.
    """
    folder = shards.folder
    if shards.points != COLUMNS or shards.condition != CONDITION:
        raise ShardError(f"{folder} has no showers: jetkern convert makes shards of them")
    report = shards.manifest.get("report", {})
    if off := report.get(OFF_CELLS):
        raise ShardError(f"{folder}: {off:,} {OFF_CELLS}: decoders know layers and cells only")
    try:
        ranges = report["ranges"]
        low, high = (ranges["condition"][i][0] for i in (0, 1))
        cells = [int(n) + 1 for n in ranges["points"][1][:3]] if "points" in ranges else [1] * 3
        longest = int(ranges["multiplicity"][1][0])
        hits = [float(n[3]) for n in ranges["points"]] if "points" in ranges else None
    except (KeyError, TypeError, ValueError, IndexError):
        raise ShardError(f"{folder}: the report has no ranges of its showers") from None
    x, y, layers = cells
    return {
        "cells": (layers, x, y),
        "energies": (float(low), float(high)),
        "longest": longest,
        "hits": hits,
    }
