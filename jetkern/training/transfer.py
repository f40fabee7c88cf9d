"""What of a pre-trained model is trained on, and how fast: frozen parts, rates by depth."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

READ_OUT = ("fc", "out")  # what comes after a head's blocks


def freeze(model: nn.Module, what: str | None, loaded: Collection[str]) -> set[str]:
    """Keeps parameters as they are in the checkpoint; one that is new is trained in any case.

    Args:
        model: whose parameters stop to want a gradient.
        what: "body"; "all-but-head", which leaves the heads' perceptrons and last layers; None
            for nothing.
        loaded: names of the parameters that are not new.

    Returns:
        names of the frozen parameters.

    Raises:
        ValueError: if nothing would be frozen, or nothing be left to train.
    """
    if what is None:
        return set()
    own = dict(model.named_parameters())
    frozen = {name for name in loaded if name in own and _is_frozen(name, what)}
    if not frozen:
        raise ValueError(f"--freeze {what}: nothing came from a checkpoint; --from names one")
    if len(frozen) == len(own):
        raise ValueError(f"--freeze {what} leaves nothing to train")
    for name in frozen:
        own[name].requires_grad_(False)
    return frozen


def _is_frozen(name: str, what: str) -> bool:
    part, _, rest = name.partition(".")
    return part == "body" or (what == "all-but-head" and rest.split(".")[0] not in READ_OUT)


def lr_factors(
    names: Collection[str], *, layers: int, decay: float, new: Collection[str], new_factor: float
) -> dict[str, float]:
    """Learning rate of each parameter over the common one.

    The heads and the body's last norm learn at the common rate, block l of 1 to L at
    ``decay ** (L - l)`` of it, embeddings and neighbourhoods at ``decay ** L`` (discriminative
    fine-tuning, Howard and Ruder, arXiv 1801.06146, section 3.2).

    Args:
        names: of the parameters.
        layers: L, blocks of the body.
        decay: 1 for one rate at all depths.
        new: parameters that did not come from a checkpoint, and ``new_factor``, theirs.
    """
    return {
        name: new_factor if name in new else decay ** (layers - _depth(name, layers))
        for name in names
    }


def _depth(name: str, layers: int) -> int:
    """0 for what stands before the body's blocks, l + 1 for block l, all of them after these."""
    words = name.split(".")
    if words[0] != "body" or words[1] in ("norm", "heads"):
        return layers
    return int(words[2]) + 1 if words[1] == "blocks" else 0
