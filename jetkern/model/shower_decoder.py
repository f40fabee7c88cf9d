"""A causal transformer on the hits of showers in a calorimeter: SPADE and Combined
(arXiv:2606.11304), and OmniJet-alpha_C (arXiv:2501.05534), whose hits are codes of a tokeniser."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jetkern.clouds import Clouds
from jetkern.model.config import unknown
from jetkern.model.decoder import PRESETS, Decoder, DecoderConfig
from jetkern.model.delay import delayed
from jetkern.model.jet_decoder import NEXT_TOKEN, Read
from jetkern.model.layers import set_precision
from jetkern.model.presets import SIZES
from jetkern.model.vqvae import VQTokenizer, blank_tokenizer
from jetkern.packed import Packed
from jetkern.tokenizers import HITS, Tokenizer

CELLS = ("layer", "x", "y")
OF_TOKENS = "omnijet-c"
SHOWER_PRESETS = ("spade", "combined", OF_TOKENS)
SPREAD = 3.87  # of the particles' energies as rows know them: SPADE's 0.043 / GeV of 90 GeV
LARGEST = 20.0  # |ln E / MeV| of a hit that is drawn


@dataclass(frozen=True, kw_only=True)
class ShowerDecoderConfig(DecoderConfig):
    """What a decoder of showers is made of; its streams are those of SPADE, layer, x, y and ln of
    the energy / MeV, of Combined, the cell and ln of the energy, or one of the codes of a
    tokeniser of hits."""

    cells: tuple[int, ...]
    """layers, and cells in x and in y"""
    energies: tuple[float, ...]
    """of the particles in the shards, lowest and highest, in GeV: the scale of what rows know"""
    longest: int
    """hits of the longest shower in the shards"""
    vqvae: tuple[int, ...] = ()
    """width, blocks, heads and length of a latent of a tokeniser that is a VQ-VAE; () for others"""
    parts: tuple[str, ...] = (NEXT_TOKEN,)
    """what reads the rows"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("cells", "energies", "vqvae", "parts"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.cells) != len(CELLS) or min(self.cells) < 1:
            raise ValueError(f"cells are layers and those in x and y, got {self.cells}")
        if not self.tokens and self.classes not in (apart(self.cells), joined(self.cells)):
            raise ValueError(f"streams of {self.classes} classes are not those of {self.cells}")
        if len(self.energies) != 2 or not self.energies[0] <= self.energies[1]:
            raise ValueError(f"energies are the lowest and the highest, got {self.energies}")
        if self.parts != (NEXT_TOKEN,) or self.condition != 1 or self.types:
            raise ValueError("a decoder of showers predicts hits, given the particle's energy")

    @property
    def tokens(self) -> bool:
        """Whether hits are codes of a tokeniser, which is kept with the model."""
        return len(self.classes) == 1

    @property
    def fields(self) -> tuple[str, ...]:
        """The optional fields of a batch that the model reads."""
        return ()

    @property
    def num_classes(self) -> int:
        """Outputs of a classifier: there is none."""
        return 0

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of what a row predicts, if it is more than one thing."""
        if self.tokens:
            return ()
        names = (*CELLS, "ln_energy") if len(self.classes) > 2 else ("cell", "ln_energy")
        return (*names, "end") if self.end == "hazard" else names


def apart(cells: tuple[int, ...]) -> tuple[int, ...]:
    """Classes of SPADE's streams."""
    return (*cells, 0)


def joined(cells: tuple[int, ...]) -> tuple[int, ...]:
    """Classes of Combined's streams."""
    layers, x, y = cells
    return layers * x * y, 0


def shower_decoder_config(
    size: str,
    cells: tuple[int, ...],
    energies: tuple[float, ...],
    longest: int,
    hits: Sequence[float] | None = None,
    tokenizer: Tokenizer | None = None,
    **changes: Any,
) -> ShowerDecoderConfig:
    """The configuration of a size for showers, with changes.

    Args:
        size: one of ``SHOWER_PRESETS``, or one of the four sizes of the study: their width, depth
            and heads with SPADE's streams as a chain, positions and end, or with tokens.
        cells, energies, longest: of the showers, as in ``ShowerDecoderConfig``.
        hits: the lowest and the highest energy of a hit in MeV, which bound those that are drawn;
            None for no bounds. tokenizer: of hits, for "omnijet-c" and the sizes of the study.

    Raises:
        ValueError: for an unknown size, or a tokeniser too many or too few.
    """
    shape = {"cells": cells, "energies": energies, "longest": longest}
    if tokenizer is not None or size == OF_TOKENS:
        return ShowerDecoderConfig(**{**_of_tokens(size, tokenizer), **shape, **changes})
    if size in SHOWER_PRESETS:
        own = dict(PRESETS[size])
        own["classes"] = apart(cells) if size == "spade" else joined(cells)
    elif size in SIZES:
        spade = PRESETS["spade"]
        own = {name: spade[name] for name in ("shift", "scale", "positions", "end", "condition")}
        own |= {name: SIZES[size][name] for name in ("dim", "layers", "heads")}
        own |= {"classes": apart(cells), "delays": (0,) * 4, "joint": "chain", "kv_heads": 1}
    else:
        raise unknown("size of a decoder of showers", size, (*SHOWER_PRESETS, *SIZES))
    own |= shape
    if hits is not None and hits[0] < hits[1]:
        of_cells = (0.0,) * (len(own["classes"]) - 1)
        own |= {
            name: (*of_cells, math.log(energy))
            for name, energy in zip(("lowest", "highest"), hits, strict=True)
        }
    return ShowerDecoderConfig(**{**own, **changes})


