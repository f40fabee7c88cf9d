"""Runs a study with Snakemake: resumed, parallel, and on a cluster by its executors."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from jetkern.io import locked, prepare_folder
from jetkern.study.grid import Job

SNAKEFILE = Path(__file__).with_name("Snakefile")


def typed(job: Job) -> str:
    """A job as a line for the shell."""
    return shlex.join([sys.executable, "-m", "jetkern", *job.words])


def arguments(
    file: Path, out: Path, *, cores: int, jobs: int, further: Sequence[str] = ()
) -> list[str]:
    """The command line of Snakemake for a study.

    Args:
        file: of the study.
        out: folder for all that it makes.
        cores: that may be used.
        jobs: commands at a time; each gets ``cores // jobs`` threads.
        further: arguments for Snakemake, such as ``--executor slurm``.
    """
    return [
        *(sys.executable, "-m", "snakemake", "--snakefile", str(SNAKEFILE)),
        *("--directory", str(out), "--cores", str(cores)),
        *("--config", f"study={file.resolve()}", f"base={Path.cwd()}"),
        f"threads={max(1, cores // jobs)}",
        # A kill leaves Snakemake's lock behind; ours goes with its process.
        *("--nolock", "--rerun-incomplete", "--printshellcmds"),
        *("--scheduler", "greedy"),  # commands are alike: nothing to optimise
        *further,
    ]


def run(file: Path, out: Path, *, cores: int, jobs: int, further: Sequence[str] = ()) -> int:
    """Runs what of a study has not been run, and returns Snakemake's exit code.

    Threads of a run that wait for each other sleep instead of spinning, so that a neighbour on the
    same cores gets its share and gives ours (docs/study.md has the figures).

    Raises:
        ModuleNotFoundError: without Snakemake.
        FolderInUse: if another process runs a study in ``out``.
    """
    if find_spec("snakemake") is None:
        raise ModuleNotFoundError("no snakemake", name="snakemake")
    prepare_folder(out)
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
    with locked(out):
        words = arguments(file, out, cores=cores, jobs=jobs, further=further)
        return subprocess.run(words, env=environment).returncode
