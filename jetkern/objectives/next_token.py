"""Next-token pre-training of a decoder (arXiv:2403.05618), of tokens of jets or hits of showers.

The loss is -ln p of all tokens and ends of a batch over its particles: a total over a total, so
that every token weighs alike, as in the published code up to its padding, and the loss is a
likelihood's. A mean over jets of the means over their particles, the other choice, would weigh a
token, and the end, by one over the length of its jet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from jetkern.clouds import Clouds, Sets
from jetkern.model.epic import EPiC
from jetkern.model.jet_decoder import NEXT_TOKEN, JetDecoder
from jetkern.model.shower_decoder import ShowerDecoder
from jetkern.objectives.field import FieldObjective
from jetkern.objectives.losses import Loss, register
from jetkern.objectives.objective import Objective
from jetkern.objectives.views import MakeView, View, index_of


@register
class NextToken(Loss):
    """-ln p of the tokens and the end of each jet, in nats per particle; of the hits and the end
    of each shower, in nats per hit."""

    part = NEXT_TOKEN
    alone = True

    @classmethod
    def of(cls, config: Any) -> list[Loss]:
        loss = cls()
        loss.details = getattr(config, "streams", ())
        return [loss]

    @property
    def name(self) -> str:
        return "next_token"

    def outputs(self, model: Any, seen: Sequence[View]) -> list[Tensor]:
        decoder: JetDecoder | ShowerDecoder = model
        found = []
        for view in seen:
            assert view.target is not None
            found.append(decoder.body.target_totals(view.read()[0], view.target))
        return found

    def weight(self, jets: Sets) -> Tensor:
        return torch.full((), jets.total, device=jets.offsets.device)

    def sum(self, output: Tensor, view: View) -> Tensor:
        return output.sum()

    def apart(self, output: Tensor, view: View) -> Tensor:
        return output

    def trivial(self, model: Any, jets: Any) -> float | None:
        """Of how often each code comes, and an end after a particle; of hits, how often each class
        of a stream comes, an end after a hit, and a normal distribution of ln of the energy."""
        if not jets.total:
            return None
        if isinstance(model, ShowerDecoder):
            return _trivial_hits(model, jets)
        decoder: JetDecoder = model
        used = torch.bincount(decoder.tokenizer.tokens(jets))
        return _entropy(torch.cat([used, used.new_full((1,), len(jets))])) / jets.total


def _trivial_hits(model: ShowerDecoder, showers: Clouds) -> float:
    total = showers.total
    nats = 0.0
    for column, classes in zip(model.points(showers).T, model.config.classes, strict=True):
        if classes:
            nats += _entropy(torch.bincount(column.long()))
        else:  # a normal distribution: points that are all alike would have any density
            width = column.double().std(correction=0).clamp(min=1e-4)
            nats += total * float(math.log(2 * math.pi * math.e) / 2 + width.log())
    return (nats + _entropy(torch.tensor([total, len(showers)]))) / total


def _entropy(counts: Tensor) -> float:
    """Nats of all draws that came so often."""
    used = counts[counts > 0].double()
    return float(-(used * (used / used.sum()).log()).sum())


class DecoderObjective(Objective):
    """The losses of a decoder: it has seen the jets as they are, and what comes next."""

    model: JetDecoder | ShowerDecoder

    def _see(self, jets: Any) -> dict[MakeView, View]:
        index = index_of(jets)
        made = {make: make(jets, index, self.seed) for make in self.views}
        for view in made.values():
            own: Any = view.jets  # jets or showers, as the model reads
            read = self.model.read(own)
            view.rows, view.offsets, view.target = read.x, read.packed.offsets, read.targets
        return made


def objective_of(model: Any, seed: int = 0, **options: Any) -> Objective:
    """The ``Objective`` of a model, of its kind; arguments as for that."""
    kinds = ((JetDecoder | ShowerDecoder, DecoderObjective), (EPiC, FieldObjective))
    kind = next((own for of, own in kinds if isinstance(model, of)), Objective)
    return kind(model, seed, **options)
