"""One update of the weights, in its eager form.

``gradients`` is work for the device alone: nothing in it waits for a result, so that it can also be
captured once and replayed. After it the host reads one flag, whether to apply the gradient, and
applies it. The losses and the norm stay on the device until a report asks for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from jetkern.jets import Jets
from jetkern.objectives import Objective
from jetkern.training.distributed import World
from jetkern.training.optim import Lion, Lookahead, set_lr


class Step:
    """Updates an objective's model from this process's share of a global batch.

    Args:
        objective: whose losses go down.
        optimizer: of its model.
        world: the processes that share the batch.
        lr: learning rate by updates done.
        clip: largest norm of the gradient.
        per_pass: jets of a pass; gradients of the passes of a batch are summed.
        average: a copy of the objective that follows its weights, and its ``decay``.

    Attributes:
        skipped: updates in a row, up to the last, that were left out for a gradient that is not
            finite.
        norm: () of the last gradient, before clipping.
        good: jets of the last update that was not left out.
    """

    def __init__(
        self,
        objective: Objective,
        optimizer: Lion | Lookahead,
        world: World,
        *,
        lr: Callable[[int], float],
        clip: float,
        per_pass: int,
        average: Objective | None = None,
        decay: float = 0.0,
    ) -> None:
        self.objective, self.optimizer, self.world = objective, optimizer, world
        self.lr, self.clip, self.per_pass = lr, clip, per_pass
        self.average = average
        self._follow = get_ema_multi_avg_fn(decay)
        self._forward: nn.Module = objective
        if world.size > 1:
            self._forward = DistributedDataParallel(
                objective,
                device_ids=[world.device] if world.device.type == "cuda" else None,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
            )
        self.skipped = 0
        self.norm = torch.zeros(())
        self.good: Jets | None = None
        self._losses: dict[str, Tensor] = {}
        self._updates = 0

    def __call__(self, jets: Jets, number: int) -> None:
        """Makes update ``number``, counted from 0, from ``jets``."""
        self.gradients(jets)
        self._updates += 1
        if not self.norm.isfinite():  # the one thing that the host waits for
            self.skipped += 1
            return
        self.skipped, self.good = 0, jets
        set_lr(self.optimizer, self.lr(number))
        self.optimizer.step()
        if self.average is not None:
            pairs = zip(self.average.parameters(), self.objective.parameters(), strict=True)
            averaged, current = map(list, zip(*pairs, strict=True))
            self._follow(averaged, [p.detach() for p in current], 0)

    def gradients(self, jets: Jets) -> None:
        """Leaves the clipped gradient of the global batch in the parameters."""
        self.optimizer.zero_grad()
        weights = self.world.sum(self.objective.weights(jets))
        per_jet = weights / (len(jets) * self.world.size)
        parts = list(self._parts(jets))
        for part in parts:
            share = len(part) / len(jets)
            with nullcontext() if part is parts[-1] else self._no_sync():
                losses = self._forward(part, per_jet)
                (losses["loss"] * share).backward()
            for name, value in losses.items():
                self._losses[name] = self._losses.get(name, 0) + value.detach() * share
        self.norm = nn.utils.clip_grad_norm_(self.objective.parameters(), self.clip)

    def means(self) -> dict[str, float]:
        """Mean losses of the updates since the last call, over all processes."""
        values = self.world.sum(torch.stack([v.double() for v in self._losses.values()]))
        values /= self._updates * self.world.size
        means = dict(zip(self._losses, values.tolist(), strict=True))
        self._losses, self._updates = {}, 0
        return means

    def sound(self) -> bool:
        """Whether the weights, and their average, give finite losses of the last good jets."""
        if self.good is None:
            return True
        jets = next(self._parts(self.good))
        objectives = [o for o in (self.objective, self.average) if o is not None]
        with torch.no_grad():
            sums = [value for o in objectives for value in o.sums(jets).sums.values()]
        return not self.world.any(not bool(torch.stack(sums).isfinite().all()))

    def _parts(self, jets: Jets) -> Iterator[Jets]:
        if self.per_pass >= len(jets):
            yield jets
            return
        for start in range(0, len(jets), self.per_pass):
            yield jets.select(slice(start, start + self.per_pass))

    def _no_sync(self) -> Any:
        ddp = isinstance(self._forward, DistributedDataParallel)
        return self._forward.no_sync() if ddp else nullcontext()  # type: ignore[operator]
