"""Weights of a trained model: found, checked, and copied into another."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jetkern.interop import omnilearned
from jetkern.io import printable
from jetkern.model.config import PETConfig
from jetkern.model.kinds import KINDS, Model, ModelConfig, build
from jetkern.model.presets import SIZES
from jetkern.tables import table
from jetkern.training.checkpoints import (
    RunError,
    digest_of,
    facts_of,
    file_sha256,
    find_checkpoint,
    read_checkpoint,
)
from jetkern.training.data import checked_description

_LARGEST = 1 << 16  # of the dimensions of a model


@dataclass(frozen=True)
class Weights:
    """Model weights from a checkpoint.

    Attributes:
        config: fields of the model's configuration.
        state: tensors by name.
        step: updates that made them.
        path: the checkpoint folder.
        sha256: digest of its state, which identifies it wherever it lies.
        data: what it was trained on, see ``jetkern.training.data.describe``, and the ``task``, if
            it was one; empty in older checkpoints and published ones.
        kind: of the model, in ``jetkern.model.kinds``; PET in checkpoints from before there was
            another.
    """

    config: dict[str, Any]
    state: dict[str, Tensor]
    step: int
    path: Path
    sha256: str
    data: dict[str, Any] = field(default_factory=dict)
    kind: str = "pet"


def load_weights(source: Path | str) -> Weights:
    """The weights of a run (its best checkpoint, else its newest) or of one checkpoint folder.

    A file is read as a published checkpoint of the study or of OmniLearned, of one of the four
    sizes (``jetkern.interop.omnilearned`` reads others). If the training kept an average of the
    weights, that is what is returned.

    Raises:
        RunError: if there is none, or it is damaged.
    """
    if Path(source).is_file():
        return _published(Path(source))
    folder = find_checkpoint(Path(source))
    state = read_checkpoint(folder)
    try:
        average = state.get("average")
        weights = state["model"] if average is None else average
        data = checked_description(state.get("data", {}), str(folder))
        sha256, kind = digest_of(folder), state.get("kind", "pet")
        return Weights(state["model_config"], weights, state["step"], folder, sha256, data, kind)
    except KeyError as error:
        raise RunError(f"checkpoint {folder} has no {error.args[0]!r}") from error


def checkpoint_facts(source: Path | str) -> dict[str, Any]:
    """What the manifest of the checkpoint that ``load_weights`` would read says about it.

    Raises:
        RunError: if there is no checkpoint or its manifest is damaged.
    """
    if Path(source).is_file():
        return {"model_config": _published(Path(source)).config}
    return facts_of(find_checkpoint(Path(source)))


def _published(path: Path) -> Weights:
    try:
        state = omnilearned.read(path)
    except ValueError as error:
        raise RunError(str(error)) from error
    if "body.tokens" not in state:
        raise RunError(f"{path}: no body.token among its weights")
    dim = state["body.tokens"].shape[-1]
    size = next((size for size in SIZES.values() if size["dim"] == dim), None)
    if size is None:
        raise RunError(f"{path}: a width of {dim} is none of the four sizes'")
    config = omnilearned.config_of(state, heads=size["heads"], neighbours=size["neighbours"])
    return Weights(dataclasses.asdict(config), state, 0, path, file_sha256(path))


@dataclass(frozen=True)
class LoadReport:
    """Which parameters and buffers came from a checkpoint."""

    loaded: dict[str, Tensor] = field(repr=False)
    new: dict[str, Tensor] = field(repr=False)
    """in the model, not taken from the checkpoint: freshly initialised"""
    unused: dict[str, Tensor] = field(repr=False)
    """in the checkpoint, not in the model"""

    def __str__(self) -> str:
        rows: list[tuple[object, ...]] = []
        for status in ("loaded", "new", "unused"):
            parts: dict[str, list[int]] = {}
            for name, tensor in getattr(self, status).items():
                count = parts.setdefault(".".join(name.split(".")[:2]), [0, 0])
                count[0] += 1
                count[1] += tensor.numel()
            rows += [
                (part, n, f"{values:,}", status) for part, (n, values) in sorted(parts.items())
            ]
        return table([("part", "tensors", "values", "status"), *rows], "lrrl")


def load_matching(
    model: nn.Module, state: Mapping[str, Tensor], *, reset: Sequence[str] = ()
) -> LoadReport:
    """Copies the tensors that model and checkpoint share, except those under a ``reset`` prefix.

    Raises:
        RunError: if nothing matches, or a tensor that should be copied has another shape. The
            model is unchanged then.
    """
    own = model.state_dict()

    def is_reset(name: str) -> bool:
        return any(name == p or name.startswith(p + ".") for p in reset)

    shared = {n: t for n, t in state.items() if n in own and not is_reset(n)}
    if not shared:
        raise RunError("the checkpoint has no parameter of this model")
    wrong = [n for n, t in shared.items() if t.shape != own[n].shape]
    if wrong:
        n = wrong[0]
        raise RunError(
            f"the checkpoint is of another model: {len(wrong)} of {len(shared)} shared tensors "
            f"differ in shape, the first is {printable(n)} with {tuple(shared[n].shape)} instead "
            f"of {tuple(own[n].shape)}"
        )
    model.load_state_dict(shared, strict=False)
    return LoadReport(
        loaded=shared,
        new={n: t for n, t in own.items() if n not in shared},
        unused={n: t for n, t in state.items() if n not in shared},
    )


def model_config(weights: Weights) -> PETConfig:
    """As ``any_config``, for commands that need a Point-Edge Transformer.

    Raises:
        RunError: also for weights of a model of another kind.
    """
    config = any_config(weights)
    if not isinstance(config, PETConfig):
        raise RunError(f"{weights.path} is a {weights.kind}; this needs a Point-Edge Transformer")
    return config


def load_model(weights: Weights) -> Model:
    """The model that the weights are of, on the CPU, in training mode.

    Raises:
        RunError: naming the checkpoint and the field or tensor that does not fit.
    """
    model = build(any_config(weights))
    load_matching(model, weights.state)
    return model


def any_config(weights: Weights) -> ModelConfig:
    """The model that the weights are of. The weights must be those of such a model, one by one.

    Raises:
        RunError: naming the checkpoint and the field or tensor that does not fit.
    """
    path, given = weights.path, weights.config
    if weights.kind not in KINDS:
        raise RunError(f"{path} has a model of an unknown kind, {printable(weights.kind)!r}")
    kind = KINDS[weights.kind]
    fields = {f.name: f for f in dataclasses.fields(kind.config)}
    if strange := sorted(given.keys() - fields.keys()):
        raise RunError(f"{path}: model_config has an unknown {printable(strange[0])!r}")
    for name, value in given.items():
        fits = {
            "int": lambda v: type(v) is int and 0 <= v <= _LARGEST,
            "bool": lambda v: type(v) is bool,
            "float": lambda v: type(v) in (int, float) and 0 <= v <= 1,
            "tuple[float, ...] | None": lambda v: v is None or _is_numbers(v),
            "tuple[float, ...]": _is_numbers,
            "str | None": lambda v: v is None or isinstance(v, str),
            "int | None": lambda v: v is None or (type(v) is int and 0 <= v <= _LARGEST),
            "str": lambda v: isinstance(v, str),
            "tuple[int, ...]": lambda v: (
                _is_numbers(v) and all(type(n) is int and 0 <= n <= _LARGEST for n in v)
            ),
        }.get(str(fields[name].type), lambda v: _is_names(v))
        if not fits(value):
            raise RunError(f"{path}: model_config.{name} is {printable(repr(value)[:60])}")
    try:
        config: ModelConfig = kind.config(**given)
        with torch.device("meta"):  # no memory before it is known to be what the checkpoint has
            expected = build(config).state_dict()
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise RunError(f"{path}: model_config is not of a model: {error}") from error
    for name, tensor in expected.items():
        if name not in weights.state:
            raise RunError(f"{path} lacks parameters of its model: {name}")
        if (shape := weights.state[name].shape) != tensor.shape:
            raise RunError(f"{path}: {name} is {tuple(shape)}, its model has {tuple(tensor.shape)}")
        if not weights.state[name].is_floating_point():
            raise RunError(f"{path}: {name} is {weights.state[name].dtype}")
    return config


def restore_optimizer(optimizer: Any, state: dict[str, Any]) -> None:
    """Continues with the state of an equal optimiser for equal parameters.

    Args:
        optimizer: of ``torch.optim`` or with the same methods.
        state: of its ``state_dict``, from a file.

    Raises:
        ValueError: naming what does not fit; what ``load_state_dict`` raises.
    """
    before = [{k: type(v) for k, v in group.items()} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    after = [{k: type(v) for k, v in group.items()} for group in optimizer.param_groups]
    if before != after:
        raise ValueError("the optimiser's settings are of other kinds")
    inner = getattr(optimizer, "optimizer", optimizer)  # of a Lookahead
    names = {tuple(values) for values in inner.state.values()}
    if len(names) > 1:
        raise ValueError("the optimiser has different values for different parameters")
    for parameter, values in inner.state.items():
        for name, value in values.items():
            fits = type(value) in (int, float) or (
                isinstance(value, Tensor) and value.shape in (parameter.shape, torch.Size())
            )
            if not fits:
                raise ValueError(f"the optimiser's {printable(name)} does not fit its parameter")


def _is_numbers(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(type(v) in (int, float) for v in value)


def _is_names(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value)
