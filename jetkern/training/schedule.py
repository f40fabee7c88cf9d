"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math


def thawed_at(step: int, *, thaw_at: int, catch_up: int) -> float:
    """Learning rate of what is kept at first over its usual one: 0 for ``thaw_at`` updates, then in
    ``catch_up`` more a straight line to 1 (MPMv2, arXiv 2409.12589).

    Args:
        step: updates done so far.
        thaw_at: updates that leave it as it is.
        catch_up: length of the rise; 0 for none.
    """
    if step < thaw_at:
        return 0.0
    return min(1.0, (step - thaw_at + 1) / (catch_up + 1))


def lr_at(step: int, *, peak: float, warmup_steps: int, total_steps: int) -> float:
    """Linear warm-up to ``peak``, then half a cosine to zero.

    The rate is above zero from step 0 on, ``peak`` at step ``warmup_steps``, and zero from
    ``total_steps`` on (where the scheduler of the reference implementation rises again).

    Args:
        step: updates done so far, so 0 for the first update.
        peak: highest learning rate.
        warmup_steps: length of the warm-up; 0 for none.
        total_steps: length of the training.

    Raises:
        ValueError: for a negative step or a warm-up longer than the training.
    """
    if step < 0:
        raise ValueError(f"step must not be negative, got {step}")
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(
            f"warm-up of {warmup_steps} steps does not fit in a training of {total_steps} steps"
        )
    if step >= total_steps:
        return 0.0
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))
