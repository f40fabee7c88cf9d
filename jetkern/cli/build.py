"""Compiles the C++ and CUDA ops for the PyTorch that is installed here.

    jetkern build

``pip install`` does this itself where it finds PyTorch and a C++ compiler. The sources come with
the package; the libraries go into it or, if it is read-only, into a cache below $XDG_CACHE_HOME or
~/.cache, where they are found again.
"""

from __future__ import annotations

from jetkern.build import BuildError, build, build_cuda, library_folder, nvcc, source_folder
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
        help="folder for the libraries, to be named in JETKERN_CPU_LIBRARY and JETKERN_CUDA_LIBRARY"
        " (default: where they are found)",
    )
    parser.add_argument(
        "--sanitize", action="store_true", help="with the address and undefined sanitizers"
    )
    parser.add_argument("--cuda", action="store_true", help="fail if CUDA ops cannot be compiled")
    return parser


@command
def main(arguments: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    options = parser().parse_args(arguments)
    out = options.out or library_folder()
    print("compiled", build(source_folder(), out, sanitize=options.sanitize))
    if not options.cuda:
        try:
            nvcc()
        except BuildError as error:
            print(f"CUDA ops skipped: {error}")
            return 0
    print("compiled", build_cuda(source_folder(), out))
    return 0
