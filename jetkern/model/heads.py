"""Task heads of the Point-Edge Transformer (arXiv 2606.14870, appendix A)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from jetkern import ops
from jetkern.jets import (
    ORIGINS,
    Jets,
    evenly,
    join_segments,
    joined_rows,
    last_rows,
    particle_pairs,
    reordered,
    taken,
)
from jetkern.model.config import PETConfig, register_head
from jetkern.model.layers import MLP, AttentionBlock, Layer, TokenBlock

if TYPE_CHECKING:
    from jetkern.model.jet_decoder import JetDecoderConfig


@register_head("classifier")
def classifier(config: PETConfig) -> nn.Module:
    """The classifier's head, or the linear layer that stands for it in a probe."""
    if config.probe == "attention":
        return AttentionProbe(config)
    return Probe(config) if config.probe else Classifier(config)


class Classifier(nn.Module):
    """The global tokens attend to all other rows twice; a perceptron reads them out."""

    def __init__(self, config: PETConfig, outputs: int | None = None) -> None:
        super().__init__()
        self.tokens = config.global_tokens
        width = self.tokens * config.dim
        self.blocks = nn.ModuleList(
            TokenBlock(config.dim, config.heads, config.expansion)
            for _ in range(config.head_layers)
        )
        self.fc = MLP(width, config.expansion * width, width)
        self.out = nn.Linear(width, config.num_classes if outputs is None else outputs)

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        """Body rows (T', D) and offsets (B + 1,) to (B, num_classes) logits."""
        token_offsets = evenly(offsets, self.tokens)
        rest_offsets = offsets - token_offsets
        first = self.tokens * (offsets.shape[0] - 1)
        sizes = [first, x.shape[0] - first]
        places, order, _ = joined_rows([token_offsets, rest_offsets], sizes)
        tokens, rest = reordered(x, order, places).split(sizes)
        for block in self.blocks:
            tokens = block(tokens, token_offsets, rest, rest_offsets)
        return self.out(self.fc(tokens.reshape(offsets.shape[0] - 1, self.tokens * x.shape[1])))


class Probe(nn.Module):
    """One linear layer: what of the classes the body's rows say by themselves."""

    def __init__(self, config: PETConfig) -> None:
        super().__init__()
        self.tokens, self.pool = config.global_tokens, config.probe
        width = config.dim * (self.tokens if self.pool == "token" else 1)
        self.out = nn.Linear(width, config.num_classes)

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        """Body rows (T', D) and offsets (B + 1,) to (B, num_classes) logits.

        The mean of a jet without particles is zero.
        """
        if self.pool == "token":
            rows = offsets[:-1, None] + torch.arange(self.tokens, device=x.device)
            return self.out(x[rows.flatten()].reshape(len(rows), self.tokens * x.shape[1]))
        rest = offsets - evenly(offsets, self.tokens)
        particles = x[last_rows(offsets, rest, x.shape[0] - self.tokens * (len(offsets) - 1))]
        sums = torch.segment_reduce(particles, "sum", offsets=rest, initial=0.0)
        return self.out(sums / rest.diff().clamp(min=1)[:, None].to(sums.dtype))


class AttentionProbe(nn.Module):
    """A learned query that attends to all rows of a jet twice, and a linear layer (the head with
    which MPMv2, arXiv 2409.12589, judges frozen bodies)."""

    WIDTH, BLOCKS = 128, 2

    def __init__(self, config: PETConfig | JetDecoderConfig) -> None:
        super().__init__()
        width = min(self.WIDTH, config.dim)
        self.narrow = nn.Linear(config.dim, width)
        self.query = nn.Parameter(torch.empty(1, width))
        self.attend = nn.ModuleList(TokenBlock(width, config.heads, 1) for _ in range(self.BLOCKS))
        self.out = nn.Linear(width, config.num_classes)

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        """Body rows (T', D) and offsets (B + 1,) to (B, num_classes) logits."""
        rows = self.narrow(x)
        jet = evenly(offsets)
        query = self.query.expand(offsets.shape[0] - 1, -1)
        for block in self.attend:
            query = block(query, jet, rows, offsets)
        return self.out(query)