def _of_tokens(size: str, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """OmniJet-alpha_C's, but that rows know the particle's energy as those of the others do; or
    width, depth and heads of a size, and the ranks of hits as positions."""
    if tokenizer is None:
        raise ValueError(f"{size} predicts tokens of hits: --tokenizer names a folder of tokenize")
    if not tokenizer.of_hits or not len(tokenizer.codes):
        raise ValueError("a decoder of showers needs a tokeniser of hits with codes")
    if size == OF_TOKENS:
        own = dict(PRESETS[size])
    elif size in SIZES:
        own = {name: SIZES[size][name] for name in ("dim", "layers", "heads")}
        own |= {"kv_heads": 1, "positions": "rope"}
    else:
        raise ValueError(f"{size} predicts cells and energies: it has no use for a tokeniser")
    own |= {"classes": (len(tokenizer.codes),), "condition": 1}
    if isinstance(tokenizer, VQTokenizer):
        own["vqvae"] = tuple(tokenizer.shape)
    return own


class ShowerDecoder(nn.Module):
    """A decoder of the hits of showers, given the energies of their particles.

    Args:
        config: what it is made of.
        precision: what the products may be rounded to, see ``jetkern.model.layers.set_precision``.
    """

    def __init__(self, config: ShowerDecoderConfig, *, precision: str = "ieee") -> None:
        super().__init__()
        self.config = config
        self.tokenizer: Tokenizer | None = None
        if config.tokens:
            self.tokenizer = blank_tokenizer(HITS, config.classes[0], config.vqvae)
        self.body = Decoder(config)
        set_precision(self, precision)

    def keep_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Copies the scale, the codes and the networks into a model of tokens."""
        if self.tokenizer is not None:
            self.tokenizer.load_state_dict(tokenizer.state_dict())

    @torch.no_grad()
    def points(self, showers: Clouds) -> Tensor:
        """(T, S) what the streams of the body have of showers' hits: x, y, layer, energy / MeV."""
        if self.tokenizer is not None:
            return self.tokenizer.tokens(showers)[:, None]
        x, y, layer, energy = showers.points.unbind(1)
        if len(self.config.classes) > 2:
            return torch.stack([layer, x, y, energy.log()], 1)
        _, nx, ny = self.config.cells
        return torch.stack([(layer * nx + x) * ny + y, energy.log()], 1)

    @torch.no_grad()
    def hits(self, points: Tensor, packed: Packed) -> Tensor:
        """(T, 4) the inverse of ``points``; energies stay within exp(±20) MeV.

        Args:
            points: (T, S); packed: the layout of their showers.
        """
        if self.tokenizer is not None:
            blank = torch.zeros(len(points), 4, device=points.device)
            showers = Clouds(points=blank, offsets=packed.offsets)
            return self.tokenizer.reconstructed(showers, points[:, 0]).points
        # In float64: the last bit of a float32's exponential depends on its place in the batch.
        energy = points[:, -1].double().clamp(-LARGEST, LARGEST).exp().to(points.dtype)
        if len(self.config.classes) > 2:
            layer, x, y = points[:, :-1].unbind(1)
        else:
            _, nx, ny = self.config.cells
            cell = points[:, 0].long()
            layer, x, y = (
                c.to(points.dtype) for c in (cell // (nx * ny), cell // ny % nx, cell % ny)
            )
        return torch.stack([x, y, layer, energy], 1)

    def condition(self, energies: Tensor) -> Tensor:
        """(B, 1) what rows know of particles of energies (B,) in GeV."""
        low, high = self.config.energies
        scale = SPREAD / (high - low) if high > low else 1.0
        return ((energies - (low + high) / 2) * scale)[:, None]

    def read(self, showers: Clouds) -> Read:
        """What the body says of showers, in the order that their hits have.

        Args:
            showers: points x, y, layer, energy / MeV; condition the energy of the particle in GeV.

        Raises:
            ValueError: on a CPU, for hits that lie at no cell of the model or have no energy, and
                for showers without the particle's energy.
        """
        if showers.condition is None:
            raise ValueError("showers need the energies of their particles")
        body, config = self.body, self.config
        points = self.points(showers)
        body.check_points(points, showers.packed)
        rows = delayed(
            body.scaled(points) if config.numbers else points, showers.packed, config.delays,
            config.classes, hazard=body.end is not None,
        )  # fmt: skip
        known = body.known(self.condition(showers.condition[:, 0]))
        return Read(body(rows.inputs, rows.packed, known), rows.packed, rows.targets)

    def row_losses(self, showers: Clouds) -> tuple[Tensor, Tensor]:
        """(R, S) -ln p of what each row predicts in nats, by stream, and (B + 1,) offsets of the
        rows; arguments and errors as for ``read``."""
        read = self.read(showers)
        return self.body.target_losses(read.x, read.targets), read.packed.offsets

    def negative_log_likelihood(self, showers: Clouds) -> Tensor:
        """(B,) -ln p of the hits of each shower, its end included, in nats; arguments and errors
        as for ``read``."""
        losses, offsets = self.row_losses(showers)
        return torch.segment_reduce(losses.sum(1), "sum", offsets=offsets, initial=0.0)

    def forward(self, showers: Clouds) -> Tensor:
        """``negative_log_likelihood``."""
        return self.negative_log_likelihood(showers)
