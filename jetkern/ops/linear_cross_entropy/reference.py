"""Cross-entropy of the classes of a linear layer, written plainly. It is the specification."""

import torch
from torch import Tensor
from torch.nn import functional


def linear_cross_entropy(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
    logits = functional.linear(x, weight, bias)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    picked = logits.gather(1, target.clamp(min=0)[:, None])[:, 0]
    return torch.where(target < 0, 0.0, logits.logsumexp(1) - picked)
