"""Batch norms in front of and behind linear layers, as part of the layers."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from jetkern.ops.parameters import LinearParameters


def fold_batch_norms(modules: Iterable[nn.Module]) -> list[LinearParameters]:
    """The layers of a perceptron whose batch norms, with running statistics, are folded in.

    A norm s x + t before a layer W x + b gives W diag(s) and b + W t, one behind it diag(s) W and
    s b + t, with s = weight / sqrt(running_var + eps) and t = bias - s running_mean. Gradients
    reach the weights of layers and norms. In training, where a norm takes the statistics of the
    batch, call the modules themselves on the (S, F) features of the batch and spread the result
    with ``unordered_entry``: README.md of this op.

    Args:
        modules: such as an ``nn.Sequential`` of ``BatchNorm1d``, ``Linear`` or ``Conv1d`` with
            kernels of one, and a ``GELU`` between layers.

    Raises:
        ValueError: for another kind or order of modules, and a norm in training or without running
            statistics.
    """
    layers: list[LinearParameters] = []
    before: tuple[Tensor, Tensor] | None = None  # a norm that waits for its layer
    active = True  # what is next is a layer, or a norm in front of it
    for module in modules:
        if isinstance(module, (nn.Linear, nn.Conv1d)):
            if not active:
                raise ValueError("fold_batch_norms: two layers without a GELU between them")
            weight, bias = module.weight, module.bias
            if isinstance(module, nn.Conv1d):
                if weight.shape[2] != 1 or module.groups != 1:
                    raise ValueError("fold_batch_norms: a convolution wider than one, or in groups")
                weight = weight[:, :, 0]
            if before is not None:
                scale, shift = before
                moved = weight @ shift
                bias = moved if bias is None else bias + moved
                weight, before = weight * scale, None
            layers.append(LinearParameters(weight, bias))
            active = False
        elif isinstance(module, nn.BatchNorm1d):
            scale, shift = _scale_and_shift(module)
            if not active:
                weight, bias = layers[-1]
                bias = shift if bias is None else bias * scale + shift
                layers[-1] = LinearParameters(weight * scale[:, None], bias)
            elif before is None:
                before = scale, shift
            else:
                raise ValueError("fold_batch_norms: two batch norms in a row")
        elif isinstance(module, nn.GELU) and module.approximate == "none" and not active:
            active = True
        else:
            raise ValueError(f"fold_batch_norms: no place for {module}")
    if active:
        raise ValueError("fold_batch_norms: the last module must be a layer or its batch norm")
    return layers


def _scale_and_shift(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    if norm.training or norm.running_mean is None or norm.running_var is None:
        raise ValueError("fold_batch_norms: a batch norm in training: call eval() first")
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.affine:
        scale = norm.weight * scale
    shift = -scale * norm.running_mean
    return scale, norm.bias + shift if norm.affine else shift
