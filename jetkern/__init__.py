"""jetkern: fast kernels, a Point-Edge Transformer and training drivers for jets."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jetkern.jets import Jets
    from jetkern.model import PET, PETConfig, model_preset
    from jetkern.objectives import Objective

__version__ = "0.1.0"
__all__ = ["PET", "Jets", "Objective", "PETConfig", "__version__", "model_preset"]

# Imported on first use: tools that only move data start without torch.
_HOME = {
    "Jets": "jets",
    "Objective": "objectives",
    "PET": "model",
    "PETConfig": "model",
    "model_preset": "model",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"jetkern.{_HOME[name]}"), name)
