"""Jets on disk and the way from there to a batch.

``Shards`` opens a folder of shards, ``Stream`` turns it into packed batches in a reproducible
order; ``select_classes`` leaves classes out. ``README.md`` here describes the files;
``data_tools/convert.py`` writes them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from jetkern.data.shards import ShardError, Shards

if TYPE_CHECKING:
    from jetkern.data.selection import select_classes
    from jetkern.data.stream import Stream

__all__ = ["ShardError", "Shards", "Stream", "select_classes"]


_LATER = {"Stream": "jetkern.data.stream", "select_classes": "jetkern.data.selection"}


def __getattr__(name: str) -> Any:
    # Imported on first use: tools that only write shards start without torch.
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)
