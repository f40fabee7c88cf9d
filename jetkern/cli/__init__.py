"""The commands, one file each: ``jetkern convert`` is ``jetkern/cli/convert.py`` and so on.

``train/`` and ``data_tools/`` call the same by path. Each module has a function ``main`` decorated
with ``command``, so that all end alike: with code 0, or with one line on stderr and 1 for what went
wrong, 2 for a wrong command line, 130 for Ctrl-C.
"""

from __future__ import annotations

import difflib
import functools
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NoReturn

from jetkern.io import explain

COMMANDS = {
    "simulate": "make jets with Pythia 8",
    "convert": "bring jets of any format into shards",
    "verify": "check shards byte by byte",
    "show": "print and draw what shards hold",
    "tokenize": "fit a tokeniser of particles",
    "pretrain": "train a foundation model",
    "finetune": "train it on to a task, or from scratch to compare",
    "generate": "make jets with a trained generator",
    "evaluate": "judge trained models: tables and figures",
    "export": "write a classifier for other programs: ONNX, torch.export",
    "study": "run a grid of trainings from a file, and report on it",
    "choose": "take the learning rate with the best validation loss",
    "baseline": "train boosted trees on jet variables, to compare with",
    "report": "write tables, figures and verdicts of a study",
    "doctor": "say what this machine has, and which implementation of each op runs",
    "build": "compile the C++ ops for the PyTorch that is here",
}
EXTRAS = {
    "simulate": "simulation",
    "convert": "data",
    "verify": "data",
    "show": "data",
    "export": "export",
    "study": "study",
    "baseline": "study",
}
OF_PACKAGES = {"fastjet": "study", "ot": "study"}  # that only some of a command's work needs
CONTINUES = ("simulate", "convert", "tokenize", "pretrain", "finetune", "generate", "study")


class UsageError(ValueError):
    """A command line, or an installation, with which a command cannot begin."""

    exit_code = 2


def usage() -> str:
    """The text of ``jetkern --help``."""
    width = max(map(len, COMMANDS))
    rows = [f"  {name:{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        ["usage: jetkern COMMAND ...", "", *rows, "", "jetkern COMMAND --help says more."]
    )


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The console command ``jetkern``."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage(), file=sys.stdout if words else sys.stderr)
        sys.exit(0 if words else 2)
    name = words[0]
    if name in ("-V", "--version"):
        from jetkern import __version__

        print(f"jetkern {__version__}")
        sys.exit(0)
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS) or "; jetkern --help lists them"
        print(f"jetkern: error: there is no command {name!r}{hint}", file=sys.stderr)
        sys.exit(2)
    run(name, words[1:])


def run(name: str, arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command of that name to the end of the process.

    Args:
        name: of a module in ``jetkern/cli``.
        arguments: what follows the command, by default what this process was given.
    """
    _leave(_code(name, lambda: import_module(f"jetkern.cli.{name}").main(arguments)))


def command(main: Callable[[list[str]], int | None]) -> Callable[..., int]:
    """Makes ``main`` of a module in ``jetkern/cli`` return an exit code whatever happens.

    With JETKERN_DEBUG set, errors keep their traceback.
    """

    @functools.wraps(main)
    def wrapped(arguments: Sequence[str] | None = None) -> int:
        words = list(sys.argv[1:] if arguments is None else arguments)
        return _code(main.__module__.rpartition(".")[2], lambda: main(words))

    return wrapped


def _code(name: str, call: Callable[[], int | None]) -> int:
    """The exit code of a command, after one line on stderr if it failed."""
    try:
        return call() or 0
    except KeyboardInterrupt:
        more = "; the same command continues" if name in CONTINUES else ""
        print(f"jetkern {name}: stopped{more}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # nobody reads on, as behind "| head"; Python flushes once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("JETKERN_DEBUG") or not (text := _said(name, error)):
            raise
        print(f"jetkern {name}: error: {text}", file=sys.stderr)
        return getattr(error, "exit_code", 1)


def did_you_mean(word: str, words: Sequence[str] | dict[str, str]) -> str:
    """`` (did you mean ...?)`` with the word that is nearest, "" if none is near."""
    near = difflib.get_close_matches(word, list(words), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _said(name: str, error: Exception) -> str:
    """The one line for an error that is no fault of the program, "" for the others."""
    if isinstance(error, ModuleNotFoundError):
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "jetkern"):
            return ""
        extra = EXTRAS.get(name) or OF_PACKAGES.get(missing, "train")
        return f"{missing} is not installed: pip install 'jetkern[{extra}]'"
    own = type(error).__module__.startswith("jetkern.")  # our errors are made to be read
    if not own and not isinstance(error, (ValueError, OSError)):
        return ""
    return explain(error)


def _leave(code: int) -> NoReturn:
    """Ends the process; one among several without the interpreter's teardown.

    There the main thread, which holds the GIL, waits for gloo's threads, and one of those may be
    waiting for the GIL to drop its last tensor (seen with torch 2.13): they would hang for ever.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
