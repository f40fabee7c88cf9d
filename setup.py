"""Builds jetkern/_cpu.so if it can; without a compiler the package installs without it."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent


class BuildPy(build_py):
    """Compiles the CPU ops before the package's files are collected."""

    def run(self) -> None:
        build = runpy.run_path(str(HERE / "jetkern" / "build.py"))
        try:
            build["build"](HERE / "csrc", HERE / "jetkern")
        except (build["BuildError"], ImportError) as error:
            print(
                f"jetkern: CPU ops not built, its reference runs instead: {error}", file=sys.stderr
            )
        super().run()


class CompiledDistribution(Distribution):
    """Marks wheels as made for one platform."""

    def has_ext_modules(self) -> bool:
        return True


setup(
    cmdclass={"build_py": BuildPy},
    distclass=CompiledDistribution,
    package_data={"jetkern": ["_cpu.so", "_cuda.so", "ops/launch/*.json"]},
)
