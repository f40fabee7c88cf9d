"""The settings that each recipe begins with: those of the studies, by size and objective."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jetkern.model.decoder import PRESETS as DECODERS
from jetkern.model.epic import EPIC_SIZES
from jetkern.model.presets import MASKED_SIZES, SIZES
from jetkern.model.shower_decoder import OF_TOKENS, SHOWER_PRESETS
from jetkern.objectives import parse_objective
from jetkern.training.config import (
    UNSET,
    EvaluateSettings,
    FinetuneSettings,
    MaskedSettings,
    OptimSettings,
    PretrainSettings,
    SettingsError,
    ValidationSettings,
)
from jetkern.training.weights import checkpoint_facts

# Pre-training of arXiv 2606.14870: Lion as in its launch scripts. Its Ranger learning rates are not
# public but for one trace at small (1e-4, decay 0.01); those below are ours. The study has no large
# model: Lion at the rate of OmniLearn's large model.
_LION = {"micro": (1e-3, 0.01), "small": (5e-4, 0.3), "medium": (5e-6, 0.1), "large": (1e-5, 0.1)}
_RANGER = {"micro": (1e-3, 0.01), "small": (5e-4, 0.01), "medium": (1e-4, 0.01)}
_RANGER["large"] = _RANGER["medium"]

# Top-tagging runs as they were launched: peak rate, decay, warm-up; pre-trained and from scratch.
_FINETUNE = {"micro": (5e-5, 0.1, 1028), "small": (5e-6, 0.1, 1028), "medium": (1e-6, 5.0, 0)}
_FINETUNE["large"] = _FINETUNE["medium"]
_SCRATCH = {"micro": (1e-4, 0.5, 0), "small": (5e-4, 0.5, 0), "medium": (1e-5, 0.5, 0)}
_SCRATCH["large"] = _SCRATCH["medium"]


def pretrain_defaults(
    preset: str = "micro", objective: str | None = None, optimizer: str | None = None
) -> PretrainSettings:
    """The study's pre-training of one size: 500,000 updates of 8192 jets; or that of MPM or MPMv2.

    Args:
        preset: model size.
        objective: as in ``PretrainSettings``; None for pretrain, mpm of mpm-v1 and mpm-v2, or
            next-token of omnijet.
        optimizer: lion or ranger; None takes Ranger for medium and for every objective with masked
            particles, and Lion for the others, as the study did; AdamW for next-token.

    Raises:
        SettingsError: for an unknown size.
        ValueError: for an unknown objective.
    """
    _check_size(preset)
    if objective == "next-token" or (preset in DECODERS and objective is None):
        if preset in SHOWER_PRESETS:
            return _of_showers(preset, optimizer or "ranger")
        return _of_decoder(preset, optimizer or "adamw")
    if preset in DECODERS:
        raise SettingsError(f"the preset {preset} is of next-token, not of {objective}")
    if preset in EPIC_SIZES:
        return _pretrain(
            preset,
            objective or "generator",
            _epic_optim(preset, 1e-3, optimizer or "adamw"),
            ValidationSettings(val_every=2500, val_jets=80_000),
        )
    if preset in MASKED_SIZES:
        return _of_masked(preset, objective or "mpm", optimizer or "adamw")
    objective = objective or "pretrain"
    masked = "mpm" in parse_objective(objective)
    ranger = optimizer == "ranger" if optimizer else masked or preset == "medium"
    lr, decay = (_RANGER if ranger else _LION)[preset]
    optim = OptimSettings(
        optimizer="ranger" if ranger else "lion",
        lr=lr,
        weight_decay=decay,
        betas=(0.95, 0.999) if ranger else (0.95, 0.99),
        batch_size=8192,
        steps=500_000,
        warmup_steps=1000,
    )
    validation = ValidationSettings(val_every=2500, val_jets=1_024_000, patience=100)
    return _pretrain(preset, objective, optim, validation)


def finetune_defaults(
    preset: str | None = None,
    source: str | None = None,
    num_jets: int | None = None,
    tokenizer: str | None = None,
) -> FinetuneSettings:
    """The study's top tagging: Lion, 35,130 updates of 1024 jets (512 for up to 1000 jets); for
    decoders OmniJet-alpha's: AdamW, batches of 512.

    Args:
        preset: model size; None takes that of the checkpoint, or micro without one.
        source: run or checkpoint to start from, or None for training from scratch.
        num_jets: labelled jets, None for all.
        tokenizer: folder of one, for a decoder from scratch.

    Raises:
        SettingsError: for an unknown size.
        RunError: if the checkpoint cannot be read.
    """
    size = size_from(preset, source, tokenizer)
    few, scratch = num_jets is not None and num_jets <= 1000, source is None
    told = {
        "preset": preset,
        "source": None if source is None else Path(source),
        "num_jets": num_jets,
        "tokenizer": None if tokenizer is None else Path(tokenizer),
    }
    if size in DECODERS:  # OmniJet-alpha's, with one rate for all; length and patience are ours
        optim = OptimSettings(
            optimizer="adamw",
            lr=1e-4,
            weight_decay=0.01,
            betas=(0.9, 0.999),
            batch_size=512,
            steps=20_000,
        )
        validation = ValidationSettings(val_every=500, patience=10)
        return _finetune(told, optim, validation, lr_factor=1.0)
    if size in EPIC_SIZES:  # from a checkpoint at a lower rate, which is ours
        optim = _epic_optim(size, 1e-3 if scratch else 3e-4)
        validation = ValidationSettings(val_every=2500, val_jets=80_000)
        return _finetune(told, optim, validation, lr_factor=1.0)
    if size in MASKED_SIZES:  # MPMv2's, for bodies of both: the head alone first, then the body too
        old = size == "mpm-v1"
        kept = 0 if scratch else 100 if few else 5000
        optim = OptimSettings(
            optimizer="adamw",
            lr=1e-3 if scratch else 1e-4,
            weight_decay=0.01 if old else 1e-5,
            betas=(0.9, 0.999),
            batch_size=256 if old else 500,
            steps=200_000,
            warmup_steps=10_000,
        )
        validation = ValidationSettings(val_every=1000, patience=10)
        return _finetune(told, optim, validation, lr_factor=1.0, thaw_at=kept, catch_up=kept)
    lr, decay, warmup = (_SCRATCH if scratch else _FINETUNE)[size]
    optim = OptimSettings(
        lr=lr,
        weight_decay=decay,
        batch_size=512 if few else 1024,
        steps=17_565 if scratch and size == "small" else 35_130,
        warmup_steps=warmup,
    )
    return _finetune(told, optim, ValidationSettings(val_every=1171, patience=5))


def evaluate_defaults() -> EvaluateSettings:
    """Evaluation with the default settings."""
    return EvaluateSettings(runs=(UNSET,), data=UNSET, out=UNSET)


def size_from(preset: str | None, source: str | None, tokenizer: str | None = None) -> str:
    """The size whose settings a fine-tuning begins with.

    Args:
        preset: that was named; None for that of the checkpoint, or micro without one.
        source: run or checkpoint to start from, or None.
        tokenizer: folder of one, which makes a decoder.

    Raises:
        SettingsError: for an unknown size, or a decoder's without a tokeniser.
        RunError: if the checkpoint cannot be read.
    """
    size = preset or "micro"
    _check_size(size)
    # Of a size that is named nothing has to be known: a study's checkpoints are yet to be made.
    known = preset is not None and preset not in DECODERS
    facts = {} if source is None or known else checkpoint_facts(source)
    if tokenizer is not None or facts.get("kind") == "decoder":
        return "omnijet"
    if size in SHOWER_PRESETS:
        raise SettingsError(f"the preset {size} is of showers, which only pretrain learns")
    if size in DECODERS:
        raise SettingsError(f"the preset {size} needs tokens: --tokenizer names a folder of them")
    return size if preset else size_of(facts.get("model_config", {})) or size


def size_of(model_config: Mapping[str, Any]) -> str | None:
    """The preset that has these dimensions, or None."""
    for name, dimensions in (SIZES | MASKED_SIZES | EPIC_SIZES).items():
        if all(model_config.get(k) == v for k, v in dimensions.items()):
            return name
    return None


def _pretrain(
    preset: str,
    objective: str,
    optim: OptimSettings,
    validation: ValidationSettings,
    **more: Any,
) -> PretrainSettings:
    return PretrainSettings(
        data=UNSET,
        out=UNSET,
        preset=preset,  # type: ignore[arg-type]
        objective=objective,
        optim=optim,
        validation=validation,
        **more,
    )


def _finetune(
    told: Mapping[str, Any], optim: OptimSettings, validation: ValidationSettings, **more: Any
) -> FinetuneSettings:
    return FinetuneSettings(
        data=UNSET, out=UNSET, optim=optim, validation=validation, **told, **more
    )


def _of_masked(preset: str, objective: str, optimizer: str) -> PretrainSettings:
    """MPM's and MPMv2's: see the table of differences in docs/masked.md."""
    old = preset == "mpm-v1"
    masked = MaskedSettings(
        target="tokens" if old else "regression+identity:0.3",
        mask_fraction=(0.3,) if old else (0.4,),
        decoder_dim=256 if old else 128,
        decoder_layers=2 if old else 4,
        decoder_heads=8 if old else 4,
        registers=4 if old else 8,
        label_smoothing=0.0 if old else 0.1,
    )
    optim = OptimSettings(
        optimizer=optimizer,  # type: ignore[arg-type]
        lr=1e-4 if old else 1e-3,
        weight_decay=0.01 if old else 1e-5,
        betas=(0.9, 0.999),
        batch_size=256 if old else 1000,
        steps=1_953_125 if old else 1_000_000,
        warmup_steps=1000 if old else 50_000,
    )
    validation = ValidationSettings(val_every=10_000, val_jets=1_000_000)
    return _pretrain(preset, objective, optim, validation, feature_drop=0.0, masked=masked)


def _of_decoder(preset: str, optimizer: str) -> PretrainSettings:
    """OmniJet-alpha's optimiser and length; warm-up and cosine are ours."""
    optim = OptimSettings(
        optimizer=optimizer,  # type: ignore[arg-type]
        lr=1e-3,
        weight_decay=0.01,
        betas=(0.9, 0.999),
        clip=5.0,
        batch_size=256,
        steps=1_000_000,
        warmup_steps=1000,
    )
    validation = ValidationSettings(val_every=7800, val_jets=256_000, patience=20)
    return _pretrain(preset, "next-token", optim, validation)


