"""The model that a fine-tuning starts with: that of a checkpoint, or a new one of a preset."""

from __future__ import annotations

from dataclasses import replace

from jetkern.model.epic import EPIC_SIZES, EPiCConfig, epic_preset
from jetkern.model.jet_decoder import CLASSIFIER, JetDecoder, JetDecoderConfig, jet_decoder_config
from jetkern.model.kinds import Model, ModelConfig, build
from jetkern.model.presets import model_preset
from jetkern.model.shower_decoder import ShowerDecoderConfig
from jetkern.tokenizers import Tokenizer
from jetkern.training.config import FinetuneSettings
from jetkern.training.weights import Weights, any_config, load_model


def base_config(
    settings: FinetuneSettings, weights: Weights | None, tokenizer: Tokenizer | None
) -> ModelConfig:
    """The model before a task has its say: of the checkpoint ``weights``, or of the preset.

    Raises:
        ValueError: for settings that do not fit the kind of model, or another tokeniser than that
            of the checkpoint.
    """
    if weights is not None and weights.kind == "decoder":
        return _of_decoder(settings, weights, tokenizer)
    if tokenizer is not None:
        if weights is not None:
            raise ValueError(f"{weights.path} is no decoder: it has no use for a tokeniser")
        size, inputs = settings.preset or "micro", settings.inputs or "tokens"
        return jet_decoder_config(size, tokenizer, inputs=inputs, head=settings.head or "sum")
    for name in ("head", "inputs"):
        if getattr(settings, name) is not None:
            raise ValueError(f"--{name} is a choice of decoders: --from or --tokenizer makes one")
    if weights is None or settings.preset is not None:
        size = settings.preset or "micro"
        return epic_preset(size) if size in EPIC_SIZES else model_preset(size, (CLASSIFIER,))
    return any_config(weights)


def _of_decoder(
    settings: FinetuneSettings, weights: Weights, tokenizer: Tokenizer | None
) -> JetDecoderConfig:
    if settings.preset is not None:
        raise ValueError(f"--preset {settings.preset}: a decoder has the size of {weights.path}")
    model = load_model(weights)
    assert isinstance(model, JetDecoder)
    own = model.tokenizer.fingerprint
    if tokenizer is not None and tokenizer.fingerprint != own:
        raise ValueError(
            f"{weights.path} knows the tokens of the tokeniser {own[:16]}, "
            f"{settings.tokenizer} is {tokenizer.fingerprint[:16]}"
        )
    config = model.config
    if settings.inputs not in (None, config.inputs):
        raise ValueError(f"{weights.path} reads {config.inputs}, not {settings.inputs}")
    return replace(config, head=settings.head or config.head)


def adapted(config: ModelConfig, settings: FinetuneSettings) -> ModelConfig:
    """The model of a task as settings say that it is read and frozen.

    Raises:
        ValueError: for a probe of what has none.
    """
    if isinstance(config, JetDecoderConfig):
        if settings.probe is not None:
            raise ValueError("--probe reads no decoder: --freeze body keeps it, --head reads it")
        return config
    if isinstance(config, EPiCConfig | ShowerDecoderConfig):
        if settings.probe is not None or settings.freeze is not None:
            kind = type(config).__name__.removesuffix("Config")
            raise ValueError(f"{kind} is trained as a whole: it has no body to probe or to freeze")
        return config
    if settings.probe is not None and CLASSIFIER not in config.parts:
        raise ValueError("--probe reads classes from a body: not for a task without classes")
    pool = "attention" if settings.probe == "attention" else settings.pool
    config = replace(config, probe=pool if settings.probe else None)
    if settings.probe is not None or settings.freeze is not None:
        config = replace(config, feature_drop=0.0)  # of features that no longer learn from it
    return config


def begun(config: ModelConfig, tokenizer: Tokenizer | None) -> Model:
    """A new model, with its tokeniser if it is one of tokens."""
    model = build(config)
    if isinstance(model, JetDecoder) and tokenizer is not None:
        model.keep_tokenizer(tokenizer)
    return model
