"""Copies of weights in bfloat16, made once for all products of a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_copies: dict[int, Tensor] = {}  # of all threads: a GPU's backward has one of its own


@contextmanager
def rounded_once(buffer: Tensor | None) -> Iterator[None]:
    """Within it, products in bfloat16 take parts of one copy of ``buffer``, where weights are views
    of it; without it, or for None, each weight is rounded where it is needed. Within it the buffer
    may not change.
    """
    if buffer is None or not buffer.numel():
        yield
        return
    key = buffer.untyped_storage().data_ptr()
    before = _copies.get(key)
    _copies[key] = buffer.to(torch.bfloat16)
    try:
        yield
    finally:
        if before is None:
            del _copies[key]
        else:
            _copies[key] = before


def rounded(weight: Tensor) -> Tensor:
    """A weight in bfloat16."""
    copy = _copies.get(weight.untyped_storage().data_ptr()) if _copies else None
    if copy is None:
        return weight.bfloat16()
    return copy.as_strided(weight.shape, weight.stride(), weight.storage_offset())
