"""Convert jets, or showers, of any known format to shards.

Examples:
  jetkern convert data/jetclass --out shards/jetclass --jobs 4
  jetkern convert top.h5 --out shards/top --splits train=0.8,val=0.1,test=0.1

A source folder with train, val and test in it gives OUT/train, OUT/val and OUT/test. The same
command again continues an interrupted conversion; the bytes do not depend on the number of jobs.

On several machines that share a file system, each does a part, and one command joins them:
  jetkern convert data/jetclass --out shards/jetclass --part 1/4   # ... to --part 4/4
  jetkern convert data/jetclass --out shards/jetclass --join
"""

from __future__ import annotations

import argparse
import re

from jetkern.cli import command
from jetkern.cli.parser import Parser, positive, processes, seed, threads
from jetkern.convert import readers
from jetkern.convert.workers import start_server
from jetkern.io import user_path
from jetkern.tables import show

SMALL = 64_000_000  # bytes of input that one process converts sooner than several start


def fractions(value: str) -> dict[str, float]:
    """``train=0.8,test=0.2`` as a dictionary."""
    try:
        pairs = [(k.strip(), float(v)) for k, v in (p.split("=") for p in value.split(","))]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r} is not like train=0.8,test=0.2") from None
    parts = dict(pairs)
    for name, _ in pairs:
        if not re.fullmatch(r"[A-Za-z0-9][\w-]*", name, re.ASCII):
            raise argparse.ArgumentTypeError(f"{name!r} is not a plain word")
    if len(parts) < len(pairs):
        raise argparse.ArgumentTypeError(f"{value}: a name is there twice")
    if any(not 0 <= f <= 1 for f in parts.values()) or abs(sum(parts.values()) - 1) > 1e-9:
        raise argparse.ArgumentTypeError(f"{value}: the fractions must add up to 1")
    return parts


def part(value: str) -> tuple[int, int]:
    """``2/4`` as (2, 4)."""
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", value, re.ASCII)
    k, n = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= k <= n:
        raise argparse.ArgumentTypeError(f"{value!r} is not like 1/4, 2/4, 3/4 or 4/4")
    return k, n


def parser() -> Parser:
    """The command line."""
    p = Parser("convert", __doc__)
    p.add_argument("sources", nargs="+", type=user_path, metavar="SRC", help="files and folders")
    p.add_argument(
        "--out", required=True, type=user_path, metavar="DIR", help="folder for the shards"
    )
    p.add_argument(
        "--from",
        dest="reader",
        default="auto",
        choices=["auto", *readers.MODULES, *readers.SHIPPED],
        help="format of the sources (default: judged by their content)",
    )
    p.add_argument(
        "--jobs",
        type=threads,
        metavar="N",
        help="processes; default: cores, and one for less than 64 MB",
    )
    p.add_argument("--seed", type=seed, default=0, metavar="N", help="of the shuffle (default 0)")
    p.add_argument("--overwrite", action="store_true", help="replace what OUT holds")
    p.add_argument("--quiet", action="store_true", help="no progress bars")

    g = p.add_argument_group("several machines")
    g.add_argument("--part", type=part, metavar="K/N", help="do the K-th of N parts")
    g.add_argument("--join", action="store_true", help="finish what all parts have read")

    g = p.add_argument_group("splits")
    g.add_argument(
        "--splits",
        type=fractions,
        metavar="NAME=F,...",
        help="split at random instead of by the source's folders or columns",
    )
    g.add_argument("--one-set", action="store_true", help="ignore the source's splits")

    g = p.add_argument_group("what the source means")
    g.add_argument(
        "--classes",
        type=lambda v: tuple(v.split(",")),
        default=(),
        metavar="A,B,...",
        help="names of the classes, in the order of the labels",
    )
    g.add_argument("--label-shift", type=int, metavar="N", help="subtracted from the labels")
    g.add_argument(
        "--schema", type=user_path, metavar="FILE", help="TOML file that describes your own format"
    )
    g.add_argument(
        "--unlabelled",
        choices=["error", "drop"],
        default="error",
        help="jets whose label is none of the classes'; --max-dropped does not count them",
    )

    _add_values(p)
    _add_shards(p)
    return p


