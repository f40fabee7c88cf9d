"""The compiled C++ op, ``torch.ops.jetkern.knn``."""

from torch import Tensor

from jetkern.ops.register import operator

_knn = operator(
    "jetkern::knn",
    "(Tensor coordinates, Tensor offsets, int k, int columns=2) -> Tensor",
    fake=lambda coordinates, offsets, k, columns=2: offsets.new_empty(coordinates.shape[0], k),
)


def knn(coordinates: Tensor, offsets: Tensor, k: int, columns: int) -> Tensor:
    points = coordinates.detach() if coordinates.requires_grad else coordinates
    return _knn(points.contiguous(), offsets.contiguous(), k, columns)
