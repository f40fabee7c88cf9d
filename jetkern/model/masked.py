"""The decoder of hidden particles (masked particle modelling, appendix A of arXiv 2606.14870)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, pad

from jetkern.jets import Jets, evenly, join_segments, last_rows, taken, true_rows
from jetkern.kernels import kernel
from jetkern.model.config import PETConfig, register_head
from jetkern.model.layers import AttentionBlock
from jetkern.model.targets import TARGETS, Hidden, Target
from jetkern.model.targets.simple import Regression
from jetkern.model.vqvae import blank_tokenizer
from jetkern.packed import constant

MAX_MASKED = 150  # rows of the mask embedding, as in the reference


@register_head("mpm")
class MaskedModel(nn.Module):
    """Says something of the hidden particles of a jet from the visible ones.

    A hidden particle enters as a learned vector that knows only its rank in pT among the hidden
    particles of its jet (or not even that). In a model with a generator the time token's place is
    kept and attended as a zero vector, as in the reference code.

    Attributes:
        tokenizer: the normal scale and the codes of its targets; None for numbers as they are
            stored.
    """

    out: Regression | None

    def __init__(self, config: PETConfig) -> None:
        super().__init__()
        self.global_tokens = config.global_tokens
        self.conditional = config.condition_dim > 0
        self.timed = "generator" in config.parts
        self.targets = config.targets or ("regression",)
        self.plain = not config.targets
        width = config.decoder_dim or config.dim
        self.decodes = any(TARGETS[name].decoded for name in self.targets)
        self.narrow, self.out, self.tokenizer = None, None, None
        if self.decodes:
            heads, layers = config.decoder_shape
            ranks = 1 if config.shared_mask else MAX_MASKED
            self.mask_embeddings = nn.Parameter(torch.empty(ranks, width))
            self.blocks = nn.ModuleList(
                AttentionBlock(width, heads, config.expansion) for _ in range(layers)
            )
            if width != config.dim:
                self.narrow = nn.Linear(config.dim, width)
        if config.target_features:
            self.tokenizer = blank_tokenizer(config.target_features, config.codes, config.vqvae)
        for name in self.targets:
            setattr(self, self._attribute(name), TARGETS[name](config, width))

    @staticmethod
    def _attribute(target: str) -> str:
        return "out" if target == "regression" else target  # the study's name

    def target(self, name: str) -> Target:
        """That of a name in ``targets``."""
        found = getattr(self, self._attribute(name))
        assert isinstance(found, Target)
        return found

    def initialise(self) -> None:
        """Embeddings are standard normal, and no ``nn.Embedding``; targets as they say."""
        if self.decodes:
            nn.init.normal_(self.mask_embeddings)
        for name in self.targets:
            own = getattr(self.target(name), "initialise", None)
            if own is not None:
                own()

    def forward(self, x: Tensor, offsets: Tensor, jets: Jets, keep: Tensor) -> Tensor:
        """(T, 4) prediction of all particles.

        Args:
            x: (T', D) body rows of the jets' visible particles; offsets: (B + 1,) of those rows.
            jets: the complete jets; keep: (T,) bool, true for the visible particles.

        Raises:
            ValueError: if the model does not predict the four numbers.
        """
        if not self.plain or self.out is None:
            raise ValueError(f"this model predicts {' and '.join(self.targets)}, not four numbers")
        rows, places = self.decoded(x, offsets, jets, keep)
        return self.out(taken(rows, places))

    def show(self, hidden: Hidden) -> Hidden:
        """Gives hidden particles the rows of the decoder, if a target reads these."""
        assert hidden.body is not None
        assert hidden.body_offsets is not None
        if self.decodes:
            rows, places = self.decoded(hidden.body, hidden.body_offsets, hidden.whole, hidden.keep)
            hidden.rows = taken(rows, places[hidden.places])
        return hidden

    def decoded(
        self, x: Tensor, offsets: Tensor, jets: Jets, keep: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Rows of the decoder, and (T,) which of them are the jets' particles; arguments as for
        ``forward``."""
        if self.narrow is not None:
            x = self.narrow(x)
        prefix = self.global_tokens + self.conditional
        before = offsets[:-1, None] + constant(tuple(range(prefix)), torch.int64, x.device)
        visible_offsets = offsets - evenly(offsets, prefix)
        visible = taken(x, last_rows(offsets, visible_offsets, x.shape[0] - before.numel()))
        last = self.mask_embeddings.shape[0] - 1
        if (ranks := kernel("hidden_ranks", keep)) is not None:
            rank = ranks(keep, jets.jet_of_particle, jets.offsets, last)
        else:
            before_it = pad((~keep).cumsum(0), (1, 0))
            rank = before_it[:-1] - before_it[jets.offsets[:-1]][jets.jet_of_particle]
            rank = rank.clamp(max=last)
        # Not indexing: its backward adds the rows of one rank in the order of the threads.
        particles = embedding(rank, self.mask_embeddings)
        particles = particles.index_put((true_rows(keep, visible.shape[0]),), visible)
        jet = evenly(offsets)
        tokens = taken(x, before[:, : self.global_tokens].flatten())
        sources = [(tokens, evenly(offsets, self.global_tokens))]
        if self.timed:
            sources.append((x.new_zeros(len(jets), x.shape[1]), jet))
        if self.conditional:
            sources.append((taken(x, before[:, -1]), jet))
        x, offsets = join_segments([*sources, (particles, jets.offsets)])
        for block in self.blocks:
            x = block(x, offsets)
        return x, last_rows(offsets, jets.offsets, jets.particles.shape[0])
