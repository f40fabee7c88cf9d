"""The Point-Edge Transformer: config, layers, body, heads and the four sizes of the study."""

from jetkern.model.config import PARTS, PETConfig, register_head
from jetkern.model.pet import PET
from jetkern.model.presets import model_preset

__all__ = ["PARTS", "PET", "PETConfig", "model_preset", "register_head"]
