"""The kinds of models that a checkpoint can hold."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from jetkern.model.config import PETConfig
from jetkern.model.epic import EPiC, EPiCConfig
from jetkern.model.jet_decoder import JetDecoder, JetDecoderConfig
from jetkern.model.pet import PET
from jetkern.model.shower_decoder import ShowerDecoder, ShowerDecoderConfig

Model = PET | JetDecoder | EPiC | ShowerDecoder
ModelConfig = PETConfig | JetDecoderConfig | EPiCConfig | ShowerDecoderConfig


class Kind(NamedTuple):
    """The class of a model, and that of its configuration."""

    model: type[Model]
    config: type[Any]


KINDS = {
    "pet": Kind(PET, PETConfig),
    "decoder": Kind(JetDecoder, JetDecoderConfig),
    "epic": Kind(EPiC, EPiCConfig),
    "showers": Kind(ShowerDecoder, ShowerDecoderConfig),
}


def kind_of(model: nn.Module) -> str:
    """The name of a model's kind."""
    return next(name for name, kind in KINDS.items() if isinstance(model, kind.model))


def build(config: ModelConfig) -> Model:
    """A new model of that configuration."""
    return next(kind.model(config) for kind in KINDS.values() if isinstance(config, kind.config))
