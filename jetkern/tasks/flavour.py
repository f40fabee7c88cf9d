"""Telling light, charm and bottom jets apart by their tracks (MPMv2, arXiv 2409.12589, section 5).
The jets are those of ``jetkern simulate flavour``, or any of these three classes."""

from __future__ import annotations

from typing import Any

from jetkern.data import Shards
from jetkern.tasks.classification import Classify
from jetkern.tasks.task import register
from jetkern.training.config import FinetuneSettings

FLAVOURS = ("light", "charm", "bottom")


@register
class Flavour(Classify):
    """Cross-entropy; accuracy, and how many light jets are rejected for each of the others."""

    name = "flavour"

    def config(self, base: Any, train: Shards, settings: FinetuneSettings) -> Any:
        if tuple(train.classes) != FLAVOURS:
            raise ValueError(
                f"{train.folder} has the classes {', '.join(train.classes) or 'none'}, not "
                f"{', '.join(FLAVOURS)}"
            )
        return super().config(base, train, settings)
