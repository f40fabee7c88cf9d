"""The command line as committed in ``command_line.txt``: who changes a flag sees it in the diff.

``python -m tests.cli.test_frozen`` writes the file anew.
"""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from jetkern import cli
from jetkern.cli.settings import parser_of
from jetkern.training import defaults

FILE = Path(__file__).with_name("command_line.txt")
SETTINGS = {
    "pretrain": defaults.pretrain_defaults,
    "finetune": defaults.finetune_defaults,
    "evaluate": defaults.evaluate_defaults,
}


def flags(name: str) -> Iterator[str]:
    """The flags of a command, one a line."""
    if name in SETTINGS:
        parser = parser_of(SETTINGS[name](), name, "")
    else:
        parser = import_module(f"jetkern.cli.{name}").parser()
    for action in parser._actions:
        if action.dest == "help":
            continue
        words = " ".join(action.option_strings) or action.dest
        default = "cores" if action.dest == "jobs" and action.default else repr(action.default)
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
