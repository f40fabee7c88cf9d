"""Registration of ``torch.ops.jetkern.knn``."""

import torch
from torch import Tensor

torch.library.define("jetkern::knn", "(Tensor coordinates, Tensor offsets, int k) -> Tensor")


@torch.library.register_fake("jetkern::knn")
def _fake(coordinates: Tensor, offsets: Tensor, k: int) -> Tensor:
    return offsets.new_empty(coordinates.shape[0], k)


def knn(coordinates: Tensor, offsets: Tensor, k: int) -> Tensor:
    return torch.ops.jetkern.knn(coordinates.detach().contiguous(), offsets.contiguous(), k)
