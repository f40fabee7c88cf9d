"""Simulates jets: ten JetClass-like classes, top tagging, or five JetNet-like types.

Example, 20,000 jets in ten classes on two cores:

    python data_tools/simulate.py jetclass --jets-per-class 2000 --splits train=0.9,val=0.1 \\
        --jobs 2 --out jets/jetclass --plots

The jets depend on the seed and the sizes asked for, not on the number of processes. The same
command again makes only what is missing. Leading-order Pythia, a parametric detector and no
pile-up: the jets are of the kinds in the public data sets, not those data sets.
"""

from __future__ import annotations

import argparse
import os
import sys
from importlib.util import find_spec
from pathlib import Path

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


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_set", choices=("jetclass", "toptag", "jetnet"))
    parser.add_argument("--out", type=Path, required=True, help="output directory")
    add = parser.add_argument
    add("--jets-per-class", type=int, default=2000, help="over all splits (default %(default)s)")
    add("--splits", type=parse_splits, help="default train=0.8,val=0.1,test=0.1; none for jetnet")
    add("--jobs", type=int, default=os.cpu_count(), help="processes (default: one per core)")
    add("--seed", type=int, default=0, help="default %(default)s")
    add("--jets-per-shard", type=int, default=2000, help="most in one file (default %(default)s)")
    add(
        "--mpi",
        action=argparse.BooleanOptionalAction,
        help="multi-parton interactions (default: on, off for toptag); off is 3 to 4 times faster",
    )
    add("--plots", action="store_true", help="also write the sanity sheet OUT/sanity.png")
    options = parser.parse_args(arguments)
    if options.splits is None:
        options.splits = (
            {} if options.data_set == "jetnet" else {"train": 0.8, "val": 0.1, "test": 0.1}
        )
    if options.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {options.jobs}")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    needed = (*LIBRARIES, *(("matplotlib",) if options.plots else ()))
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        print(f"{', '.join(missing)} missing: pip install 'jetkern[simulation]'", file=sys.stderr)
        return 2
    from jetkern.simulate import SimulationError
    from jetkern.simulate.run import Request, simulate

    names = ("data_set", "jets_per_class", "jets_per_shard", "splits", "seed", "mpi", "out")
    try:
        request = Request(**{name: getattr(options, name) for name in names})
        total, made = simulate(request, options.jobs)
        print(f"{options.out}: {total} jets, {made} of them made now")
        if options.plots:
            from jetkern.simulate.plots import sanity_sheet

            print(sanity_sheet(options.out, options.data_set))
    except (SimulationError, OSError) as error:
        print(f"simulate.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("simulate.py: stopped; the same command continues", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
