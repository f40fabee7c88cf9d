"""The seven pre-training objectives of arXiv 2606.14870, Eq. 4 as written.

Every term is a mean over jets, so that gradients averaged over processes with equally many jets
are those of the whole batch. All active terms have weight 1:

    classifier          cross-entropy of the clean jets
    generator           squared velocity error, summed over features, mean over a jet's particles
    mpm                 mean absolute error over all masked particles and features of the batch
    classifier_noised   (1 - t)^2 times the cross-entropy of the noised jet, jet by jet
    classifier_masked   (1 - mask fraction) times the cross-entropy of the masked jets
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from jetkern.jets import Jets, offsets_from_counts
from jetkern.model.config import PARTS
from jetkern.model.pet import PET
from jetkern.objectives import flow
from jetkern.objectives.masking import MASK_FRACTION, masked_counts, random_keep
from jetkern.random import uniform

# Streams of random numbers: two uses never share one.
TIME, NOISE, MASK, DROP_PID, DROP_TRACKS = 1, 2, 3, 10, 20


def parse_objective(text: str) -> tuple[str, ...]:
    """ "classifier+mpm" to its parts; "pretrain" means all three.

    Raises:
        ValueError: for an unknown part.
    """
    parts = set(PARTS) if text == "pretrain" else set(text.split("+"))
    if unknown := parts - set(PARTS):
        raise ValueError(
            f"unknown objective {text!r} ({', '.join(sorted(unknown))}): join any of "
            f"{', '.join(PARTS)} with +, or say pretrain for all three"
        )
    return tuple(p for p in PARTS if p in parts)


def masked_per_jet(jets: Jets) -> Tensor:
    """Number of masked particles per jet, averaged over the batches of all processes."""
    total = torch.stack([masked_counts(jets.counts).sum(), jets.counts.new_tensor(len(jets))])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)
    return total[0] / total[1]


class Objective(nn.Module):
    """Computes the losses of a batch, with noise, times and masks keyed by the jets' index.

    All passes of a step (noised, clean, masked) run through the body as one packed batch.

    Args:
        model: its config's ``parts`` are the objective.
        seed: of the noise, times, masks and feature dropout.
        perturbed: include the noised and masked cross-entropies (Eq. 4).
    """

    def __init__(self, model: PET, seed: int = 0, *, perturbed: bool = True) -> None:
        super().__init__()
        self.model = model
        self.seed = seed
        self.perturbed = perturbed

    def forward(self, jets: Jets, masked_mean: Tensor | None = None) -> dict[str, Tensor]:
        """Losses by name, and their sum under "loss".

        Args:
            jets: with ``label`` if there is a classifier or a generator of several types, and
                ``index`` for random numbers that do not depend on how the batch is split.
            masked_mean: ``masked_per_jet`` of the whole global batch, if ``jets`` is a part of it.
        """
        model, parts = self.model, self.model.config.parts
        index = (
            jets.index
            if jets.index is not None
            else torch.arange(len(jets), device=jets.offsets.device)
        )
        passes: dict[str, Jets] = {}
        time = None
        if "generator" in parts:
            time = uniform(self.seed, TIME, index).to(jets.particles.dtype)
            noise = flow.noise(jets, index, self.seed, NOISE)
            passes["noised"], velocity = flow.noised(jets, noise, time)
        if "classifier" in parts:
            passes["clean"] = jets
        if "mpm" in parts:
            keep = random_keep(jets, index, self.seed, MASK)
            passes["masked"] = jets.keep_particles(keep)

        batch = Jets.concat(list(passes.values()))
        rows, offsets = model.body(
            batch,
            time,
            self._keep_feature(model.body.pid_embed, DROP_PID, index, len(passes)),
            self._keep_feature(model.body.track_embed, DROP_TRACKS, index, len(passes)),
        )
        # Sizes are known without asking the device: particles plus tokens of each pass.
        tokens = model.config.global_tokens + bool(model.config.condition_dim)
        views: dict[str, tuple[Tensor, Tensor]] = {}
        row = jet = 0
        for name, part in passes.items():
            size = len(part.particles) + len(part) * (tokens + (name == "noised"))
            views[name] = (
                rows[row : row + size],
                offsets[jet : jet + len(part) + 1] - offsets[jet],
            )
            row, jet = row + size, jet + len(part)

        losses: dict[str, Tensor] = {}
        if model.classifier is not None:
            if jets.label is None:
                raise ValueError("the classifier's loss needs the label of each jet")
            used = passes if self.perturbed else {"clean": jets}
            joined = _join([views[name] for name in used])
            logits = dict(zip(used, model.classifier(*joined).chunk(len(used)), strict=True))
            losses["classifier"] = cross_entropy(logits["clean"], jets.label)
            if time is not None and "noised" in used:
                noised = cross_entropy(logits["noised"], jets.label, reduction="none")
                losses["classifier_noised"] = ((1 - time).square() * noised).mean()
            if "masked" in used:
                masked = cross_entropy(logits["masked"], jets.label)
                losses["classifier_masked"] = (1 - MASK_FRACTION) * masked
        if model.generator is not None:
            error = model.generator(*views["noised"], jets) - velocity
            losses["generator"] = _mean_over_jets(error.square().sum(1), jets)
        if model.mpm is not None:
            error = model.mpm(*views["masked"], jets, keep) - jets.particles
            mean = masked_per_jet(jets) if masked_mean is None else masked_mean
            total = (error.abs().mean(1) * ~keep).sum()
            losses["mpm"] = total / (len(jets) * mean).clamp(min=1e-9)
        losses["loss"] = torch.stack(list(losses.values())).sum()
        return losses

    def _keep_feature(
        self, embed: nn.Module | None, stream: int, index: Tensor, passes: int
    ) -> Tensor | None:
        """(passes B,) 1, or 0 with probability ``feature_drop``; None when not training."""
        drop = self.model.config.feature_drop
        if embed is None or not drop or not self.training:
            return None
        draws = [uniform(self.seed, stream + p, index) for p in range(passes)]
        return (torch.cat(draws) >= drop).to(next(embed.parameters()).dtype)


def _mean_over_jets(values: Tensor, jets: Jets) -> Tensor:
    """Mean over jets of the mean over a jet's particles of ``values`` (T,)."""
    weight = 1 / jets.counts.clamp(min=1).to(values.dtype)
    return (values * weight[jets.jet_of_particle]).sum() / len(jets)


def _join(views: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    counts = torch.cat([offsets.diff() for _, offsets in views])
    return torch.cat([rows for rows, _ in views]), offsets_from_counts(counts)
