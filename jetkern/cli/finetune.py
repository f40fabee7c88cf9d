"""Fine-tunes a pre-trained model on labelled jets, or trains the same model from scratch.

jetkern finetune top --from runs/pretrained --data shards/toptag --out runs/top

jetkern finetune top --preset micro --num-jets 1000 --data shards/toptag --out runs/scratch

Tasks: top (top tagging as in the study), classify (any labelled jets), jetnet (conditional
generation), distill (a few-step generator from one of jetnet), flavour (light, charm and bottom
jets), origin and vertices (of the tracks in these), weak (a signal hidden in one of two samples),
and those of a --plugin. The same command again continues a run that was stopped
or killed.
"""

from jetkern.cli import command
from jetkern.cli.settings import load_named_plugins, parse
from jetkern.recipes import finetune
from jetkern.tasks import find_task
from jetkern.training.config import SettingsError


@command
def main(arguments: list[str]) -> None:
    """Runs the command line."""
    name, *flags = arguments or [""]
    if name in ("-h", "--help"):
        name, flags = "top", ["--help"]
    elif not name:
        raise SettingsError("name the task: jetkern finetune top ...")
    load_named_plugins(flags)
    try:
        task = find_task(name)
    except ValueError as error:
        raise SettingsError(f"{error}: say jetkern finetune top ...") from None
    finetune(task, parse(task.defaults, flags, name=f"finetune {name}", description=__doc__))
