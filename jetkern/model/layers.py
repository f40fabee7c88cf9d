"""The model's building blocks: modules that hold weights and call the ops."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from jetkern import ops
from jetkern.kernels import kernel
from jetkern.ops import BlockParameters, MLPParameters
from jetkern.ops.dispatch import PRECISIONS
from jetkern.packed import Packed


class Layer(nn.Module):
    """A module whose products may be rounded, see ``set_precision``."""

    precision = "ieee"


def set_precision(model: nn.Module, precision: str) -> None:
    """Lets the products of all ``Layer`` modules of ``model`` round their factors.

    Args:
        precision: "ieee" for float32, "tf32" or "bf16", as the ops take it. Weights, features,
            softmax and sums stay float32.

    Raises:
        ValueError: for an unknown precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
    for part in model.modules():
        if isinstance(part, Layer):
            part.precision = precision


class DynamicTanh(nn.Module):
    """gamma tanh(alpha x), the model's only norm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), 0.5))
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return ops.dynamic_tanh(x, self.alpha, self.weight)


class MLP(Layer):
    """fc1, exact GELU, DynamicTanh unless ``norm`` is false, fc2."""

    def __init__(
        self, dim: int, hidden: int, out: int, *, norm: bool = True, bias: bool = True
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden, bias=bias)
        self.norm = DynamicTanh(hidden) if norm else None
        self.fc2 = nn.Linear(hidden, out, bias=bias)

    @property
    def weights(self) -> MLPParameters:
        return MLPParameters(
            self.fc1.weight,
            self.fc1.bias,
            self.norm.alpha if self.norm is not None else None,
            self.norm.weight if self.norm is not None else None,
            self.fc2.weight,
            self.fc2.bias,
        )

    def forward(self, x: Tensor) -> Tensor:
        return ops.mlp(x, self.weights, precision=self.precision)


class AttentionBlock(Layer):
    """Pre-norm transformer block on packed rows; attention within each segment."""

    def __init__(self, dim: int, heads: int, expansion: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = DynamicTanh(dim)
        self.qkv_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.out_weight = nn.Parameter(torch.empty(dim, dim))
        self.norm2 = DynamicTanh(dim)
        self.mlp = MLP(dim, expansion * dim, dim)

    @property
    def weights(self) -> BlockParameters:
        return BlockParameters(
            self.norm1.alpha,
            self.norm1.weight,
            self.qkv_weight,
            self.out_weight,
            self.norm2.alpha,
            self.norm2.weight,
            self.mlp.weights,
        )

    def forward(
        self,
        x: Tensor,
        offsets: Tensor,
        bias: Tensor | None = None,
        particle_offsets: Tensor | Packed | None = None,
    ) -> Tensor:
        return ops.attention_block(
            x,
            offsets,
            self.weights,
            self.heads,
            bias,
            particle_offsets,
            precision=self.precision,
        )


class TokenBlock(Layer):
    """Class attention: a few tokens of each jet attend to the jet's other rows."""

    def __init__(self, dim: int, heads: int, expansion: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.out_weight = nn.Parameter(torch.empty(dim, dim))
        self.norm = DynamicTanh(dim)
        self.mlp = MLP(dim, expansion * dim, dim)

    def forward(
        self, tokens: Tensor, token_offsets: Tensor, rows: Tensor, row_offsets: Tensor
    ) -> Tensor:
        if (fused := kernel("class_attention", tokens)) is not None:
            weights = self.qkv_weight, self.out_weight, self.norm.alpha, self.norm.weight
            out: Tensor | None = fused(
                tokens, token_offsets, rows, row_offsets,
                weights, self.mlp.weights, self.heads, self.precision,
            )  # fmt: skip
            if out is not None:
                return out
        dim = tokens.shape[1]

        def product(x: Tensor, weight: Tensor) -> Tensor:
            return ops.linear(x, weight, precision=self.precision)

        q = product(tokens, self.qkv_weight[:dim]).unflatten(1, (self.heads, -1))
        kv = product(rows, self.qkv_weight[dim:]).unflatten(1, (2, self.heads, -1))
        mixed = ops.attention(
            q, kv[:, 0], kv[:, 1], token_offsets, row_offsets, precision=self.precision
        )
        tokens = tokens + product(mixed.flatten(1), self.out_weight)
        return tokens + self.mlp(self.norm(tokens))


class LocalBlock(Layer):
    """Transformer over the K nearest neighbours of every particle, then their mean."""

    def __init__(self, dim: int, heads: int, layers: int, expansion: int) -> None:
        super().__init__()
        self.heads = heads
        self.embed = MLP(7, 2 * dim, dim)
        self.blocks = nn.ModuleList(AttentionBlock(dim, heads, expansion) for _ in range(layers))

    def forward(self, particles: Tensor, neighbours: Tensor) -> Tensor:
        weights = [cast(AttentionBlock, block).weights for block in self.blocks]
        return ops.local_block(
            particles,
            neighbours,
            self.embed.weights,
            weights,
            self.heads,
            precision=self.precision,
        )


class TimeFourier(nn.Module):
    """sqrt(2) t cos(f t + phase), with fixed random frequencies and phases."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(dim))
        self.register_buffer("phases", 2 * math.pi * torch.rand(dim))

    def forward(self, time: Tensor) -> Tensor:
        """(M,) times to (M, D)."""
        return math.sqrt(2) * time[:, None] * (time[:, None] * self.freqs + self.phases).cos()


def initialise(module: nn.Module) -> None:
    """Xavier-uniform matrices, zero biases, standard-normal embeddings; DynamicTanh as built."""
    for name, parameter in module.named_parameters():
        leaf = name.rpartition(".")[2]
        if leaf == "bias":
            nn.init.zeros_(parameter)
        elif parameter.ndim == 2:
            nn.init.xavier_uniform_(parameter)
    for part in module.modules():
        if isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight)
            if part.padding_idx is not None:
                with torch.no_grad():
                    part.weight[part.padding_idx].zero_()
