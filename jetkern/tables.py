"""Tables for a terminal and for documents, and printing that no terminal or pipe can upset."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from math import dist, floor, fsum, log10

from jetkern.io import printable


def table(rows: Iterable[Sequence[object]], align: str = "lr", *, markdown: bool = False) -> str:
    """Rows with aligned columns, the first row being the heading.

    Args:
        rows: equally many cells in each; what a terminal would act on is shown instead.
        align: "l" or "r" for each column; the last letter stands for all further ones.
        markdown: with bars, and a rule below the heading.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    columns = len(cells[0])
    align = align[:columns] + align[-1] * (columns - len(align))
    least = 3 if markdown else 0
    widths = [max(least, *(len(row[i]) for row in cells)) for i in range(columns)]
    padded = [
        [
            cell.ljust(width) if side == "l" else cell.rjust(width)
            for cell, width, side in zip(row, widths, align, strict=True)
        ]
        for row in cells
    ]
    if not markdown:
        return "\n".join("  ".join(row).rstrip() for row in padded)
    rule = [
        "-" * (width + 2) if side == "l" else "-" * (width + 1) + ":"
        for width, side in zip(widths, align, strict=True)
    ]
    lines = [f"| {' | '.join(row)} |" for row in padded]
    return "\n".join([lines[0], f"|{'|'.join(rule)}|", *lines[1:]])


def mean_and_spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation of a sample, to three figures of the mean; "" of no values."""
    if not values:
        return ""
    number = len(values)
    mean = fsum(values) / number
    digits = max(0, 2 - max(-1, floor(log10(max(abs(mean), 1e-9)))))
    if number == 1:
        return f"{mean:,.{digits}f}"
    spread = dist(values, [mean] * number) / (number - 1) ** 0.5
    return f"{mean:,.{digits}f} ± {spread:,.{digits}f}"


def show(text: str) -> None:
    """Prints a text, with escapes for what the terminal cannot show; quietly nothing where nobody
    reads on, as behind ``| head``."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.replace("±", "+-").encode(encoding, "backslashreplace").decode(encoding)
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python flushes once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
