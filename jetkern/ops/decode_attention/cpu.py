"""The compiled C++ op, ``torch.ops.jetkern.decode_attention``."""

from __future__ import annotations

from torch import Tensor

from jetkern.ops.register import operator

_op = operator(
    "jetkern::decode_attention",
    "(Tensor q, Tensor keys, Tensor values, Tensor lengths) -> Tensor",
    fake=lambda q, keys, values, lengths: q.new_empty(q.shape),
)


def decode_attention(
    q: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, precision: str = "ieee"
) -> Tensor:
    return _op(
        q.detach().contiguous(),
        keys.detach().to(q.dtype).contiguous(),
        values.detach().to(q.dtype).contiguous(),
        lengths.contiguous(),
    )
