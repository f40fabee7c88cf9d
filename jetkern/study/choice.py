"""The learning rate by validation: of runs that differ in nothing else, the best one's."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

from jetkern.io import part_of, publish, read_json, write_atomically
from jetkern.study.plan import StudyError
from jetkern.tables import table


def choose(runs: Sequence[Path], out: Path, copy: Path | None = None) -> str:
    """Writes the rate of the run with the least validation loss as settings.

    The protocol of the study: all rates see the same jets in the same order, each run stops by its
    own patience, and its best validation counts. The smaller rate wins a tie.

    Args:
        runs: that have ended and differ in their learning rate only.
        out: settings file for ``--config``.
        copy: where a copy of the chosen run goes.

    Returns:
        a table of rates and losses.

    Raises:
        StudyError: naming a run that has not ended, was not validated, or differs in more.
    """
    found = []
    first: dict[str, object] = {}
    for run in runs:
        identity = read_json(run / "config.json", error=StudyError).record("identity")
        rest = {name: v for name, v in identity.content.items() if name != "lr"}
        first = first or rest
        if differing := sorted(n for n in first.keys() | rest if first.get(n) != rest.get(n)):
            raise StudyError(f"{run} differs from {runs[0]} in {', '.join(differing)}, too")
        done = read_json(run / "DONE", error=StudyError)
        best = done.content.get("best")
        if not isinstance(best, dict) or not math.isfinite(best.get("loss", math.nan)):
            raise StudyError(f"{run} has no validation to choose by")
        found.append((best["loss"], identity.number("lr"), best["step"], done.integer("step"), run))
    loss, rate, _, _, chosen = min(found)
    if copy is not None:
        part = part_of(copy)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(chosen, part)
        shutil.rmtree(copy, ignore_errors=True)
        publish(part, copy)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(
        out, f"# validation loss {loss:.6g}, run {chosen.name}\nlr = {rate!r}\n".encode()
    )
    rows = [
        (f"{lr:g}", f"{value:.4f}", step, end, "chosen" if run == chosen else "")
        for value, lr, step, end, run in sorted(found, key=lambda f: f[1])
    ]
    return table([("rate", "validation loss", "best update", "last update", ""), *rows], "rrrrl")
