"""Rows of numbers of several meanings, such as a program's partial sums, by name.

A layout is a named tuple whose fields name the parts in their order and whose last field is
``end``. With the parts' sizes it gives the kernels, as a constexpr, where each part begins and how
long a row is, and the launchers the parts of a row of results.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TypeVar

from torch import Tensor

Layout = TypeVar("Layout", bound=tuple)


def offsets(layout: type[Layout], sizes: Sequence[int]) -> Layout:
    """Where each part of a row begins; ``end`` is the row's length."""
    return layout(*accumulate(sizes, initial=0))  # type: ignore[arg-type]


def views(layout: type[Layout], sizes: Sequence[int], row: Tensor) -> Layout:
    """The parts of a row; ``end`` is None."""
    return layout(*row.split(list(sizes)), None)  # type: ignore[call-arg]
