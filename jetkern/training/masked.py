"""Settings of masked particle modelling as parts of a training: model, tokeniser, losses."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from jetkern.data import Shards
from jetkern.model.config import PETConfig
from jetkern.model.pet import PET
from jetkern.model.targets import Choices
from jetkern.model.vqvae import VQTokenizer
from jetkern.objectives import LOSSES, Loss
from jetkern.objectives.targets import parse_targets, target_losses
from jetkern.objectives.views import Masked
from jetkern.tokenizers import Tokenizer
from jetkern.training.config import MaskedSettings


def model_changes(settings: MaskedSettings, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Fields of the model's configuration."""
    changes: dict[str, Any] = {
        "targets": tuple(parse_targets(settings.target)),
        "shared_mask": settings.mask_tokens == "shared",
        "decoder_dim": settings.decoder_dim,
        "decoder_layers": settings.decoder_layers,
        "decoder_heads": settings.decoder_heads,
        "global_tokens": settings.registers,
    }
    if tokenizer is not None:
        changes |= {"target_features": tokenizer.features, "codes": len(tokenizer.codes)}
        if isinstance(tokenizer, VQTokenizer):
            changes["vqvae"] = tuple(tokenizer.shape)
    return changes


def check_fields(config: PETConfig, train: Shards) -> None:
    """Raises:
    ValueError: for a target that the jets do not have.
    """
    if "identity" in config.targets and train.field("pid") is None:
        raise ValueError(f"the target identity: {train.folder} has no identities of particles")


def keep_tokenizer(model: PET, tokenizer: Tokenizer | None) -> None:
    """Copies the scale and the codes into the model."""
    if model.mpm is not None and model.mpm.tokenizer is not None:
        assert tokenizer is not None
        model.mpm.tokenizer.load_state_dict(tokenizer.state_dict())


def losses(config: PETConfig, settings: MaskedSettings) -> list[Loss]:
    """All losses of a pre-training, those of hidden particles as the settings say."""
    chosen: list[Loss] = []
    for part in config.parts:
        if part == "mpm":
            chosen += target_losses(
                config,
                parse_targets(settings.target),
                view=Masked(settings.mask_fraction[0], settings.mask_fraction[-1]),
                choices=Choices(
                    smoothing=settings.label_smoothing,
                    neutral_noise=settings.neutral_tracks == "noise",
                ),
            )
        else:
            chosen += LOSSES[part].of(config)
    return chosen


def identity(settings: MaskedSettings, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """What the result depends on, beside the model's configuration: what is not the default."""
    found: dict[str, Any] = {
        f"masked.{f.name}": getattr(settings, f.name)
        for f in fields(settings)
        if getattr(settings, f.name) != f.default
    }
    if tokenizer is not None:
        found["masked.tokenizer"] = tokenizer.fingerprint
    return found
