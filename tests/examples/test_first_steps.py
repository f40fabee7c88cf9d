"""The notebook runs from its first cell to its last, as Jupyter would run it, without Jupyter."""

import json
import re
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
BOOK = json.loads((EXAMPLES / "first_steps.ipynb").read_text(encoding="utf-8"))
CELLS = [(cell["cell_type"], "".join(cell["source"])) for cell in BOOK["cells"]]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What the cells have defined, after the last one."""
    found: dict[str, object] = {}
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("first_steps"))
        for number, (kind, text) in enumerate(CELLS):
            if kind == "code":
                exec(compile(text, f"first_steps.ipynb, cell {number}", "exec"), found)
        found["place"] = Path(found["place"]).resolve()
    torch.set_num_threads(threads)
    return found


def test_the_models_have_learned_what_tells_the_jets_apart(names: dict) -> None:
    assert set(names["reports"]) == {"pretrained-first", "scratch"}
    assert all(report.auc.value > 0.8 for report in names["reports"].values())


def test_figures_and_files_that_are_shown_exist(names: dict) -> None:
    text = "\n".join(text for kind, text in CELLS if kind == "markdown")
    figures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert len(figures) == 2
    for figure in figures:
        assert (names["place"].parent / figure).stat().st_size > 10_000
    for link in re.findall(r"[^!]\[[^]]*\]\(([^)]+)\)", text):
        assert (EXAMPLES / link).is_file()


def test_it_is_a_notebook_without_outputs() -> None:
    assert (BOOK["nbformat"], BOOK["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in BOOK["cells"]}) == len(BOOK["cells"])
    for cell in BOOK["cells"]:
        assert cell["cell_type"] in ("code", "markdown")
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
