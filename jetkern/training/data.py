"""What a model was trained on, kept with its weights, and whether other jets are the same."""

from __future__ import annotations

from typing import Any

from jetkern.data import Shards


def describe(shards: Shards) -> dict[str, Any]:
    """What jets of these shards mean, as plain values.

    Returns:
        ``classes`` by label, ``condition`` names, ``fields``: columns of each field of a particle,
        which name their scales, and ``conversion``: the settings that made them.
    """
    source = shards.manifest.get("source")
    settings = {k: v for k, v in source.items() if k != "files"} if isinstance(source, dict) else {}
    return {
        "classes": list(shards.classes),
        "condition": list(shards.condition),
        "fields": {
            f.name: list(f.columns)
            for f in shards.fields
            if f.name in ("particles", "pid", "tracks")
        },
        "conversion": settings,
    }
