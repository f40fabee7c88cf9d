"""Show what is in shards: a table of classes and columns, and a sheet of histograms.

jetkern show shards/jetclass/train --figure jetclass.png
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch

from jetkern.cli import command
from jetkern.cli.parser import Parser, positive
from jetkern.clouds import Clouds
from jetkern.convert.readers.pid import CODES
from jetkern.convert.report import folders_of
from jetkern.data import Shards, Stream
from jetkern.io import printable, user_path
from jetkern.jets import Jets
from jetkern.metrics.showers import observables
from jetkern.plots import STYLE, bin_edges, prepare, ridges, save, sheet
from jetkern.showers import Showers
from jetkern.tables import show, table


def summary(shards: Shards, jets: Jets | Clouds) -> str:
    """Tables of the classes and, from a sample of jets, of the columns."""
    size = sum(shards.bytes)
    sets, points = shards.words
    lines = [
        f"{printable(shards.folder)}: {shards.num_jets:,} {sets}, "
        f"{shards.num_particles:,} {points}, "
        f"{len(shards.paths)} shards of {len(shards.index)} blocks, {size / 1e6:,.1f} MB, "
        f"fingerprint {shards.fingerprint[:12]}",
        "",
    ]
    rows = [["class", sets, "share"]]
    for name, count in zip(shards.classes, shards.counts, strict=True):
        rows.append([name, f"{count:,}", f"{count / shards.num_jets:.2%}"])
    lines += [table(rows), "", f"columns, from {len(jets):,} {sets}:"]
    rows = [["column", "type", "lowest", "median", "highest"]]
    for field in shards.fields[1:]:
        values = getattr(jets, field.name)
        for i, column in enumerate(field.columns or (field.name,)):
            v = (values[:, i] if values.ndim == 2 else values).double()
            if len(v):
                low, mid, high = (f"{x:.4g}" for x in (v.min(), v.median(), v.max()))
                rows.append([column, field.dtype, low, mid, high])
    lines.append(table(rows))
    files = shards.manifest.get("source", {}).get("files", [])
    files = files if isinstance(files, list) else []
    titles = sorted({str(f["title"]) for f in files if isinstance(f, dict) and "title" in f})
    source = {
        k: v for k, v in shards.manifest.get("source", {}).items() if k != "files" and v is not None
    }
    report = {k: v for k, v in shards.manifest.get("report", {}).items() if k != "ranges"}
    lines += [
        "",
        *map(printable, titles),
        f"source: {len(files)} files, {json.dumps(source)}",
        f"report: {json.dumps(report)}",
    ]
    return "\n".join(lines)


def quantities(jets: Jets) -> dict[str, np.ndarray]:
    """What the sheet shows, per jet; masses from massless particles."""
    deta, dphi, ln_pt = (jets.particles[:, i].double() for i in range(3))
    pt = ln_pt.exp()
    owner = jets.jet_of_particle

    def total(values: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(jets), dtype=torch.float64).index_add_(0, owner, values)

    px, py, pz = total(pt * dphi.cos()), total(pt * dphi.sin()), total(pt * deta.sinh())
    mass2 = total(pt * deta.cosh()) ** 2 - px**2 - py**2 - pz**2
    sum_pt = total(pt)
    width = total(pt * torch.hypot(deta, dphi)) / sum_pt.clamp_min(1e-12)
    shown = {
        "particles per jet": jets.counts,
        "sum of pT [GeV]": sum_pt,
        "mass [GeV]": mass2.clamp_min(0).sqrt(),
        "pT-weighted mean ΔR": width,
    }
    return {name: v.numpy() for name, v in shown.items()}


def draw(shards: Shards, jets: Jets | Clouds, path: Path) -> None:
    """Writes the sheet: per jet a ridge for each class, per particle for all."""
    if isinstance(jets, Clouds):
        per_set = {"points per set": jets.counts.numpy()}
        if jets.condition is not None:
            per_set |= dict(zip(shards.condition, jets.condition.T.numpy(), strict=True))
        if shards.words[0] == "showers":
            per_set = shower_quantities(Showers.of_clouds(jets))
        _draw(shards, jets, per_set, dict(zip(shards.points, jets.points.T, strict=True)), path)
        return
    per_particle: dict[str, Any] = {
        "Δη": jets.particles[:, 0], "Δφ": jets.particles[:, 1],
        "ln pT [GeV]": jets.particles[:, 2], "ln E [GeV]": jets.particles[:, 3],
    }  # fmt: skip
    tracks = shards.field("tracks")
    if jets.tracks is not None and tracks is not None:
        per_particle |= {n: jets.tracks[:, i] for i, n in enumerate(tracks.columns)}
    _draw(shards, jets, quantities(jets), per_particle, path)


def shower_quantities(showers: Showers) -> dict[str, np.ndarray]:
    """What the sheet shows, per shower."""
    shown = {
        "energy of hits [MeV/GeV]": "response", "depth [layers]": "depth",
        "radial width [cells]": "sigma_r",
    }  # fmt: skip
    found = observables(showers)
    counts = {"hits per shower": showers.counts}
    return counts | {title: found[name] for title, name in shown.items()}


def _draw(
    shards: Shards,
    jets: Jets | Clouds,
    per_jet: dict[str, np.ndarray],
    per_particle: dict[str, Any],
    path: Path,
) -> None:
    pid = jets.pid if isinstance(jets, Jets) else None
    panels = len(per_jet) + len(per_particle) + (pid is not None)
    sets, points = shards.words
    title = f"{shards.folder.name}: {len(jets):,} of {shards.num_jets:,} {sets}"
    label = np.zeros(len(jets)) if jets.label is None else jets.label.numpy()
    with matplotlib.rc_context(STYLE):
        figure = sheet(panels, 4, title=title)
        rest = iter(figure.axes)
        for number, ((name, values), axes) in enumerate(zip(per_jet.items(), rest, strict=False)):
            classes = {k: values[label == i] for i, k in enumerate(shards.classes or (sets,))}
            ridges(axes, classes, bin_edges(values[np.isfinite(values)]), names=number % 4 == 0)
            axes.set_xlabel(name)
        for (name, column), axes in zip(per_particle.items(), rest, strict=False):
            axes.hist(column.numpy(), 100, histtype="step", log=True, color="black")
            axes.set(xlabel=name, ylabel=points)
        if pid is not None:
            axes = next(rest)
            axes.bar(range(9), torch.bincount(pid, minlength=9).numpy(), color="grey")
            axes.set_xticks(range(9), ["none", *map(str, CODES)], fontsize=7)
            axes.set(xlabel="particle identity (PDG code)", ylabel="particles", yscale="log")
        save(figure, path)


def parser() -> Parser:
    """The command line."""
    parser = Parser("show", __doc__, renamed={"--jets": "--num-jets"})
    add = parser.add_argument
    add("folder", type=user_path, metavar="DIR", help="what convert wrote, or one split of it")
    add(
        "--figure",
        type=user_path,
        metavar="FILE",
        help="also write a sheet of histograms, one for each split",
    )
    add("--num-jets", type=positive, metavar="N", default=50_000, help="look at so many jets")
    return parser


@command
def main(arguments: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    options = parser().parse_args(arguments)
    if options.figure:
        prepare(options.figure)
    folders = folders_of(options.folder)
    for folder in folders:
        shards = Shards(folder)
        n = max(1, min(options.num_jets, shards.num_jets))
        jets = next(iter(Stream(shards, batch_size=n, num_jets=n, prefetch=0)))
        show(summary(shards, jets) + ("\n" if folder != folders[-1] else ""))
        if options.figure:
            figure = options.figure
            if len(folders) > 1:
                figure = figure.with_stem(f"{figure.stem}-{folder.name}")
            draw(shards, jets, figure)
            show(f"wrote {printable(figure)}")
    return 0
