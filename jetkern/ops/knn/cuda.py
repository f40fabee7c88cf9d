"""Registration of ``torch.ops.jetkern_cuda.knn``, which csrc/cuda implements."""

import torch
from torch import Tensor

torch.library.define("jetkern_cuda::knn", "(Tensor coordinates, Tensor offsets, int k) -> Tensor")


@torch.library.register_fake("jetkern_cuda::knn")
def _fake(coordinates: Tensor, offsets: Tensor, k: int) -> Tensor:
    return offsets.new_empty(coordinates.shape[0], k)


def knn(coordinates: Tensor, offsets: Tensor, k: int) -> Tensor:
    """See ``jetkern.ops.knn``. Distances are float32 whatever the coordinates are."""
    points = coordinates.detach().float()
    points = points if points.stride(1) == 1 else points.contiguous()
    return torch.ops.jetkern_cuda.knn(points, offsets.contiguous(), k)