def _of_showers(preset: str, optimizer: str) -> PretrainSettings:
    """SPADE's Ranger and length; the cosine is ours, as are validations and the patience. Of
    OmniJet-alpha_C its Ranger, and the 32 epochs of 760,000 showers of the released weights."""
    tokens = preset == OF_TOKENS
    optim = OptimSettings(
        optimizer=optimizer,  # type: ignore[arg-type]
        lr=1e-3,
        weight_decay=0.01 if tokens else 0.005,
        betas=(0.95, 0.999),
        clip=1.0,
        batch_size=16 if tokens else 4,
        steps=1_520_000 if tokens else 500_000,
    )
    validation = ValidationSettings(val_every=10_000, val_jets=2000, patience=10)
    return _pretrain(preset, "next-token", optim, validation)


def _epic_optim(size: str, lr: float, optimizer: str = "adamw") -> OptimSettings:
    """EPiC-FM's: 500 epochs of 3 million jets, the first 20 of warm-up; of epic-small ours."""
    published = size == "epic"
    return OptimSettings(
        optimizer=optimizer,  # type: ignore[arg-type]
        lr=lr,
        weight_decay=5e-5,
        betas=(0.9, 0.999),
        clip=0.5,
        batch_size=1024 if published else 128,
        steps=1_464_844 if published else 20_000,
        warmup_steps=58_594 if published else 500,
        ema_decay=0.999,
    )


def _check_size(name: str) -> None:
    known = [*SIZES, *MASKED_SIZES, *DECODERS, *EPIC_SIZES]
    if name not in known:
        raise SettingsError(f"unknown preset {name!r}: choose one of {', '.join(known)}")
