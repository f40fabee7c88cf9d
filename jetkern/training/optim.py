"""Optimisers of the study, Lion and Ranger, with every update in a few multi-tensor calls."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from jetkern.ops.parameters import Ahead
from jetkern.training.adam import AdamW, RAdam, Told
from jetkern.training.flat import row_kernel

NO_DECAY = ("norm", "scale")  # and parameters that are tokens themselves
# Elements that a multi-tensor call takes, so that its result is not the size of the model.
AT_ONCE = 1 << 21


def _runs(params: list[Any]) -> Iterator[list[Any]]:
    """Consecutive parameters with at most ``AT_ONCE`` elements together, or single ones."""
    run: list[Any] = []
    size = 0
    for p in params:
        if run and size + p.numel() > AT_ONCE:
            yield run
            run, size = [], 0
        run.append(p)
        size += p.numel()
    if run:
        yield run


class Lion(torch.optim.Optimizer):
    """Lion (Chen et al., arXiv 2302.06675, algorithm 2) with decoupled weight decay.

    ``p <- (1 - lr wd) p - lr sign(b1 m + (1 - b1) g)``, then ``m <- b2 m + (1 - b2) g``.

    Attributes:
        applied: () bool where the parameters are, or None; where it is false, ``step`` changes
            nothing. A GPU is not waited for.

    Args:
        params: parameters or parameter groups.
        lr: learning rate.
        betas: b1, the weight of the momentum in the update, and b2, its decay.
        weight_decay: decoupled weight decay.

    Raises:
        ValueError: for a negative learning rate or decay, or a beta outside [0, 1).
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.95, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        if lr < 0 or weight_decay < 0:
            raise ValueError(f"lr and weight_decay must not be negative, got {lr}, {weight_decay}")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must lie in [0, 1), got {betas}")
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})
        self.applied: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates the parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            lr, (beta1, beta2) = group["lr"], group["betas"]
            for params in _runs([p for p in group["params"] if p.grad is not None]):
                grads = [p.grad for p in params]
                for p in params:
                    if not self.state[p]:
                        self.state[p]["exp_avg"] = torch.zeros_like(p)
                momenta = [self.state[p]["exp_avg"] for p in params]
                if self._in_one_pass(params, grads, momenta, group):
                    continue
                if self.applied is not None:
                    lr = self.applied.to(params[0].dtype) * lr  # 0 where nothing is applied
                if group["weight_decay"]:
                    torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
                updates = torch._foreach_lerp(momenta, grads, 1 - beta1)
                torch._foreach_sign_(updates)
                if self.applied is None:
                    torch._foreach_add_(params, updates, alpha=-lr)
                    torch._foreach_lerp_(momenta, grads, 1 - beta2)
                    continue
                torch._foreach_mul_(updates, -lr)
                torch._foreach_add_(params, updates)
                for m, g in zip(momenta, grads, strict=True):
                    m.copy_(torch.where(self.applied, m.lerp(g, 1 - beta2), m))
        return loss

    def _in_one_pass(
        self, params: list[Any], grads: list[Any], momenta: list[Tensor], group: dict[str, Any]
    ) -> bool:
        """Updates a single parameter by a kernel, where there is one."""
        if self.applied is None or len(params) > 1:
            return False
        (p,), (g,), (m,) = params, grads, momenta
        if (fused := row_kernel("lion", p, g, m)) is None:
            return False
        of_group = {"lr": group["lr"], "decay": group["weight_decay"], "betas": group["betas"]}
        fused(p.detach(), m, g, self.applied, **of_group)
        return True


