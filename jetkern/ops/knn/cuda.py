"""The CUDA op of csrc/cuda, ``torch.ops.jetkern_cuda.knn``."""

from torch import Tensor

from jetkern.ops.register import operator

_knn = operator(
    "jetkern_cuda::knn",
    "(Tensor coordinates, Tensor offsets, int k) -> Tensor",
    fake=lambda coordinates, offsets, k: offsets.new_empty(coordinates.shape[0], k),
)


def covers(coordinates: Tensor, offsets: Tensor, k: int, columns: int) -> str:
    """Points in the plane."""
    return "" if columns == 2 else f"its points have 2 coordinates, not {columns}"


def knn(coordinates: Tensor, offsets: Tensor, k: int, columns: int = 2) -> Tensor:
    """See ``jetkern.ops.knn``. Distances are float32 whatever the coordinates are."""
    points = coordinates.detach().float()
    points = points if points.stride(1) == 1 else points.contiguous()
    return _knn(points, offsets.contiguous(), k)
