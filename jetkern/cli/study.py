"""Runs a study: pre-trainings, fine-tunings and evaluations of a file, and the report on them.

jetkern study studies/small.toml --out study/small --dry-run

jetkern study studies/small.toml --out study/small --cores 2

The same command again continues a study that was stopped or killed. On a cluster:

jetkern study studies/paper.toml --out study/paper --profile studies/slurm
"""

import shlex
from pathlib import Path

from jetkern.cli import command
from jetkern.cli.parser import Parser, processes, threads
from jetkern.cli.settings import parse
from jetkern.io import user_path
from jetkern.study import Grid, make_grid, read_study
from jetkern.study.estimate import grid_table
from jetkern.study.workflow import run
from jetkern.tables import show
from jetkern.tasks import find_task
from jetkern.training.defaults import pretrain_defaults


def parser() -> Parser:
    """The command line."""
    p = Parser("study", __doc__)
    p.add_argument("file", type=user_path, metavar="FILE", help="the study, in TOML")
    p.add_argument("--out", type=user_path, required=True, metavar="DIR", help="for all of it")
    p.add_argument("--cores", type=threads, metavar="N", help="default: those that we may use")
    p.add_argument("--jobs", type=threads, metavar="N", help="commands at a time; default: cores")
    p.add_argument("--dry-run", action="store_true", help="print the grid and an estimate of time")
    p.add_argument("--profile", type=user_path, metavar="DIR", help="of Snakemake, for a cluster")
    p.add_argument(
        "--snakemake", default="", metavar="ARGS", help='for it, as --snakemake="--keep-going"'
    )
    return p


def check_flags(grid: Grid) -> None:
    """Reads the flags of one training of each kind, so that a wrong one is said before all runs.

    Raises:
        SystemExit: as the command of that training would.
    """
    kinds: dict[tuple[str, ...], list[str]] = {}
    for job in grid.jobs:
        rule, *words = job.words
        if rule in ("pretrain", "finetune"):
            task = words.pop(0) if rule == "finetune" else ""
            words = words[: words.index("--config")] if "--config" in words else words
            kinds.setdefault((rule, task), [*words, "--out", job.name])
    for (rule, task), words in kinds.items():
        defaults = find_task(task).defaults if task else pretrain_defaults
        parse(defaults, words, name=f"{rule} {task}".strip(), description="")


@command
def main(arguments: list[str]) -> int:
    """Runs the command line."""
    options = parser().parse_args(arguments)
    further = shlex.split(options.snakemake)
    if options.profile is not None:
        further += ["--profile", str(options.profile.resolve())]
    study = read_study(options.file)
    grid = make_grid(study, options.file, Path.cwd())
    check_flags(grid)
    cores = options.cores or processes()
    jobs = min(options.jobs or cores, cores)
    if options.dry_run and not further:
        show(grid_table(grid, options.out, jobs=jobs, threads=cores // jobs))
        return 0
    if options.dry_run:
        further.append("--dry-run")
    return run(options.file, options.out, cores=cores, jobs=jobs, further=further)
