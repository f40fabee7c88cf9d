"""Columns of a particle that a generator makes beside its kinematics: identity and track.

As in EPiC-FM (arXiv 2312.00123) an identity is its charge and five flags, numbers like all others,
of which the largest decides on the way back. Impact parameters and their errors are asinh(x / 0.1
mm), whatever scale the shards have: it has no end that a generator could overshoot, as tanh has,
and no tail that decides the width, as millimetres have. What shards with tanh have lost beyond
9 mm stays there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jetkern.jets import Jets
from jetkern.model.config import fields_of
from jetkern.packed import constant

CHARGE = "charge"
KINDS = ("charged_hadron", "neutral_hadron", "photon", "electron", "muon")
IDENTITY = (CHARGE, *KINDS)
# By identity, see jetkern.convert.readers.pid: charge and kind; the unknown ones have neither.
CHARGES = (0, -1, 1, 1, -1, -1, 0, 0, 1)
KIND = (-1, 0, 4, 3, 3, 4, 2, 1, 0)
NEGATIVE, POSITIVE = (1, 7, 6, 4, 5), (8, 7, 6, 3, 2)  # identities by kind
CHARGED = (True, False, False, True, True)  # by kind
UNIT = 0.1  # mm, about what separates a secondary vertex from the primary one
EDGE = 1 - 2.0**-24  # of tanh in float32


def with_columns(jets: Jets, names: tuple[str, ...]) -> Jets:
    """The jets with their identities and tracks as ``columns``, and no longer as themselves.

    Args:
        jets: with the fields that the columns are.
        names: of the columns, those of tracks as in shards; () leaves the jets as they are.

    Raises:
        ValueError: for jets that lack such a field.
    """
    if not names:
        return jets
    parts = []
    for field in fields_of(names):
        values = getattr(jets, field)
        if values is None:
            raise ValueError(f"this generator makes {field}, but the jets to learn from have none")
        dtype = jets.particles.dtype
        parts.append(_identity(values, dtype) if field == "pid" else _tracks(values, names, dtype))
    return jets.replace(columns=torch.cat(parts, 1), pid=None, tracks=None)


def without_columns(jets: Jets, names: tuple[str, ...]) -> Jets:
    """The jets with identities and tracks in place of ``columns``, on the scale of the shards.

    The largest flag is the kind, the sign of the charge that of a kind that has one. Errors are not
    negative, and without identities nothing else is changed; with them, neutral particles have
    tracks of zeros, as in Delphes and in CMS.
    """
    if not names:
        return jets
    assert jets.columns is not None
    values, pid, tracks, charged = jets.columns, None, None, None
    if CHARGE in names:
        kind = values[:, 1 : len(IDENTITY)].argmax(1)
        table = constant((NEGATIVE, POSITIVE), torch.int64, kind.device)
        pid = table[(values[:, 0] > 0).long(), kind]
        charged = constant(CHARGED, torch.bool, kind.device)[kind]
    if "tracks" in fields_of(names):
        tracks = UNIT * values[:, -4:].double().sinh()
        tracks[:, 1::2].clamp_(min=0)
        for column, name in ((0, names[-4]), (2, names[-2])):
            if name.startswith("tanh_"):
                tracks[:, column] = tracks[:, column].tanh()
            elif name.startswith("asinh_"):
                tracks[:, column] = tracks[:, column].asinh()
        if charged is not None:
            tracks = tracks * charged[:, None]
        tracks = tracks.to(values.dtype)
    return jets.replace(columns=None, pid=pid, tracks=tracks)


def track_scale(names: Sequence[str]) -> str:
    """tanh, asinh or raw: what shards with these columns of tracks have d0 and dz as."""
    prefix = names[-4].removesuffix("d0")
    return prefix.rstrip("_") or "raw"


def joined(jets: Jets) -> Tensor:
    """(T, 4 + C) kinematics and columns."""
    if jets.columns is None:
        return jets.particles
    return torch.cat([jets.particles, jets.columns], 1)


def parted(jets: Jets, values: Tensor) -> Jets:
    """The jets with kinematics and columns of ``values`` (T, 4 + C)."""
    if values.shape[1] == 4:
        return jets.replace(particles=values)
    return jets.replace(particles=values[:, :4], columns=values[:, 4:])


def _identity(pid: Tensor, dtype: torch.dtype) -> Tensor:
    charge = constant(CHARGES, dtype, pid.device)[pid]
    kind = constant(KIND, torch.int64, pid.device)[pid]
    flags = kind[:, None] == torch.arange(len(KINDS), device=pid.device)
    return torch.cat([charge[:, None], flags.to(dtype)], 1)


def _tracks(tracks: Tensor, names: tuple[str, ...], dtype: torch.dtype) -> Tensor:
    return (millimetres(tracks, names) / UNIT).asinh().to(dtype)


def millimetres(tracks: Tensor, names: Sequence[str]) -> Tensor:
    """(T, 4) float64 d0, d0 error, dz, dz error in mm; what tanh has lost is 8.7.

    Args:
        tracks: as shards have them; names: of columns, of which the last four are the tracks'.
    """
    columns = list(tracks.double().unbind(1))
    for column, name in ((0, names[-4]), (2, names[-2])):
        if name.startswith("tanh_"):
            columns[column] = columns[column].clamp(-EDGE, EDGE).atanh()
        elif name.startswith("asinh_"):
            columns[column] = columns[column].sinh()
    return torch.stack(columns, 1)
