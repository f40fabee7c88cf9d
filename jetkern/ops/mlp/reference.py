"""The perceptron, written plainly. This file is the specification."""

from torch import Tensor
from torch.nn.functional import gelu, linear

from jetkern.ops.parameters import MLPParameters


def mlp(x: Tensor, parameters: MLPParameters) -> Tensor:
    p = parameters
    hidden = gelu(linear(x, p.fc1_weight, p.fc1_bias))
    if p.alpha is not None and p.gamma is not None:
        hidden = p.gamma * (p.alpha * hidden).tanh()
    return linear(hidden, p.fc2_weight, p.fc2_bias)
