"""Packed batches of sets of points: sets back to back, no padding and no mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from jetkern.packed import (
    Packed,
    check_rising,
    int64_offsets,
    offsets_from_counts,
    segment_index,
)

if TYPE_CHECKING:
    from typing_extensions import Self

PER_SET = ("label", "condition", "index")


@dataclass(frozen=True, kw_only=True)
class Sets:
    """B sets with T points in all: what ``Jets`` and ``Clouds`` have in common.

    Attributes:
        PER_POINT: names of the fields with a row for each point; all batches have the first one.
        offsets: (B + 1,) int64; set b owns rows ``offsets[b]:offsets[b + 1]``. A set may be empty.
            May be given as int32, or as the ``Packed`` of these sets, which is not checked again.
        label: (B,) int64 class of the set, or None.
        condition: (B, C) float quantities that condition generation, or None.
        index: (B,) int64 position of the set in the training order, or None. It keys the random
            numbers of a training step, so that they do not depend on how a batch is split.
        fillers: how many of the last sets only make up a size, see ``jetkern.fillers``.
        packed: the layout, which the ops take in place of ``offsets``.

    Raises:
        ValueError: for wrong shapes or dtypes, and on the CPU for offsets that do not rise from 0
            to T (those on a GPU are not looked at: that would wait for it).
    """

    PER_POINT: ClassVar[tuple[str, ...]]

    offsets: Tensor
    label: Tensor | None = None
    condition: Tensor | None = None
    index: Tensor | None = None
    fillers: int = 0
    packed: Packed = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        first, offsets = getattr(self, self.PER_POINT[0]), self.offsets
        if isinstance(offsets, Packed):
            packed: Packed = offsets
        else:
            packed = Packed.trusted(int64_offsets("offsets", offsets))
            check_rising("offsets", packed.offsets, first.shape[0])
        if packed.offsets.device != first.device:
            raise ValueError(
                f"offsets is on {packed.offsets.device}, the {self.PER_POINT[0]} on {first.device}"
            )
        object.__setattr__(self, "offsets", packed.offsets)
        object.__setattr__(self, "packed", packed)
        sizes = dict.fromkeys(self.PER_POINT, first.shape[0])
        sizes |= dict.fromkeys(PER_SET, packed.offsets.shape[0] - 1)
        for name, rows in sizes.items():
            value = getattr(self, name)
            if value is not None and value.shape[0] != rows:
                raise ValueError(f"{name} has {value.shape[0]} rows, expected {rows}")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def total(self) -> int:
        """T, the number of points."""
        return int(getattr(self, self.PER_POINT[0]).shape[0])

    @property
    def real(self) -> int:
        """Number of sets that are no fillers."""
        return len(self) - self.fillers

    @property
    def counts(self) -> Tensor:
        """(B,) number of points of each set."""
        return self.packed.counts

    @property
    def num_pairs(self) -> int:
        """Sum of n^2. ``to`` and ``concat`` carry it along, so that a GPU need not be asked."""
        return self.packed.num_pairs

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        moved: dict[str, Any] = {"offsets": self.packed.map(function), "fillers": self.fillers}
        for name in self.PER_POINT + PER_SET:
            value = getattr(self, name)
            moved[name] = value if value is None else function(value)
        return type(self)(**moved)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """The same sets on ``device``."""
        return self._map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same sets in page-locked memory, for copies to a GPU that overlap its work."""
        return self._map(lambda t: t.pin_memory())

    def replace(self, **changes: Tensor | None) -> Self:
        """A copy with some fields replaced.

        Args:
            changes: (T, ...) or (B, ...) tensors by the name of a field.

        Raises:
            ValueError: if they do not fit the others.
        """
        kept: dict[str, Any] = {"offsets": self.packed, **changes}
        return replace(self, **kept)

    def select(self, sets: Tensor | slice) -> Self:
        """The chosen sets, in the given order.

        Args:
            sets: (M,) int64 indices or (B,) bool mask, or a slice.
        """
        everything = torch.arange(len(self), device=self.offsets.device)
        chosen = everything[sets]
        counts = self.counts[chosen]
        offsets = offsets_from_counts(counts)
        known = self.packed.known_counts
        known = known[sets] if known is not None and isinstance(sets, slice) else None
        owner = segment_index(offsets, None if known is None else int(known.sum()))
        rows = torch.arange(owner.shape[0], device=owner.device) - offsets[owner]
        rows += self.offsets[chosen][owner]
        return self._take(rows, chosen, Packed.trusted(offsets, counts=known))

    def _take(self, rows: Tensor, sets: Tensor | slice, packed: Packed) -> Self:
        every = isinstance(sets, slice) and sets == slice(None)
        taken: dict[str, Any] = {"offsets": packed, "fillers": self.fillers if every else 0}
        for name in self.PER_POINT + PER_SET:
            value = getattr(self, name)
            taken[name] = (
                value if value is None else value[rows if name in self.PER_POINT else sets]
            )
        return type(self)(**taken)

    @classmethod
    def concat(cls, batches: Sequence[Self], fields: Sequence[str] | None = None) -> Self:
        """One batch of all sets, in order. Optional fields must be present in all or in none.

        Args:
            fields: the optional ones that are wanted; by default all.

        Raises:
            ValueError: if they are not, or without any batch.
        """
        if not batches:
            raise ValueError("concat needs at least one batch")
        merged: dict[str, Any] = {"offsets": Packed.concat([b.packed for b in batches])}
        for name in cls.PER_POINT + PER_SET:
            if fields is not None and name not in (cls.PER_POINT[0], *fields):
                continue
            values = [getattr(b, name) for b in batches]
            present = [v for v in values if v is not None]
            if present and len(present) < len(values):
                raise ValueError(f"{name} is present in some of the batches only")
            merged[name] = torch.cat(present) if present else None
        return cls(**merged)


@dataclass(frozen=True, kw_only=True)
class Clouds(Sets):
    """B sets with T points of any columns, such as the hits of showers.

    Attributes:
        points: (T, C) float numbers of each point; what they are, the columns of the shards say.
        others: as in ``Sets``.
    """

    PER_POINT = ("points",)

    points: Tensor

    def __post_init__(self) -> None:
        if self.points.ndim != 2:
            raise ValueError(f"points must be (T, C), got {tuple(self.points.shape)}")
        super().__post_init__()
