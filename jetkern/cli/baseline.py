"""Trains boosted trees on jet variables and judges them as evaluate judges a model.

jetkern baseline --data shards/toptag --num-jets 10000 --out results/trees

Mass, pT, energy, multiplicity, tau21, tau32, D2 and the share and spread of the leading particles
of each jet go into scikit-learn's HistGradientBoostingClassifier.
"""

from jetkern.cli import command
from jetkern.cli.parser import Parser, positive, seed, threads
from jetkern.io import user_path
from jetkern.study.trees import baseline
from jetkern.tables import show


def parser() -> Parser:
    """The command line."""
    p = Parser("baseline", __doc__)
    add = p.add_argument
    add("--data", type=user_path, required=True, metavar="SHARDS", help="with train, val and test")
    add("--out", type=user_path, required=True, metavar="DIR", help="for report.json, table.md")
    add("--num-jets", type=positive, metavar="N", help="to train on, those of finetune; all")
    add("--test-jets", type=positive, metavar="N", help="to judge with; all by default")
    add("--seed", type=seed, default=0, metavar="N", help="of subset and trees")
    add("--bootstrap", type=positive, default=200, metavar="N", help="resamplings")
    add("--threads", type=threads, metavar="N", help="CPU threads")
    return p


@command
def main(arguments: list[str]) -> None:
    """Runs the command line."""
    options = vars(parser().parse_args(arguments))
    data, out = options.pop("data"), options.pop("out")
    show(baseline(data, out, **options))
