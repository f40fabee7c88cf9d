"""A training step as one CUDA graph: forward, backward, clipping, optimiser and average.

Of several processes it is two: all of them sum their gradients in between, by a plain call, so that
each may replay its graphs or launch plainly.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from jetkern.fillers import Buffers, Capacity, filled, masked_capacities, training_capacity
from jetkern.graphs import Recorder, cuda_graph
from jetkern.jets import Jets
from jetkern.training.optim import set_lr
from jetkern.training.step import Step, average_decay

WARM = 3  # plain updates before the recording


class GraphedStep:
    """``Step`` by one recording for all batches; plain launches for what does not fit into it.

    The first ``WARM`` updates are plain ones of filled batches. Learning rates and the share of the
    average are read on the GPU at each replay.

    Attributes:
        plain: updates by plain launches, the first ones not counted.

    Args:
        step: what it does.
        record: what records.

    Raises:
        ValueError: saying why, if this step cannot be recorded.
    """

    def __init__(self, step: Step, *, record: Recorder = cuda_graph) -> None:
        if reason := unfit(step):
            raise ValueError(f"the step cannot be a graph: {reason}")
        self.step, self.record = step, record
        self.plain = 0
        groups = step.optimizer.param_groups
        self._rates = step.weights.values.new_zeros(len(groups))
        self._share = step.weights.values.new_zeros(())
        self._capacity: Capacity | None = None
        self._seen: Capacity | None = None  # of masked views
        self._buffers: Buffers | None = None
        self._replays: list[Callable[[], None]] = []
        self._alone = step.world.size == 1
        self._per_jet = torch.zeros(0)
        self._unused: list[Any] = []
        self._total = torch.zeros(0)
        self._warm = 0

    def __call__(self, jets: Jets, number: int) -> None:
        """Makes update ``number``, counted from 0, from ``jets`` on the CPU."""
        device = self.step.weights.values.device
        full = self._filled(jets)
        if full is None or self._warm < WARM:
            if full is None:
                self.plain += 1
            else:
                self._warm += 1
            plain = self.step.objective.prepared(jets) if full is None else full
            self.step(plain.to(device), number)
            return
        set_lr(self.step.optimizer, self.step.lr(number))
        for place, group in zip(self._rates, self.step.optimizer.param_groups, strict=True):
            place.fill_(group["lr"])
        self._share.fill_(1 - average_decay(self.step.decay, number))
        if self._buffers is None:
            self._buffers = Buffers(full, device)
            if not self._alone:
                self._per_jet = self.step.per_jet(self._buffers.jets())
            works = [self.region] if self._alone else [self.forward_backward, self.update]
            self._replays = [self.record(work)[1] for work in works]
        else:
            self._buffers.take(full)
            if not self._alone:
                self._per_jet.copy_(self.step.per_jet(self._buffers.jets()))
        self._replays[0]()
        for replay in self._replays[1:]:
            self.step.reduce(self._total)
            replay()
        self.step.made(full)

    def _filled(self, jets: Jets) -> Jets | None:
        visible = self.step.objective.visible(jets)
        shown = None if visible is None else visible.numpy()
        if self._capacity is None:
            counts = jets.counts.numpy()
            if shown is None:
                self._capacity = training_capacity(counts, len(jets))
            else:
                self._capacity, self._seen = masked_capacities(counts, shown, len(jets))
        return filled(jets, self._capacity, shown, self._seen)

    def region(self) -> None:
        """What is recorded: the update from the buffers' jets."""
        self.forward_backward()
        self.update()

    def forward_backward(self) -> None:
        """The first part of it: this process's gradient."""
        assert self._buffers is not None
        jets = self._buffers.jets()
        per_jet = self.step.per_jet(jets) if self._alone else self._per_jet
        self._unused, self._total = self.step.summed(jets, per_jet)

    def update(self) -> None:
        """The second: the update by the gradient of all processes."""
        finite = self.step.clipped(self._total)
        self.step.optimizer.applied = finite
        groups = self.step.optimizer.param_groups
        numbers = [group["lr"] for group in groups]
        for group, place in zip(groups, self._rates, strict=True):
            group["lr"] = place
        try:
            self.step.apply(self._unused, finite, self._share)
        finally:
            for group, number in zip(groups, numbers, strict=True):
                group["lr"] = number


def unfit(step: Step) -> str:
    """Why a step cannot be recorded, "" if it can."""
    if step.held:
        return "some weights begin to learn later"
    if not getattr(step.objective, "fills", False):
        return "a loss does not leave out filler jets, or there are several masked views"
    return ""


def graphed(step: Step, *, per_pass: int, batch: int) -> Step | GraphedStep:
    """The step as a graph where that can be, else the step; why not is said on stderr."""
    reason = "" if step.weights.values.is_cuda else "not on a GPU"
    reason = reason or ("a batch is several passes" if per_pass < batch else "") or unfit(step)
    if not reason:
        return GraphedStep(step)
    print(f"plain launches: {reason}", file=sys.stderr)
    return step
