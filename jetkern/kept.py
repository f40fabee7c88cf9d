"""Tensors that are made once and kept, so that a GPU is not waited for in every step.

They are forgotten when many others have been asked for since. A CUDA graph reads them at the places
where they were: who records one holds them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec

from torch import Tensor

P = ParamSpec("P")
_holders: list[list[Tensor]] = []


def kept(make: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """The function, whose last 64 results are kept; a decorator. Arguments must be hashable."""
    cached = functools.lru_cache(maxsize=64)(make)

    @functools.wraps(make)
    def found(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        tensor: Tensor = cached(*args, **kwargs)  # type: ignore[arg-type]
        for holder in _holders:
            holder.append(tensor)
        return tensor

    found.cache_clear = cached.cache_clear  # type: ignore[attr-defined]
    return found


@contextmanager
def holding() -> Iterator[list[Tensor]]:
    """Within it, kept tensors that are used are put into the list."""
    held: list[Tensor] = []
    _holders.append(held)
    try:
        yield held
    finally:
        # By identity: equal lists are compared tensor by tensor.
        _holders[:] = [holder for holder in _holders if holder is not held]
