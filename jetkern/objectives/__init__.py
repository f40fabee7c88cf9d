"""Training losses of packed jets: the study's objectives, what they are made of, and further ones.

A loss of yours is a subclass of ``Loss`` with the decorator ``register``: ``examples/new_loss.py``.
"""

from jetkern.objectives.losses import LOSSES, Loss, parse_objective, register
from jetkern.objectives.next_token import objective_of
from jetkern.objectives.objective import Objective, Sums
from jetkern.objectives.views import View

__all__ = [
    "LOSSES",
    "Loss",
    "Objective",
    "Sums",
    "View",
    "objective_of",
    "parse_objective",
    "register",
]
