"""One update of the weights, in its eager form.

A step is work for the device alone: nothing in it waits for a result. Whether a gradient is finite
and is applied is decided where it is; the host reads how many were not when a report asks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from jetkern.jets import Jets
from jetkern.kernels import kernel
from jetkern.model.layers import Layer
from jetkern.objectives import Objective
from jetkern.ops.rounding import rounded_once
from jetkern.packed import constant, readable
from jetkern.training.distributed import World
from jetkern.training.flat import FlatParameters
from jetkern.training.optim import AnyOptimizer, set_lr


def average_decay(decay: float, number: int) -> float:
    """The decay of the average at update ``number`` (from 0): at first smaller, so that the initial
    weights are forgotten however few the updates are. 1,500 with 0.999 would keep 22 % of them."""
    return min(decay, (1 + number) / (10 + number))


class Step:
    """Updates an objective's model from this process's share of a global batch.

    Args:
        objective: whose losses go down.
        weights: those to learn, in one buffer.
        optimizer: of ``weights.groups``.
        world: the processes that share the batch; all start with the weights of the first.
        lr: learning rate by updates done.
        clip: largest norm of the gradient.
        per_pass: jets of a pass; gradients of the passes of a batch are summed.
        average: a copy of the objective that follows its weights, these weights in one buffer, and
            its ``decay``.
        thawed: of the learning rate of the weights ``held``, by updates done; at 0 they have no
            gradient, and nothing is computed for one.

    Attributes:
        gradient: (N,) of the last batch, clipped, laid out as ``weights``.
        norm: () of it, before clipping.
        good: jets of the last update that the host knows not to have been left out.
    """

    def __init__(
        self,
        objective: Objective,
        weights: FlatParameters,
        optimizer: AnyOptimizer,
        world: World,
        *,
        lr: Callable[[int], float],
        clip: float,
        per_pass: int,
        average: tuple[Objective, FlatParameters] | None = None,
        decay: float = 0.0,
        thawed: Callable[[int], float] | None = None,
        held: Sequence[nn.Parameter] = (),
    ) -> None:
        self.objective, self.weights, self.optimizer = objective, weights, optimizer
        self.world, self.lr, self.clip, self.per_pass = world, lr, clip, per_pass
        self.average, self.decay = average, decay
        self.thawed, self.held = thawed, held
        for tensor in (weights.values, *objective.buffers()):
            world.copy(tensor)
        self._skipped = torch.zeros((), dtype=torch.int64, device=weights.values.device)
        self.gradient, self.norm = torch.zeros(0), torch.zeros(())
        self.good: Jets | None = None
        self._last: Jets | None = None
        self._sums: Tensor | None = None
        self._names: list[str] = []
        self._updates = 0

    def __call__(self, jets: Jets, number: int) -> None:
        """Makes update ``number``, counted from 0, from ``jets``."""
        thawed = 1.0 if self.thawed is None else self.thawed(number)
        for p in self.held:
            p.requires_grad_(thawed > 0)
        unused, finite = self.gradients(jets)
        self.made(jets)
        self.optimizer.applied = None if readable(finite) else finite  # decided on the device
        if readable(finite) and self.skipped:
            return
        set_lr(self.optimizer, self.lr(number), thawed)
        self.apply(unused, finite, 1 - average_decay(self.decay, number))

    def made(self, jets: Jets) -> None:
        """Notes an update from ``jets``."""
        self._updates += 1
        self._last = jets

    def apply(self, unused: list[Any], finite: Tensor, share: float | Tensor) -> None:
        """Updates the weights, and the average by a ``share`` of the way to them."""
        self.weights.set_gradient(self.gradient)
        before = [(p, p.detach().clone()) for p in unused]
        self.optimizer.step()
        with torch.no_grad():
            for p, value in before:  # no gradient is not a gradient of zero: they do not decay
                p.copy_(value)
            if self.average is not None:
                average = self.average[1].values  # a share of 0 where nothing was applied
                average.lerp_(self.weights.values, finite.to(average.dtype) * share)

    @property
    def skipped(self) -> int:
        """Updates in a row, up to the last, that were left out for a gradient that is not finite.
        Waits for the device."""
        return int(self._skipped)

    @skipped.setter
    def skipped(self, number: int) -> None:
        self._skipped.fill_(number)

    def settle(self) -> int:
        """``skipped``; and the last jets are ``good``, if none are."""
        skipped = self.skipped
        if not skipped and self._last is not None:
            self.good = self._last
        return skipped

    def gradients(self, jets: Jets) -> tuple[list[Any], Tensor]:
        """Finds the clipped gradient of the global batch.

        Returns:
            the weights that have none, and () bool whether it is finite.
        """
        unused, total = self.summed(jets, self.per_jet(jets))
        self.reduce(total)
        return unused, self.clipped(total)

    def per_jet(self, jets: Jets) -> Tensor:
        """(L,) what each loss of the global batch is a mean over, by this process's jets."""
        weights = self.world.sum(self.objective.weights(jets))
        # Of the weights' precision, which that of a number and an integer tensor is not.
        like = self.weights.values
        return weights / constant((len(jets) * self.world.size,), like.dtype, like.device)

    def reduce(self, total: Tensor) -> None:
        """Makes (N,) the mean of that of all processes, in its place."""
        if self.world.size > 1:
            self.world.sum(total.div_(self.world.size))

    def clipped(self, total: Tensor) -> Tensor:
        """Makes (N,) the ``gradient``, clipped in its place. () bool whether it is finite."""
        self.norm = torch.linalg.vector_norm(total)
        if (clip := kernel("clip", total)) is not None:
            scale, finite = clip(self.norm, self.clip, self._skipped)
        else:
            scale = (self.clip / (self.norm + 1e-6)).clamp_(max=1.0)
            finite = self.norm.isfinite()
            self._skipped.copy_(torch.where(finite, 0, self._skipped + 1))
        self.gradient = total.mul_(scale)
        return finite

    @functools.cached_property
    def _rounds(self) -> bool:
        """Whether Triton's products take weights in bfloat16."""
        return kernel("clip", self.weights.values) is not None and any(
            isinstance(part, Layer) and part.precision == "bf16"
            for part in self.objective.modules()
        )

    def summed(self, jets: Jets, per_jet: Tensor) -> tuple[list[Any], Tensor]:
        """The weights that have no gradient, and (N,) the sum of those of all passes; ``per_jet``
        as the method gives it."""
        with rounded_once(self.weights.values if self._rounds else None):
            return self._summed(jets, per_jet)

    def _summed(self, jets: Jets, per_jet: Tensor) -> tuple[list[Any], Tensor]:
        parameters = self.weights.parameters
        unused: list[Any] = []
        total: Tensor | None = None
        for part in self._parts(jets):
            share = len(part) / len(jets)
            losses = self.objective(part, per_jet)
            loss = losses["loss"]
            found = self._gradient(loss if share == 1 else loss * share)
            pairs = list(zip(parameters, found, strict=True))
            unused = [p for p, g in pairs if g is None]
            row = self.weights.row([torch.zeros_like(p) if g is None else g for p, g in pairs])
            total = row if total is None else total.add_(row)
            self._names = list(losses)
            values = torch.stack(list(losses.values())).detach().double()
            values = values if share == 1 else values * share
            self._sums = values if self._sums is None else self._sums.add_(values)
        assert total is not None
        return unused, total

    def _gradient(self, loss: Tensor) -> list[Tensor | None]:
        """Of all weights, None for those that have none."""
        parameters = self.weights.parameters
        if not self.held or self.held[0].requires_grad:
            return list(torch.autograd.grad(loss, parameters, allow_unused=True))
        learning = [p for p in parameters if p.requires_grad]
        found = iter(torch.autograd.grad(loss, learning, allow_unused=True))
        return [next(found) if p.requires_grad else None for p in parameters]

    def means(self) -> dict[str, float]:
        """Mean losses of the updates since the last call, over all processes."""
        assert self._sums is not None
        values = self.world.sum(self._sums) / (self._updates * self.world.size)
        self._updates = 0
        self._sums = self._sums.zero_()  # in its place, which a graph knows
        return dict(zip(self._names, values.tolist(), strict=True))

    def sound(self) -> bool:
        """Whether the weights, and their average, give finite losses of the last good jets."""
        self.settle()
        if self.good is None:
            return True
        jets = next(self._parts(self.good)).to(self.weights.values.device)
        objectives = [self.objective, *([] if self.average is None else [self.average[0]])]
        with torch.no_grad():
            sums = [value for o in objectives for value in o.sums(jets).sums.values()]
        return not self.world.any(not bool(torch.stack(sums).isfinite().all()))

    def _parts(self, jets: Jets) -> Iterator[Jets]:
        if self.per_pass >= len(jets):
            yield jets
            return
        for start in range(0, len(jets), self.per_pass):
            yield jets.select(slice(start, start + self.per_pass))
