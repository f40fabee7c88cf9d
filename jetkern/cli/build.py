"""Compiles the C++ ops for the PyTorch that is installed here.

    jetkern build

``pip install`` does this itself where it finds PyTorch and a C++ compiler. The sources come with
the package; the library goes into it or, if it is read-only, into a cache below $XDG_CACHE_HOME or
~/.cache, where it is found again.
"""

from __future__ import annotations

from jetkern.build import build, library_folder, source_folder
from jetkern.cli import command
from jetkern.cli.parser import Parser
from jetkern.io import user_path


def parser() -> Parser:
    """The command line."""
    parser = Parser("build", __doc__, renamed={"--into": "--out"})
    parser.add_argument(
        "--out",
        type=user_path,
        metavar="DIR",
        help="folder for the library, to be named in JETKERN_CPU_LIBRARY"
        " (default: where it is found)",
    )
    parser.add_argument(
        "--sanitize", action="store_true", help="with the address and undefined sanitizers"
    )
    return parser


@command
def main(arguments: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    options = parser().parse_args(arguments)
    out = options.out or library_folder()
    print("compiled", build(source_folder(), out, sanitize=options.sanitize))
    return 0
