"""Who may import whom: the rules of the house, in one place."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the ground up. A part imports what stands below it, never its neighbours or what is above.
FLOORS = (
    ("kernels", "kept"),
    ("io", "build", "machine", "random", "packed"),
    ("clouds",),
    ("jets", "showers", "tables", "hdf5"),
    ("ops", "data", "metrics", "fillers"),
    ("tokenizers",),
    ("model", "convert", "plots"),
    ("simulate",),
    ("objectives", "interop", "graphs"),
    ("training", "sampling"),
    ("evaluation",),
    ("tasks",),
    ("recipes",),
    ("study",),
    ("cli",),
    ("__main__",),
)
FLOOR = {part: height for height, floor in enumerate(FLOORS) for part in floor}
ONLY_IN = {
    "pythia8": ("jetkern.simulate",),
    "fastjet": ("jetkern.simulate", "jetkern.metrics.substructure"),
}


def module_of(path: Path) -> str:
    """``jetkern/ops/__init__.py`` as ``jetkern.ops``."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in sorted(ROOT.glob("jetkern/**/*.py"))}


def imported(tree: ast.AST, *, at_once: bool = False) -> Iterator[str]:
    """Modules that are imported; with ``at_once`` only when the file is, not in a function."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        elif not (at_once and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))):
            yield from imported(node, at_once=at_once)


IMPORTS = {name: list(imported(ast.parse(path.read_text()))) for name, path in MODULES.items()}


def part_of(module: str) -> str:
    """The part of the house: the name after ``jetkern``."""
    return module.split(".")[1] if "." in module else ""


def test_every_part_has_a_floor() -> None:
    assert {part_of(module) for module in MODULES} - {""} <= set(FLOOR)


def test_no_import_runs_upward_or_to_a_neighbour() -> None:
    wrong = []
    for module, names in IMPORTS.items():
        here = part_of(module)
        others = {part_of(name) for name in names if name.startswith("jetkern.")} - {here, ""}
        if here:  # the package itself names what is at its front, lazily
            wrong += [f"{module} imports {part}" for part in others if FLOOR[part] >= FLOOR[here]]
    assert wrong == []


def test_no_imports_run_in_a_circle() -> None:
    graph = {}
    for module, path in MODULES.items():
        names = imported(ast.parse(path.read_text()), at_once=True)
        graph[module] = {name for name in names if name in MODULES} - {module}
    list(TopologicalSorter(graph).static_order())  # raises CycleError


@pytest.mark.parametrize("package", ONLY_IN)
def test_a_package_of_the_edge_stays_at_the_edge(package: str) -> None:
    users = {m for m, names in IMPORTS.items() if any(n.split(".")[0] == package for n in names)}
    assert {user for user in users if not user.startswith(ONLY_IN[package])} == set()


def test_the_library_stands_alone() -> None:
    for name, names in IMPORTS.items():
        tops = {n.split(".")[0] for n in names}
        assert not tops & {"train", "data_tools", "bench", "tests"}, name


DEMOS = ("demo.py", "demo_generation.py", "stages.py")


def test_the_commands_folders_hold_no_library() -> None:
    for folder in ("data_tools", "train"):
        for path in (ROOT / folder).rglob("*"):
            assert path.suffix in (".py", ".pyc", ""), path
            if path.suffix == ".py" and path.name not in DEMOS:
                names = set(imported(ast.parse(path.read_text())))
                assert names == {"jetkern.cli"}, path


def test_the_front_of_the_package_is_shown_and_loads_what_is_asked_for() -> None:
    code = (
        "import sys, jetkern\n"
        "assert 'torch' not in sys.modules\n"
        "assert set(jetkern.__all__) <= set(dir(jetkern))\n"
        "assert jetkern.ops.knn and jetkern.data.Shards is jetkern.Shards\n"
        "for name in jetkern.__all__: getattr(jetkern, name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


ALONE = """
import sys
from importlib import import_module

def load(names):
    for name in names.split():
        import_module("jetkern." + name)

train = ("tqdm", "matplotlib")
extras = "webdataset hdf5plugin uproot awkward pyarrow xxhash tomli pythia8 fastjet snakemake"
for name in (*train, *extras.split(), "sklearn", "triton"):
    sys.modules[name] = None  # an import of it raises ImportError
load("ops model.pet objectives data sampling interop training.config training.step")
for name in train:
    del sys.modules[name]
load("recipes cli.pretrain cli.finetune cli.evaluate")
"""


def test_the_library_needs_no_extra_and_trainings_need_theirs_alone() -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
