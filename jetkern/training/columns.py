"""The columns that a generator makes of given jets, and their means and widths."""

from __future__ import annotations

from typing import Any

import torch

from jetkern.data import Shards, Stream
from jetkern.model.columns import IDENTITY, joined, with_columns
from jetkern.model.config import PETConfig, fields_of, noise_of, unknown
from jetkern.model.epic import SPREAD, EPiCConfig
from jetkern.objectives.flow import NOISE_MEAN, NOISE_WIDTH

GROUPS = {"kinematics": None, "identity": "pid", "tracks": "tracks"}
"""What is joined by + on the command line, and the field of the shards that it is"""
SCALES = {"jet_pt": 1000.0, "jet_mass": 100.0, "jet_softdrop_mass": 100.0}
"""What conditions are divided by, in GeV; the multiplicity comes as n / 100"""
JETS = 20_000  # that means and widths are those of
SMALLEST = 1e-3  # width of a column, so that one that never changes can be divided by it


def parse_columns(text: str) -> tuple[str, ...]:
    """ "kinematics+identity+tracks" to its groups, in that order.

    Raises:
        ValueError: for an unknown group, or without kinematics.
    """
    named = text.split("+")
    for name in named:
        if name not in GROUPS:
            raise unknown("group of columns", name, GROUPS)
    if "kinematics" not in named:
        raise ValueError(f"columns {text!r}: a particle has kinematics, add kinematics+")
    return tuple(g for g in GROUPS if g in named)


def columns_in(text: str, shards: Shards) -> tuple[str, ...]:
    """Names of the columns beside kinematics; those of tracks are the shards', with their scale.

    Raises:
        ValueError: for unknown groups, or shards without such a field.
    """
    names: tuple[str, ...] = ()
    for group in parse_columns(text):
        field = GROUPS[group]
        if field is None:
            continue
        found = shards.field(field)
        if found is None:
            raise ValueError(f"{shards.folder} has no {field}, which --columns {text} needs")
        names += IDENTITY if group == "identity" else found.columns
    return names


def statistics(
    shards: Shards, names: tuple[str, ...], num_jets: int | None = None, seed: int = 0
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and width of kinematics and columns over the particles of some jets.

    Args:
        shards: of the jets to learn from.
        names: of the columns beside kinematics.
        num_jets, seed: the subset of them that is learned from.

    Raises:
        ValueError: without particles, or for values that are not finite.
    """
    if num_jets is not None:
        num_jets = min(num_jets, JETS)
    elif shards.num_jets > JETS:
        num_jets = JETS
    stream = Stream(
        shards,
        batch_size=2000,
        shuffle=False,
        epochs=1,
        fields=fields_of(names),
        num_jets=num_jets,
        subset_seed=seed,
    )
    rows = torch.cat([joined(with_columns(jets, names)).double() for jets in stream if len(jets)])
    if not len(rows) or not rows.isfinite().all():
        raise ValueError(
            f"{shards.folder}: no finite particles to learn the widths of columns from"
        )
    width = rows.std(0, correction=0).clamp(min=SMALLEST)
    return tuple(rows.mean(0).tolist()), tuple(width.tolist())


def conditions_of(train: Shards) -> dict[str, Any]:
    """What a generator's configuration says of types and conditions."""
    return {
        "num_classes": len(train.classes) or 1,
        "condition_dim": len(train.condition),
        "condition_scale": tuple(SCALES.get(name, 1.0) for name in train.condition),
    }


def of_kinematics(base: Any, units: str | None) -> dict[str, Any]:
    """What a PET's configuration says of the noise of kinematics alone: nothing, or the study's
    where the velocity is in its units.

    Args:
        base: the configuration so far; units: "features", "noise", or None for those of ``base``.
    """
    if units is None:
        units = "features" if base.columns or noise_of(base) is None else "noise"
    known = units == "noise"
    return {
        "noise_mean": NOISE_MEAN if known else None,
        "noise_width": NOISE_WIDTH if known else None,
    }


def columns_of(
    base: PETConfig | EPiCConfig,
    text: str | None,
    train: Shards,
    *,
    fresh: bool,
    units: str | None = None,
    num_jets: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """What a generator's configuration says of columns and noise.

    Args:
        base: that of the model, so far.
        text: groups of columns, joined by +; None for the checkpoint's, without one for all that
            the shards have with EPiC, for kinematics with others.
        train: jets to learn from; num_jets, seed: the subset of them.
        fresh: whether no checkpoint has learned columns yet; of one that has, the noise is kept.
        units: of the velocity, "features" or "noise"; None for those of ``base``.

    Raises:
        ValueError: for columns that the shards lack or, of EPiC, the checkpoint has not learned, or
            units that are not noise of EPiC or of columns.
    """
    epic = isinstance(base, EPiCConfig)
    if text is None and not fresh:
        text = "+".join(g for g, f in GROUPS.items() if f is None or f in fields_of(base.columns))
    elif text is None:
        has = (g for g, f in GROUPS.items() if f is None or train.field(f) is not None)
        text = "+".join(has) if epic else "kinematics"
    names = columns_in(text, train)
    if not names and not epic:
        return {"columns": ()} | of_kinematics(base, units)
    if units == "features":
        raise ValueError("--velocity-units features: of kinematics alone, by a PET")
    if not fresh and base.columns == names:
        return {"columns": names, "noise_mean": base.noise_mean, "noise_width": base.noise_width}
    if not fresh and epic:
        made = ", ".join(base.columns) or "kinematics alone"
        raise ValueError(f"the checkpoint makes {made}: it has not learned --columns {text}")
    mean, width = statistics(train, names, num_jets, seed)
    spread = SPREAD if epic else 1.0
    return {"columns": names, "noise_mean": mean, "noise_width": tuple(w / spread for w in width)}
