"""Writes what a study says: tables, figures, verdicts, from the results that are there.

jetkern report studies/small.toml --results study/small

The report goes to RESULTS/report: report.md, runs.csv, tables as CSV and LaTeX, figures.
"""

from pathlib import Path

from jetkern.cli import command
from jetkern.cli.parser import Parser
from jetkern.io import user_path
from jetkern.study import make_grid, read_study
from jetkern.study.collect import collect
from jetkern.study.report import write_report
from jetkern.tables import show


def parser() -> Parser:
    """The command line."""
    p = Parser("report", __doc__)
    p.add_argument("file", type=user_path, metavar="FILE", help="the study, in TOML")
    p.add_argument("--results", type=user_path, required=True, metavar="DIR", help="its folder")
    return p


@command
def main(arguments: list[str]) -> None:
    """Runs the command line."""
    options = parser().parse_args(arguments)
    study = read_study(options.file)
    rows = collect(make_grid(study, options.file, Path.cwd()), options.results)
    show(write_report(study, rows, options.results / "report"))
