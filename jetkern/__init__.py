"""jetkern: fast kernels, a Point-Edge Transformer and training drivers for jets."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jetkern.jets import Jets
    from jetkern.objectives import Objective
    from jetkern.pet import PET, PETConfig
    from jetkern.presets import model_preset

__version__ = "0.1.0"
__all__ = ["PET", "Jets", "Objective", "PETConfig", "__version__", "model_preset"]

# Imported on first use: tools that only move data start without torch.
_HOME = {
    "Jets": "jets",
    "Objective": "objectives",
    "PET": "pet",
    "PETConfig": "pet",
    "model_preset": "presets",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"jetkern.{_HOME[name]}"), name)
