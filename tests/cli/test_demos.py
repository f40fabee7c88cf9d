"""The stages of the demos are commands that exist, with flags that exist."""

import importlib
import sys
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("name", "stages"), [("demo", 10), ("demo_generation", 10)])
def test_the_stages_of_a_demo_can_be_typed(name, stages, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "train")
    monkeypatch.setattr(sys, "argv", [name, "--out", str(tmp_path / "demo"), "--jobs", "1"])
    typed = []

    def note(words, cwd):
        typed.append(words[1:])
        return type("Done", (), {"returncode": 0})()

    demo = importlib.import_module(name)
    monkeypatch.setattr("stages.subprocess.run", note)
    results = tmp_path / "demo" / ("generation" if name.endswith("generation") else "results")
    results.mkdir(parents=True)
    (results / "table.md").write_text("| a table |")
    demo.main()
    assert "| a table |" in capsys.readouterr().out
    assert len(typed) == stages
    made = set()
    for words in typed:
        assert (ROOT / words[0]).is_file()
        command = Path(words[0]).stem
        help_ = _help(command, words[1], capsys)
        for flag in (word for word in words if word.startswith("--")):
            assert flag in help_, (command, flag)
        for before, word in pairwise(words):
            if before in ("--data", "--from", "--conditions"):  # made by an earlier stage
                assert any(Path(word).is_relative_to(other) for other in made), (word, made)
        made.add(words[words.index("--out") + 1])


def _help(command, first, capsys):
    from jetkern.cli import run

    words = [command, first, "--help"] if command == "finetune" else [command, "--help"]
    sys.argv = words
    with pytest.raises(SystemExit):
        run(command)
    return capsys.readouterr().out
