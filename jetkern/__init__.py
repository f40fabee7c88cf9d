"""jetkern: fast kernels, a Point-Edge Transformer and training drivers for jets."""

from jetkern.jets import Jets
from jetkern.objectives import Objective
from jetkern.pet import PET, PETConfig
from jetkern.presets import model_preset

__version__ = "0.1.0"
__all__ = ["PET", "Jets", "Objective", "PETConfig", "__version__", "model_preset"]
