"""What ours is measured beside: PyTorch's own attentions, and omnilearned's network.

All get their inputs padded as they want them: the padding is not timed.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from jetkern.interop.omnilearned import rename
from jetkern.jets import Jets, segment_index, unpack
from jetkern.model.pet import PET
from jetkern.ops.pair_features import pair_index

MASKED = -1e9  # of keys that are not there, as in the reference code
MODES = {  # of omnilearned, by the parts of a model
    ("classifier",): "classifier",
    ("generator",): "generator",
    ("classifier", "generator"): "pretrain",
}
Padded = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]


def padded_inputs(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor, bias: Tensor, offsets: Tensor
) -> tuple[list[Tensor], Tensor]:
    """q, k, v (B, H, N, d) and the bias (B, H, N, N) as leaves, and the rows' mask (B, N).

    Args:
        q, k, v: (T, H, d) packed; rows: (B + 1,) their offsets.
        bias: (H, P) and offsets: (B + 1,) of the particles, the last rows of each jet.
    """
    _, mask = unpack(q, rows)
    heads_first = [unpack(t.detach(), rows)[0].transpose(1, 2).contiguous() for t in (q, k, v)]
    full = bias.new_zeros(*mask.shape, mask.shape[1], len(bias))
    i, j = pair_index(offsets)
    jet = segment_index(offsets)[i]
    shift = (rows - offsets)[jet + 1] - rows[jet]
    full[jet, i + shift, j + shift] = bias.detach().t()
    full = full.masked_fill(~mask[:, None, :, None], MASKED).permute(0, 3, 1, 2)
    return [t.requires_grad_() for t in (*heads_first, full.contiguous())], mask


def sdpa(inputs: Sequence[Tensor], counts: Tensor) -> Tensor:
    """Scaled dot-product attention with the bias as a float mask."""
    q, k, v, bias = inputs
    return scaled_dot_product_attention(q, k, v, attn_mask=bias)


def causal(
    packed: Sequence[Tensor], offsets: Tensor, length: int
) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """Causal scaled dot-product attention on sets padded to ``length``, and its leaves: later rows
    are hidden anyway, so padding at the end needs no mask."""
    leaves = [
        unpack(t.detach(), offsets, length)[0].transpose(1, 2).contiguous().requires_grad_()
        for t in packed
    ]
    q, k, v = leaves
    return lambda: scaled_dot_product_attention(q, k, v, is_causal=True), leaves


def flex() -> Callable[[Sequence[Tensor], Tensor], Tensor]:
    """FlexAttention with the bias as a captured buffer, compiled."""
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention)

    def run(inputs: Sequence[Tensor], counts: Tensor) -> Tensor:
        q, k, v, bias = inputs

        def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return torch.where(j < counts[b], s + bias[b, h, i, j], -torch.inf)

        return compiled(q, k, v, score_mod=score)

    return run


def omnilearned(model: PET) -> Any:
    """omnilearned 0.2.0's network of our model's shape and weights.

    Raises:
        ImportError: without it.
        KeyError: for parts of a model that it has no mode for.
    """
    sys.modules.setdefault("requests", types.ModuleType("requests"))  # its downloads need it only
    from omnilearned.network import PET2

    config = model.config
    network = PET2(
        4,
        pid=config.use_pid,
        add_info=config.use_tracks,
        mode=MODES[config.parts],
        conditional=config.condition_dim > 0,
        cond_dim=config.condition_dim or 3,
        num_classes=config.num_classes,
        base_dim=config.dim,
        num_transformers=config.layers,
        num_transformers_head=config.head_layers,
        num_heads=config.heads,
        K=config.neighbours,
        feature_drop=config.feature_drop,
        num_coord=2,
    )
    ours, theirs = model.state_dict(), network.state_dict()
    network.load_state_dict({n: ours[rename(n)].view_as(t) for n, t in theirs.items()})
    return network


def omnilearned_loss(network: Any, parts: tuple[str, ...]) -> Callable[[Padded], Tensor]:
    """The loss of omnilearned's own training, of ``padded_jets``."""
    from omnilearned.utils import get_loss

    class_loss = torch.nn.CrossEntropyLoss(reduction="none")
    generator_loss = torch.nn.MSELoss(reduction="none")

    def loss(batch: Padded) -> Tensor:
        x, pid, tracks, label = batch
        logs = {k: torch.zeros(1) for k in ("loss", "loss_class", "loss_gen", "loss_class_event")}
        outputs = network(x, label, pid=pid, add_info=tracks)
        mode = MODES[parts]
        return get_loss(outputs, label, mode, class_loss, generator_loss, False, False, None, logs)

    return loss


def padded_jets(jets: Jets) -> Padded:
    """Particles, pid and tracks padded to the longest jet, where there are such, and the labels."""

    def padded(values: Tensor | None) -> Tensor | None:
        return None if values is None else unpack(values, jets.offsets)[0]

    particles = unpack(jets.particles, jets.offsets)[0]
    return particles, padded(jets.pid), padded(jets.tracks), jets.label
