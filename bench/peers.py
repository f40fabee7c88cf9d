"""PyTorch's own attentions on padded jets, as others would use them with a pair bias.

They get their inputs padded, heads first, as they want them: the padding is not timed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from jetkern.jets import segment_index, unpack
from jetkern.ops.pair_features import pair_index

MASKED = -1e9  # of keys that are not there, as in the reference code


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