class Lookahead:
    """Lookahead (Zhang et al., arXiv 1907.08610, algorithm 1) around any optimiser.

    Every ``interval`` steps of the inner optimiser the slow weights move towards the fast ones,
    ``slow <- slow + alpha (fast - slow)``, and the fast weights restart from there.

    Args:
        optimizer: the inner optimiser.
        interval: inner steps per slow step, k in the paper.
        alpha: size of the slow step.

    Raises:
        ValueError: for an interval below 1 or an alpha outside (0, 1].
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, interval: int = 6, alpha: float = 0.5
    ) -> None:
        if interval < 1 or not 0 < alpha <= 1:
            raise ValueError(
                f"lookahead needs interval >= 1 and 0 < alpha <= 1, got {interval}, {alpha}"
            )
        self.optimizer = optimizer
        self.interval = interval
        self.alpha = alpha
        self._steps: int | Tensor = 0
        self._slow: list[Tensor] = []

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of the inner optimiser."""
        return self.optimizer.param_groups

    @property
    def applied(self) -> Tensor | None:
        """As of the inner optimiser; where it is false, nothing is counted either."""
        return getattr(self.optimizer, "applied", None)

    @applied.setter
    def applied(self, applied: Tensor | None) -> None:
        if applied is not None and not hasattr(self.optimizer, "applied"):
            raise TypeError("the inner optimiser cannot be told on the device what is applied")
        self.optimizer.applied = applied  # type: ignore[attr-defined]

    def _fast(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One inner step, and a slow step where one is due."""
        fast = self._fast()
        if not self._slow:
            self._slow = [p.detach().clone() for p in fast]
        if self.applied is not None:
            return self._on_device(fast, self.applied, closure)
        loss = self.optimizer.step(closure)
        self._steps = int(self._steps) + 1
        if self._steps % self.interval == 0:
            torch._foreach_mul_(fast, self.alpha)
            torch._foreach_add_(fast, self._slow, alpha=1 - self.alpha)
            torch._foreach_copy_(self._slow, fast)
        return loss

    def _on_device(
        self, fast: list[Tensor], applied: Tensor, closure: Callable[[], Any] | None
    ) -> Any:
        """The same with the steps counted there."""
        if isinstance(self._steps, int):
            self._steps = torch.full((), self._steps, device=applied.device)
        self._steps += applied
        ahead = {
            p: Ahead(slow, self._steps, self.interval, self.alpha)
            for p, slow in zip(fast, self._slow, strict=True)
        }
        if isinstance(self.optimizer, Told):
            self.optimizer.ahead = ahead  # what it moves is taken out
        loss = self.optimizer.step(closure)
        if not ahead:
            return loss
        due = applied & (self._steps % self.interval == 0)
        for p, (slow, *_) in ahead.items():
            moved = (p * self.alpha).add_(slow, alpha=1 - self.alpha)
            p.copy_(torch.where(due, moved, p))
            slow.copy_(torch.where(due, moved, slow))
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients."""
        self.optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The inner state, the slow weights in parameter order and the step count."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "slow": list(self._slow),
            "steps": int(self._steps),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned.

        Raises:
            ValueError: if the slow weights do not fit the parameters.
        """
        fast, slow = self._fast(), state["slow"]
        if slow and [p.shape for p in slow] != [p.shape for p in fast]:
            raise ValueError("the slow weights do not have the shapes of the parameters")
        self.optimizer.load_state_dict(state["optimizer"])
        self._slow = [s.detach().to(p, copy=True) for s, p in zip(slow, fast, strict=bool(slow))]
        self._steps = state["steps"]


AnyOptimizer = Lion | AdamW | RAdam | Lookahead


def ranger(
    params: Any,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.95, 0.999),
    weight_decay: float = 0.0,
    *,
    eps: float = 1e-5,
) -> Lookahead:
    """Ranger as the study uses it: RAdam with decoupled weight decay inside Lookahead."""
    radam = RAdam(
        params,
        lr=lr,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        decoupled_weight_decay=True,
        foreach=True,
    )
    return Lookahead(radam)


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    weight_decay: float,
    *,
    factors: Mapping[str, float] | None = None,
    held: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Groups with and without weight decay, one for each factor of the learning rate.

    Parameters whose name contains ``norm`` or ``scale``, or ends in a word with ``token``, do not
    decay; biases and embeddings do, as in the reference implementation of arXiv 2606.14870. The
    layer that predicts tokens, ``mpm.tokens.out``, is one of those that do.

    Args:
        named_parameters: as from ``model.named_parameters()``.
        weight_decay: of the decaying groups.
        factors: learning rate of parameters over the common one, by name; 1 for the others.
        held: names of those that begin to learn later, in groups of their own.

    Returns:
        Groups for an optimiser, each with the entry ``lr_factor`` that ``set_lr`` reads, those of
        ``held`` also with ``held``.

    Raises:
        ValueError: if a name in ``factors`` is not a parameter.
    """
    factors = factors or {}
    groups: dict[tuple[bool, float, bool], list[nn.Parameter]] = {}
    missing = set(factors)
    for name, parameter in named_parameters:
        missing.discard(name)
        if not parameter.requires_grad:
            continue
        own = name.lower().rpartition(".")[2]
        decays = "token" not in own and not any(word in name.lower() for word in NO_DECAY)
        key = (decays, factors.get(name, 1.0), name in held)
        groups.setdefault(key, []).append(parameter)
    if missing:
        raise ValueError(f"no such parameter: {', '.join(sorted(missing))}")
    return [
        {
            "params": members,
            "weight_decay": weight_decay if decays else 0.0,
            "lr_factor": factor,
            **({"held": True} if later else {}),
        }
        for (decays, factor, later), members in groups.items()
    ]


def set_lr(optimizer: AnyOptimizer, lr: float, thawed: float = 1.0) -> None:
    """Sets the learning rate of every group, times the group's ``lr_factor`` if it has one, and
    times ``thawed`` if it is ``held``."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)
        if group.get("held"):
            group["lr"] *= thawed


def build_optimizer(
    name: Literal["lion", "ranger", "adamw"],
    groups: list[dict[str, Any]],
    *,
    lr: float,
    betas: tuple[float, float],
) -> AnyOptimizer:
    """The optimiser called ``name`` on groups from ``parameter_groups``."""
    if name == "lion":
        return Lion(groups, lr=lr, betas=betas)
    if name == "ranger":
        return ranger(groups, lr=lr, betas=betas)
    if name == "adamw":
        return AdamW(groups, lr=lr, betas=betas, foreach=True)
    raise ValueError(f"unknown optimizer {name!r}; choose lion, ranger or adamw")
