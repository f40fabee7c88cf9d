"""The CUDA ops for tests: those of this machine's GPU or, without one, the same sources compiled
for the CPU, where emulate.h stands in for the GPU.

    python -m tests.csrc.emulated [--sanitize]      compiles the latter and prints the path
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib
import os
from pathlib import Path

import torch

from jetkern import build
from jetkern.ops import dispatch

ROOT = Path(__file__).parents[2]
FLAGS = [
    "-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unknown-pragmas",
    "-ffp-contract=off", "-fno-strict-aliasing", "-DJETKERN_EMULATE", f"-I{ROOT / 'tests/csrc'}",
]  # fmt: skip
SANITIZE = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def compiled(*, sanitize: bool = False) -> Path:
    """The library below build/, compiled if its sources have changed."""
    flags = [*FLAGS, *(SANITIZE if sanitize else [])]
    folder = ROOT / "csrc" / "cuda"
    sources = sorted(path for path in folder.iterdir() if path.suffix in (".cpp", ".cu"))
    state = hashlib.sha256(" ".join([*flags, torch.__version__]).encode())
    for path in sorted(
        [*folder.iterdir(), folder.parent / "cpu/host/torch.h", ROOT / "tests/csrc/emulate.h"]
    ):
        state.update(path.read_bytes())
    target = ROOT / "build" / f"emulated-{state.hexdigest()[:16]}" / "_cuda.so"
    if target.is_file():
        return target
    pytorch = Path(torch.__file__).parent
    command = [*build.compiler(), *flags, *build.STABLE_FLAGS, "-isystem", str(pytorch / "include")]
    jobs = [([*command, "-x", "c++"], source, source.suffix[1:]) for source in sources]
    last = ["-shared", f"-L{pytorch / 'lib'}", "-ltorch_cpu"]
    return build._library(jobs, [*build.compiler(), *flags], last, target)


@functools.cache
def device() -> str:
    """Where the CUDA ops run in this process, after loading them: "cuda" or "cpu"."""
    for op in ("attention", "knn"):
        importlib.import_module(f"jetkern.ops.{op}.cuda")
    if torch.cuda.is_available():
        assert not dispatch.cuda_library(), dispatch.cuda_library()
        return "cuda"
    torch.ops.load_library(os.environ.get("JETKERN_EMULATED_LIBRARY") or str(compiled()))
    return "cpu"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sanitize", action="store_true", help="with the sanitizers")
    print(compiled(sanitize=parser.parse_args().sanitize))
