"""What a model was trained on, kept with its weights, and whether other jets are the same."""

from __future__ import annotations

from typing import Any

from jetkern.data import Shards
from jetkern.data.shards import POINTS


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
            if f.name in ("particles", POINTS, "pid", "tracks")
        },
        "conversion": settings,
    }


def checked_description(found: Any, where: str) -> dict[str, Any]:
    """What ``describe`` returned and a checkpoint kept; empty in checkpoints from before it was.

    Raises:
        ValueError: naming the checkpoint, for anything else.
    """

    def names(value: Any) -> bool:
        return isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value)

    fits = isinstance(found, dict) and (
        names(found.get("classes", []))
        and names(found.get("condition", []))
        and isinstance(found.get("task"), (str, type(None)))
        and isinstance(fields := found.get("fields", {}), dict)
        and all(isinstance(k, str) and names(v) for k, v in fields.items())
    )
    if not fits:
        raise ValueError(f"{where}: what it was trained on is damaged")
    return found


def check_same(data: dict[str, Any], shards: Shards, fields: tuple[str, ...], where: str) -> None:
    """Makes sure that jets mean what those meant that a model was trained on.

    Args:
        data: of the checkpoint ``where``, from ``describe``.
        shards: of the jets.
        fields: optional ones that the model embeds.

    Raises:
        ValueError: naming the field whose columns or scales differ.
    """
    here = describe(shards)["fields"]
    for name in ("particles", POINTS, *fields):
        before = data.get("fields", {}).get(name)
        if before is not None and name in here and list(before) != here[name]:
            raise ValueError(
                f"{where} was trained on {name} as {', '.join(before)}, but {shards.folder} has "
                f"{', '.join(here[name])}"
            )
