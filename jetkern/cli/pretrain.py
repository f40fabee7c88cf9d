"""Pre-trains a jet foundation model on shards: any of classification, flow matching, masking.

jetkern pretrain --preset micro --objective classifier+mpm --data shards/jetclass --out run

torchrun --nproc-per-node=4 -m jetkern pretrain ... does the same on four GPUs.

The same command again continues a run that was stopped or killed.
"""

from jetkern.cli import command
from jetkern.cli.settings import parse
from jetkern.recipes import pretrain
from jetkern.training.defaults import pretrain_defaults


@command
def main(arguments: list[str]) -> None:
    """Runs the command line."""
    pretrain(parse(pretrain_defaults, arguments, name="pretrain", description=__doc__))
