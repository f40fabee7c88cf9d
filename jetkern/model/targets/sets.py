"""Set-to-set flow matching: all hidden particles of a jet at once (MPMv2, arXiv 2409.12589)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jetkern.jets import IDENTITIES
from jetkern.model.config import PETConfig
from jetkern.model.layers import AttentionBlock, TokenBlock
from jetkern.model.targets import gaussian
from jetkern.model.targets.flow_matching import POINTS, TIMES, time_features
from jetkern.model.targets.target import NOISE, Hidden, Target, known_mean


class SetFlow(Target):
    """Squared error of the velocity from a jet's hidden particles to noise, with one time a jet.

    The particles' features, and their identities as numbers of which one is 1, move together;
    each block lets them attend to one another and to the body's rows, and the time scales and
    shifts what goes into it (compare DiT, arXiv 2212.09748). There are no mask tokens: particles
    are told apart by where they are. Features and identities are logged apart, since many of the
    latter are easy.
    """

    decoded = False

    @classmethod
    def parts(cls, config: PETConfig) -> dict[str, float]:
        features = len(config.target_features)
        if not config.use_pid:
            return {"": 1.0}
        whole = features + IDENTITIES
        return {"": features / whole, "_identity": IDENTITIES / whole}

    def __init__(self, config: PETConfig, width: int) -> None:
        super().__init__()
        self.continuous = len(config.target_features)
        self.identities = IDENTITIES if config.use_pid else 0
        self.features = self.continuous + self.identities
        heads, layers = config.decoder_shape
        self.embed = nn.Linear(2 * self.features, width)
        self.narrow = nn.Linear(config.dim, width)
        self.times = nn.ModuleList(nn.Linear(TIMES, 2 * width) for _ in range(layers))
        self.blocks = nn.ModuleList(
            AttentionBlock(width, heads, config.expansion) for _ in range(layers)
        )
        self.crossings = nn.ModuleList(
            TokenBlock(width, heads, config.expansion) for _ in range(layers)
        )
        self.out = nn.Linear(width, self.features)

    def initialise(self) -> None:
        """To begin with, blocks do not depend on the time."""
        for time in self.times:
            assert isinstance(time, nn.Linear)
            nn.init.zeros_(time.weight)

    def everything(self, hidden: Hidden) -> tuple[Tensor, Tensor]:
        """(M, F) features and identities, and (M, F) bool which there are."""
        values, known = hidden.values
        if not self.identities:
            return values, known
        if hidden.jets.pid is None:
            raise ValueError("the identities of hidden particles are asked for; the jets have none")
        kinds = torch.arange(IDENTITIES, device=values.device)
        named = (hidden.jets.pid[:, None] == kinds).to(values.dtype)
        return torch.cat([values, named], 1), torch.cat([known, torch.ones_like(named) > 0], 1)

    def velocity(self, x: Tensor, time: Tensor, known: Tensor, hidden: Hidden) -> Tensor:
        """(M, F) from (M, F) at times (B,); known: (M, F) bool."""
        assert hidden.body is not None
        assert hidden.body_offsets is not None
        rows = self.narrow(hidden.body)
        own = hidden.jets.offsets
        owner = hidden.jets.jet_of_particle
        x = self.embed(torch.cat([x, known.to(x.dtype)], 1))
        told = time_features(time, x.dtype)
        for modulate, block, crossing in zip(self.times, self.blocks, self.crossings, strict=True):
            scale, shift = modulate(told).index_select(0, owner).chunk(2, 1)
            x = block(x * (1 + scale) + shift, own)
            x = crossing(x, own, rows, hidden.body_offsets)
        return self.out(x)

    def losses(self, hidden: Hidden) -> tuple[Tensor, ...]:
        values, known = self.everything(hidden)
        noise = hidden.normal(NOISE, self.features).to(values.dtype)
        jet_time = hidden.jet_times().to(values.dtype)
        time = jet_time[hidden.jets.jet_of_particle][:, None]
        x = ((1 - time) * values + time * noise) * known
        error = (self.velocity(x, jet_time, known, hidden) - (noise - values)).square()
        split = self.continuous
        found = known_mean(error[:, :split], known[:, :split])
        return (found, error[:, split:].mean(1)) if self.identities else (found,)

    def trivial(self, hidden: Hidden) -> tuple[float, ...]:
        """Of the normal distribution of all particles."""
        values, known = self.everything(hidden)
        split = self.continuous
        found = gaussian.velocity(values[:, :split], known[:, :split])
        if not self.identities:
            return (found,)
        return found, gaussian.velocity(values[:, split:], known[:, split:])

    def sample(self, hidden: Hidden) -> tuple[Tensor, Tensor | None]:
        """(M, F) features drawn for the hidden particles, and (M,) int64 identities, if these are
        modelled; by the midpoint rule with 50 points."""
        _, known = self.everything(hidden)
        assert hidden.body is not None
        x = hidden.normal(NOISE, self.features).to(hidden.body.dtype) * known
        step = 1 / POINTS
        for number in range(POINTS):
            time = torch.full((len(hidden.whole),), 1 - number * step, dtype=x.dtype)
            time = time.to(x.device)
            half = x - step / 2 * self.velocity(x, time, known, hidden) * known
            x = x - step * self.velocity(half, time - step / 2, known, hidden) * known
        features, named = x.split([self.continuous, self.identities], 1)
        return features, named.argmax(1) if self.identities else None
