"""The argument parser of the commands that have few flags: one look, one line for a mistake."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from jetkern.data.order import MAX_SEED
from jetkern.machine import MAX_THREADS


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` called ``jetkern NAME`` that says a mistake in one line.

    Args:
        name: the command.
        description: first lines of ``--help``, printed as they are.
        renamed: flags that were called otherwise before; the old spellings work as before.
    """

    def __init__(self, name: str, description: str | None, renamed: Mapping[str, str] = {}) -> None:
        super().__init__(
            prog=f"jetkern {name}",
            description=description,
            formatter_class=_Formatter,
            allow_abbrev=False,
        )
        self.renamed = renamed
        self._words: list[str] = []

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        self._words = self.spelled(sys.argv[1:] if args is None else args)
        return super().parse_known_args(self._words, namespace)

    def spelled(self, args: Sequence[str]) -> list[str]:
        """The words with today's spelling of the flags."""
        words = []
        for word in args:
            flag, equals, value = word.partition("=")
            words.append(f"{self.renamed.get(flag, flag)}{equals}{value}")
        return words

    def error(self, message: str) -> NoReturn:
        known = [flag for action in self._actions for flag in action.option_strings]
        flags = [word for word in self._words if word.startswith("--")]
        unknown = [flag for flag in flags if flag.partition("=")[0] not in (*known, "--")]
        if unknown and "are required: " in message:  # the mistake, rather than what it left out
            message = f"unrecognized arguments: {' '.join(unknown)}"
        hints = []
        if message.startswith("unrecognized arguments: "):
            for word in message.split()[2:]:
                near = difflib.get_close_matches(word.partition("=")[0], known, n=1, cutoff=0.6)
                hints += near if word.startswith("-") else []
        hint = f" (did you mean {', '.join(hints)}?)" if hints else ""
        self.exit(2, f"{self.prog}: error: {message}{hint} (usage: {self.prog} --help)\n")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Every flag with its default, if it has one that its help does not name."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        shown = action.default not in (None, False, argparse.SUPPRESS) and action.option_strings
        if shown and "default" not in text and not isinstance(action.default, (tuple, dict)):
            text += " (default: %(default)s)" if text else "default: %(default)s"
        return text


def positive(text: str) -> int:
    """An integer from 1."""
    if (number := _integer(text)) is None or number < 1:
        raise argparse.ArgumentTypeError(f"{text[:40]} is not a positive number")
    return number


def seed(text: str) -> int:
    """An integer of 64 bits."""
    if (number := _integer(text)) is None or not 0 <= number <= MAX_SEED:
        raise argparse.ArgumentTypeError(f"{text[:40]} is not an integer from 0 to {MAX_SEED}")
    return number


def threads(text: str) -> int:
    """A number of threads or processes that a machine can have."""
    if (number := _integer(text)) is None or not 1 <= number <= MAX_THREADS:
        raise argparse.ArgumentTypeError(f"{text[:40]} is not an integer from 1 to {MAX_THREADS}")
    return number


def _integer(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def processes() -> int:
    """How many processes ``--jobs`` stands for by default: one for each core that we may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
