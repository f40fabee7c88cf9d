"""k-means by mini-batches: codes that do not depend on how the particles are split.

Lloyd's two halves on a batch at a time: every particle finds its nearest code, and codes move to
the mean of theirs. Means run over all batches, the t-th with weight t^2, so that early ones are
forgotten (compare Sculley, WWW 2010, whose mean has equal weights). Sums of a batch are integers,
features in steps of 2^-24: they are exact, whatever the order, and so are the codes the same bits
for any number of processes and threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jetkern import ops
from jetkern.random import random_bits

STEP = 2.0**-24  # of a feature in the sums
FEW = 0.1  # of the mean number of particles: a code with fewer is dead
CHOOSE, REPLACE = 60, 61  # streams of random numbers


def code_sums(points: Tensor, codes: Tensor, tokens: Tensor) -> Tensor:
    """(K, 1 + F) int64: how many points have each code, and their sums in steps of 2^-24.

    Args:
        points: (T, F) float; codes: (K, F); tokens: (T,) int64 code of each point.
    """
    total = torch.zeros(len(codes), 1 + points.shape[1], dtype=torch.int64, device=points.device)
    steps = (points.double() / STEP).round().long()
    total[:, 0] = torch.bincount(tokens, minlength=len(codes))
    for column, values in enumerate(steps.unbind(1), 1):
        total[:, column].index_add_(0, tokens, values)
    return total


class KMeans:
    """Codes that follow the particles shown to them.

    Args:
        pool: (P, F) float particles, of which the first codes and those in place of dead ones are
            chosen, by the seed and the number of the update.
        codes: K, how many.
        seed: of the choices.
        every: updates after which dead codes are replaced.
        until: the last update at which they are.

    Attributes:
        codes: (K, F) float32.
        updates: done so far.

    Raises:
        ValueError: for fewer particles than codes.
    """

    def __init__(self, pool: Tensor, codes: int, seed: int, *, every: int, until: int) -> None:
        if not 1 <= codes <= len(pool):
            raise ValueError(f"{codes} codes need at least as many particles, got {len(pool)}")
        self.pool, self.seed, self.every, self.until = pool.float(), seed, every, until
        order = random_bits(seed, CHOOSE, torch.arange(len(pool), device=pool.device))
        self.codes = self.pool[order.argsort(stable=True)[:codes]]
        self.updates = 0
        self._counts = torch.zeros(codes, dtype=torch.float64, device=pool.device)
        self._sums = torch.zeros_like(self.codes, dtype=torch.float64)
        self._used = torch.zeros(codes, dtype=torch.int64, device=pool.device)

    def sums(self, points: Tensor) -> Tensor:
        """(K, 1 + F) int64: particles of each code, and their sums in steps of 2^-24. Those of
        the parts of a batch are added up before ``update``.

        Args:
            points: (T, F) float.
        """
        return code_sums(points, self.codes, ops.nearest_code(points, self.codes))

    def update(self, sums: Tensor) -> None:
        """Moves the codes.

        Args:
            sums: (K, 1 + F) int64 of a batch.
        """
        self.updates += 1
        kept = ((self.updates - 1) / self.updates) ** 2
        self._counts = self._counts * kept + sums[:, 0]
        self._sums = self._sums * kept + sums[:, 1:].double() * STEP
        counts = self._counts[:, None]
        mean = self._sums / counts.where(counts > 0, 1)
        self.codes = mean.float().where(counts > 0, self.codes)
        self._used += sums[:, 0]
        if self.updates % self.every == 0:
            if self.updates <= self.until:
                self._replace_dead()
            self._used.zero_()

    def _replace_dead(self) -> None:
        dead = (self._used < FEW * self._used.double().mean()).nonzero().squeeze(1)
        now = torch.full_like(dead, self.updates)
        chosen = random_bits(self.seed, REPLACE, now, dead) % len(self.pool)
        self.codes[dead] = self.pool[chosen]
        self._counts[dead], self._sums[dead] = 0, 0

    def state(self) -> dict[str, Tensor | int]:
        """What an interrupted fit continues from, besides the pool and the seed."""
        return {
            "updates": self.updates,
            "codes": self.codes,
            "counts": self._counts,
            "sums": self._sums,
            "used": self._used,
        }

    def load_state(self, state: dict[str, Tensor | int]) -> None:
        """Continues where ``state`` was taken.

        Raises:
            ValueError: if it is that of another number of codes or features.
        """
        for name in ("codes", "counts", "sums", "used"):
            attribute = name if name == "codes" else f"_{name}"
            setattr(self, attribute, continued(name, getattr(self, attribute), state[name]))
        self.updates = int(state["updates"])


def continued(name: str, own: Tensor, value: object) -> Tensor:
    """``value``, a part of a fit's state, in place of the tensor ``own`` of the fit.

    Raises:
        ValueError: naming it, if it is no tensor of that shape.
    """
    if not isinstance(value, Tensor) or value.shape != own.shape:
        raise ValueError(f"{name} of another fit: expected shape {tuple(own.shape)}")
    return value.to(own)
