"""The compiled C++ op, ``torch.ops.jetkern.nearest_code``."""

import torch
from torch import Tensor

from jetkern.ops.register import operator

_op = operator(
    "jetkern::nearest_code",
    "(Tensor points, Tensor codes) -> Tensor",
    fake=lambda points, codes: points.new_empty(points.shape[0], dtype=torch.int64),
)


def nearest_code(points: Tensor, codes: Tensor) -> Tensor:
    return _op(points.detach().contiguous(), codes.detach().contiguous())
