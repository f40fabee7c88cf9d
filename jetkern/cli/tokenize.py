"""Fits a tokeniser of particles: features on a normal scale, and codes by k-means or a VQ-VAE.

jetkern tokenize kmeans --data shards/jetclass --codes 1024 --out tokens

The folder is what pretrain --tokenizer takes: for targets on the normal scale, and for tokens.
Its report says what the codes keep of jet mass, pT and tau21, and how many of them are used.
Of shards of showers it is a tokeniser of hits: cell and energy are a code.
torchrun runs it on several processes, to the same codes. The same command again continues a fit
that was stopped or killed.
"""

from __future__ import annotations

from jetkern.cli import command
from jetkern.cli.parser import Parser, positive, seed, threads
from jetkern.io import user_path
from jetkern.model.vqvae import Shape
from jetkern.tokenizers import FEATURES, HITS
from jetkern.training.distributed import join_world
from jetkern.training.tokenize import KINDS, TokenizeSettings, tokenize


def parser() -> Parser:
    """The command line."""
    p = Parser("tokenize", __doc__)
    add = p.add_argument
    add("kind", choices=KINDS, help="kmeans, vqvae, bins, or scale for no codes")
    add("--data", type=user_path, required=True, metavar="FOLDER", help="shards: train and val")
    add("--out", type=user_path, required=True, metavar="FOLDER", help="where the tokeniser goes")
    add("--codes", type=positive, default=1024, metavar="N", help="of the codebook; bins: at most")
    features = "of a particle; by default delta_eta delta_phi ln_pt, and tracks if there are any"
    add("--features", nargs="+", choices=FEATURES + HITS, metavar="NAME", help=features)
    add("--seed", type=seed, default=0, metavar="N", help="of the order of jets and all choices")
    add(
        "--scale-jets",
        type=positive,
        default=50_000,
        metavar="N",
        help="that the scale is fitted to",
    )
    batch = "jets of an update; default: 1,024, and 64 of showers"
    add("--batch-size", type=positive, default=0, metavar="N", help=batch)
    steps = "updates; default: 400 particles of a code, 5,000 of a VQ-VAE"
    add("--steps", type=positive, metavar="N", help=steps)
    shape = "vqvae: width, blocks and heads of encoder and decoder, and length of a latent"
    add("--shape", type=positive, nargs=4, default=[*Shape()], metavar="N", help=shape)
    classes = "use jets of these alone; default: all"
    add("--classes", nargs="+", default=(), metavar="NAME", help=classes)
    add("--report-jets", type=positive, default=10_000, metavar="N", help="of val, to judge it by")
    add("--threads", type=threads, metavar="N", help="CPU threads of torch")
    add("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:1")
    return p


@command
def main(arguments: list[str]) -> None:
    """Runs the command line."""
    options = vars(parser().parse_args(arguments))
    device, number = options.pop("device"), options.pop("threads")
    if number is not None:
        import torch

        torch.set_num_threads(number)
    if options["features"] is not None:
        options["features"] = tuple(options["features"])
    options["classes"] = tuple(options["classes"])
    options["shape"] = tuple(options["shape"])
    with join_world(device) as world:
        tokenize(TokenizeSettings(**options), world)
