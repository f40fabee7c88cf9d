"""Sets of points from a decoder, drawn row by row in slots that are never empty for long.

A slot holds one set. One that ends gives its slot to the next set at once, so a step costs what
its rows need, and no set waits for a longer one. Every draw is a function of (seed, index, row,
stream), and a row's products on a CPU, in float32, have the same bits in any batch: there a set is
the same whatever the slots, the order and the threads. On a GPU and in float64 sums may depend on
the batch: sets are the same but where two classes are as good to the last digits, and numbers but
for their last ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from jetkern import ops
from jetkern.model.decoder import CausalBlock, Decoder
from jetkern.model.streams import MixtureHead, steady_sigmoid
from jetkern.ops.checks import check_drawing, check_shape
from jetkern.ops.linear.cpu import constant_weights
from jetkern.packed import Packed, constant, offsets_from_counts
from jetkern.random import normal, random_bits, uniform
from jetkern.sampling.sampler import SamplingError, bar

# Streams of random numbers, apart from those of a training step and of noise: classes, ends, and
# of numbers the component and the place in it.
STREAM, END, COMPONENT, PLACE = 41, 42, 43, 44
SLOTS = 128


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How a stream's classes are drawn; see ``jetkern.ops.sample_linear``."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    forbidden: Tensor | None = None
    """(classes,) bool, of the first stream with the end as the last one; or None"""

    def __post_init__(self) -> None:
        check_drawing(self.temperature, self.top_k, self.top_p)

    def as_json(self) -> dict[str, float]:
        """All but the forbidden classes, by name."""
        return {name: getattr(self, name) for name in ("temperature", "top_k", "top_p")}


PLAIN = Drawing()


class Generated(NamedTuple):
    """Sets of points, in the order of their index."""

    points: Tensor
    """(T, S) int64 classes, or floating with streams of numbers"""
    packed: Packed
    """points of each set"""
    cut: Tensor
    """(B,) bool, true for sets that had not ended when they had ``max_points``"""


class Cache:
    """Keys and values of the rows of the sets in a decoder's slots.

    Args:
        decoder: whose blocks they are of.
        slots, rows: how many sets, and rows of each, there is room for.
    """

    def __init__(self, decoder: Decoder, slots: int, rows: int) -> None:
        self.decoder = decoder
        config, like = decoder.config, cast(CausalBlock, decoder.blocks[0]).qkv_weight
        shape = (slots, config.registers + rows, config.shared_heads, config.dim // config.heads)
        self.keys = [like.new_empty(shape) for _ in decoder.blocks]
        self.values = [torch.empty_like(keys) for keys in self.keys]
        if decoder.registers is not None:
            for place, register in enumerate(decoder.registers):
                row = torch.full((slots,), place - config.registers, device=like.device)
                with torch.no_grad():
                    self._append(register.expand(slots, -1), row)

    def append(self, inputs: Tensor, row: Tensor, known: Tensor | None = None) -> Tensor:
        """(slots, D) what the heads read of a new row of each slot, which is kept.

        Args:
            inputs: (slots, S) classes or numbers, as in ``jetkern.model.delay.Rows``.
            row: (slots,) its place in each set; the rows before it have been appended.
            known: (slots, D) of the sets, see ``Decoder.known``.
        """
        x = self.decoder.embed(inputs)
        return self._append(x if known is None else x + known, row)

    def _append(self, x: Tensor, row: Tensor) -> Tensor:
        """The same of (slots, D) embedded rows; registers have places below 0."""
        row = row + self.decoder.config.registers
        slot = torch.arange(len(row), device=row.device)
        for module, keys, values in zip(self.decoder.blocks, self.keys, self.values, strict=True):
            block = cast(CausalBlock, module)
            q, k, v = block.project(x, row)
            keys[slot, row], values[slot, row] = k, v
            mixed = ops.decode_attention(q, keys, values, row + 1, precision=block.precision)
            x = block.finish(x, mixed)
        return x if self.decoder.norm is None else self.decoder.norm(x)

    def keep(self, slots: Tensor) -> None:
        """Leaves those slots only."""
        self.keys = [keys[slots] for keys in self.keys]
        self.values = [values[slots] for values in self.values]


@torch.no_grad()
def generate(
    decoder: Decoder,
    index: Tensor,
    *,
    seed: int,
    max_points: int,
    slots: int = SLOTS,
    drawing: Drawing | Sequence[Drawing] = PLAIN,
    condition: Tensor | None = None,
    types: Tensor | None = None,
    end_above: float | None = None,
    prompts: tuple[Tensor, Tensor | Packed] | None = None,
    progress: bool = False,
) -> Generated:
    """Draws sets of points from a decoder.

    Args:
        decoder: on the device to use.
        index: (B,) int64 numbers of the sets, from 0: the random numbers of a set are those of its
            number, so any part of ``torch.arange(n)`` gives that part of the same n sets.
        seed: of the random numbers.
        max_points: that a set has at most. One that would go on is cut, which ``Generated`` tells.
        slots: sets that are made at a time.
        drawing: of all streams, or one of each; numbers are drawn plainly.
        condition, types: (B, C) and (B,) of each set, what the model reads of them.
        end_above: of a model whose ends are apart: a set ends where the probability of it is above
            this, as SPADE does, in place of a draw.
        prompts: the first points of each set and their layout, (T, S) and (B + 1,) offsets; what
            follows is drawn.
        progress: show a bar.

    Raises:
        SamplingError: naming the set and row, if nothing can be drawn there, as from logits that
            are not finite, or for a prompt that is too long or no class of its stream.
        ValueError: for wrong shapes, dtypes or settings, and as ``Decoder.known``.
    """
    if index.ndim != 1 or index.dtype != torch.int64:
        raise ValueError(f"index must be (B,) int64, got {tuple(index.shape)} {index.dtype}")
    for name, number in (("max_points", max_points), ("slots", slots)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    streams = len(decoder.config.classes)
    drawings = [drawing] * streams if isinstance(drawing, Drawing) else list(drawing)
    if len(drawings) != streams:
        raise ValueError(f"{len(drawings)} drawings for {streams} streams")
    if end_above is not None and decoder.end is None:
        raise ValueError("end_above needs a decoder whose ends are apart: end='hazard'")
    device = next(decoder.parameters()).device
    first = _prompts(decoder, index, prompts, max_points)
    known = decoder.known(
        None if condition is None else condition.to(device),
        None if types is None else types.to(device),
    )
    if known is not None and len(known) != len(index):
        raise ValueError(f"conditions of {len(known)} sets for {len(index)}")
    number = min(slots, len(index))
    making = _Slots(decoder, index.to(device), first, known, number, max_points, end_above)
    with bar(len(index), progress, " sets") as shown, constant_weights():
        while making.busy:
            making.step(seed, drawings)
            shown.update(making.refill())
            if progress and making.number_cut:
                cut = f"{making.number_cut} cut at {max_points} points"
                shown.set_postfix_str(cut, refresh=False)
    return making.result()


class _Prompts(NamedTuple):
    """First points (B, P, S) of each set as the model reads them, and how many (B,)."""

    points: Tensor
    counts: Tensor


def _prompts(
    decoder: Decoder, index: Tensor, given: tuple[Tensor, Tensor | Packed] | None, most: int
) -> _Prompts:
    device, classes = next(decoder.parameters()).device, decoder.config.classes
    dtype = cast(CausalBlock, decoder.blocks[0]).qkv_weight.dtype
    dtype = dtype if decoder.config.numbers else torch.int64
    if given is None:
        none = torch.zeros(len(index), 1, len(classes), dtype=dtype, device=device)
        return _Prompts(none, torch.zeros_like(index, device=device))
    points, layout = given
    packed = layout if isinstance(layout, Packed) else Packed(layout)
    check_shape("prompts", points, None, len(classes))
    if len(packed) != len(index) or int(packed.offsets[-1]) != len(points):
        raise ValueError(
            f"prompts of {len(packed)} sets with {int(packed.offsets[-1])} points for "
            f"{len(index)} sets and {len(points)} points"
        )
    owner, rank = packed.owner(len(points)), packed.rank(len(points))
    wrong = decoder.wrong(points).any(1)
    for fault, what in ((wrong, "is no class of its stream"), (rank >= most, "is one too many")):
        if fault.any():
            row = int(fault.nonzero()[0])
            raise SamplingError(
                f"prompt of set {int(index[owner[row]])}: point {int(rank[row])} {what}"
            )
    padded = points.new_zeros(len(index), max(packed.longest, 1), len(classes), dtype=dtype)
    padded[owner, rank] = decoder.scaled(points) if decoder.config.numbers else points
    return _Prompts(padded.to(device), packed.counts.to(device))


class _Slots:
    """The sets that are being made, one in each slot, and those that are."""

    def __init__(
        self,
        decoder: Decoder,
        index: Tensor,
        prompts: _Prompts,
        known: Tensor | None,
        slots: int,
        most: int,
        end_above: float | None,
    ) -> None:
        config = decoder.config
        self.decoder, self.index, self.prompts, self.most = decoder, index, prompts, most
        self.known, self.end_above = known, end_above
        self.late, self.extra = config.delays, max(config.delays[-1], 1)
        # Point i is entry i + lead: before the first and after the last there is nothing to read.
        self.lead = config.delays[-1] + 1
        device = index.device
        self.cache = Cache(decoder, slots, most + self.extra)
        absent = tuple(n or math.nan for n in config.classes)
        self.missing = constant(absent, prompts.points.dtype, device)
        self.points = self.missing.repeat(slots, self.lead + most + self.extra, 1)
        self.place = torch.arange(slots, device=device)  # in the index
        self.row = torch.zeros(slots, dtype=torch.int64, device=device)
        self.length = torch.full_like(self.row, most + 1)  # more than any, while it is not known
        self.idle = torch.zeros(slots, dtype=torch.bool, device=device)  # starts anew for nobody
        self.next, self.busy = slots, slots
        self.done: list[Tensor] = [index.new_empty(0)] * len(index)
        self.cut = torch.zeros(len(index), dtype=torch.bool, device=device)

    @property
    def number_cut(self) -> int:
        """Sets so far that had not ended."""
        return int(self.cut.sum())

    def step(self, seed: int, drawings: Sequence[Drawing]) -> None:
        """A row more of each slot's set."""
        slot = torch.arange(len(self.row), device=self.row.device)
        delays = constant(self.late, torch.int64, self.row.device)
        before = self.row[:, None] - 1 - delays + self.lead
        known = None if self.known is None else self.known[self.place]
        x = self.cache.append(self.points.gather(1, before[:, None])[:, 0], self.row, known)
        prompted = self.prompts.counts[self.place]
        if self.decoder.end is not None:
            alive = ~self.idle & (self.row >= prompted) & (self.row < self.length)
            self._end(alive, self._ends(x, seed, alive))
        row: list[Tensor] = []  # what the streams have in it
        for s, (late, how) in enumerate(zip(self.late, drawings, strict=True)):
            due = self.row - late
            free = ~self.idle & (due >= prompted) & (due < self.length)
            drawn = self._draw(s, self.decoder.read_by_head(x, s, row), seed, how, free)
            given = (due >= 0) & (due < prompted)
            at = due.clamp(0, self.prompts.points.shape[1] - 1)
            drawn = torch.where(given, self.prompts.points[self.place, at, s], drawn)
            if s == 0 and self.decoder.end is None:
                self._end(free, drawn == self.decoder.config.classes[0])
            written = (due >= 0) & (due < self.length)
            at = (due + self.lead).clamp(max=self.points.shape[1] - 1)
            self.points[slot, at, s] = torch.where(written, drawn, self.points[slot, at, s])
            row.append(drawn.clamp(min=0) if self.decoder.config.classes[s] else drawn)
        self.row = (self.row + 1).masked_fill(self.idle, 0)

    def _end(self, free: Tensor, ended: Tensor) -> None:
        """Notes of the ``free`` slots which sets end before a point of this row, or are cut."""
        cut = free & ~ended & (self.row == self.most)
        self.cut[self.place[cut]] = True
        self.length = torch.where(free & ended | cut, self.row, self.length)

    def _ends(self, x: Tensor, seed: int, alive: Tensor) -> Tensor:
        assert self.decoder.end is not None
        chance = steady_sigmoid(self.decoder.end(x))
        self._check(alive & chance.isnan(), "its end has a probability that is NaN")
        if self.end_above is not None:
            return chance > self.end_above
        return uniform(seed, END, self.index[self.place], self.row) < chance

    def _draw(self, s: int, x: Tensor, seed: int, how: Drawing, free: Tensor) -> Tensor:
        """(slots,) a class or number of stream s from what its head reads (slots, width)."""
        head, index = self.decoder.heads[s], self.index[self.place]
        counters = index, self.row, torch.full_like(index, s)
        if isinstance(head, MixtureHead):
            drawn = head.draw(
                x, uniform(seed, COMPONENT, *counters), normal(seed, PLACE, *counters)
            )
            self._check(free & ~drawn.isfinite(), f"stream {s} has no finite number")
            return drawn.to(self.points.dtype)
        layer = cast(nn.Linear, head)
        drawn = ops.sample_linear(
            x, layer.weight, layer.bias, random_bits(seed, STREAM, *counters),
            temperature=how.temperature, top_k=how.top_k, top_p=how.top_p,
            forbidden=how.forbidden, precision=self.decoder.precision,
        )  # fmt: skip
        reason = f"no class of stream {s} can be drawn, its logits are NaN, inf or all -inf"
        self._check(free & (drawn < 0), reason)
        return drawn.to(self.points.dtype)

    def _check(self, failed: Tensor, reason: str) -> None:
        if failed.any():
            slot = int(failed.nonzero()[0])
            number = int(self.index[self.place[slot]])
            raise SamplingError(f"set {number}, row {int(self.row[slot])}: {reason}")

    def refill(self) -> int:
        """Takes out the sets that have ended, and puts the next ones there; their number."""
        ended = (self.row >= self.length + self.extra).nonzero()[:, 0]
        if not len(ended):
            return 0
        lengths, places = self.length[ended].tolist(), self.place[ended].tolist()
        for slot, n, place in zip(ended.tolist(), lengths, places, strict=True):
            self.done[place] = self.points[slot, self.lead : self.lead + n].clone()
        self.points[ended] = self.missing
        self.row[ended] = 0
        self.length[ended] = self.most + 1
        new, over = ended[: len(self.index) - self.next], ended[len(self.index) - self.next :]
        self.place[new] = torch.arange(self.next, self.next + len(new), device=new.device)
        self.next += len(new)
        self.busy -= len(over)
        self.idle[over] = True
        if self.busy <= len(self.row) // 2:
            self._keep((~self.idle).nonzero()[:, 0])
        return len(ended)

    def _keep(self, slots: Tensor) -> None:
        """Gives up the other slots."""
        self.cache.keep(slots)
        self.points, self.place, self.idle = self.points[slots], self.place[slots], self.idle[slots]
        self.row, self.length = self.row[slots], self.length[slots]

    def result(self) -> Generated:
        """All sets."""
        counts = torch.tensor([len(points) for points in self.done], device=self.index.device)
        points = [points for points in self.done if len(points)]
        every = torch.cat(points) if points else self.points.new_empty(0, len(self.late))
        return Generated(
            self.decoder.unscaled(every) if self.decoder.config.numbers else every,
            Packed(offsets_from_counts(counts.to(torch.int64))),
            self.cut,
        )
