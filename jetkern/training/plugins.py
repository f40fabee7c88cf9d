"""Losses, heads and tasks from outside the package: a file or module that registers them."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path


def load_plugins(names: Iterable[str]) -> None:
    """Imports what ``--plugin`` names; what is there already is not imported again.

    Args:
        names: Python files (``my_loss.py``) or modules (``my_package.losses``).

    Raises:
        ValueError: naming the one that cannot be imported, and why.
    """
    for name in names:
        _load(name)


def _load(name: str) -> None:
    try:
        if name.endswith(".py"):
            _load_file(Path(name).expanduser().resolve())
        else:
            importlib.import_module(name)
    except Exception as error:  # whatever it does when it is imported
        raise ValueError(f"--plugin {name}: {type(error).__name__}: {error}") from error


def _load_file(path: Path) -> None:
    if any(getattr(module, "__file__", None) == str(path) for module in sys.modules.values()):
        return
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[f"jetkern_plugin_{path.stem}"] = module
    spec.loader.exec_module(module)
