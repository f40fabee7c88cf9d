"""Losses of the targets of masked particle modelling, any sum of them with weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from jetkern.jets import Jets
from jetkern.model.config import TARGETS, PETConfig, unknown
from jetkern.model.pet import PET
from jetkern.model.targets import TARGETS as CLASSES
from jetkern.model.targets import Choices, Hidden
from jetkern.objectives import views
from jetkern.objectives.losses import Loss, MaskedParticles
from jetkern.objectives.views import Masked, View, index_of
from jetkern.tokenizers.tokenizer import TRACKS as TRACK_FEATURES

TRACKS = frozenset(TRACK_FEATURES)


def parse_targets(text: str) -> dict[str, float]:
    """ "regression+identity:0.3" to the weight of each target, in the order of ``TARGETS``.

    Raises:
        ValueError: for an unknown or repeated target, or a weight that is not above 0.
    """
    weights: dict[str, float] = {}
    for entry in text.split("+"):
        name, _, number = entry.partition(":")
        if name not in TARGETS:
            raise unknown("target", name, TARGETS)
        if name in weights:
            raise ValueError(f"the target {name} is named twice in {text!r}")
        try:
            weights[name] = float(number) if _ else 1.0
        except ValueError:
            weights[name] = math.nan
        if not 0 < weights[name] < math.inf:
            raise ValueError(f"the weight of a target is a number above 0, got {entry!r}")
    return {name: weights[name] for name in TARGETS if name in weights}


class MaskedTarget(Loss):
    """A target, or a part of it that is logged apart: mean over all hidden particles.

    Args:
        target: its name; part: what stands behind it, and its place among the parts.
        view: what is hidden. scale: the loss's factor.
        choices: of how it is computed.
        config: of the model.
    """

    part = "mpm"

    def __init__(
        self,
        target: str,
        part: tuple[int, str],
        *,
        view: Masked,
        scale: float,
        choices: Choices,
        config: PETConfig,
    ) -> None:
        self.target, (self.place, self.suffix) = target, part
        self.view = self.masked = view
        self.scale, self.choices = scale, choices
        reads_pid = target == "identity" or (target == "ssfm" and config.use_pid)
        reads_tracks = target != "identity" and not TRACKS.isdisjoint(config.target_features)
        self.fields = ("pid",) * reads_pid + ("tracks",) * reads_tracks

    @property
    def name(self) -> str:
        return f"mpm_{self.target}{self.suffix}"

    def outputs(self, model: PET, seen: Sequence[View]) -> list[tuple[PET, Hidden]]:
        """All targets look at one view: its hidden particles, decoded once."""
        assert model.mpm is not None
        hidden = self._hidden(model, seen[0])
        hidden.body, hidden.body_offsets = seen[0].read()
        model.mpm.show(hidden)
        return [(model, hidden)] * len(seen)

    def weight(self, jets: Jets) -> Tensor:
        return self.masked.counts(jets, index_of(jets), self.seed)[: jets.real].sum()

    def sum(self, output: tuple[PET, Hidden], view: View) -> Tensor:
        model, hidden = output
        assert model.mpm is not None
        if self.target not in hidden.found:
            hidden.found[self.target] = model.mpm.target(self.target).losses(hidden)
        errors = hidden.found[self.target][self.place]
        if hidden.whole.fillers:
            errors = errors * (hidden.jets.jet_of_particle < hidden.whole.real)
        return errors.sum()

    def trivial(self, model: PET, jets: Jets) -> float | None:
        assert model.mpm is not None
        hidden = self._hidden(model, self.view(jets, index_of(jets), self.seed))
        if not len(hidden.jets.particles):
            return None
        return self.scale * model.mpm.target(self.target).trivial(hidden)[self.place]

    def _hidden(self, model: PET, view: View) -> Hidden:
        assert model.mpm is not None
        assert view.keep is not None
        return Hidden(
            view.whole,
            view.keep,
            index_of(view.whole),
            self.seed,
            model.mpm.tokenizer,
            self.choices,
        )


def target_losses(
    config: PETConfig,
    weights: Mapping[str, float] | None = None,
    *,
    view: Masked = views.masked,
    choices: Choices = Choices(),  # noqa: B008 - it is frozen
) -> list[Loss]:
    """The losses of a model's targets.

    Args:
        config: of the model.
        weights: of the targets in the sum, by name; None for 1.
        view: what is hidden.
        choices: of how they are computed.
    """
    if not config.targets:
        loss = MaskedParticles(view)
        loss.scale = 1.0 if weights is None else weights["regression"]
        return [loss]
    return [
        MaskedTarget(
            target,
            (place, suffix),
            view=view,
            scale=(1.0 if weights is None else weights[target]) * share,
            choices=choices,
            config=config,
        )
        for target in config.targets
        for place, (suffix, share) in enumerate(CLASSES[target].parts(config).items())
    ]
