"""Writes the speed tables of README.md and its figure from the results in bench/results.

    python -m bench.readme          rewrites what stands between "<!-- table: ... -->" marks
    python -m bench.readme --check  says whether README.md and the figure are those of the results

The figure carries the SHA-256 of the results that it shows.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

from jetkern.tables import table

ROOT = Path(__file__).parents[1]
README, FIGURE = ROOT / "README.md", ROOT / "docs" / "figures" / "speed.svg"
RESULTS = ROOT / "bench" / "results" / "epyc-2core"
OBJECTIVES = {
    "classifier": "classifier",
    "classifier+generator": "classifier + generator",
    "pretrain": "all three",
}
DATA = {  # what README calls it: ours and the peer's rows of data.json
    "reading, 1 process, files in the page cache": (
        "jetkern, 1 process, warm",
        "omnilearned, 1 process, warm",
    ),
    "reading, 2 processes": ("jetkern, 2 processes, warm", "omnilearned, 2 loader workers, warm"),
    "reading, 1 process, files not in the page cache": (
        "jetkern, 1 process, cold",
        "omnilearned, 1 process, cold",
    ),
    "converting HDF5, 2 processes": ("convert HDF5, 2 processes", ""),
    "converting HDF5, 2 processes, files not in the page cache": (
        "convert HDF5, 2 processes, cold",
        "",
    ),
    "converting JetClass ROOT, 2 processes": ("convert ROOT, 2 processes", ""),
}
MARK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def read(name: str) -> dict[str, Any]:
    """A result file of this machine."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def by_contender(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows that have a time, by contender."""
    return {r["contender"]: r for r in result["rows"] if "skipped" not in r}


def significant(rate: float) -> str:
    """Three significant figures, with separators."""
    return f"{float(f'{rate:.3g}'):,.0f}"


def short(commit: str) -> str:
    """The first figures of a commit, and whether files differed from it."""
    return re.sub(r"^([0-9a-f]{7})[0-9a-f]*", r"\1", commit)


def step() -> str:
    """Rates and memory of training and inference, ours beside the peer's."""
    document = read("step")
    head = ["size", "objective"]
    for way in ("training", "inference"):
        head += [f"{way}, jets/s", "reference code", "ratio", "bf16"]
    rows = [[*head, "MB per jet", "reference code"]]
    spread: dict[str, float] = {"jetkern cpu": 0.0, "omnilearned": 0.0}
    for result in document["results"]:
        runs, jets = by_contender(result), result["jets"]
        ours, peer = runs["jetkern cpu"], runs.get("omnilearned")
        cells = [result["size"], OBJECTIVES[result["objective"]]]
        for way in ("train", "inference"):
            seconds = ours[f"{way}_seconds"]
            cells.append(f"{jets / seconds:.1f}")
            if peer is None:
                cells += ["-", "-", "-"]
                continue
            other, half = (r[f"{way}_seconds"] for r in (peer, runs["jetkern cpu bf16"]))
            cells += [f"{jets / other:.1f}", f"{other / seconds:.1f}x", f"{other / half:.1f}x"]
        cells.append(f"{ours['peak_mb'] / jets:.2f}")
        cells.append("-" if peer is None else f"{peer['peak_mb'] / jets:.2f}")
        rows.append(cells)
        for name in spread:
            if name in runs:
                both = (runs[name][f"{way}_spread"] for way in ("train", "inference"))
                spread[name] = max(spread[name], *both)
    machine = document["machine"]
    sizes = {r["size"]: str(r["jets"]) for r in document["results"]}
    said = (
        f"{machine['threads']} threads of an {machine['cpu']} ({machine['kernels']} kernels), "
        f"PyTorch {machine['torch']}, batches of {', '.join(sizes.values())} jets; commit "
        f"{short(machine['commit'])}, {machine['matrix_gflops']} GFLOP/s in `torch.mm`. Medians; "
        f"repeats of one rate lie within {spread['jetkern cpu']:.0%} (ours) and "
        f"{spread['omnilearned']:.0%} (reference code) of each other."
    )
    return f"{table(rows, 'llr', markdown=True)}\n\n{said}\n"


def data() -> str:
    """Rates of reading and converting, ours beside the peer's."""
    document = read("data")
    rate = {
        r["name"]: significant(r["jets_per_second"])
        for r in document["results"]
        if "jets_per_second" in r
    }
    rows = [["jets/s", "jetkern", "omnilearned 0.2.0"]]
    rows += [[what, rate[ours], rate.get(peer, "")] for what, (ours, peer) in DATA.items()]
    settings, machine = document["settings"], document["machine"]
    jets = settings["copies"] * settings["jets_per_copy"]
    said = (
        f"{jets:,} JetClass-like jets on the same machine, commit {short(machine['commit'])}; "
        f"medians of {settings['repeats']}, start-up included."
    )
    return f"{table(rows, markdown=True)}\n\n{said}\n"


def updated(text: str) -> str:
    """README with the tables of the results."""
    tables = {"step": step, "data": data}
    return MARK.sub(lambda m: m[1] + tables[m[2]]() + m[3], text)


def fingerprint() -> str:
    """SHA-256 of the results that the figure shows."""
    return hashlib.sha256((RESULTS / "step.json").read_bytes()).hexdigest()


def draw(path: Path) -> None:
    """Bars of the rates relative to the peer's, with their values beside them."""
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {"svg.hashsalt": "jetkern", "svg.fonttype": "none", "font.size": 11}
    series = {
        "jetkern": ("jetkern cpu", "#1f5f8b"),
        "jetkern, bf16": ("jetkern cpu bf16", "#7fb2d5"),
    }
    series["reference code"] = ("omnilearned", "#b0b0b0")
    results = [r for r in read("step")["results"] if "omnilearned" in by_contender(r)]
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (way, title) in zip(
            panels, {"train": "training", "inference": "inference"}.items(), strict=True
        ):
            for row, result in enumerate(results):
                runs = by_contender(result)
                base = runs["omnilearned"][f"{way}_seconds"]
                for i, (name, color) in enumerate(series.values()):
                    ratio = base / runs[name][f"{way}_seconds"]
                    place = row + 0.27 * (i - 1)
                    axes.barh(place, ratio, 0.25, color=color)
                    axes.text(ratio + 0.3, place, f"{ratio:.1f}×", va="center", fontsize=8.5)
            names = [f"{r['size']}\n{OBJECTIVES[r['objective']]}" for r in results]
            axes.set_yticks(range(len(results)), names, fontsize=9)
            axes.set_xlabel(f"{title}, jets/s over the reference code's")
            axes.set_xlim(right=28)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(left=False)
        panels[0].invert_yaxis()
        for i, (label, (_, color)) in enumerate(series.items()):
            panels[1].text(
                0.98, 0.2 - 0.07 * i, label, color=color, weight="bold", ha="right",
                transform=panels[1].transAxes,
            )  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None, "Description": fingerprint()})


def stale() -> list[str]:
    """What is not that of the results."""
    text = README.read_text(encoding="utf-8")
    found = [] if updated(text) == text else ["README.md"]
    drawn = FIGURE.is_file() and fingerprint() in FIGURE.read_text(encoding="utf-8")
    return found + ([] if drawn else ["docs/figures/speed.svg"])


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.readme",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="change nothing; code 1 if outdated")
    if parser.parse_args().check:
        if outdated := stale():
            sys.exit(f"bench.readme: error: outdated: {', '.join(outdated)}")
        return
    README.write_text(updated(README.read_text(encoding="utf-8")), encoding="utf-8")
    draw(FIGURE)


if __name__ == "__main__":
    main()
