"""jetkern: fast kernels, a Point-Edge Transformer and training drivers for jets."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jetkern import data, evaluation, metrics, ops
    from jetkern.data import Shards, Stream
    from jetkern.jets import Jets, pack, unpack
    from jetkern.model import PET, PETConfig, model_preset
    from jetkern.objectives import Objective

__version__ = "0.1.0"
__all__ = [
    "PET", "Jets", "Objective", "PETConfig", "Shards", "Stream", "__version__", "data",
    "evaluation", "metrics", "model_preset", "ops", "pack", "unpack",
]  # fmt: skip

# Imported on first use: tools that only move data start without torch.
_HOME = {
    "Jets": "jets",
    "Objective": "objectives",
    "PET": "model",
    "PETConfig": "model",
    "Shards": "data",
    "Stream": "data",
    "model_preset": "model",
    "pack": "jets",
    "unpack": "jets",
}
_MODULES = ("data", "evaluation", "metrics", "ops")


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _MODULES:
        return import_module(f"jetkern.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"jetkern.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
