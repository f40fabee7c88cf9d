"""Public docstrings say what a caller has to know: shapes of tensors, units, errors."""

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from torch import Tensor

from jetkern import PET, Jets, Shards, Stream, jets, model_preset, ops, sampling


def public() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Functions and methods that users call, by name."""
    yield "model_preset", model_preset
    for module in (ops, jets, sampling):
        for name, value in vars(module).items():
            home = getattr(value, "__module__", "")
            ours = home.startswith(module.__name__)  # not what a module only uses
            if ours and inspect.isfunction(value) and not name.startswith("_"):
                yield f"{module.__name__}.{name}", value
    for kind in (Jets, Shards, Stream, PET):
        for name, value in vars(kind).items():
            function = getattr(value, "__func__", value)
            if not name.startswith("_") and inspect.isfunction(function):
                yield f"{kind.__name__}.{name}", function


def faults(function: Callable[..., Any]) -> list[str]:
    """What its docstring does not say."""
    text, signature = inspect.getdoc(function) or "", inspect.signature(function)
    found = [] if text else ["no docstring"]
    for name, parameter in signature.parameters.items():
        if not re.match(r"'?(torch\.)?Tensor\b", inspect.formatannotation(parameter.annotation)):
            continue
        # "q: (Tq, H, d)", "first, second: (..., 4)"
        if not re.search(rf"\b{name}\b(, \w+)*: *\(", text):
            found.append(f"no shape of {name}")
    if "Tensor" in str(signature.return_annotation) and "(" not in text:
        found.append("no shape of the result")
    if "raise " in inspect.getsource(function) and "Raises:" not in text:
        found.append("no errors")
    if "particles" in signature.parameters and not re.search("GeV|those of ``pair_bias``", text):
        found.append("no units of the particles")
    return found


@pytest.mark.parametrize(("name", "function"), [pytest.param(*p, id=p[0]) for p in public()])
def test_shapes_units_and_errors_are_stated(name: str, function: Callable[..., Any]) -> None:
    assert faults(function) == []


def test_the_check_finds_what_is_missing() -> None:
    def bad(particles: Tensor) -> Tensor:
        if particles is None:
            raise ValueError
        return particles

    assert len(faults(bad)) == 5
