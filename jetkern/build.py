"""Compiles the C++ ops of csrc/cpu into a library.

Needs a C++ compiler. Run by ``pip install`` (setup.py) and by ``jetkern build``. Imports nothing
else of the package, so that it also runs where the package is not installed yet.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import site
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PACKAGE = Path(__file__).parent
LIBRARY = "_cpu.so"
FLAGS = [
    "-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden",
    "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra",
]  # fmt: skip
INSTRUCTION_SETS = {
    "portable": [],
    "avx2": ["-march=x86-64-v3"],
    "avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
    "avx512bf16": ["-march=x86-64-v4", "-mprefer-vector-width=512", "-mavx512bf16"],
    "amx": [
        "-march=x86-64-v4", "-mprefer-vector-width=512", "-mavx512bf16", "-mamx-tile",
        "-mamx-bf16",
    ],
}  # fmt: skip


class BuildError(Exception):
    """The library cannot be built here."""


def source_folder() -> Path:
    """The folder csrc: in an installed package, or beside it in a checkout."""
    shipped = PACKAGE / "csrc"
    return shipped if shipped.is_dir() else PACKAGE.parent / "csrc"


def cache() -> Path:
    """Where libraries go if the package's own folder is read-only.

    A folder for these very sources on this kind of machine, below $XDG_CACHE_HOME or ~/.cache.
    """
    folder, digest = source_folder(), hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "jetkern" / f"{platform.machine().lower()}-{digest.hexdigest()[:16]}"


def library(name: str) -> Path:
    """The library that is used: the cache's, made by ``jetkern build``, or the package's."""
    own = PACKAGE / name
    if os.access(PACKAGE, os.W_OK):
        return own
    cached = cache() / name
    return cached if cached.is_file() else own


def library_folder() -> Path:
    """Where ``jetkern build`` puts libraries: the package or, if it is read-only, the cache."""
    return PACKAGE if os.access(PACKAGE, os.W_OK) else cache()


def pytorch() -> Path:
    """The folder of the PyTorch that will run: the one installed here, whatever its version.

    An isolated build (``pip install .``) hides the environment's packages from imports, but the
    environment is the one that is installed into, so that its headers are taken all the same.

    Raises:
        BuildError: if there is none.
    """
    spec = importlib.util.find_spec("torch")
    places = [Path(p) for p in (spec.submodule_search_locations or ())] if spec else []
    folders = [*site.getsitepackages(), site.getusersitepackages()]
    places += [Path(folder) / "torch" for folder in folders]
    for place in places:
        if (place / "include").is_dir() and (place / "lib").is_dir():
            return place
    raise BuildError(
        f"PyTorch is not installed in {sys.prefix}: install it, then run 'jetkern build'"
    )


def compiler() -> list[str]:
    """The C++ compiler's command: $CXX, or the first of g++, clang++ and c++ that exists.

    Raises:
        BuildError: if there is none.
    """
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    for name in ("g++", "clang++", "c++"):
        if shutil.which(name):
            return [name]
    raise BuildError("no C++ compiler: install g++ 12 or later (or clang++), or set CXX")


def instruction_sets() -> list[str]:
    """Those that the kernels are compiled for on this architecture, slowest first."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return list(INSTRUCTION_SETS) if x86 else ["portable"]


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"{command[0]}: {error}") from error
    if done.returncode:
        raise BuildError(f"{shlex.join(command)}\n{done.stderr.strip()}")
    return done.stdout + done.stderr


def _library(
    jobs: list[tuple[list[str], Path, str]], link: list[str], last: list[str], target: Path
) -> Path:
    """Compiles each job (command, source, name) and links all, replacing ``target`` at the end."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as folder:
        objects = [f"{folder}/{source.stem}.{name}.o" for _, source, name in jobs]
        commands = [
            [*command, "-c", str(source), "-o", made]
            for (command, source, _), made in zip(jobs, objects, strict=True)
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_run, commands))
        made = f"{folder}/{target.name}"
        _run([*link, *objects, *last, "-o", made])
        os.replace(made, target)
    return target


def build(sources: Path, target: Path, *, sanitize: bool = False) -> Path:
    """Compiles ``sources/cpu`` to ``target/_cpu.so``, replacing it only when all went well.

    Args:
        sources: the folder csrc.
        target: folder of the library, as a rule the package itself.
        sanitize: with the address and undefined-behaviour sanitizers.

    Returns:
        The library's path.

    Raises:
        BuildError: without a compiler, or with its message when compilation fails.
    """
    cpu = sources / "cpu"
    if not cpu.is_dir():
        raise BuildError(f"no sources in {cpu}")
    cxx = compiler()
    torch = pytorch()
    flags = [*FLAGS, *shlex.split(os.environ.get("CXXFLAGS", ""))]
    if sanitize:
        flags += ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    torch_flags = ["-isystem", str(torch / "include")]
    hosts = sorted((cpu / "host").glob("*.cpp"))
    jobs = [([*cxx, *flags, *torch_flags], source, "all") for source in hosts]
    jobs += [
        ([*cxx, *flags, f"-DJETKERN_ISA={name}", *INSTRUCTION_SETS[name]], source, name)
        for source in sorted((cpu / "kernels").glob("*.cpp"))
        for name in instruction_sets()
    ]
    last = ["-shared", f"-L{torch / 'lib'}", "-ltorch_cpu", "-lpthread"]
    return _library(jobs, [*cxx, *flags], last, target / LIBRARY)
