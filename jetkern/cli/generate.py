"""Makes jets, or showers, with a trained generator: shards, and JetNet's or ShowerData's HDF5.

jetkern generate runs/jetnet --conditions shards/jetnet/test --out generated

jetkern generate runs/jetnet --conditions model --jets-per-type g=1000,t=500 --out more

jetkern generate omnijet --num-jets 10000 --top-p 0.99 --out drawn

jetkern generate spade --conditions shards/showers/test --out showers

The checkpoint says what kind of generator it holds. A velocity field (finetune jetnet) makes jets
with the types, conditions and multiplicities of those of a folder of shards, or of the model of
them that finetune jetnet keeps in its run. "fitted" is a scheme made for this model and kept beside
its checkpoints; the first run with a number of evaluations makes it. A distilled model (finetune
distill) takes 1, 2 or 4 evaluations of its own solver, flow-map. A decoder of tokens (pretrain
--objective next-token) draws jets as they come, token by token, and its tokeniser says what they
stand for; on a CPU they are the same whatever --slots. A decoder of showers draws the hits
for particles with the energies of shards or of a file, or evenly spread ones (--energies 1,10).
torchrun runs it on several processes. The same command again continues one that was stopped or
killed, to the same bytes.
"""

from pathlib import Path

from jetkern.cli import command
from jetkern.cli.parser import Parser, positive, seed
from jetkern.data.shards import MAX_PARTICLES
from jetkern.evaluation.generate import BATCH_SIZE, GenerateSettings, generate, remarks
from jetkern.ops.dispatch import PRECISIONS
from jetkern.sampling import FLOW_MAP, SLOTS, SOLVERS
from jetkern.training.distributed import join_world


def parser() -> Parser:
    """The command line."""
    p = Parser("generate", __doc__)
    add = p.add_argument
    add("source", type=Path, metavar="RUN", help="run or checkpoint with a generator")
    add("--out", type=Path, required=True, metavar="FOLDER", help="where the jets go")
    of_field = "the first N of the jets to imitate; all by default"
    add("--num-jets", type=positive, metavar="N", help=f"of a decoder; or {of_field}")
    add("--seed", type=seed, default=0, metavar="N", help="of the noise")
    precision = "factors of products may be rounded to this, see finetune (default: ieee)"
    add("--precision", choices=PRECISIONS, default="ieee", help=precision)
    add("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:1")
    add = p.add_argument_group("velocity fields").add_argument
    imitated = "jets, or showers, to imitate, or model; needed"
    add("--conditions", type=Path, metavar="SHARDS", help=imitated)
    add("--jets-per-type", metavar="N", help="with model: N of each type, or g=N,t=N")
    solvers = ("fitted", *SOLVERS, FLOW_MAP)
    add("--solver", choices=solvers, help="how to integrate (default: fitted, or flow-map)")
    network = "of the network for a jet (default: 12, or the most that a distilled model knows)"
    add("--evaluations", type=positive, metavar="N", help=network)
    add("--guidance", type=float, metavar="W", help="classifier-free; 1, the default, for none")
    add("--batch-size", type=positive, metavar="N", help=f"jets per pass (default: {BATCH_SIZE})")
    add = p.add_argument_group("decoders of tokens and showers").add_argument
    energies = "of showers: a file of showers, or LOW,HIGH in GeV, evenly spread"
    add("--energies", metavar="FILE", help=energies)
    add("--temperature", type=float, metavar="T", help="of the softmax; 0 for the likeliest token")
    add("--top-k", type=positive, metavar="K", help="of the K likeliest tokens only (default: all)")
    add("--top-p", type=float, metavar="P", help="of the likeliest that have P (default: all)")
    most = (
        f"that a jet is cut at (default: {MAX_PARTICLES}; of showers 1.25 times the longest seen)"
    )
    add("--max-particles", type=positive, metavar="N", help=most)
    add("--slots", type=positive, metavar="N", help=f"jets at a time (default: {SLOTS})")
    return p


@command
def main(arguments: list[str]) -> None:
    """Runs the command line."""
    settings = GenerateSettings(**vars(parser().parse_args(arguments)))
    with join_world(settings.device) as world:
        shards = generate(settings, world)
        if shards is not None:
            sets = shards.words[0]
            print(f"{settings.out}: {shards.num_jets:,} {sets}{remarks(settings.out)}")
