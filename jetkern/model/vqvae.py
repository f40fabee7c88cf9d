"""A VQ-VAE tokeniser: a particle's code depends on the other particles of its jet.

As in MPM (arXiv 2401.13537) and MPMv2 (arXiv 2409.12589): transformers without positions encode and
decode packed jets, and the codes are compared by cosine. Codes follow exponential averages of what
is theirs (van den Oord et al., arXiv 1711.00937, appendix A.1); against collapse they begin as
k-means of the untrained encoder's latents, and dead ones are put at other latents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import huber_loss, normalize

from jetkern import ops
from jetkern.clouds import Sets
from jetkern.jets import Jets
from jetkern.model.layers import AttentionBlock, initialise, set_precision
from jetkern.random import random_bits
from jetkern.tokenizers.kmeans import STEP, KMeans, code_sums, continued
from jetkern.tokenizers.scale import QuantileNormal
from jetkern.tokenizers.tokenizer import AnySets, Tokenizer

COMMITMENT = 10.0  # weight of the latents' distance to their codes, as in MPMv2
DECAY = 0.99  # of the averages that the codes are
FEW = 0.1  # of the mean number of particles: a code with fewer is dead
LLOYD = 20  # updates of the first codes
AT_ONCE = 2**16  # particles of a pass, on average, when tokens are made
REPLACE = 65  # stream of random numbers


class Shape(NamedTuple):
    """Of the encoder and of the decoder: width, blocks and heads; and length of a latent."""

    width: int = 128
    layers: int = 3
    heads: int = 8
    latent: int = 32


class VQTokenizer(Tokenizer):
    """The scale of some features of particles, and an encoder, codes and a decoder.

    Args:
        features: of ``FEATURES``, in that order, or ``HITS``.
        scale: of these features.
        codes: (K, latent) of length 1.
        shape: of the networks.

    Raises:
        ValueError: for what does not fit each other.
    """

    def __init__(
        self,
        features: Sequence[str],
        scale: QuantileNormal,
        codes: Tensor,
        shape: Sequence[int] = Shape(),
    ) -> None:
        super().__init__(features, scale, torch.zeros(0, len(features)))
        self.shape = Shape(*shape)
        width, layers, heads, latent = self.shape
        if min(self.shape) < 1 or width % heads:
            raise ValueError(f"the networks' shape {tuple(self.shape)} cannot be")
        if codes.ndim != 2 or codes.shape[1] != latent:
            raise ValueError(f"codes must be (K, {latent}), got {tuple(codes.shape)}")
        self.codes = codes.float().contiguous()
        number = len(self.features)
        self.embed = nn.Linear(2 * number, width)
        self.encoder = nn.ModuleList(AttentionBlock(width, heads, 2) for _ in range(layers))
        self.narrow = nn.Linear(width, latent)
        self.widen = nn.Linear(latent, width)
        self.decoder = nn.ModuleList(AttentionBlock(width, heads, 2) for _ in range(layers))
        self.out = nn.Linear(width, number)
        initialise(self)

    @classmethod
    def blank(
        cls, features: Sequence[str], codes: int, shape: Sequence[int] = Shape()
    ) -> VQTokenizer:
        """One whose numbers will be read from a checkpoint."""
        scale = QuantileNormal.blank(len(features))
        return cls(features, scale, torch.zeros(codes, Shape(*shape).latent), shape)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the features, the scale, the codes and the networks."""
        digest = hashlib.sha256(super().fingerprint.encode())
        for name, value in self.named_parameters():
            digest.update(name.encode())
            digest.update(value.detach().cpu().float().numpy().astype("<f4").tobytes())
        return digest.hexdigest()

    def latents(self, jets: Sets) -> tuple[Tensor, Tensor, Tensor]:
        """(T, latent) of length 1, and of what they are: (T, F) features on the normal scale and
        (T, F) bool which there are."""
        scaled, known = self.scaled(jets)
        x = self.embed(torch.cat([scaled, known.float()], 1).to(self.embed.weight.dtype))
        for block in self.encoder:
            x = block(x, jets.offsets)
        return normalize(self.narrow(x), dim=1), scaled, known

    def decode(self, latents: Tensor, offsets: Tensor) -> Tensor:
        """(T, F) features on the normal scale.

        Args:
            latents: (T, latent) of all particles of jets; offsets: (B + 1,) of the jets.
        """
        x = self.widen(latents)
        for block in self.decoder:
            x = block(x, offsets)
        return self.out(x)

    def tokens(self, jets: Sets) -> Tensor:
        """(T,) int64 code of each particle, given the others of its jet.

        Raises:
            ValueError: if there are no codes.
        """
        if not self.codes.shape[0]:
            raise ValueError("this tokeniser has no codes")
        set_precision(self, "ieee")  # whatever that of a model is that it is a part of
        with torch.no_grad():
            found = [ops.nearest_code(self.latents(part)[0], self.codes) for part in _parts(jets)]
        return torch.cat(found)

    def tokens_of(self, jets: Jets, chosen: Jets, places: Tensor) -> Tensor:
        """(M,) int64 codes of some particles, in the complete jets.

        Args:
            jets: T particles; chosen: the same jets with M of them, places: (M,) which these are.
        """
        return self.tokens(jets)[places]

    def approximated(self, jets: Sets, tokens: Tensor) -> Tensor:
        """(T, F) what the tokens of whole jets say of their particles, on the normal scale.

        Args:
            jets: T particles; tokens: (T,) int64 of them.
        """
        sizes = [part.total for part in _parts(jets)]
        found = [torch.zeros(0, len(self.features), device=tokens.device)]
        with torch.no_grad():
            for part, own in zip(_parts(jets), tokens.split(sizes), strict=True):
                found.append(self.decode(self.codes[own], part.offsets).float())
        return torch.cat(found)

    def decoded(self, tokens: Tensor) -> Tensor:
        """Raises:
        ValueError: always; codes say something in a jet alone, see ``approximated``.
        """
        raise ValueError("the codes of a VQ-VAE have no features outside a jet")


