"""The sum of the losses of a batch: all views of a step run through the body as one packed batch.

The objectives of arXiv 2606.14870, Eq. 4 as written, all with weight 1 (``losses`` has them):

    classifier          cross-entropy of the clean jets
    generator           squared velocity error, summed over features, mean over a jet's particles
    mpm                 mean absolute error over all masked particles and features of the batch
    classifier_noised   (1 - t)^2 times the cross-entropy of the noised jet, jet by jet
    classifier_masked   (1 - mask fraction) times the cross-entropy of the masked jets
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from jetkern.jets import Jets
from jetkern.model.pet import PET
from jetkern.objectives.losses import (
    LOSSES,
    Classification,
    ColumnFlow,
    FlowMatching,
    Loss,
    MaskedParticles,
)
from jetkern.objectives.targets import MaskedTarget
from jetkern.objectives.views import (
    DROP_LABEL,
    DROP_PID,
    DROP_TRACKS,
    MakeView,
    Masked,
    Noised,
    Place,
    View,
    clean,
    index_of,
    noised,
    turned,
)
from jetkern.packed import constant
from jetkern.random import uniform

# Losses that leave fillers out (``jetkern.fillers``).
FILLED = (Classification, FlowMatching, ColumnFlow, MaskedParticles, MaskedTarget)


class Sums(NamedTuple):
    """The losses of some jets, before division.

    Attributes:
        sums: () of each loss, by name, in the order of ``Objective.losses``.
        weights: (L,) what they are sums over.
        details: (len(details),) sums of each loss that has some, by its name; none in training.
    """

    sums: dict[str, Tensor]
    weights: Tensor
    details: dict[str, Tensor]


class Objective(nn.Module):
    """Computes the losses of a batch, with noise, times and masks keyed by the jets' index.

    Args:
        model: a ``PET``; its config's ``parts`` are the objective, unless ``losses`` says another.
        seed: of the noise, times, masks and feature dropout.
        perturbed: include the losses on the views of others, such as the noised and masked
            cross-entropies (Eq. 4).
        losses: those to sum; by default the registered ones of the model's parts.
        turned: whether to turn and mirror training jets at random, see ``views.turned``.
    """

    def __init__(
        self,
        model: Any,
        seed: int = 0,
        *,
        perturbed: bool = True,
        losses: Sequence[Loss] | None = None,
        turned: bool = False,
    ) -> None:
        super().__init__()
        self.turned = turned
        self.model = model
        self.seed = seed
        own = list(losses or [])
        if losses is None:
            own = [loss for part in model.config.parts for loss in LOSSES[part].of(model.config)]
        made = list(dict.fromkeys(loss.view for loss in own))
        self.losses: list[Loss] = []
        for loss in own:
            others = [loss.on(view) for view in made if view != loss.view] if perturbed else []
            self.losses += [loss, *(other for other in others if other is not None)]
        for loss in self.losses:
            loss.seed = seed
        self.views: list[MakeView] = list(dict.fromkeys(loss.view for loss in self.losses))

    @property
    def fields(self) -> tuple[str, ...]:
        """The optional fields of jets that the model or a loss reads."""
        read = self.model.config.fields + tuple(f for loss in self.losses for f in loss.fields)
        return tuple(dict.fromkeys(read))

    @property
    def fills(self) -> bool:
        """Whether all losses leave out filler jets, and the sizes of all views follow from the
        jets' and from what ``visible`` says."""
        return len(self._masks) < 2 and all(
            type(loss) in FILLED
            and (loss.view in (clean, noised, *self._masks) or isinstance(loss.view, Noised))
            for loss in self.losses
        )

    @property
    def _masks(self) -> list[Masked]:
        return [view for view in self.views if isinstance(view, Masked)]

    def visible(self, jets: Jets) -> Tensor | None:
        """(B,) int64 particles of each jet that the masked view shows; None without one, and for
        several."""
        if len(self._masks) != 1:
            return None
        return jets.counts - self._masks[0].counts(jets, index_of(jets), self.seed)

    def prepared(self, jets: Jets) -> Jets:
        """Jets on the CPU with all sizes of their views, so that a GPU need not be asked."""
        visible = self.visible(jets)
        return jets if visible is None else jets.with_shown(visible.numpy())

    def weights(self, jets: Jets) -> Tensor:
        """(L,) what each loss is a mean over, in the order of ``losses``. Additive over jets."""
        return torch.stack([loss.weight(jets) for loss in self.losses])

    def per_jet(self, jets: Jets) -> Tensor:
        """(L,) the same per jet, for ``forward`` of the parts of these jets."""
        return self.weights(jets) / len(jets)

    def forward(self, jets: Jets, per_jet: Tensor | None = None) -> dict[str, Tensor]:
        """Losses by name, and their sum under "loss".

        Args:
            jets: with ``label`` if there is a classifier or a generator of several types, and
                ``index`` for random numbers that do not depend on how the batch is split.
            per_jet: (L,) ``weights`` of the whole global batch over its number of jets, if ``jets``
                is a part of it. Losses of parts, weighted by their jets, then average to its own.
        """
        sums, _ = self._sums(jets)
        mean = self.per_jet(jets) if per_jet is None else per_jet
        values = torch.stack(list(sums.values())) / (len(jets) * mean).clamp(min=1e-9)
        scales = tuple(loss.scale for loss in self.losses)
        if set(scales) != {1.0}:
            values = values * constant(scales, values.dtype, values.device)
        losses = dict(zip(sums, values.unbind(), strict=True))
        losses["loss"] = values.sum()
        return losses

    def sums(self, jets: Jets) -> Sums:
        """The losses before division; arguments as for ``forward``."""
        sums, details = self._sums(jets)
        return Sums(sums, self.weights(jets), details)

    def _sums(self, jets: Jets) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        if self.turned and self.training:
            jets = turned(jets, index_of(jets), self.seed)
        seen = self._see(jets)
        values: dict[str, Tensor] = {}
        details: dict[str, Tensor] = {}
        for part in dict.fromkeys(loss.part for loss in self.losses):
            same = [loss for view in seen for loss in self.losses if loss.view == view]
            same = [loss for loss in same if loss.part == part]
            outputs = same[0].outputs(self.model, [seen[loss.view] for loss in same])
            for loss, output in zip(same, outputs, strict=True):
                values[loss.name] = loss.sum(output, seen[loss.view])
                if loss.details and not self.training:
                    details[loss.name] = loss.apart(output, seen[loss.view])
        names = [loss.name for loss in self.losses]
        return {name: values[name] for name in names}, {
            n: details[n] for n in names if n in details
        }

    def trivial(self, jets: Jets) -> dict[str, float]:
        """What the model has to beat: the losses of what does not look at a jet, by the name of the
        loss with ``_trivial`` behind it, where they are known; the best of its kind for these jets.
        """
        with torch.no_grad():
            found = {loss.name: loss.trivial(self.model, jets) for loss in self.losses}
        return {f"{name}_trivial": v for name, v in found.items() if v is not None}

    def _see(self, jets: Jets) -> dict[MakeView, View]:
        """All views, after one pass of the body over them. Those with a time come first."""
        index = index_of(jets)
        made = [(make, make(jets, index, self.seed)) for make in self.views]
        made.sort(key=lambda pair: pair[1].time is None)
        views = [view for _, view in made]
        times = [view.time for view in views if view.time is not None]
        model: PET = self.model
        body = model.body
        rows, offsets = body(
            Jets.concat([view.jets for view in views], ("pid", "tracks", "columns", "condition")),
            times[0] if len(times) == 1 else torch.cat(times) if times else None,
            *self._keep_features(index, len(views)),
        )
        told = self._told(jets, index)
        # Sizes are known without asking the device: particles plus tokens of each view.
        config = model.config
        tokens = config.global_tokens + bool(config.condition_dim)
        sizes = [
            len(v.jets.particles) + len(v.jets) * (tokens + (v.time is not None)) for v in views
        ]
        jet = row = 0
        for view, part in zip(views, rows.split(sizes), strict=True):
            view.place = Place(rows, offsets, row, row + len(part), jet, jet + len(view.jets))
            row, end = view.place.end_row, view.place.end_jet
            view.rows = part
            own = offsets[jet : end + 1]
            view.offsets = own - offsets[jet] if jet else own
            view.told = told
            jet = end
        return dict(made)

    def _told(self, jets: Jets, index: Tensor) -> Jets | None:
        """The jets, each without its type with probability ``label_drop``; None if none is."""
        drop = self.model.config.label_drop
        if not drop or not self.training or jets.label is None:
            return None
        keep = uniform(self.seed, DROP_LABEL, index) >= drop
        return jets.replace(label=torch.where(keep, jets.label, -1))

    def _keep_features(self, index: Tensor, passes: int) -> list[Tensor | None]:
        """Of identities and of tracks: (passes B,) 1, or 0 with probability ``feature_drop``; None
        when not training."""
        model: PET = self.model
        drop, body = model.config.feature_drop, model.body
        kept: list[Tensor | None] = [None, None]
        if not drop or not self.training:
            return kept
        asked = [
            (place, embed, stream)
            for place, (embed, stream) in enumerate(
                ((body.pid_embed, DROP_PID), (body.track_embed, DROP_TRACKS))
            )
            # An embedding that is held would not learn from it.
            if embed is not None and next(embed.parameters()).requires_grad
        ]
        if asked:
            streams = [s + i for _, _, s in asked for i in range(passes)]
            draws = uniform(self.seed, tuple(streams), index)
            keep = (draws.view(len(asked), -1) >= drop).to(next(asked[0][1].parameters()).dtype)
            for (place, _, _), own in zip(asked, keep.unbind(), strict=True):
                kept[place] = own
        return kept
