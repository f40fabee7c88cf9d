"""Simulates jets (ten JetClass-like classes, top tagging, JetNet-like types, flavours) or showers.

Example, 20,000 jets in ten classes on two cores:

    jetkern simulate jetclass --jets-per-class 2000 --splits train=0.9,val=0.1 \\
        --jobs 2 --out jets/jetclass --figure

The jets depend on the seed and the sizes asked for, not on the number of processes. The same
command again makes only what is missing. Leading-order Pythia, a parametric detector and no
pile-up: the jets are of the kinds in the public data sets, not those data sets. Showers are
those of photons in a calorimeter, from a parametrisation (one process, nothing to install).
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

from jetkern.cli import UsageError, command
from jetkern.cli.parser import Parser, positive, processes, seed, threads
from jetkern.io import user_path
from jetkern.tables import show

DATA_SETS = ("jetclass", "toptag", "jetnet", "flavour", "showers")
LIBRARIES = ("pythia8mc", "fastjet", "awkward", "vector", "tqdm")


def parse_splits(text: str) -> dict[str, float]:
    """``train=0.8,val=0.2`` as a dictionary."""
    splits: dict[str, float] = {}
    for part in text.split(","):
        name, _, fraction = part.partition("=")
        if name not in ("train", "val", "test") or name in splits:
            raise argparse.ArgumentTypeError(f"{text!r} is not like train=0.8,val=0.1,test=0.1")
        try:
            splits[name] = float(fraction)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{fraction!r} is not a fraction") from None
    return splits


def parser() -> Parser:
    """The command line."""
    parser = Parser("simulate", __doc__, renamed={"--plots": "--figure"})
    add = parser.add_argument
    add("data_set", choices=DATA_SETS, help="kinds of jets, or showers")
    add("--out", type=user_path, required=True, metavar="DIR", help="folder for the files")
    add(
        "--jets-per-class",
        type=positive,
        default=2000,
        metavar="N",
        help="or showers, in all",
    )
    add(
        "--classes",
        nargs="+",
        default=(),
        metavar="NAME",
        help="make these alone; the same command for others adds them",
    )
    add(
        "--splits",
        type=parse_splits,
        metavar="NAME=F,...",
        help="default train=0.8,val=0.1,test=0.1; none for jetnet",
    )
    add("--jobs", type=threads, default=processes(), metavar="N", help="processes; default: cores")
    add("--seed", type=seed, default=0, metavar="N", help="of the events")
    add("--jets-per-shard", type=positive, default=2000, metavar="N", help="most in one file")
    add(
        "--mpi",
        action=argparse.BooleanOptionalAction,
        help="multi-parton interactions (default: on, off for toptag); off is 3 to 4 times faster",
    )
    add(
        "--figure",
        type=user_path,
        nargs="?",
        const=Path(),
        metavar="FILE",
        help="also write the sanity sheet, by default to DIR/sanity.png",
    )
    add(
        "--calorimeter",
        choices=("small", "full"),
        default="small",
        help="that sees the showers: of about 65 hits a shower, or of about 900",
    )
    add("--quiet", action="store_true", help="no progress bar")
    return parser


@command
def main(arguments: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    options = parser().parse_args(arguments)
    if options.splits is None:
        options.splits = (
            {} if options.data_set == "jetnet" else {"train": 0.8, "val": 0.1, "test": 0.1}
        )
    if options.data_set == "showers":
        return showers(options)
    if options.figure is not None and options.classes:
        raise UsageError("the sanity sheet shows all classes: make it without --classes")
    needed = (*LIBRARIES, *(("matplotlib",) if options.figure else ()))
    if missing := [name for name in needed if find_spec(name) is None]:
        raise UsageError(f"{', '.join(missing)} missing: pip install 'jetkern[simulation]'")
    from jetkern.simulate.run import Request, simulate

    if options.figure is not None:
        from jetkern.plots import prepare

        figure = options.out / "sanity.png" if options.figure == Path() else options.figure
        prepare(figure)
    names = ("data_set", "jets_per_class", "jets_per_shard", "splits", "seed", "mpi", "out")
    request = Request(
        **{name: getattr(options, name) for name in names}, kinds=tuple(options.classes)
    )
    total, made = simulate(request, options.jobs, progress=not options.quiet)
    print(f"{options.out}: {total} jets, {made} of them made now")
    if options.figure is not None:
        from jetkern.simulate.plots import sanity_sheet

        show(sanity_sheet(options.out, options.data_set, figure))
    return 0


def showers(options: argparse.Namespace) -> int:
    """Makes the files of showers; returns the exit code."""
    from jetkern.simulate.showers import make_showers

    if options.figure is not None or options.mpi is not None or options.classes:
        raise UsageError("showers have no sanity sheet, multi-parton interactions or classes")
    number = options.jets_per_class
    made = make_showers(
        options.out, options.calorimeter, number, options.splits,
        per_file=options.jets_per_shard, seed=options.seed, jobs=options.jobs,
        progress=not options.quiet,
    )  # fmt: skip
    print(f"{options.out}: {number} showers, {made} of them made now")
    return 0
