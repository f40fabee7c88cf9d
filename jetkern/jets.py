"""The packed batch: jets back to back, no padding and no mask."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy.typing as npt
import torch
from torch import Tensor

from jetkern.clouds import Sets
from jetkern.kept import kept
from jetkern.kernels import kernel
from jetkern.packed import (
    Packed,
    offsets_from_counts,
    plainly_eager,
    readable,
    segment_index,
    true_rows,
)

IDENTITIES = 9  # of particles: 0 is unknown
ORIGINS = ("primary", "charm", "bottom", "other")  # of particles
STORED = ("particles", "pid", "tracks", "vertex", "origin")  # in shards
PER_PARTICLE = (*STORED, "columns")


class Shown(NamedTuple):
    """What masked views show of some jets: its layout, and how many particles it has in all."""

    packed: Packed
    particles: int

    @classmethod
    def of(cls, counts: npt.NDArray[Any]) -> Shown:
        """Of so many particles (B,) of each jet."""
        offsets = offsets_from_counts(torch.from_numpy(counts))
        return cls(Packed.trusted(offsets, counts=counts), int(counts.sum()))

    def rest(self, jets: Jets) -> Shown:
        """What is hidden of the jets that this is of: the same of their other particles."""
        offsets = jets.offsets - self.packed.offsets
        return Shown(Packed.trusted(offsets), len(jets.particles) - self.particles)


@dataclass(frozen=True, kw_only=True)
class Jets(Sets):
    """B jets with T particles in all.

    Attributes:
        particles: (T, 4) float, columns delta eta, delta phi (relative to the jet axis),
            ln pT and ln E with pT and E in GeV. Each jet's particles in descending pT.
        offsets: (B + 1,) int64; jet b owns rows ``offsets[b]:offsets[b + 1]``. A jet may be empty.
            May be given as int32, or as the ``Packed`` of these jets, which is not checked again.
        pid: (T,) int64 particle identity, 0 (unknown) to 8, or None.
        tracks: (T, 4) float tanh d0, d0 error, tanh dz, dz error (mm before the tanh), or None;
            shards' columns say where d0 and dz are asinh or the values themselves.
        vertex: (T,) int64 number of the vertex that the particle comes from, 0 for the primary, or
            None; 255 for particles without that truth.
        origin: (T,) int64 what decayed there: 0 nothing (primary), 1 a charm hadron, 2 a bottom
            hadron, 3 another particle, 255 unknown; or None.
        columns: (T, C) float further numbers of each particle that a generator makes beside its
            kinematics (``jetkern.model.columns``), or None; no part of shards.
        label: (B,) int64 class of the jet, or None.
        condition: (B, C) float quantities that condition generation, or None.
        index: (B,) int64 position of the jet in the training order, or None. It keys the random
            numbers of a training step, so that they do not depend on how a batch is split.
        fillers: how many of the last jets only make up a size, see ``jetkern.fillers``.
        shown: how many particles of each jet a masked view is to show, if that was decided where
            the host knows it; None leaves it to the view. Not kept by ``select`` and ``concat``.
        packed: the layout, which the ops take in place of ``offsets``.

    Raises:
        ValueError: for wrong shapes or dtypes, and on the CPU for offsets that do not rise from 0
            to T and a pid outside 0 to 8 (those on a GPU are not looked at: that would wait for
            it).
    """

    PER_POINT = PER_PARTICLE

    particles: Tensor
    pid: Tensor | None = None
    tracks: Tensor | None = None
    vertex: Tensor | None = None
    origin: Tensor | None = None
    columns: Tensor | None = None
    shown: Shown | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.particles.ndim != 2 or self.particles.shape[1] != 4:
            raise ValueError(f"particles must be (T, 4), got {tuple(self.particles.shape)}")
        super().__post_init__()
        if self.tracks is not None and self.tracks.shape[1:] != (4,):
            raise ValueError(
                "tracks must be (T, 4): tanh d0, d0 error, tanh dz, dz error; got "
                f"{tuple(self.tracks.shape)}"
            )
        if self.columns is not None and self.columns.ndim != 2:
            raise ValueError(f"columns must be (T, C), got {tuple(self.columns.shape)}")
        if self.pid is not None:
            self._check_pid(self.pid)

    def _check_pid(self, pid: Tensor) -> None:
        if pid.ndim != 1 or pid.is_floating_point():
            raise ValueError(f"pid must be (T,) integers, got {tuple(pid.shape)} {pid.dtype}")
        if not readable(pid) or not pid.numel():
            return
        low, high = map(int, pid.aminmax())
        if low < 0 or high >= IDENTITIES:
            row = int(((pid < 0) | (pid >= IDENTITIES)).nonzero()[0])
            raise ValueError(
                f"pid must be identities from 0 to {IDENTITIES - 1}, got {int(pid[row])} in jet "
                f"{int((self.offsets[1:] <= row).sum())}: PDG codes become identities by "
                "jetkern.convert.readers.pid.from_pdg"
            )

    @property
    def jet_of_particle(self) -> Tensor:
        """(T,) index of the jet that each particle belongs to."""
        return self.packed.owner(self.particles.shape[0])

    @property
    def rank_in_jet(self) -> Tensor:
        """(T,) position of each particle in its jet, 0 for the first."""
        return self.packed.rank(self.particles.shape[0])

    def _map(self, function: Callable[[Tensor], Tensor]) -> Jets:
        moved = super()._map(function)
        if self.shown is None:
            return moved
        shown = self.shown._replace(packed=self.shown.packed.map(function))
        kept: dict[str, Any] = {"offsets": moved.packed, "shown": shown}
        return replace(moved, **kept)

    def keep_particles(self, keep: Tensor, counts: npt.NDArray[Any] | None = None) -> Jets:
        """The same jets without the particles where keep is false.

        Args:
            keep: (T,) bool.
            counts: (B,) particles that are kept of each jet, if the host knows them, so that a GPU
                need not be asked.
        """
        number = None if counts is None else int(counts.sum())
        kept_before = torch.nn.functional.pad(keep.cumsum(0), (1, 0))
        packed = Packed.trusted(kept_before[self.offsets], counts=counts)
        return self._take(true_rows(keep, number), slice(None), packed)

    def with_shown(self, counts: npt.NDArray[Any]) -> Jets:
        """The same jets, of which masked views are to show so many particles (B,)."""
        kept: dict[str, Any] = {"offsets": self.packed, "shown": Shown.of(counts)}
        return replace(self, **kept)

    def show(self, rows: Tensor, shown: Shown) -> Jets:
        """The jets with these particles alone, in a known layout: nothing waits for a GPU.

        Args:
            rows: (M,) int64 rising, of each jet as many as ``shown`` says.
        """
        return self._take(rows, slice(None), shown.packed)

    @classmethod
    def from_padded(
        cls,
        particles: Tensor,
        mask: Tensor,
        *,
        pid: Tensor | None = None,
        tracks: Tensor | None = None,
        label: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> Jets:
        """Packs padded arrays.

        Args:
            particles: (B, N, 4) as in ``Jets``: ln pT and ln E with pT and E in GeV.
            mask: (B, N) bool, true where a particle is real. Real particles need not come first.
            pid: (B, N); tracks: (B, N, 4); label: (B,); condition: (B, C); all optional.

        Raises:
            ValueError: if the mask is not bool or the shapes do not agree.
        """
        if particles.ndim != 3 or particles.shape[2] != 4:
            raise ValueError(f"particles must be (B, N, 4), got {tuple(particles.shape)}")
        rows, offsets = pack(particles, mask)
        for name, value in (("pid", pid), ("tracks", tracks)):
            if value is not None and value.shape[:2] != mask.shape:
                raise ValueError(
                    f"{name} must have the (B, N) of particles, {tuple(mask.shape)}, got "
                    f"{tuple(value.shape)}"
                )
        return cls(
            particles=rows,
            offsets=offsets,
            pid=None if pid is None else pid[mask],
            tracks=None if tracks is None else tracks[mask],
            label=label,
            condition=condition,
        )

    def to_padded(self, length: int | None = None) -> tuple[Tensor, Tensor]:
        """(particles (B, N, 4) padded with zeros, mask (B, N)), N the longest jet or ``length``."""
        return unpack(self.particles, self.offsets, length)


def particle_pairs(jets: Jets) -> tuple[Tensor, Tensor]:
    """Rows i and j, each (P,) int64, of the P = sum n (n - 1) / 2 pairs i < j of particles of the
    same jet, in the order (0, 1), (0, 2), ..., (1, 2), ...
    """
    total, device = jets.particles.shape[0], jets.offsets.device
    rows = torch.arange(total, device=device)
    behind = jets.offsets[1:][jets.jet_of_particle] - rows - 1  # the jet's after this one
    number = (jets.num_pairs - total) // 2
    first = rows.repeat_interleave(behind, output_size=number)
    start = behind.cumsum(0) - behind
    return first, first + 1 + torch.arange(number, device=device) - start[first]


def pack(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (T, ...) and offsets (B + 1,) of padded (B, N, ...); ``unpack`` is the way back.

    Args:
        x: (B, N, ...) of any dtype; mask: (B, N) bool, true where a row is real. Real rows need
            not come first.

    Raises:
        ValueError: if the mask is not bool or not (B, N).
    """
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool, got {mask.dtype}")
    if mask.ndim != 2 or mask.shape != x.shape[:2]:
        raise ValueError(
            f"mask must have the (B, N) of particles, {tuple(x.shape[:2])}, got {tuple(mask.shape)}"
        )
    return x[mask], offsets_from_counts(mask.sum(1))


