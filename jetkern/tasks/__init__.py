"""Downstream tasks: ``finetune`` and ``evaluate`` find them by name.

A task of yours is a subclass of ``Task`` with the decorator ``register``: ``examples/new_task.py``.
"""

from jetkern.tasks.task import TASKS, Task, find_task, register  # isort: skip
from jetkern.tasks.classification import Classify, TopTagging
from jetkern.tasks.distill import Distill
from jetkern.tasks.flavour import Flavour
from jetkern.tasks.jetnet import JetNet
from jetkern.tasks.next_token import NextToken
from jetkern.tasks.showers import OfShowers
from jetkern.tasks.tracks import Origin, Vertices
from jetkern.tasks.weak import Weak

__all__ = [
    "TASKS",
    "Classify",
    "Distill",
    "Flavour",
    "JetNet",
    "NextToken",
    "OfShowers",
    "Origin",
    "Task",
    "TopTagging",
    "Vertices",
    "Weak",
    "find_task",
    "register",
]
