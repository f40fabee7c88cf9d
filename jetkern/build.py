"""Compiles the C++ ops of csrc/cpu with the machine's C++ compiler, into one library.

Run by ``pip install`` (setup.py) and by ``python -m jetkern build``. Imports nothing else of the
package, so that it also runs where the package is not installed yet.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

LIBRARY = "_cpu.so"
FLAGS = [
    "-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden",
    "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra",
]  # fmt: skip
INSTRUCTION_SETS = {
    "portable": [],
    "avx2": ["-march=x86-64-v3"],
    "avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
}


class BuildError(Exception):
    """The library cannot be built here."""


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


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"{command[0]}: {error}") from error
    if done.returncode:
        raise BuildError(f"{shlex.join(command)}\n{done.stderr.strip()}")


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
    import torch

    cpu = sources / "cpu"
    if not cpu.is_dir():
        raise BuildError(f"no sources in {cpu}")
    target.mkdir(parents=True, exist_ok=True)
    cxx = compiler()
    pytorch = Path(torch.__file__).parent
    flags = [*FLAGS, *shlex.split(os.environ.get("CXXFLAGS", ""))]
    if sanitize:
        flags += ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    torch_flags = ["-isystem", str(pytorch / "include")]
    jobs = [(source, "all", torch_flags) for source in sorted(cpu.glob("*.cpp"))]
    jobs += [
        (source, name, [f"-DJETKERN_ISA={name}", *INSTRUCTION_SETS[name]])
        for source in sorted((cpu / "kernels").glob("*.cpp"))
        for name in instruction_sets()
    ]
    with tempfile.TemporaryDirectory(dir=target, prefix=".build-") as folder:
        objects = [f"{folder}/{source.stem}.{name}.o" for source, name, _ in jobs]
        commands = [
            [*cxx, *flags, *extra, "-c", str(source), "-o", made]
            for (source, _, extra), made in zip(jobs, objects, strict=True)
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_run, commands))
        made = f"{folder}/{LIBRARY}"
        link = ["-shared", f"-L{pytorch / 'lib'}", "-ltorch_cpu", "-lpthread"]
        _run([*cxx, *flags, *objects, *link, "-o", made])
        os.replace(made, target / LIBRARY)
    return target / LIBRARY
