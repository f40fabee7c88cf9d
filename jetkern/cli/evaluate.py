"""Judges trained models. Classifiers: accuracy, AUC, R50 and R30 with uncertainties, ROC curves.

jetkern evaluate runs/scratch runs/finetuned --data shards/toptag --out results/top
"""

import os

from jetkern.cli import command
from jetkern.cli.settings import parse
from jetkern.recipes import evaluate
from jetkern.training.defaults import evaluate_defaults


@command
def main(arguments: list[str]) -> None:
    """Runs the command line."""
    settings = parse(evaluate_defaults, arguments, name="evaluate", description=__doc__)
    if not int(os.environ.get("RANK", "0")):  # below torchrun, one process does it
        evaluate(settings)
