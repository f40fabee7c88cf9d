"""Everything that the documents say to type is typed, on tiny data; what they list is complete."""

import io
import os
import re
import runpy
import shlex
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import h5py
import pytest
import torch
import yaml

from bench import readme
from jetkern import Shards, Stream, cli
from jetkern.simulate.showers import make_showers
from tests.factories import write_jetnet_shards

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHORT = "--steps 2 --warmup-steps 0 --batch-size 8 --val-every 2 --val-jets 16 --threads 1"
SHORTER = {
    "tokenize": "--codes 16 --steps 2 --batch-size 8 --report-jets 20",
    "pretrain": SHORT,
    "finetune": f"{SHORT} --num-jets 20",
    "evaluate": "--bootstrap 2 --num-jets 20",
    "generate": "--num-jets 10",
}
RUN_HERE = (
    "convert",
    "tokenize",
    "verify",
    "show",
    "pretrain",
    "finetune",
    "generate",
    "evaluate",
    "doctor",
)


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in that language ("" for what is typed in a shell)."""
    return [text for found, text in BLOCK.findall(page.read_text()) if found == language]


def commands() -> list[tuple[str, str]]:
    """Pages and the lines of their shell blocks, in order, without remarks."""
    return [
        (page.name, line.split("  #")[0].strip())
        for page in PAGES
        for block in blocks(page, "")
        for line in block.replace("\\\n", " ").splitlines()
        if line.strip() and not line.startswith("# ")
    ]


def some(source: Path, target: Path, jets: slice, classes: int) -> None:
    """A part of the simulated jets of the tests."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(source) as old, h5py.File(target, "w") as new:
        label = old["pid"][:] - int(old.attrs["label_shift"])
        rows = (label < classes).nonzero()[0][jets]
        for name in old:
            new[name] = old[name][rows]
            new[name].attrs.update(old[name].attrs)
        new.attrs.update(old.attrs)
        new.attrs["classes"] = list(old.attrs["classes"])[:classes]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the documents speak of, as their readers would have them."""
    folder = tmp_path_factory.mktemp("desk")
    source = ROOT / "tests" / "jets" / "jetclass.h5"
    for name, classes in (("jetclass", 10), ("toptag", 2)):
        for i, split in enumerate(("train", "val", "test")):
            jets = slice(i, 90, 3) if classes == 2 else slice(i, None, 3)
            some(source, folder / "data" / name / split / "jets.h5", jets, classes)
    for i, split in enumerate(("train", "val", "test")):
        write_jetnet_shards(folder / "shards" / "jetnet" / split, [12] * 40, seed=i)
    splits = {"train": 0.4, "val": 0.3, "test": 0.3}
    make_showers(folder / "showers" / "small", "small", 100, splits)
    return folder


def typed(desk: Path, name: str, arguments: str) -> None:
    """One ``jetkern`` command as written, made short."""
    words = shlex.split(f"{arguments} {SHORTER.get(name, '')}")
    said, before, threads = io.StringIO(), Path.cwd(), torch.get_num_threads()
    os.chdir(desk)
    try:
        with redirect_stdout(said), redirect_stderr(said), pytest.raises(SystemExit) as end:
            cli.run(name, words)
    finally:
        os.chdir(before)
        torch.set_num_threads(threads)
    assert end.value.code == 0, f"jetkern {name} {arguments}\n{said.getvalue()}"


@pytest.fixture(scope="module")
def pages(desk: Path) -> list[str]:
    """All ``jetkern`` commands of all pages have run in ``desk``; returns them."""
    done: list[str] = []
    last = ""
    for page, line in commands():
        if page != last:  # each page trains anew
            shutil.rmtree(desk / "runs", ignore_errors=True)
        last = page
        words = line.split()
        start = "jetkern" if words[0] == "jetkern" else "-m jetkern"
        if start not in line or "$" in line:  # what a batch system has to fill in
            continue
        name, _, arguments = line.split(f"{start} ", 1)[-1].partition(" ")
        if name in RUN_HERE:
            typed(desk, name, arguments)
        done.append(line)
    return done


def test_every_command_runs(pages: list[str]) -> None:
    assert len(pages) >= 8


def test_every_python_block_runs(pages: list[str], desk: Path) -> None:
    before = Path.cwd()
    os.chdir(desk)
    try:
        for page in PAGES:
            names: dict[str, object] = {}
            for block in blocks(page, "python"):
                exec(compile(block, page.name, "exec"), names)
    finally:
        os.chdir(before)


def test_what_is_not_run_has_the_flags_and_files_that_are_named() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    frozen = (ROOT / "tests" / "cli" / "command_line.txt").read_text().splitlines()
    for page, line in commands():
        if re.match(r"\w+=|sbatch |srun ", line):  # for a batch system
            continue
        words = shlex.split(line)
        if words[0] == "make":
            assert set(words[1:]) <= targets, (page, line)
            continue
        if words[:2] == ["python", "-m"] and words[2].startswith("bench."):
            source = (ROOT / f"{words[2].replace('.', '/')}.py").read_text()
            for word in words[3:]:
                if word.startswith("--"):
                    assert f'"{word.split("=")[0]}"' in source, (page, line, word)
            continue
        if words[0] == "jetkern":
            lines = [f"{row} " for row in frozen if row.startswith(f"jetkern {words[1]} ")]
            for word in (w.split("=")[0] for w in words if w.startswith("--")):
                assert any(f" {word} " in row for row in lines), (page, line, word)
        known = ("jetkern", "torchrun", "pip", "python")
        assert words[0] in known or (ROOT / words[0]).exists(), (page, line)


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), (page.name, target)


def test_the_tables_and_the_figure_are_those_of_the_results() -> None:
    assert readme.stale() == [], "run python -m bench.readme"


def test_every_environment_variable_is_listed() -> None:
    listed = set(re.findall(r"`([A-Z][A-Z_]+)`", (ROOT / "docs" / "environment.md").read_text()))
    read = re.compile(r"""(?:environ(?:\.get\(|\[)|getenv\(|")(JETKERN_[A-Z_]+)""")
    other = re.compile(r"""environ(?:\.get\(|\[)["']([A-Z_0-9]+)["']""")
    found: set[str] = set()
    for folder, kinds in (("jetkern", "py"), ("csrc", "cpp"), ("csrc", "h"), ("tests", "py")):
        for path in (ROOT / folder).rglob(f"*.{kinds}"):
            text = path.read_text()
            found |= set(read.findall(text))
            if folder == "jetkern":
                found |= set(other.findall(text))
    theirs = {"WORLD_SIZE", "RANK", "LOCAL_RANK", "PYTHONPATH"}  # of torchrun and Python
    assert {name for name in found if not name.startswith("JETKERN_ISA")} - theirs <= listed


def test_the_pages_of_the_site_exist() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    pages = [path for entry in site["nav"] for path in entry.values()]
    assert sorted(pages) == sorted(p.name for p in (ROOT / "docs").glob("*.md"))


def test_the_example_with_the_ops_learns() -> None:
    main = runpy.run_path(str(ROOT / "examples" / "ops_in_your_model.py"))["main"]
    assert main(steps=10) > 0.8


def test_the_example_of_a_format_converts(tmp_path: Path) -> None:
    main = runpy.run_path(str(ROOT / "examples" / "your_format.py"))["main"]
    assert main(tmp_path) == 0
    shards = Shards(tmp_path / "shards" / "train")
    assert shards.classes == ("quark", "gluon")
    (jets,) = Stream(shards, batch_size=1000, epochs=1)
    assert 150 < len(jets) < 200
    assert 0.4 < jets.particles[:, 2].exp().min() < 20  # GeV