def _add_values(p: Parser) -> None:
    g = p.add_argument_group("values")
    g.add_argument(
        "--bad-jets",
        choices=["error", "drop"],
        default="error",
        help="jets without particles or with values that are not finite or not physical",
    )
    g.add_argument(
        "--bad-tracks",
        choices=["error", "drop", "zero"],
        default="error",
        help="impact parameters that are not finite or have an error below 0: drop the jet, or "
        "set them to zero",
    )
    g.add_argument(
        "--max-dropped",
        type=float,
        default=0.01,
        metavar="F",
        help="give up if a larger fraction of jets is dropped (default 0.01)",
    )
    g.add_argument(
        "--max-particles",
        type=positive,
        default=150,
        metavar="N",
        help="keep the N particles of highest pT of a jet (default 150)",
    )
    g.add_argument(
        "--max-cut",
        type=float,
        default=0.25,
        metavar="F",
        help="give up if a larger fraction of the particles lies beyond the 150th of their jet, as "
        "where rows are no jets (default 0.25)",
    )


def _add_shards(p: Parser) -> None:
    g = p.add_argument_group("shards")
    g.add_argument(
        "--tracks",
        choices=readers.TRACK_SCALES,
        default="tanh",
        help="what d0 and dz (mm) are stored as; tanh (default) cannot be inverted beyond 9 mm",
    )
    g.add_argument(
        "--dtype",
        choices=["float32", "float16"],
        default="float32",
        help="of particles and tracks; float16 halves the size at a relative error of "
        "up to 0.05%% of each feature, and up to 0.2%% of pT and E",
    )
    for name, what, jets, showers in (
        ("block", "read at a time", 1024, 64),
        ("shard", "of a file", 65536, 8192),
        ("read", "that a process holds at a time in the first pass", 16384, 1024),
    ):
        words = f"jets {what} (default {jets}; of showers {showers})"
        g.add_argument(f"--jets-per-{name}", type=positive, metavar="N", help=words)


@command
def main(arguments: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    args = parser().parse_args(arguments)
    if args.max_particles > 150:
        parser().error("--max-particles must be at most 150")
    if args.part and (args.join or args.overwrite):
        parser().error("--part goes with neither --join nor --overwrite")
    if args.jobs is not None and args.jobs > 1:
        start_server()
    # Imported now, so that --help is there at once and the server imports at the same time.
    from jetkern.convert.clean import Policy
    from jetkern.convert.plan import make_plan
    from jetkern.convert.readers import schema
    from jetkern.convert.report import text
    from jetkern.convert.run import convert

    like = args.reader if args.reader in readers.SHIPPED else None
    described = like or (args.schema and args.reader == "auto")
    plan = make_plan(
        args.sources,
        reader="schema" if described else args.reader,
        options=readers.Options(
            args.label_shift,
            args.classes,
            schema.load(args.schema, like) if args.schema or like else None,
            tracks=args.tracks,
        ),
        policy=Policy(
            args.bad_jets, args.bad_tracks, args.max_particles, args.unlabelled, args.max_cut
        ),
        fractions=args.splits,
        use_splits=not args.one_set,
        seed=args.seed,
        jets_per_block=args.jets_per_block,
        jets_per_shard=args.jets_per_shard,
        jets_per_read=args.jets_per_read,
        dtype=args.dtype,
        progress=not args.quiet,
    )
    small = sum(entry.size for entry in plan.inputs) < SMALL
    jobs = args.jobs or (1 if small else processes())
    result = convert(
        plan,
        args.out,
        jobs=jobs,
        max_dropped=args.max_dropped,
        overwrite=args.overwrite,
        progress=not args.quiet,
        part=args.part,
        join=args.join,
    )
    result.notes += plan.passed_over
    show(text(result))
    return 0
