"""What particles, or hits of showers, are to a tokeniser: some of their features on a scale, and
the nearest code."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from jetkern import ops
from jetkern.clouds import Clouds, Sets
from jetkern.jets import Jets
from jetkern.packed import constant
from jetkern.tokenizers.scale import QuantileNormal

KINEMATICS = ("delta_eta", "delta_phi", "ln_pt", "ln_energy")
TRACKS = ("d0", "d0_error", "dz", "dz_error")
FEATURES = KINEMATICS + TRACKS
"""The columns of ``Jets.particles`` and ``Jets.tracks``, as they are stored"""
HITS = ("x", "y", "layer", "ln_hit_energy")
"""Of showers: numbers of cells, and ln of the energy / MeV. They go together: without one of them a
code would be no hit."""

AnySets = TypeVar("AnySets", bound=Sets)


class Tokenizer(nn.Module):
    """The scale of some features of particles and, if there are any, the codes of a codebook.

    A particle that has no track (all four numbers zero, as neutral ones have them) has 0 on the
    scale of the track features, the median of those that have one, and its tracks are not known.
    Of ``HITS`` what is said here of particles and jets holds for hits and showers, which come as
    ``jetkern.clouds.Clouds``.

    Args:
        features: of ``FEATURES``, in that order, or ``HITS``.
        scale: of these features.
        codes: (K, F) on that scale; K is 0 for a scale alone.

    Raises:
        ValueError: for features that are unknown, repeated or in another order, or that do not fit
            the scale and the codes.
    """

    codes: Tensor

    def __init__(self, features: Sequence[str], scale: QuantileNormal, codes: Tensor) -> None:
        super().__init__()
        self.features = check_features(features)
        width = len(self.features)
        if scale.quantiles.shape[0] != width or codes.ndim != 2 or codes.shape[1] != width:
            raise ValueError(f"{width} features, but a scale or codes of other widths")
        self.scale = scale
        self.register_buffer("codes", codes.float().contiguous())
        self._kinematic = [KINEMATICS.index(f) for f in self.features if f in KINEMATICS]
        self._tracked = [TRACKS.index(f) for f in self.features if f in TRACKS]

    @classmethod
    def blank(cls, features: Sequence[str], codes: int) -> Tokenizer:
        """One whose scale and codes will be read from a checkpoint."""
        return cls(features, QuantileNormal.blank(len(features)), torch.zeros(codes, len(features)))

    @property
    def fields(self) -> tuple[str, ...]:
        """The optional fields of jets that it reads."""
        return ("tracks",) if self._tracked else ()

    @property
    def of_hits(self) -> bool:
        """Whether it reads showers, not jets."""
        return self.features == HITS

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the features, the scale and the codes: equal ones give equal tokens."""
        digest = hashlib.sha256(",".join(self.features).encode())
        for value in (self.scale.quantiles, self.codes):
            digest.update(value.detach().cpu().float().numpy().astype("<f4").tobytes())
        return digest.hexdigest()

    def values(self, jets: Sets) -> tuple[Tensor, Tensor]:
        """(T, F) features as they are stored, and (T, F) bool whether a particle has them.

        Raises:
            ValueError: for jets without tracks, if these are among the features; for showers given
                to a tokeniser of jets, and the other way round.
        """
        if isinstance(jets, Clouds) and self.of_hits:
            # In float64: the last bit of a float32's logarithm depends on its place in the batch.
            energy = jets.points[:, 3:].double().log().to(jets.points.dtype)
            values = torch.cat([jets.points[:, :3], energy], 1)
            return values, torch.ones_like(values, dtype=torch.bool)
        if self.of_hits or not isinstance(jets, Jets):
            own, other = ("showers", "jets") if self.of_hits else ("jets", "showers")
            raise ValueError(f"this tokeniser reads {own}, these are {other}")
        columns = [_columns(jets.particles, self._kinematic)]
        known = torch.ones_like(columns[0], dtype=torch.bool)
        if self._tracked:
            if jets.tracks is None:
                raise ValueError("this tokeniser reads tracks, but the jets have none")
            columns.append(_columns(jets.tracks, self._tracked).to(columns[0].dtype))
            tracked = (jets.tracks != 0).any(1, keepdim=True).expand(-1, len(self._tracked))
            known = torch.cat([known, tracked], 1)
        return torch.cat(columns, 1), known

    def scaled(self, jets: Sets) -> tuple[Tensor, Tensor]:
        """(T, F) float32 features on the normal scale, 0 where a particle has none, and (T, F)
        bool whether it has."""
        values, known = self.values(jets)
        return self.scale(values).where(known, 0.0), known

    def tokens(self, jets: Sets) -> Tensor:
        """(T,) int64 code of each particle.

        Raises:
            ValueError: if there are no codes.
        """
        if not self.codes.shape[0]:
            raise ValueError("this tokeniser has a scale but no codes: it was fitted without")
        return ops.nearest_code(self.scaled(jets)[0], self.codes)

    def tokens_of(self, jets: Jets, chosen: Jets, places: Tensor) -> Tensor:
        """(M,) int64 codes of some particles of whole jets.

        Args:
            jets: T particles; chosen: the same jets with M of them, places: (M,) which these are.
        """
        return self.tokens(chosen)  # a code depends on its particle alone

    def decoded(self, tokens: Tensor) -> Tensor:
        """(T, F) features of the codes, as they are stored.

        Args:
            tokens: (T,) int64.
        """
        return self.scale.inverse(self.codes[tokens])

    def approximated(self, jets: Sets, tokens: Tensor) -> Tensor:
        """(T, F) what the tokens say of particles, on the normal scale.

        Args:
            jets: T particles; tokens: (T,) int64 of them.
        """
        return self.codes[tokens]

    def reconstructed(self, jets: AnySets, tokens: Tensor) -> AnySets:
        """The jets with what their tokens say of the kinematics; energies keep their ratio to pT.
        Of showers all numbers of the hits, in whole cells.

        Args:
            jets: T particles; tokens: (T,) int64 of them.
        """
        decoded = self.scale.inverse(self.approximated(jets, tokens))
        if not isinstance(jets, Jets):
            energy = decoded[:, 3:].double().exp().to(decoded.dtype)
            return jets.replace(points=torch.cat([decoded[:, :3].round(), energy], 1))
        particles = jets.particles.clone()
        for column, kinematic in enumerate(self._kinematic):
            particles[:, kinematic] = decoded[:, column]
        if "ln_energy" not in self.features:
            particles[:, 3] += particles[:, 2] - jets.particles[:, 2]
        return jets.replace(particles=particles)


def _columns(x: Tensor, columns: list[int]) -> Tensor:
    return x.index_select(1, constant(tuple(columns), torch.int64, x.device))


def check_features(features: Sequence[str]) -> tuple[str, ...]:
    """The features, if they are some of ``FEATURES`` in their order, or ``HITS``.

    Raises:
        ValueError: if they are not.
    """
    if tuple(features) == HITS:
        return HITS
    if not features or [f for f in FEATURES if f in features] != list(features):
        raise ValueError(
            f"features {', '.join(features) or 'none'}: take some of {', '.join(FEATURES)}, in "
            f"this order, or of showers {', '.join(HITS)}, all four"
        )
    return tuple(features)
