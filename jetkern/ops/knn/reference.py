"""Nearest neighbours, written plainly. This file is the specification."""

import torch
from torch import Tensor

from jetkern.jets import unpack


@torch.no_grad()
def knn(coordinates: Tensor, offsets: Tensor, k: int, columns: int) -> Tensor:
    points, mask = unpack(coordinates[:, :columns], offsets)  # (B, N, C), (B, N)
    squares = points.new_zeros(*mask.shape, mask.shape[1])
    for x in points.unbind(-1):
        squares += (x[:, :, None] - x[:, None]).square()
    squares.masked_fill_(~mask[:, None], torch.inf).diagonal(dim1=1, dim2=2).fill_(torch.inf)
    distance, neighbour = squares.sort(dim=-1, stable=True)  # ties in the order of the rows
    rows = (neighbour + offsets[:-1, None, None]).masked_fill(~(distance < torch.inf), -1)
    rows = torch.nn.functional.pad(rows, (0, k), value=-1)  # jets shorter than k + 1
    return rows[mask][:, :k]
