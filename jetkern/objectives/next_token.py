"""Next-token pre-training of a decoder (arXiv:2403.05618), and its classifier's loss.

The loss is -ln p of all tokens and ends of a batch over its particles: a total over a total, so
that every token weighs alike, as in the published code up to its padding, and the loss is a
likelihood's. A mean over jets of the means over their particles, the other choice, would weigh a
token, and the end, by one over the length of its jet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from jetkern.jets import Jets
from jetkern.model.epic import EPiC
from jetkern.model.jet_decoder import NEXT_TOKEN, JetDecoder
from jetkern.objectives.field import FieldObjective
from jetkern.objectives.losses import Loss, register
from jetkern.objectives.objective import Objective
from jetkern.objectives.views import MakeView, View, index_of


@register
class NextToken(Loss):
    """-ln p of the tokens and the end of each jet, in nats per particle."""

    part = NEXT_TOKEN
    alone = True

    @property
    def name(self) -> str:
        return "next_token"

    def outputs(self, model: Any, seen: Sequence[View]) -> list[Tensor]:
        decoder: JetDecoder = model
        found = []
        for view in seen:
            assert view.target is not None
            found.append(decoder.body.target_losses(view.read()[0], view.target))
        return found

    def weight(self, jets: Jets) -> Tensor:
        return torch.full((), len(jets.particles), device=jets.offsets.device)

    def sum(self, output: Tensor, view: View) -> Tensor:
        return output.sum()

    def trivial(self, model: Any, jets: Jets) -> float | None:
        """Of how often each code comes, and an end after a particle."""
        if not len(jets.particles):
            return None
        decoder: JetDecoder = model
        used = torch.bincount(decoder.tokenizer.tokens(jets)).double()
        used = torch.cat([used[used > 0], used.new_full((1,), len(jets))])
        return float(-(used * (used / used.sum()).log()).sum() / len(jets.particles))


class DecoderObjective(Objective):
    """The losses of a decoder: it has seen the jets as they are, and what comes next."""

    model: JetDecoder

    def _see(self, jets: Jets) -> dict[MakeView, View]:
        index = index_of(jets)
        made = {make: make(jets, index, self.seed) for make in self.views}
        for view in made.values():
            read = self.model.read(view.jets)
            view.rows, view.offsets, view.target = read.x, read.packed.offsets, read.targets
        return made


def objective_of(model: Any, seed: int = 0, **options: Any) -> Objective:
    """The ``Objective`` of a model, of its kind; arguments as for that."""
    kinds = ((JetDecoder, DecoderObjective), (EPiC, FieldObjective))
    kind = next((own for of, own in kinds if isinstance(model, of)), Objective)
    return kind(model, seed, **options)
