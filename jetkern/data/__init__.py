"""Jets on disk and the way from there to a batch.

``Shards`` opens a folder of shards, ``Stream`` turns it into packed batches in a reproducible
order. ``README.md`` here describes the files; ``data_tools/convert.py`` writes them.
"""

from typing import TYPE_CHECKING, Any

from jetkern.data.shards import ShardError, Shards

if TYPE_CHECKING:
    from jetkern.data.stream import Stream

__all__ = ["ShardError", "Shards", "Stream"]


def __getattr__(name: str) -> Any:
    # Imported on first use: tools that only write shards start without torch.
    if name != "Stream":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from jetkern.data.stream import Stream

    return Stream
