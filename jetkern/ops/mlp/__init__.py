"""The two-layer perceptron of the Point-Edge Transformer."""

from __future__ import annotations

import torch
from torch import Tensor

from jetkern.ops.checks import check_float, check_mlp, check_shape
from jetkern.ops.dispatch import asked, run
from jetkern.ops.parameters import MLPParameters

# With fewer rows one thread would do all of a perceptron with so many weights: on a CPU PyTorch's
# products, which share a row's work among the threads, are two to four times as fast.
FEW_ROWS, MANY_WEIGHTS = 256, 1 << 20


def mlp(
    x: Tensor, parameters: MLPParameters, *, precision: str = "ieee", backend: str = "auto"
) -> Tensor:
    """fc2(DynamicTanh(gelu(fc1(x)))), with the exact (erf) GELU; the norm is optional.

    Args:
        x: (T, D_in) float.
        parameters: weights, see ``MLPParameters``.
        precision: the products may be rounded to this: "ieee" float32, "tf32" or "bf16".
        backend: "auto" takes the reference for few rows and many weights on a CPU.

    Returns:
        (T, D_out).

    Raises:
        ValueError: for wrong shapes or dtypes, also of a weight, which is named.
    """
    check_float("x", x)
    check_shape("x", x, None, None)
    check_mlp("parameters", parameters, x.shape[1])
    # A compiled graph may have any number of rows: it keeps the C++ op.
    if not torch.compiler.is_compiling() and x.device.type == "cpu" and asked(backend) == "auto":
        many = parameters.fc1_weight.numel() + parameters.fc2_weight.numel() >= MANY_WEIGHTS
        if many and len(x) < FEW_ROWS:
            backend = "reference"
    return run("mlp", backend, x, parameters, precision=precision)
