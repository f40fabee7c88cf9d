"""Jets on disk and the way from there to a batch.

``Shards`` opens a folder of shards, ``Stream`` turns it into packed batches in a reproducible
order. ``README.md`` here describes the files; ``data_tools/convert.py`` writes them.
"""

from jetkern.data.shards import ShardError, Shards
from jetkern.data.stream import Stream

__all__ = ["ShardError", "Shards", "Stream"]
