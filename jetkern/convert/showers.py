"""Judges the values of showers and puts their hits in order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jetkern.convert.clean import Judge, Policy, Tally, extremes, take_jets
from jetkern.convert.readers import Raw
from jetkern.showers import COLUMNS, Showers

OFF_CELLS = "hits at no whole number of cells"


def clean_showers(
    raw: Raw, policy: Policy, path: Path, start: int
) -> tuple[Raw, NDArray[np.int64], Tally]:
    """The showers that are kept, hits as ``Showers.ordered`` has them.

    Args:
        raw: showers of a file from row ``start`` on; they may be empty.
        path, start: for messages.

    Returns:
        the showers, their rows in the file, and counts of what was repaired or left out.

    Raises:
        InputError: by policy for a hit or energy that is not finite or not above 0, naming file,
            shower and field.
    """
    assert raw.condition is not None
    tally: Tally = {"read": len(raw.counts), "hits read": len(raw.particles)}
    judge = Judge(raw.counts, path, start, tally, "shower")
    hits, energies = raw.particles, raw.condition[:, 0]
    bad = ~np.isfinite(hits)
    bad[:, 3] |= ~(hits[:, 3] > 0)

    def describe(shower: int) -> str:
        own = judge.particles_of(shower)
        hit, column = np.argwhere(bad[own])[0]
        return f"{COLUMNS[column]} of hit {hit} is {hits[own][hit, column]}"

    judge(
        "hits not finite, or without energy", judge.jets_of(bad.any(1)), describe, policy.bad_jets
    )
    judge(
        "particles without energy",
        ~(np.isfinite(energies) & (energies > 0)),
        lambda shower: f"the energy of the particle is {energies[shower]} GeV",
        policy.bad_jets,
    )
    rows = np.arange(start, start + len(raw.counts))
    if not judge.keep.all():
        raw, rows = take_jets(raw, np.flatnonzero(judge.keep)), rows[judge.keep]
        energies = energies[judge.keep]
    offsets = np.concatenate([[0], np.cumsum(raw.counts)])
    showers = Showers(raw.particles, offsets, energies)
    raw.particles = showers.ordered().hits
    if changed := (raw.particles != showers.hits).any(1).nonzero()[0].size:
        tally["hits put in order"] = int(changed)
    cells = raw.particles[:, :3]
    if off := int(((cells != np.floor(cells)) | (cells < 0)).any(1).sum()):
        tally[OFF_CELLS] = off
    if empty := int((raw.counts == 0).sum()):
        tally["showers without hits"] = empty
    arrays = {"points": raw.particles, "condition": energies[:, None]}
    tally["ranges"] = {name: extremes(a).tolist() for name, a in arrays.items() if len(a)}
    if len(raw.counts):
        most = [[int(raw.counts.min())], [int(raw.counts.max())]]
        tally["ranges"]["multiplicity"] = most
    return raw, rows, tally