class SumHead(Layer):
    """A perceptron on the sum of ReLU(W x) of a set's rows: the "summation" head of OmniJet-alpha
    (arXiv 2403.05618)."""

    def __init__(self, config: JetDecoderConfig) -> None:
        super().__init__()
        self.fc = nn.Linear(config.dim, config.dim)
        self.out = nn.Linear(config.dim, config.num_classes)

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        """Rows (R, D) and offsets (B + 1,) to (B, num_classes) logits."""
        each = relu(ops.linear(x, self.fc.weight, self.fc.bias, precision=self.precision))
        return self.out(torch.segment_reduce(each, "sum", offsets=offsets, initial=0.0))


@register_head("generator")
class Generator(nn.Module):
    """Predicts the flow-matching velocity of every particle, given the jet's type."""

    noise_width: Tensor | None

    def __init__(self, config: PETConfig) -> None:
        super().__init__()
        dim = config.dim
        typed = config.num_classes > 1
        self.untyped = config.label_drop > 0  # the last row is that of jets without a type
        types = config.num_classes + self.untyped
        self.type_embed = nn.Embedding(types, dim) if typed else None
        self.type_mlp = MLP(dim, config.expansion * dim, dim, norm=False) if typed else None
        self.blocks = nn.ModuleList(
            AttentionBlock(dim, config.heads, config.expansion) for _ in range(config.head_layers)
        )
        self.fc = MLP(dim, config.expansion * dim, dim, norm=False)
        self.out = nn.Linear(dim, 4 + len(config.columns))
        width = None if config.noise_width is None else torch.tensor(config.noise_width)
        self.register_buffer("noise_width", width, persistent=False)

    def forward(self, x: Tensor, offsets: Tensor, jets: Jets) -> Tensor:
        """Body rows (T', D) of ``jets`` to (T, 4 + C) velocities of their particles."""
        x, offsets = join_segments([*self.type_rows(jets), (x, offsets)])
        return self.mix(x, offsets, last_rows(offsets, jets.offsets, jets.particles.shape[0]))

    def type_rows(self, jets: Jets) -> list[tuple[Tensor, Tensor]]:
        """Rows and offsets of the token of each jet's type; none for a model of one type."""
        if self.type_embed is None or self.type_mlp is None:
            return []
        if jets.label is None:
            raise ValueError("the generator needs the type of each jet as its label")
        jet = evenly(jets.offsets)
        last = self.type_embed.num_embeddings - 1
        types = torch.where(jets.label < 0, last, jets.label) if self.untyped else jets.label
        if jets.fillers and not self.untyped:
            types = types.clamp(min=0)
        return [(self.type_mlp(self.type_embed(types)), jet)]

    def mix(self, x: Tensor, offsets: Tensor, particles: Tensor) -> Tensor:
        """All rows of the jets to the velocities of the rows ``particles`` (T,)."""
        for block in self.blocks:
            x = block(x, offsets)
        velocity = self.out(self.fc(taken(x, particles)))
        return velocity if self.noise_width is None else velocity * self.noise_width


@register_head("origin")
class OriginHead(nn.Module):
    """Where each track comes from, by a perceptron on its row (arXiv 2409.12589, section 5)."""

    def __init__(self, config: PETConfig) -> None:
        super().__init__()
        self.fc = MLP(config.dim, config.expansion * config.dim, config.dim)
        self.out = nn.Linear(config.dim, len(ORIGINS))

    def forward(self, x: Tensor, offsets: Tensor, jets: Jets) -> Tensor:
        """Body rows (T', D) of ``jets`` to (T, 4) logits of ``ORIGINS``."""
        rows = last_rows(offsets, jets.offsets, jets.particles.shape[0])
        return self.out(self.fc(taken(x, rows)))


@register_head("vertices")
class VertexHead(nn.Module):
    """Which tracks share a vertex (arXiv 2409.12589, section 5): a linear layer on how far apart a
    perceptron puts the two of each pair, which does not change when they are swapped."""

    def __init__(self, config: PETConfig) -> None:
        super().__init__()
        self.fc = MLP(config.dim, config.expansion * config.dim, config.dim)
        self.out = nn.Linear(config.dim, 1)

    def forward(self, x: Tensor, offsets: Tensor, jets: Jets) -> Tensor:
        """Body rows (T', D) of ``jets`` to the logits (P,) of ``particle_pairs`` being of one
        vertex."""
        rows = last_rows(offsets, jets.offsets, jets.particles.shape[0])
        placed = self.fc(taken(x, rows))
        first, second = particle_pairs(jets)
        apart = placed.index_select(0, first) - placed.index_select(0, second)
        return self.out(apart.abs()).squeeze(1)
