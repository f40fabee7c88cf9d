"""The study of arXiv 2606.14870 as a file: a grid of trainings, and what it says."""

from jetkern.study.grid import Grid, Job, Run, make_grid
from jetkern.study.plan import Study, StudyError, read_study

__all__ = ["Grid", "Job", "Run", "Study", "StudyError", "make_grid", "read_study"]
