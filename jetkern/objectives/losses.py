"""The losses that an objective is a sum of, and how others are added.

A loss looks at one view of the jets and says a sum and what it is a sum over:

    loss of a batch = scale x (sum of the jets' or particles' errors) / (sum of their weights)

The sums run over passes, micro-batches and processes alike; the weights are known before the model
has run, so each part of a batch can be divided by those of the whole. ``register`` makes a loss
known under a name of ``--objective``; a module of yours that does so is named by ``--plugin``.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from jetkern.jets import Jets
from jetkern.kept import kept
from jetkern.kernels import kernel
from jetkern.model.config import PETConfig, noise_of
from jetkern.model.pet import PET
from jetkern.objectives import views
from jetkern.objectives.flow import NOISE_WIDTH, STUDY, Statistics
from jetkern.objectives.views import MakeView, Masked, Noised, View, index_of
from jetkern.packed import constant, plainly_eager


def number(value: int, like: Tensor) -> Tensor:
    """() int64, on the device of ``like``."""
    if not plainly_eager():  # what a trace makes may not outlive it
        return torch.full((), value, device=like.device)
    return _number(value, like.device)


@kept
def _number(value: int, device: torch.device) -> Tensor:
    """Kept: batches of one size have the same."""
    with torch.inference_mode(False):  # whoever asks next may want gradients
        return torch.full((), value, device=device)


class Loss(ABC):
    """One term of an objective.

    Attributes:
        part: the part of the model that it trains, and its name in ``--objective``.
        view: the pass that it looks at.
        name: in logs; by default that of the part.
        alone: whether its model is another than that of all others.
        scale: its factor in the sum of all losses.
        fields: of ``Jets``, that it reads beside those that the model embeds.
        seed: of the objective that it is in, which sets it.
        details: names of what ``apart`` says, which validations log behind that of the loss.
    """

    part: ClassVar[str]
    alone: ClassVar[bool] = False
    view: MakeView = staticmethod(views.clean)
    scale = 1.0
    fields: tuple[str, ...] = ()
    seed = 0
    details: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: PETConfig) -> list[Loss]:
        """The losses of this part of a model."""
        return [cls()]

    @property
    def name(self) -> str:
        return self.part

    def on(self, view: MakeView) -> Loss | None:
        """The same loss on a view that another loss brings along, or None."""
        return None

    def outputs(self, model: PET, seen: Sequence[View]) -> list[Any]:
        """What the part says to each view. Here all views go through it as one packed batch."""
        head = getattr(model, self.part)
        out = head(*views.together(seen))
        return list(out.split([len(view.jets) for view in seen]))

    def weight(self, jets: Jets) -> Tensor:
        """() what the loss is a mean over: here the number of jets."""
        return number(jets.real, jets.offsets)

    def trivial(self, model: PET, jets: Jets) -> float | None:
        """The lowest value for these jets of what does not look at them; None if not known."""
        return None

    @abstractmethod
    def sum(self, output: Any, view: View) -> Tensor:
        """() sum of the errors of ``output``.

        Raises:
            ValueError: for jets that lack what it needs.
        """

    def apart(self, output: Any, view: View) -> Tensor:
        """(len(details),) sums of errors whose means, over ``weight``, a validation logs."""
        return output.new_zeros(len(self.details))


LOSSES: dict[str, type[Loss]] = {}


def register(loss: type[Loss]) -> type[Loss]:
    """Makes a loss known under the name of its part; used as a decorator.

    The part is a head of the model, registered with ``jetkern.model.heads.register``.

    Raises:
        ValueError: if another loss has the name.
    """
    if LOSSES.get(loss.part, loss) is not loss:
        raise ValueError(f"there is a loss {loss.part!r} already")
    LOSSES[loss.part] = loss
    return loss


def parse_objective(text: str) -> tuple[str, ...]:
    """ "classifier+mpm" to its parts in the model's order; "pretrain" means the study's three.

    Raises:
        ValueError: for an unknown part, or several of which one has a model of its own.
    """
    parts = {"classifier", "generator", "mpm"} if text == "pretrain" else set(text.split("+"))
    if unknown := sorted(parts - set(LOSSES)):
        near = difflib.get_close_matches(unknown[0], LOSSES, n=1)
        raise ValueError(
            f"unknown objective {text!r} ({', '.join(unknown)})"
            + (f"; did you mean {near[0]}?" if near else "")
            + f": join any of {', '.join(p for p in LOSSES if not LOSSES[p].alone)} with +, say "
            "pretrain for classifier+generator+mpm, or one of "
            f"{', '.join(p for p in LOSSES if LOSSES[p].alone)}; --plugin names a module with "
            "further ones"
        )
    alone = [p for p in parts if LOSSES[p].alone]
    if alone and len(parts) > 1:
        raise ValueError(f"{alone[0]} trains a model of its own: it cannot be joined, as in {text}")
    return tuple(p for p in LOSSES if p in parts)


@register
class Classification(Loss):
    """Cross-entropy; of perturbed jets by how much of them is left (Eq. 4 of arXiv 2606.14870)."""

    part = "classifier"

    def __init__(self, view: MakeView = views.clean) -> None:
        self.view = view
        self.scale = 1 - view.mean if isinstance(view, Masked) else 1.0

    @property
    def name(self) -> str:
        return self.part if self.view is views.clean else f"{self.part}_{self.view.__name__}"

    def on(self, view: MakeView) -> Loss | None:
        perturbed = view is views.noised or isinstance(view, Masked | Noised)
        return Classification(view) if perturbed else None

    def sum(self, output: Tensor, view: View) -> Tensor:
        label = view.whole.label
        if label is None:
            raise ValueError("the classifier's loss needs the label of each jet")
        output = output.to(torch.promote_types(output.dtype, torch.float32))  # a sum over jets
        errors = kernel("class_errors", output)
        if errors is not None:
            fused: Tensor = errors(output, label, view.time)
            return fused
        if view.time is None:
            return cross_entropy(output, label, reduction="sum")
        each = cross_entropy(output, label, reduction="none")
        return ((1 - view.time).square() * each).sum()


@register
class FlowMatching(Loss):
    """Squared error of the velocity, summed over features, mean over a jet's particles.

    Args:
        widths: of the noise, whose units the errors are in; None for those of the features.
    """

    part = "generator"
    view = staticmethod(views.noised)
    # A model may learn the logarithms and not the angles, whose noise is a fifth as wide.
    details: tuple[str, ...] = ("delta_eta", "delta_phi", "ln_pt", "ln_energy")

    def __init__(self, widths: tuple[float, ...] | None = None) -> None:
        self.widths = widths

    @classmethod
    def of(cls, config: Any) -> list[Loss]:
        statistics = noise_of(config)
        if statistics is None:
            return [cls()]
        if statistics == STUDY and isinstance(config, PETConfig) and not config.columns:
            return [cls(NOISE_WIDTH)]
        return [ColumnFlow(config.columns, statistics)]

    def outputs(self, model: PET, seen: Sequence[View]) -> list[Tensor]:
        assert model.generator is not None
        return [
            model.generator(*view.read(), view.whole if view.told is None else view.told)
            for view in seen
        ]

    def sum(self, output: Tensor, view: View) -> Tensor:
        errors, target, jets = kernel("flow_errors", output), view.target, view.whole
        if errors is None or target is None or output.dtype != torch.float32:
            error, share = self._errors(output, view)
            return (error.sum(1) * share).sum()
        widths = self.widths and constant(self.widths, output.dtype, output.device)
        made: Tensor = errors(output, target, widths, jets.jet_of_particle, jets.offsets, jets.real)
        return made

    def apart(self, output: Tensor, view: View) -> Tensor:
        error, share = self._errors(output, view)
        return share @ error

    def _errors(self, output: Tensor, view: View) -> tuple[Tensor, Tensor]:
        """(T, F) squared errors, and (T,) the share of each particle in its jet."""
        assert view.target is not None
        jets, error = view.whole, output - view.target
        if self.widths is not None:
            error = error / constant(self.widths, error.dtype, error.device)
        share = 1 / jets.counts.clamp(min=1).to(error.dtype)
        if jets.fillers:
            share = torch.cat([share[: jets.real], share.new_zeros(jets.fillers)])
        return error.square(), share[jets.jet_of_particle]


class ColumnFlow(FlowMatching):
    """The same with noise of a model's own, of any field, and of kinematics alone or with
    identities and tracks.

    Args:
        columns: of the model, beside kinematics.
        statistics: mean and width of its noise.
    """

    def __init__(self, columns: tuple[str, ...], statistics: Statistics) -> None:
        super().__init__(statistics[1])
        self.details = (*self.details, *columns)
        self.view = Noised(columns, statistics)

    def outputs(self, model: Any, seen: Sequence[View]) -> list[Tensor]:
        if isinstance(model, PET):
            return super().outputs(model, seen)
        found = []
        for view in seen:
            told = view.whole if view.told is None else view.told
            found.append(model.velocity(view.jets.replace(label=told.label), view.time))
        return found


@register
class MaskedParticles(Loss):
    """Absolute error, mean over all masked particles and features of the batch."""

    part = "mpm"

    def __init__(self, view: Masked = views.masked) -> None:
        self.view = self.masked = view

    @classmethod
    def of(cls, config: PETConfig) -> list[Loss]:
        from jetkern.objectives.targets import target_losses

        return [cls()] if not config.targets else target_losses(config)

    def outputs(self, model: PET, seen: Sequence[View]) -> list[Tensor]:
        assert model.mpm is not None
        return [model.mpm(*view.read(), view.whole, view.keep) for view in seen]

    def weight(self, jets: Jets) -> Tensor:
        return self.masked.counts(jets, index_of(jets), self.seed)[: jets.real].sum()

    def trivial(self, model: PET, jets: Jets) -> float | None:
        """Of the median of each number."""
        keep = self.view(jets, index_of(jets), self.seed).keep
        assert keep is not None
        hidden = jets.particles[~keep]
        if not len(hidden):
            return None
        return self.scale * float((hidden - hidden.median(0).values).abs().mean())

    def sum(self, output: Tensor, view: View) -> Tensor:
        assert view.keep is not None
        jets, hidden = view.whole, ~view.keep
        if jets.fillers:
            hidden = hidden & (jets.jet_of_particle < jets.real)
        return ((output - jets.particles).abs().mean(1) * hidden).sum()
