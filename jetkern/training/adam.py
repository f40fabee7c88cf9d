"""AdamW and RAdam that can be told on the device whether an update is applied.

Where nothing is told they are PyTorch's own, to the bit; so are their checkpoints. Where it is,
rows on a GPU are updated in one pass, to rounding.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from jetkern.ops.parameters import Ahead
from jetkern.training.flat import row_kernel


class Told(torch.optim.Optimizer):
    """What both have in common.

    Attributes:
        applied: () bool where the parameters are, or None; where it is false, ``step`` changes
            nothing, and does not count. A GPU is not waited for; learning rates may be () there.
        ahead: of parameters, the slow weights of a ``Lookahead``; a step takes out those that it
            moves too.
    """

    applied: Tensor | None = None
    ahead: dict[Any, Ahead] | None = None
    rectified: ClassVar[bool]  # RAdam, not AdamW

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates the parameters that have a gradient."""
        if self.applied is None:
            return super().step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, self.applied, group)
        return loss

    def _update(self, p: Tensor, gradient: Tensor, applied: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[p], group["betas"]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        number = state["step"] = state["step"].to(p.device)  # PyTorch's is on the CPU
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        if (fused := row_kernel("adam", p, gradient, mean, square)) is not None:
            fused(
                p.detach(),
                mean,
                square,
                gradient,
                applied,
                number,
                lr=group["lr"],
                decay=group["weight_decay"],
                betas=group["betas"],
                eps=group["eps"],
                rectified=self.rectified,
                ahead=self.ahead.pop(p, None) if self.ahead else None,
            )
            return
        number += applied
        mean.copy_(torch.where(applied, mean.lerp(gradient, 1 - beta1), mean))
        moved = (square * beta2).addcmul_(gradient, gradient, value=1 - beta2)
        square.copy_(torch.where(applied, moved, square))
        # Before the first update that is applied there would be a division by 0.
        scaled, width, bare = self._factors(number.double().clamp(min=1), group)
        lr = applied.to(p.dtype) * group["lr"]
        if group["weight_decay"]:
            p.mul_(1 - lr * group["weight_decay"])
        size = scaled / (square.sqrt() / width + group["eps"])
        p.sub_(mean * (size if bare is None else size + bare) * lr)

    @abstractmethod
    def _factors(
        self, number: Tensor, group: dict[str, Any]
    ) -> tuple[Tensor, Tensor | float, Tensor | None]:
        """() s, w and b of an update by ``lr mean (s / (sqrt(square) / w + eps) + b)``.

        Args:
            number: () float64 of the update, from 1.
        """


class AdamW(Told, torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101)."""

    rectified = False

    def _factors(self, number: Tensor, group: dict[str, Any]) -> tuple[Tensor, Tensor, None]:
        beta1, beta2 = group["betas"]
        return 1 / (1 - beta1**number), (1 - beta2**number).sqrt(), None


class RAdam(Told, torch.optim.RAdam):
    """RAdam (Liu et al., arXiv 1908.03265, algorithm 2), its weight decay decoupled."""

    rectified = True

    def _factors(self, number: Tensor, group: dict[str, Any]) -> tuple[Tensor, float, Tensor]:
        beta1, beta2 = group["betas"]
        power = beta2**number
        left, longest = 1 - power, 2 / (1 - beta2) - 1
        length = longest - 2 * number * power / left
        scale = longest / ((longest - 4) * (longest - 2)) if longest > 5 else 0.0
        rectified = ((length - 4) * (length - 2) * scale / length).sqrt()
        long = length > 5
        mean = 1 / (1 - beta1**number)
        scaled = torch.where(long, rectified * left.sqrt() * mean, 0.0)
        return scaled, 1.0, torch.where(long, 0.0, mean)