def blank_tokenizer(features: Sequence[str], codes: int, shape: Sequence[int] = ()) -> Tokenizer:
    """One whose numbers will be read from a checkpoint; nothing of it learns.

    Args:
        features: of ``FEATURES``; codes: K.
        shape: of the networks of a VQ-VAE; () for a tokeniser without.
    """
    if not shape:
        return Tokenizer.blank(features, codes)
    return VQTokenizer.blank(features, codes, shape).requires_grad_(False)


def _parts(jets: AnySets) -> list[AnySets]:
    """Jets for one pass each."""
    number = max(1, AT_ONCE * len(jets) // max(1, jets.total))
    if len(jets) <= number:
        return [jets]
    return [jets.select(slice(i, i + number)) for i in range(0, len(jets), number)]


class Codebook:
    """Codes of a tokeniser that follow the latents shown to them, in place of a gradient.

    Args:
        tokenizer: whose codes.
        pool: jets; its latents are the first codes, and those in place of dead ones.
        codes: K.
        seed: of the choices. every: updates after which dead codes are replaced.

    Raises:
        ValueError: for fewer particles in the pool than codes.
    """

    def __init__(
        self, tokenizer: VQTokenizer, pool: Sets, codes: int, seed: int, *, every: int
    ) -> None:
        self.tokenizer, self.pool, self.seed, self.every = tokenizer, pool, seed, every
        with torch.no_grad():
            latents = tokenizer.latents(pool)[0]
        kmeans = KMeans(latents, codes, seed, every=LLOYD // 4, until=LLOYD // 2)
        for _ in range(LLOYD):
            kmeans.update(kmeans.sums(latents))
        tokenizer.codes = normalize(kmeans.codes, dim=1)
        device = latents.device
        self.counts = torch.ones(codes, dtype=torch.float64, device=device)
        self.sums = tokenizer.codes.double()
        self.used = torch.zeros(codes, dtype=torch.int64, device=device)
        self.updates = 0

    def update(self, sums: Tensor) -> None:
        """Moves the codes.

        Args:
            sums: (K, 1 + latent) int64 of a batch, of ``code_sums``.
        """
        self.updates += 1
        number, total = sums[:, 0].double(), sums[:, 1:].double() * STEP
        self.counts = DECAY * self.counts + (1 - DECAY) * number
        self.sums = DECAY * self.sums + (1 - DECAY) * total
        self.used += sums[:, 0]
        if self.updates % self.every == 0:
            self._replace_dead()
        self.tokenizer.codes = normalize(self.sums, dim=1).float()

    def _replace_dead(self) -> None:
        dead = (self.used < FEW * self.used.double().mean()).nonzero().squeeze(1)
        self.used.zero_()
        if not len(dead):
            return
        with torch.no_grad():
            latents = self.tokenizer.latents(self.pool)[0]
        now = torch.full_like(dead, self.updates)
        chosen = random_bits(self.seed, REPLACE, now, dead) % len(latents)
        # As if each had had the mean number of particles.
        self.counts[dead] = self.counts.mean()
        self.sums[dead] = latents[chosen].double() * self.counts.mean()

    def state(self) -> dict[str, Tensor | int]:
        """What an interrupted fit continues from, beside the pool, the seed and the tokeniser."""
        return {
            "updates": self.updates,
            "counts": self.counts,
            "sums": self.sums,
            "used": self.used,
        }

    def load_state(self, state: dict[str, Tensor | int]) -> None:
        """Continues where ``state`` was taken.

        Raises:
            ValueError: if it is that of another number or length of codes.
        """
        for name in ("counts", "sums", "used"):
            setattr(self, name, continued(name, getattr(self, name), state[name]))
        self.updates = int(state["updates"])


def losses(tokenizer: VQTokenizer, jets: Sets) -> tuple[Tensor, Tensor]:
    """Sum over particles of the error of what is decoded and of the commitment to the codes, and
    (K, 1 + latent) int64 sums for the codes.

    The gradient at a code is handed on to the latent as if there were no code between them; codes
    themselves have none.

    Args:
        tokenizer: with codes; jets: T particles.
    """
    latents, scaled, known = tokenizer.latents(jets)
    flat = latents.detach()
    tokens = ops.nearest_code(flat, tokenizer.codes)
    code = tokenizer.codes[tokens]
    found = tokenizer.decode(latents + (code - flat), jets.offsets)
    error = huber_loss(found, scaled, reduction="none") * known
    share = known.sum(1).clamp(min=1)
    commitment = (latents - code).square().mean(1)
    total = (error.sum(1) / share + COMMITMENT * commitment).sum()
    return total, code_sums(flat, tokenizer.codes, tokens)