def unpack(rows: Tensor, offsets: Tensor, length: int | None = None) -> tuple[Tensor, Tensor]:
    """Padded (B, N, ...) copy of packed rows, zeros elsewhere, and the (B, N) mask.

    Args:
        rows: (T, ...); offsets: (B + 1,) int64; length: N, by default the longest segment.

    Raises:
        ValueError: if a segment is longer than ``length``.
    """
    counts = offsets.diff()
    longest = int(counts.max()) if counts.shape[0] else 0
    if length is not None and longest > length:
        raise ValueError(f"a jet has {longest} particles, more than the padded length {length}")
    length = longest if length is None else length
    mask = torch.arange(length, device=rows.device) < counts[:, None]
    padded = rows.new_zeros((*mask.shape, *rows.shape[1:]))
    padded[mask] = rows
    return padded, mask


def join_segments(sources: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Packed rows in which each segment is the concatenation of the sources' segments.

    Args:
        sources: (rows (T_s, ...), offsets (B + 1,)) of each, all with the same B.

    Returns:
        rows (sum T_s, ...) and offsets (B + 1,).
    """
    order, places, offsets = joined_rows(
        [o for _, o in sources], [rows.shape[0] for rows, _ in sources]
    )
    return reordered(torch.cat([rows for rows, _ in sources]), order, places), offsets


def joined_rows(offsets: Sequence[Tensor], sizes: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Where rows go when each segment becomes the sources' segments, one after the other.

    Args:
        offsets: (B + 1,) int64 of each source; sizes: their numbers of rows.

    Returns:
        order (T,), the row of the sources laid back to back that each joined row is; places (T,),
        its inverse; and the offsets (B + 1,) of the joined segments.
    """
    if len(sizes) <= 4 and (made := kernel("joined_rows", offsets[0])) is not None:
        return made(offsets, sizes)
    joined = functools.reduce(torch.add, offsets)
    start = joined[:-1]
    places = []
    for total, own in zip(sizes, offsets, strict=True):
        shift = (start - own[:-1])[segment_index(own, total)]
        places.append(torch.arange(total, device=own.device) + shift)
        start = start + own.diff()
    place = torch.cat(places)
    return inverse(place), place, joined


def evenly(offsets: Tensor, each: int = 1) -> Tensor:
    """(B + 1,) int64 offsets of as many segments as those of ``offsets``, of ``each`` rows.

    Args:
        offsets: (B + 1,) int64.
    """
    number, device = offsets.shape[0], offsets.device
    if not plainly_eager():  # what a trace makes may not outlive it
        return torch.arange(number, device=device) * each
    return _evenly(number, each, device)


@kept
def _evenly(number: int, each: int, device: torch.device) -> Tensor:
    """Kept: batches of one size have the same."""
    with torch.inference_mode(False):  # whoever asks next may want gradients
        return torch.arange(number, device=device) * each


def inverse(order: Tensor) -> Tensor:
    """(T,) int64, the permutation that undoes another.

    Args:
        order: (T,) int64, each row once.
    """
    rows = torch.arange(order.shape[0], device=order.device)
    return torch.empty_like(order).index_copy_(0, order, rows)


def reordered(x: Tensor, order: Tensor, places: Tensor | None = None) -> Tensor:
    """``x[order]`` for a permutation: its backward is a permutation too.

    The backward of indexing adds rows, for which a GPU sorts them and a CPU goes row by row.

    Args:
        x: (T, ...); order: (T,) int64, each row once; places: (T,) int64, its inverse, if known.
    """
    if torch.is_grad_enabled() and x.requires_grad and plainly_eager():
        return _Reordered.apply(x, order, inverse(order) if places is None else places)
    return x[order]


class _Reordered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(order, places)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, None, None]:
        order, places = ctx.saved_tensors
        return reordered(d_out, places, order), None, None


class _Taken(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.total = x.shape[0]
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        zeros = d_out.new_zeros(ctx.total, *d_out.shape[1:])
        return zeros.index_copy(0, rows, d_out), None


def taken(x: Tensor, rows: Tensor) -> Tensor:
    """``x[rows]`` where no row comes twice: its backward need not add any.

    Args:
        x: (T, ...); rows: (M,) int64, all different.
    """
    if torch.is_grad_enabled() and x.requires_grad and plainly_eager():
        return _Taken.apply(x, rows)
    return x[rows]


def last_rows(offsets: Tensor, own: Tensor, total: int) -> Tensor:
    """(total,) rows of the last ``own.diff()`` entries of each segment.

    Args:
        offsets: (B + 1,) int64 of the segments; own: (B + 1,) of those entries;
            total: their number.
    """
    if (last := kernel("last_rows", offsets)) is not None:
        return last(offsets, own, total)
    shift = (offsets - own)[1:][segment_index(own, total)]
    return torch.arange(total, device=offsets.device) + shift
