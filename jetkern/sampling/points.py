"""Points drawn from a decoder, row by row, with the keys and values of earlier rows kept."""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from jetkern.model.decoder import CausalBlock, Decoder
from jetkern.model.streams import MixtureHead
from jetkern.packed import Packed, offsets_from_counts
from jetkern.random import normal, uniform

_CLASS, _FIRST, _SECOND, _END = 101, 102, 103, 104  # of jetkern.random


class Drawn(NamedTuple):
    """Sets from a decoder."""

    points: Tensor
    """(T, S) as those that it learned from"""
    packed: Packed
    """points of each set"""
    cut: Tensor
    """(B,) bool, of those that were not at their end after the most points"""


@torch.no_grad()
def draw_points(
    model: Decoder,
    index: Tensor,
    *,
    condition: Tensor | None = None,
    types: Tensor | None = None,
    seed: int = 0,
    most: int,
    batch_size: int = 512,
    end_above: float | None = None,
) -> Drawn:
    """Draws a set for each number of ``index``.

    The random numbers are a function of (seed, number, row, stream): the same set whatever the
    batches, up to the rounding of products, whose order of sums may depend on a batch's size.

    Args:
        model: on the device of ``index``.
        index: (B,) int64 numbers of the sets.
        condition, types: (B, C) and (B,), what the model reads.
        seed: of the draws.
        most: points of a set, at which it is cut.
        batch_size: sets drawn at a time.
        end_above: with a model whose ends are apart: end where their probability is above this, as
            SPADE does, in place of a draw.

    Raises:
        ValueError: for a threshold without ends apart, and as ``Decoder.known``.
    """
    if end_above is not None and model.end is None:
        raise ValueError("end_above needs a decoder whose ends are apart: end='hazard'")
    known = model.known(condition, types)
    parts, counts, cut = [], [], []
    for rows in torch.arange(len(index), device=index.device).split(max(batch_size, 1)):
        context = None if known is None else known[rows]
        sets = _Sets(model, index[rows], context, seed, most, end_above)
        values = sets.run()
        there = torch.arange(values.shape[1], device=values.device) < sets.length[:, None]
        parts.append(values[there])
        counts.append(sets.length)
        cut.append(sets.cut)
    if not parts:
        dtype = torch.float32 if model.config.numbers else torch.int64
        empty = index.new_zeros(0, len(model.config.classes), dtype=dtype)
        return Drawn(empty, Packed(index.new_zeros(1)), index.new_zeros(0, dtype=torch.bool))
    packed = Packed(offsets_from_counts(torch.cat(counts)))
    return Drawn(_unscaled(model, torch.cat(parts)), packed, torch.cat(cut))


def _unscaled(model: Decoder, points: Tensor) -> Tensor:
    config = model.config
    for s, classes in enumerate(config.classes):
        if not classes and config.scale:
            points[:, s] /= config.scale[s]
        if not classes and config.shift:
            points[:, s] += config.shift[s]
    return points


class _Sets:
    """Sets that grow a row at a time, all at the same one."""

    def __init__(
        self,
        model: Decoder,
        index: Tensor,
        context: Tensor | None,
        seed: int,
        most: int,
        end_above: float | None,
    ) -> None:
        self.model, self.index, self.context, self.seed = model, index, context, seed
        self.most, self.end_above = most, end_above
        config = model.config
        self.late = config.delays
        self.rows = most + max(self.late[-1], 1)
        self.blocks = [cast(CausalBlock, block) for block in model.blocks]
        weight = self.blocks[0].qkv_weight
        number, dtype = len(index), weight.dtype if config.numbers else torch.int64
        self.absent = torch.tensor([n or math.nan for n in config.classes], device=index.device)
        self.values = index.new_zeros(number, most, len(config.classes), dtype=dtype)
        self.length = index.new_full((number,), -1)
        self.cut = index.new_zeros(number, dtype=torch.bool)
        width = config.dim // config.heads
        shape = (2, number, config.shared_heads, self.rows, width)
        self.caches = [weight.new_empty(shape) for _ in self.blocks]

    def run(self) -> Tensor:
        """(B, most, S) values, of which the first ``length`` of each set count."""
        for row in range(self.rows):
            x = self._mixed(row)
            self._draw(row, x)
            done = (self.length >= 0) & (row + 1 >= self.length + self.late[-1])
            if bool(done.all()):
                break
        return self.values

    def _inputs(self, row: int) -> Tensor:
        columns = []
        for s, late in enumerate(self.late):
            read = row - 1 - late
            absent = self.absent[s].to(self.values.dtype).expand(len(self.index))
            if read >= 0:
                there = (self.length < 0) | (read < self.length)
                read = min(read, self.most - 1)
                absent = torch.where(there, self.values[:, read, s], absent)
            columns.append(absent)
        return torch.stack(columns, 1)

    def _mixed(self, row: int) -> Tensor:
        model = self.model
        x = model.embed(self._inputs(row))
        if self.context is not None:
            x = x + self.context
        rank = self.index.new_full((len(self.index),), row)
        for block, cache in zip(self.blocks, self.caches, strict=True):
            q, k, v = block.project(x, rank)
            cache[0, :, :, row], cache[1, :, :, row] = k, v
            keys, values = cache[:, :, :, : row + 1]
            mixed = scaled_dot_product_attention(q[:, :, None], keys, values, enable_gqa=True)
            x = block.finish(x, mixed[:, :, 0])
        return x if model.norm is None else model.norm(x)

    def _draw(self, row: int, x: Tensor) -> None:
        model, at = self.model, torch.tensor(row, device=x.device)
        alive = self.length < 0
        if model.end is not None:
            p = model.end(x).sigmoid()
            drawn = uniform(self.seed, _END, self.index, at)
            ends = p > self.end_above if self.end_above is not None else drawn < p
            self._finish(row, alive & ends)
        before: list[Tensor] = []
        for s, (head, late) in enumerate(zip(model.heads, self.late, strict=True)):
            due, ends_here = row - late, s == 0 and model.end is None
            if due < 0 or due > self.most or (due == self.most and not ends_here):
                continue
            read = model.read_by_head(x, s, before)
            stream = at * 64 + s
            if isinstance(head, MixtureHead):
                first = uniform(self.seed, _FIRST, self.index, stream)
                found = head.draw(read, first, normal(self.seed, _SECOND, self.index, stream))
            else:
                logits = head(read)
                classes = torch.arange(logits.shape[1], device=x.device)
                noise = uniform(self.seed, _CLASS, self.index[:, None], stream, classes)
                found = (logits.float() - (-noise.log()).log()).argmax(1)
            found = found.to(self.values.dtype)
            if ends_here:
                self._finish(row, (self.length < 0) & (found == model.config.classes[0]))
                found = found.clamp(max=model.config.classes[0] - 1)
            if due < self.most:
                self.values[:, due, s] = found
            before.append(found)
        if row == self.most:
            self.cut |= self.length < 0
            self._finish(row, self.length < 0)

    def _finish(self, row: int, ends: Tensor) -> None:
        self.length = torch.where(ends, row, self.length)
