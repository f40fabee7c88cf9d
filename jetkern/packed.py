"""Where the jets of a batch lie: made once, used by every op of every layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd import forward_ad

from jetkern.kept import kept
from jetkern.kernels import kernel


class Packed:
    """The layout of B jets whose rows lie back to back.

    What is derived from the offsets is computed when it is first asked for, and kept. Ops take
    it in place of plain offsets.

    Args:
        offsets: (B + 1,) int64 or int32; jet b owns rows ``offsets[b]:offsets[b + 1]``.
        num_pairs: sum of n^2 over the jets, if known. With it a GPU is not waited for.
        longest: rows of the longest jet, if known; likewise.

    Raises:
        ValueError: for a wrong shape or dtype, and on the CPU for offsets that do not rise from 0.
    """

    def __init__(
        self, offsets: Tensor, *, num_pairs: int | None = None, longest: int | None = None
    ) -> None:
        self.offsets = int64_offsets("offsets", offsets)
        self.known_pairs = num_pairs
        self.known_longest = longest
        self.known_counts: npt.NDArray[Any] | None = None
        self._counts: Tensor | None = None
        self._pair_ends: Tensor | None = None
        self._owner: Tensor | None = None
        self._rank: Tensor | None = None
        check_rising("offsets", self.offsets)

    @classmethod
    def trusted(
        cls,
        offsets: Tensor,
        num_pairs: int | None = None,
        longest: int | None = None,
        counts: npt.NDArray[Any] | None = None,
    ) -> Packed:
        """The same from int64 offsets that are known to be right: without the checks.

        Args:
            counts: (B,) rows of each jet, if the host knows them; the other numbers follow.
        """
        if counts is not None:
            num_pairs = int(np.square(counts).sum())
            longest = int(counts.max(initial=0))
        packed = cls.__new__(cls)
        packed.offsets = offsets
        packed.known_pairs = num_pairs
        packed.known_longest = longest
        packed.known_counts = counts
        packed._counts = None
        packed._pair_ends = None
        packed._owner = None
        packed._rank = None
        return packed

    def __len__(self) -> int:
        return self.offsets.shape[0] - 1

    @property
    def counts(self) -> Tensor:
        """(B,) rows of each jet."""
        if not plainly_eager():  # what a trace makes may not outlive it
            return self.offsets.diff()
        if self._counts is None:
            with torch.inference_mode(False):  # whoever asks next may want gradients
                self._counts = self.offsets.diff()
        return self._counts

    def owner(self, total: int) -> Tensor:
        """(T,) int64 jet of each row.

        Args:
            total: T, the number of rows, so that a GPU need not be asked.
        """
        if not plainly_eager():
            return segment_index(self.offsets, total)
        if self._owner is None:
            with torch.inference_mode(False):
                self._owner = segment_index(self.offsets, total)
        return self._owner

    def rank(self, total: int) -> Tensor:
        """(T,) int64 place of each row in its jet; arguments as for ``owner``."""
        if not plainly_eager():
            return rank_in_segment(self.offsets, total)
        if self._rank is None:
            with torch.inference_mode(False):
                self._rank = rank_in_segment(self.offsets, total)
        return self._rank

    @property
    def pair_ends(self) -> Tensor:
        """(B,) int64, sum of n^2 of the jets up to and with each."""
        if self._pair_ends is None:
            self._pair_ends = self.counts.square().cumsum(0)
        return self._pair_ends

    @property
    def pair_offsets(self) -> Tensor:
        """(B + 1,) int64 offsets of the n x n pairs of each jet; pair (i, j) is entry i n + j."""
        return torch.nn.functional.pad(self.pair_ends, (1, 0))

    @property
    def num_pairs(self) -> int:
        """Sum of n^2. Waits for a GPU if it is not known yet."""
        if self.known_pairs is None:
            self.known_pairs = int(self.pair_ends[-1]) if self.offsets.shape[0] > 1 else 0
        return self.known_pairs

    @property
    def longest(self) -> int:
        """Rows of the longest jet, 0 without jets. Waits for a GPU if it is not known yet."""
        if self.known_longest is None:
            self.known_longest = int(self.counts.max()) if self.offsets.shape[0] > 1 else 0
        return self.known_longest

    def map(self, function: Callable[[Tensor], Tensor]) -> Packed:
        """The same layout with its tensors elsewhere. On the CPU the numbers are counted first,
        so that the GPU that it goes to need not be asked."""
        counts = self.known_counts
        if counts is None and readable(self.offsets):
            counts = self.offsets.diff().numpy()
        moved = Packed.trusted(function(self.offsets), self.known_pairs, self.known_longest, counts)
        if self._pair_ends is not None:
            moved._pair_ends = function(self._pair_ends)
        return moved

    @staticmethod
    def concat(parts: list[Packed]) -> Packed:
        """The jets of all parts, in order."""
        counts = torch.cat([p.counts for p in parts])
        pairs = [p.known_pairs for p in parts]
        longest = [p.known_longest for p in parts]
        known = [p.known_counts for p in parts]
        return Packed.trusted(
            offsets_from_counts(counts),
            None if None in pairs else sum(p for p in pairs if p is not None),
            None if None in longest else max((n for n in longest if n is not None), default=0),
            np.concatenate([n for n in known if n is not None])
            if known and all(n is not None for n in known)
            else None,
        )


def segment_index(offsets: Tensor, total: int | None = None) -> Tensor:
    """(T,) index of the segment that owns each row.

    Args:
        offsets: (B + 1,) int64; total: T, which saves a host synchronisation.
    """
    if total is not None and (own := kernel("owners", offsets)) is not None:
        return own(offsets, total)
    segments = torch.arange(offsets.shape[0] - 1, device=offsets.device)
    return segments.repeat_interleave(offsets.diff(), output_size=total)


def rank_in_segment(offsets: Tensor, total: int) -> Tensor:
    """(T,) place of each row in its segment, 0 for the first; arguments as for
    ``segment_index``."""
    if (own := kernel("ranks", offsets)) is not None:
        return own(offsets, total)
    rows = torch.arange(total, device=offsets.device)
    return rows - offsets[segment_index(offsets, total)]


def true_rows(mask: Tensor, number: int | None) -> Tensor:
    """(M,) int64 places where ``mask`` (T,) is true, rising.

    Args:
        number: M, if it is known, so that a GPU need not be asked.
    """
    if number is None:
        return mask.nonzero().squeeze(1)
    return torch.nonzero_static(mask, size=number).squeeze(1)


Numbers = tuple[float, ...] | tuple[tuple[float, ...], ...]  # of one row, or of several


def constant(values: Numbers, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(N,) or (M, N) numbers, kept, so that a GPU is not waited for in every step."""
    if not plainly_eager():  # what a trace makes may not outlive it
        return torch.tensor(values, dtype=dtype, device=device)
    return _constant(values, dtype, device)


