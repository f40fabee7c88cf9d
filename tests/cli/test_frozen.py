"""The command line as committed in ``command_line.txt``: who changes a flag sees it in the diff.

``python -m tests.cli.test_frozen`` writes the file anew.
"""

import dataclasses
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from jetkern import cli
from jetkern.training import config

FILE = Path(__file__).with_name("command_line.txt")
SETTINGS = {
    "pretrain": config.pretrain_defaults,
    "finetune": config.finetune_defaults,
    "evaluate": config.evaluate_defaults,
}


def settings(values: Any) -> Iterator[str]:
    """Flags and defaults of typed settings; "required" for those without a default."""
    for field in dataclasses.fields(values):
        value = getattr(values, field.name)
        if dataclasses.is_dataclass(value):
            yield from settings(value)
            continue
        flag = "from" if field.name == "source" else field.name.replace("_", "-")
        missing = "Missing" in type(value).__name__ or "MISSING" in repr(value)
        yield f"--{flag} {'required' if missing else repr(value)}"


def flags(name: str) -> Iterator[str]:
    """The flags of a command, one a line."""
    if name in SETTINGS:
        yield from settings(SETTINGS[name]())
        return
    parser = import_module(f"jetkern.cli.{name}").parser()
    for action in parser._actions:
        if action.dest == "help":
            continue
        words = " ".join(action.option_strings) or action.dest
        default = "cores" if action.dest == "jobs" and name == "simulate" else repr(action.default)
        default = "required" if action.required else default
        choices = f" of {', '.join(map(str, action.choices))}" if action.choices else ""
        yield f"{words} {default}{choices}"


def command_line() -> str:
    """All commands, with their flags and defaults."""
    rows = [f"jetkern {name} {line}" for name in cli.COMMANDS for line in flags(name)]
    return "\n".join([*(f"jetkern {name}" for name in cli.COMMANDS), "", *rows, ""])


def test_the_command_line_is_the_one_committed() -> None:
    assert command_line() == FILE.read_text(), "python -m tests.cli.test_frozen writes it anew"


if __name__ == "__main__":
    FILE.write_text(command_line())
