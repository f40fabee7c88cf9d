"""What a model learns to say of hidden particles: the targets of masked particle modelling."""

from jetkern.model.targets.flow_matching import FlowMatchingTarget
from jetkern.model.targets.sets import SetFlow
from jetkern.model.targets.simple import Identity, Regression, Tokens
from jetkern.model.targets.spline_flow import SplineFlow
from jetkern.model.targets.target import Choices, Hidden, Target

TARGETS: dict[str, type[Target]] = {
    "regression": Regression,
    "identity": Identity,
    "tokens": Tokens,
    "cfm": FlowMatchingTarget,
    "cnf": SplineFlow,
    "ssfm": SetFlow,
}

__all__ = ["TARGETS", "Choices", "Hidden", "Target"]
