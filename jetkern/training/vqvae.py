"""Fitting a VQ-VAE tokeniser, one update at a time; ``jetkern.training.tokenize`` has the loop."""

from __future__ import annotations

from typing import Any

import torch

from jetkern.clouds import Sets
from jetkern.model.vqvae import Codebook, VQTokenizer, losses
from jetkern.training.distributed import World
from jetkern.training.schedule import lr_at

LR, CLIP, WARM_UP = 1e-3, 1.0, 0.05
REPLACE_EVERY = 20  # updates


class VQFit:
    """A tokeniser that learns from batches of jets.

    Args:
        tokenizer: without codes yet.
        pool: jets, the same in every process, whose latents begin as codes.
        codes: K. seed: of the choices. steps: of the whole fit.
        world: the processes that share each batch.
    """

    def __init__(
        self,
        tokenizer: VQTokenizer,
        pool: Sets,
        codes: int,
        seed: int,
        *,
        steps: int,
        world: World,
    ) -> None:
        self.tokenizer, self.steps, self.world = tokenizer, steps, world
        self.codebook = Codebook(tokenizer, pool, codes, seed, every=REPLACE_EVERY)
        self.parameters = list(tokenizer.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=LR, weight_decay=1e-5)

    @property
    def updates(self) -> int:
        """Updates done."""
        return self.codebook.updates

    def update(self, jets: Sets) -> None:
        """Learns from this process's share of a batch."""
        total, sums = losses(self.tokenizer, jets)
        number = self.world.sum(sums[:, 0].sum()).clamp(min=1)
        found = torch.autograd.grad(total / number, self.parameters)
        for p, gradient in zip(self.parameters, found, strict=True):
            p.grad = self.world.sum(gradient.contiguous())
        torch.nn.utils.clip_grad_norm_(self.parameters, CLIP)
        warm_up = int(WARM_UP * self.steps)
        lr = lr_at(self.updates, peak=LR, warmup_steps=warm_up, total_steps=self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.codebook.update(self.world.sum(sums))

    def state(self) -> dict[str, Any]:
        """What an interrupted fit continues from."""
        return {
            "codebook": self.codebook.state(),
            "optimizer": self.optimizer.state_dict(),
            "network": self.tokenizer.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continues where ``state`` was taken.

        Raises:
            ValueError: if it is that of another tokeniser.
        """
        try:
            self.tokenizer.load_state_dict(state["network"])
        except RuntimeError as error:
            raise ValueError(f"networks of another shape: {error}") from error
        self.optimizer.load_state_dict(state["optimizer"])
        self.codebook.load_state(state["codebook"])
