"""A causal transformer on the tokens of jets: OmniJet-alpha (arXiv:2403.05618), and its body as
that of a classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from jetkern.jets import Jets, join_segments
from jetkern.model.config import unknown
from jetkern.model.decoder import PRESETS, Decoder, DecoderConfig
from jetkern.model.delay import Rows, delayed
from jetkern.model.heads import AttentionProbe, SumHead
from jetkern.model.layers import MLP, initialise, set_precision
from jetkern.model.presets import SIZES
from jetkern.model.vqvae import VQTokenizer, blank_tokenizer
from jetkern.packed import Packed
from jetkern.tokenizers import TRACKS, Tokenizer

NEXT_TOKEN, CLASSIFIER = "next-token", "classifier"
PARTS = (NEXT_TOKEN, CLASSIFIER)
INPUTS = ("tokens", "features")
HEADS = ("sum", "attention")


@dataclass(frozen=True, kw_only=True)
class JetDecoderConfig(DecoderConfig):
    """What a decoder of jets is made of; its one stream are the codes of a tokeniser."""

    features: tuple[str, ...]
    """of a particle, that the tokeniser reads; it is kept with the model"""
    vqvae: tuple[int, ...] = ()
    """width, blocks, heads and length of a latent of a tokeniser that is a VQ-VAE; () for others"""
    inputs: str = "tokens"
    """what rows read: "tokens" or, of the same particles, "features" on the tokeniser's scale"""
    parts: tuple[str, ...] = (NEXT_TOKEN,)
    """what reads the rows: next-token or classifier"""
    head: str = "sum"
    """of the classifier: "sum" over all rows, or "attention" of a learned query to them"""
    num_classes: int = 2
    """outputs of the classifier"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("features", "vqvae", "parts"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.classes) != 1:
            raise ValueError(f"particles have one token each, not {len(self.classes)}")
        if len(self.parts) != 1 or self.parts[0] not in PARTS:
            raise unknown("part of a decoder", "+".join(self.parts), PARTS)
        for name, known in (("inputs", INPUTS), ("head", HEADS)):
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        if self.num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {self.num_classes}")

    @property
    def fields(self) -> tuple[str, ...]:
        """The optional fields of jets that the tokeniser reads."""
        return () if set(TRACKS).isdisjoint(self.features) else ("tracks",)


def jet_decoder_config(size: str, tokenizer: Tokenizer, **changes: Any) -> JetDecoderConfig:
    """The configuration of a size for a tokeniser, with changes.

    Args:
        size: "omnijet", whose 8,192 codes are replaced by those that there are, or one of the four
            sizes of the study: their width, depth and heads.
        tokenizer: with codes.

    Raises:
        ValueError: for an unknown size, or a tokeniser without codes.
    """
    known = {**SIZES, **PRESETS}
    if size not in known:
        raise unknown("size of a decoder", size, known)
    if not len(tokenizer.codes):
        raise ValueError("a decoder needs a tokeniser with codes, this has a scale only")
    own = {k: v for k, v in known[size].items() if k != "neighbours" and k != "head_layers"}
    own |= {"classes": (len(tokenizer.codes),), "features": tokenizer.features}
    if isinstance(tokenizer, VQTokenizer):
        own["vqvae"] = tuple(tokenizer.shape)
    return JetDecoderConfig(**{**own, **changes})


class FeatureDecoder(Decoder):
    """A decoder whose rows read numbers of the points in place of classes (arXiv:2512.04149).

    Args:
        config: what it is made of; width: numbers of a point.
    """

    def __init__(self, config: DecoderConfig, width: int) -> None:
        super().__init__(config)
        self.embeddings = nn.ModuleList()
        self.start = nn.Parameter(torch.empty(1, config.dim))
        self.embed_features = MLP(width, config.expansion * config.dim, config.dim, norm=False)
        nn.init.normal_(self.start)  # as the embeddings of classes
        initialise(self.embed_features)

    def embed_points(self, values: Tensor, offsets: Tensor) -> Tensor:
        """(R, D) rows of which the first of each set has read nothing, the others a point each.

        Args:
            values: (T, width) of the points of sets; offsets: (B + 1,) of the sets.
        """
        sets = torch.arange(offsets.shape[0], device=offsets.device)
        start = self.start.expand(offsets.shape[0] - 1, -1)
        points = self.embed_features(values.to(self.start.dtype))
        return join_segments([(start, sets), (points, offsets)])[0]


class Read(NamedTuple):
    """Jets as a decoder has read them."""

    x: Tensor
    """(R, D) rows, one more than particles for each jet; row r knows the first r particles"""
    packed: Packed
    """rows of each jet"""
    targets: Tensor
    """(R, 1) int64 what comes next: a code, their number for the end"""


class JetDecoder(nn.Module):
    """Tokeniser, causal body, and what reads its rows: the next token, or a classifier.

    Args:
        config: what it is made of.
        precision: what the products may be rounded to, see ``jetkern.model.layers.set_precision``;
            tokens do not depend on it.
    """

    classifier: SumHead | AttentionProbe | None

    def __init__(self, config: JetDecoderConfig, *, precision: str = "ieee") -> None:
        super().__init__()
        self.config = config
        self.tokenizer = blank_tokenizer(config.features, config.classes[0], config.vqvae)
        width = 2 * len(config.features)
        own = config.inputs == "features"
        self.body = FeatureDecoder(config, width) if own else Decoder(config)
        self.classifier = None
        if CLASSIFIER in config.parts:
            self.body.heads = nn.ModuleList()
            head = SumHead if config.head == "sum" else AttentionProbe
            self.classifier = head(config)
            initialise(self.classifier)
        set_precision(self, precision)

    def keep_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Copies the scale, the codes and the networks into the model."""
        self.tokenizer.load_state_dict(tokenizer.state_dict())

    def read(self, jets: Jets) -> Read:
        """What the body says of jets, in the order that their particles have.

        Raises:
            ValueError: for jets without what the tokeniser reads.
        """
        predicting = NEXT_TOKEN in self.config.parts
        embeds = isinstance(self.body, FeatureDecoder)
        with torch.no_grad():
            if predicting or not embeds:
                tokens = self.tokenizer.tokens(jets)
            else:  # neither read nor predicted
                tokens = torch.zeros_like(jets.jet_of_particle)
            rows: Rows = delayed(tokens[:, None], jets.packed, (0,), self.config.classes)
            scaled, known = self.tokenizer.scaled(jets) if embeds else (None, None)
        if isinstance(self.body, FeatureDecoder):
            assert scaled is not None and known is not None  # noqa: PT018
            values = torch.cat([scaled, known.to(scaled.dtype)], 1)
            x = self.body.mix(self.body.embed_points(values, jets.offsets), rows.packed)
        else:
            x = self.body(rows.inputs, rows.packed)
        return Read(x, rows.packed, rows.targets)

    def negative_log_likelihood(self, jets: Jets) -> Tensor:
        """(B,) -ln p of the tokens of each jet, its end included, in nats.

        Raises:
            ValueError: if the model is a classifier.
        """
        if NEXT_TOKEN not in self.config.parts:
            raise ValueError("this decoder was trained on to a classifier")
        read = self.read(jets)
        losses = self.body.target_losses(read.x, read.targets).sum(1)
        return torch.segment_reduce(losses, "sum", offsets=read.packed.offsets, initial=0.0)

    def classify(self, jets: Jets) -> Tensor:
        """(B, num_classes) logits.

        Raises:
            ValueError: if the model has no classifier.
        """
        if self.classifier is None:
            raise ValueError("this model has no classifier")
        read = self.read(jets)
        return self.classifier(read.x, read.packed.offsets)

    def forward(self, jets: Jets) -> Tensor:
        """``classify``, or of a model without a classifier ``negative_log_likelihood``."""
        return (
            self.negative_log_likelihood(jets) if self.classifier is None else self.classify(jets)
        )
