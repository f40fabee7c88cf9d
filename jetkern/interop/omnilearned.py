"""Weights of the study's code and of OmniLearned, under their published names.

Two kinds of file are read, always with ``weights_only=True``:

- the study's checkpoints (a dict with ``state_dict``, names prefixed ``model.``), or a bare
  state dict with names like ``body.token``;
- OmniLearned's (a dict with ``body``, ``classifier_head``, ``generator_head``).

Both store the same Point-Edge Transformer (arXiv 2606.14870; OmniLearned, arXiv 2510.24066).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from jetkern.model.config import PETConfig
from jetkern.model.pet import PET

# Published name -> ours, first match wins.
RENAMES = (
    (r"^mask_embeddings$", "mpm.mask_embeddings"),
    (r"^mpm_head\.blocks\.", "mpm.blocks."),
    (r"^mpm_head\.out_continuous\.", "mpm.out."),
    (r"^body\.token$", "body.tokens"),
    (r"^body\.embed\.norm\.", "body.embed_norm."),
    (r"^body\.embed\.mlp\.", "body.embed."),
    (r"^body\.interaction\.mlp\.", "body.pair_bias."),
    (r"^body\.local_physics\.mlp\.", "body.local.embed."),
    (r"^body\.local_physics\.in_blocks\.", "body.local.blocks."),
    (r"^body\.cond_embed\.0\.", "body.condition_embed."),
    (r"^body\.MPFourier\.", "body.time_fourier."),
    (r"^body\.add_embed\.0\.", "body.track_embed."),
    (r"^body\.pid_embed\.0\.", "body.pid_embed."),
    (r"^body\.in_blocks\.", "body.blocks."),
    (r"^classifier\.in_blocks\.", "classifier.blocks."),
    (r"^generator\.pid_embed\.0\.", "generator.type_embed."),
    (r"^generator\.pid_embed\.1\.", "generator.type_mlp."),
    (r"^generator\.in_blocks\.", "generator.blocks."),
    (r"^generator\.fc\.0\.", "generator.fc."),
)
OMNILEARNED_PARTS = {
    "body": "body.",
    "classifier_head": "classifier.",
    "generator_head": "generator.",
}


def rename(name: str) -> str:
    """Our name of a published parameter."""
    for pattern, ours in RENAMES:
        name, changed = re.subn(pattern, ours, name)
        if changed:
            break
    return name.replace(".attn.in_proj_weight", ".qkv_weight").replace(
        ".attn.out_proj.weight", ".out_weight"
    )


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published state dict under our names and shapes.

    Raises:
        ValueError: for an entry that is not a tensor.
    """
    converted = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{name} is a {type(value).__name__}, not a tensor")
        ours = rename(name.removeprefix("model."))
        converted[ours] = value[0] if ours == "body.tokens" and value.ndim == 3 else value
    return converted


def read(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The weights in a published checkpoint, under our names.

    Raises:
        ValueError: if the file holds anything but tensors and plain data, or no known weights.
    """
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch raises many types for code, which is not run, and damage
        raise ValueError(f"{path}: not a checkpoint that can be read safely: {error}") from None
    if isinstance(content, Mapping) and "state_dict" in content:
        return convert(content["state_dict"])
    if isinstance(content, Mapping) and isinstance(content.get("body"), Mapping):
        flat = {
            prefix + name: tensor
            for part, prefix in OMNILEARNED_PARTS.items()
            for name, tensor in (content.get(part) or {}).items()
        }
        return convert(flat)
    if isinstance(content, Mapping) and any("body." in str(name) for name in content):
        return convert(content)
    raise ValueError(f"{path}: no state_dict and no body: not a checkpoint of a known form")


def config_of(state: Mapping[str, Tensor], *, heads: int, neighbours: int) -> PETConfig:
    """The configuration of converted weights; heads and neighbours leave no trace in them."""

    def count(prefix: str) -> int:
        found = [re.match(rf"{re.escape(prefix)}\.(\d+)\.", name) for name in state]
        return 1 + max((int(m[1]) for m in found if m), default=-1)

    def has(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in state)

    dim = state["body.tokens"].shape[1]
    if "classifier.out.weight" in state:
        classes = len(state["classifier.out.weight"])
    elif "generator.type_embed.weight" in state:
        classes = len(state["generator.type_embed.weight"])
    else:
        classes = 1 if has("generator.") else 10
    condition = state.get("body.condition_embed.fc1.weight")
    return PETConfig(
        dim=dim,
        layers=count("body.blocks"),
        heads=heads,
        neighbours=neighbours,
        head_layers=count("body.local.blocks"),
        expansion=len(state["body.embed.fc1.weight"]) // dim,
        global_tokens=len(state["body.tokens"]),
        num_classes=classes,
        condition_dim=0 if condition is None else condition.shape[1],
        parts=tuple(p for p in ("classifier", "generator", "mpm") if has(f"{p}.")),
        use_pid=has("body.pid_embed."),
        use_tracks=has("body.track_embed."),
    )


def load(path: str | os.PathLike[str], *, heads: int, neighbours: int) -> PET:
    """A model with the weights of a published checkpoint.

    Raises:
        ValueError: for a file of another form, or one whose weights do not fit together.
    """
    state = read(path)
    if "body.tokens" not in state:
        raise ValueError(f"{path}: no body.token among its weights")
    model = PET(config_of(state, heads=heads, neighbours=neighbours))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}") from None
    return model
