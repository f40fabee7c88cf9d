"""Builds jetkern/_cpu.so and jetkern/_cuda.so if it can; the package installs without them too."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent


class BuildPy(build_py):
    """Compiles the C++ and CUDA ops before the package's files are collected."""

    def run(self) -> None:
        self.compile("CPU", "build")
        self.compile("CUDA", "build_cuda")
        super().run()

    def compile(self, ops: str, function: str) -> None:
        """Runs a function of jetkern/build.py, or says why it cannot."""
        build = runpy.run_path(str(HERE / "jetkern" / "build.py"))
        try:
            build[function](HERE / "csrc", HERE / "jetkern")
        except (build["BuildError"], ImportError) as error:
            print(f"jetkern: {ops} ops not built, others run instead: {error}", file=sys.stderr)


class CompiledDistribution(Distribution):
    """Marks wheels as made for one platform."""

    def has_ext_modules(self) -> bool:
        return True


setup(
    cmdclass={"build_py": BuildPy},
    distclass=CompiledDistribution,
    package_data={"jetkern": ["_cpu.so", "_cuda.so", "ops/launch/*.json", "simulate/*.json"]},
)
