"""Shards with some of their classes left out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from jetkern.data.blocks import BlockReader
from jetkern.data.shards import ShardError, Shards
from jetkern.io import printable


class ClassSelection(Shards):
    """The jets of some classes, numbered in the order in which these are named.

    Nothing is copied: the labels of all blocks are read once, and streams pass over the other jets.
    ``index`` and ``manifest`` are those of the whole shards; ``fingerprint`` depends on the choice.

    Args:
        shards: with labels.
        classes: names, each once.

    Raises:
        ValueError: for a name that the shards do not have, or the same one twice.
        ShardError: if the shards have no labels, no jet of these classes, or are damaged.
    """

    def __init__(self, shards: Shards, classes: Sequence[str]) -> None:
        vars(self).update(vars(shards))
        if not shards.classes:
            raise ShardError(f"{shards.folder} has no labels to choose classes by")
        for name in classes:
            if name not in shards.classes:
                raise ValueError(
                    f"{shards.folder} has no class {printable(name)}, but "
                    f"{printable(', '.join(shards.classes))}"
                )
        if len(set(classes)) < len(classes):
            raise ValueError(f"--classes names one twice: {printable(', '.join(classes))}")
        numbers = np.full(len(shards.classes), -1, np.int64)
        numbers[[shards.classes.index(name) for name in classes]] = np.arange(len(classes))
        reader = BlockReader(shards)
        try:
            labels = [reader.array(block, "label") for block in range(len(shards.index))]
        finally:
            reader.close()
        for block, found in enumerate(labels):
            if len(found) and not 0 <= found.min() <= found.max() < len(numbers):
                raise ShardError(f"{shards.folder} is damaged: block {block} has unknown labels")
        self.rows = [np.flatnonzero(numbers[found] >= 0).astype(np.int32) for found in labels]
        self.numbers = numbers
        self.classes = tuple(classes)
        self.counts = tuple(shards.counts[shards.classes.index(name)] for name in classes)
        self.num_jets = sum(map(len, self.rows))
        if not self.num_jets:
            raise ShardError(f"{shards.folder} has no jet of {printable(', '.join(classes))}")
        used = np.concatenate([numbers[found] >= 0 for found in labels])
        self.num_particles = int(shards.multiplicity()[used].sum(dtype=np.int64))
        chosen = json.dumps([shards.fingerprint, *classes])
        self.fingerprint = hashlib.sha256(chosen.encode()).hexdigest()


def select_classes(shards: Shards, classes: Sequence[str]) -> Shards:
    """``ClassSelection`` of these classes, or the shards themselves if none are named."""
    return ClassSelection(shards, classes) if classes else shards
