"""Ships the C++ sources with the package, and compiles them where that can be done."""

from __future__ import annotations

import runpy
import shutil
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
SOURCES = HERE / "csrc"


class BuildPy(build_py):
    """Adds the sources and, with PyTorch and a compiler, the library to the package."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # the sources stay where they are
            return self.compile_ops(HERE / "jetkern")
        package = Path(self.build_lib) / "jetkern"
        shutil.copytree(SOURCES, package / "csrc", dirs_exist_ok=True)
        self.compile_ops(package)

    def compile_ops(self, package: Path) -> None:
        """Runs jetkern/build.py, or says why it cannot: the package installs without them too."""
        build = runpy.run_path(str(HERE / "jetkern" / "build.py"))
        try:
            build["build"](SOURCES, package)
        except build["BuildError"] as error:
            print(f"jetkern: the ops are not compiled: {error}", file=sys.stderr)


class Wheel(bdist_wheel):
    """For one platform but every Python: the library knows PyTorch's stable ABI only."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


class CompiledDistribution(Distribution):
    """Marks wheels as made for one platform."""

    def has_ext_modules(self) -> bool:
        return True


setup(cmdclass={"build_py": BuildPy, "bdist_wheel": Wheel}, distclass=CompiledDistribution)
