"""Training losses of packed jets: the seven pre-training objectives and what they are made of."""

from jetkern.objectives.objective import Objective, masked_per_jet, parse_objective

__all__ = ["Objective", "masked_per_jet", "parse_objective"]