@kept
def _constant(values: Numbers, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # whoever asks next may want gradients
        return torch.tensor(values, dtype=dtype, device=device)


def offsets_from_counts(counts: Tensor) -> Tensor:
    """(B + 1,) int64 offsets of segments of the given lengths.

    Args:
        counts: (B,) integers.
    """
    return torch.nn.functional.pad(counts.to(torch.int64).cumsum(0), (1, 0))


def int64_offsets(name: str, offsets: Tensor) -> Tensor:
    """``offsets`` as int64.

    Raises:
        ValueError: unless they are (B + 1,) int64 or int32.
    """
    if offsets.ndim != 1 or not offsets.shape[0] or offsets.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"{name} must be (B + 1,) int64 or int32, got {tuple(offsets.shape)} {offsets.dtype}"
        )
    return offsets if offsets.dtype == torch.int64 else offsets.long()


def readable(tensor: Tensor) -> bool:
    """Whether its values can be looked at: on the CPU, not traced, not inside torch.func."""
    return (
        not torch.compiler.is_compiling()
        and type(tensor) is Tensor
        and tensor.device.type == "cpu"
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


def check_rising(name: str, offsets: Tensor, rows: int | None = None) -> None:
    """Raises ValueError unless ``offsets`` rise from 0, and to ``rows`` if that is given.

    Values on a GPU are not looked at: that would wait for it.
    """
    if not readable(offsets):
        return
    end = int(offsets[-1])
    if offsets[0] != 0 or (offsets[1:] < offsets[:-1]).any() or (rows is not None and end != rows):
        whole = f"the number of rows, {rows}" if rows is not None else "the number of rows"
        raise ValueError(f"{name} must rise from 0 to {whole}")


def plainly_eager() -> bool:
    """Whether nothing traces, transforms or intercepts calls of ops."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
    )


def segment_sums(rows: Tensor, packed: Packed) -> Tensor:
    """(B, D) sum of each segment's rows (T, D), 0 for one without; the same bits every time."""
    if plainly_eager() and torch.is_grad_enabled() and rows.requires_grad:
        return _Sums.apply(rows, packed)
    return _summed(rows, packed)


def spread(values: Tensor, packed: Packed, total: int) -> Tensor:
    """(T, D) of each row the values (B, D) of its segment. The backward is ``segment_sums``: that
    of indexing adds rows in any order on a GPU.

    Args:
        values, packed: of the segments; total: T.
    """
    if plainly_eager() and torch.is_grad_enabled() and values.requires_grad:
        return _Spread.apply(values, packed, total)
    return values.index_select(0, packed.owner(total))


def _summed(rows: Tensor, packed: Packed) -> Tensor:
    if rows.is_cuda:
        return torch.segment_reduce(rows, "sum", offsets=packed.offsets, initial=0.0)
    # A tenth of that on a CPU, where rows are added in their order, too.
    zeros = rows.new_zeros(len(packed), *rows.shape[1:])
    return zeros.index_add(0, packed.owner(rows.shape[0]), rows)


class _Sums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, packed: Packed) -> Tensor:
        ctx.packed, ctx.total = packed, rows.shape[0]
        return _summed(rows, packed)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, None]:
        return spread(d_out, ctx.packed, ctx.total), None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, packed: Packed, total: int) -> Tensor:
        ctx.packed = packed
        return values.index_select(0, packed.owner(total))

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, None, None]:
        return segment_sums(d_out, ctx.packed), None, None
