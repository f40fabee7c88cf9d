"""All commands look alike: names, help, errors, exit codes, Ctrl-C."""

import subprocess
import sys
from pathlib import Path

import pytest

from jetkern import cli
from jetkern.training.config import SettingsError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def fails(monkeypatch, capsys):
    """A command that raises: (exit code, lines on stderr)."""
    monkeypatch.delenv("JETKERN_DEBUG", raising=False)

    def go(error):
        @cli.command
        def main(arguments):
            if error is not None:
                raise error

        monkeypatch.setattr(cli.sys, "argv", ["anything.py"])
        return main(), capsys.readouterr().err.splitlines()

    return go


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("broken\nin two"), 1),
        (FileNotFoundError(2, "No such file", "x"), 1),
        (SettingsError("broken"), 2),
        (cli.UsageError("broken"), 2),
        (KeyboardInterrupt(), 130),
        (None, 0),
    ],
)
def test_a_command_ends_with_one_line_and_a_code(fails, error, code):
    found, lines = fails(error)
    assert found == code
    assert len(lines) == (code != 0)
    if code in (1, 2):
        assert lines[0].startswith("jetkern test_commands: error: ")
    if code == 130:
        assert lines[0] == "jetkern test_commands: stopped"


def test_faults_of_the_program_keep_their_traceback(fails, monkeypatch):
    with pytest.raises(ZeroDivisionError):
        fails(ZeroDivisionError())
    with pytest.raises(ModuleNotFoundError):
        fails(ModuleNotFoundError("No module named 'jetkern.nothing'", name="jetkern.nothing"))
    monkeypatch.setenv("JETKERN_DEBUG", "1")
    with pytest.raises(ValueError, match="invalid literal"):
        cli.command(lambda arguments: int("x"))([])


def test_a_package_that_is_missing_is_named_with_what_installs_it(fails):
    code, lines = fails(ModuleNotFoundError("No module named 'tqdm.auto'", name="tqdm.auto"))
    assert code == 1
    assert lines[0].endswith("error: tqdm is not installed: pip install 'jetkern[train]'")


def jetkern(*arguments, **options):
    """``python -m jetkern`` in a process of its own."""
    command = [sys.executable, "-m", "jetkern", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)


def test_the_commands_are_listed_and_guessed(capsys):
    for arguments, code, says in (
        (["--help"], 0, "usage: jetkern COMMAND"),
        ([], 2, "usage: jetkern COMMAND"),
        (["--version"], 0, "jetkern 0."),
        (["pretran"], 2, "jetkern: error: there is no command 'pretran' (did you mean pretrain?)"),
        (["zzz"], 2, "there is no command 'zzz'; jetkern --help lists them"),
    ):
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        assert end.value.code == code
        assert says in "".join(capsys.readouterr())
    files = {p.stem for p in (ROOT / "jetkern" / "cli").glob("*.py")}
    assert set(cli.COMMANDS) == files - {"__init__", "parser", "settings"}


@pytest.mark.parametrize("name", ["convert", "simulate"])
def test_help_starts_without_torch(name):
    code = (
        "import sys\n"
        "from jetkern.cli import run\n"
        "try: run(sys.argv[1], ['--help'])\n"
        "finally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"usage: jetkern {name}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("convert a.h5 --out b --job 2", "unrecognized arguments: --job 2 (did you mean --jobs?)"),
        ("show a --num-jts=3", "(did you mean --num-jets?)"),
        ("show a --num-jets 0", "argument --num-jets: 0 is not a positive number"),
        ("verify", "the following arguments are required"),
        ("finetune", "name the task: jetkern finetune top"),
        ("finetune topp", "unknown task 'topp'"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_code_2(arguments, says, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments.split())
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"jetkern {arguments.split()[0]}: error: ")
    assert says in line


def test_old_spellings_still_work():
    from jetkern.cli import build, show, simulate

    assert show.parser().parse_args(["a", "--jets", "5"]).num_jets == 5
    assert show.parser().parse_args(["a", "--jets=5"]).num_jets == 5
    assert build.parser().parse_args(["--into", "x"]).out == Path("x")
    assert simulate.parser().parse_args(["toptag", "--plots", "--out", "x"]).figure == Path()


def test_the_module_is_the_command():
    assert "usage: jetkern COMMAND" in jetkern("--help").stdout
    assert jetkern("shwo").returncode == 2
