"""Takes the learning rate whose run has the best validation loss.

jetkern choose runs/a runs/b runs/c --out rate.toml

jetkern finetune top --config rate.toml ... then trains with it. Test jets are not looked at.
"""

from pathlib import Path

from jetkern.cli import command
from jetkern.cli.parser import Parser
from jetkern.io import user_path
from jetkern.study.choice import choose
from jetkern.tables import show


def parser() -> Parser:
    """The command line."""
    p = Parser("choose", __doc__)
    p.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="runs that have ended")
    p.add_argument("--out", type=user_path, required=True, metavar="FILE", help="settings, TOML")
    p.add_argument("--run", type=user_path, metavar="DIR", help="where a copy of the run goes")
    return p


@command
def main(arguments: list[str]) -> None:
    """Runs the command line."""
    options = parser().parse_args(arguments)
    show(choose(options.runs, options.out, options.run))
