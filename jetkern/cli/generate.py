"""Makes jets with a trained generator: shards, and JetNet's HDF5.

jetkern generate runs/jetnet --conditions shards/jetnet/test --out generated

jetkern generate runs/jetnet --conditions model --jets-per-type g=1000,t=500 --out more

Types, conditions and multiplicities are those of the jets of a folder of shards, or come from the
model of them that finetune jetnet keeps in its run. "fitted" is a
scheme made for this model and kept beside its checkpoints; the first run with a number of
evaluations makes it. A distilled model (finetune distill) takes 1, 2 or 4 evaluations of its own
solver, flow-map. torchrun runs it on several processes. The same command again continues one
that was stopped or killed, to the same bytes.
"""

from pathlib import Path

from jetkern.cli import command
from jetkern.cli.parser import Parser, positive, seed
from jetkern.evaluation.generate import GenerateSettings, generate
from jetkern.sampling import FLOW_MAP, SOLVERS
from jetkern.training.distributed import join_world


def parser() -> Parser:
    """The command line."""
    p = Parser("generate", __doc__)
    add = p.add_argument
    add("source", type=Path, metavar="RUN", help="run or checkpoint with a generator")
    add(
        "--conditions", type=Path, required=True, metavar="SHARDS", help="jets to imitate, or model"
    )
    add("--out", type=Path, required=True, metavar="FOLDER", help="where the jets go")
    add("--num-jets", type=positive, metavar="N", help="the first N of them; all by default")
    add("--jets-per-type", metavar="N", help="with model: N of each type, or g=N,t=N")
    solvers = ("fitted", *SOLVERS, FLOW_MAP)
    add("--solver", choices=solvers, help="how to integrate (default: fitted, or flow-map)")
    network = "of the network for a jet (default: 12, or the most that a distilled model knows)"
    add("--evaluations", type=positive, metavar="N", help=network)
    add("--guidance", type=float, default=1.0, metavar="W", help="classifier-free; 1 for none")
    add("--seed", type=seed, default=0, metavar="N", help="of the noise")
    add("--batch-size", type=positive, default=256, metavar="N", help="jets per pass")
    add("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:1")
    return p


@command
def main(arguments: list[str]) -> None:
    """Runs the command line."""
    settings = GenerateSettings(**vars(parser().parse_args(arguments)))
    with join_world(settings.device) as world:
        shards = generate(settings, world)
        if shards is not None:
            print(f"{settings.out}: {shards.num_jets:,} jets")
